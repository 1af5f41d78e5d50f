package cli

import (
	"github.com/spf13/cobra"
)

func (c *command) completion() *cobra.Command {
	return &cobra.Command{
		Use:   "completion (bash|zsh|fish|powershell)",
		Short: "Print a script that completes commands and flags in a shell",
		Long: `Print a script that completes commands and flags in a shell.

  bash        source <(tidemark completion bash)
  zsh         tidemark completion zsh > "${fpath[1]}/_tidemark"
  fish        tidemark completion fish > ~/.config/fish/completions/tidemark.fish
  powershell  tidemark completion powershell | Out-String | Invoke-Expression
` + exitStatuses,
		ValidArgs: []string{"bash", "zsh", "fish", "powershell"},
		Args:      cobra.MatchAll(cobra.ExactArgs(1), cobra.OnlyValidArgs),
		RunE: func(cmd *cobra.Command, args []string) error {
			root := cmd.Root()
			switch args[0] {
			case "bash":
				return root.GenBashCompletionV2(c.Out, true)
			case "zsh":
				return root.GenZshCompletion(c.Out)
			case "fish":
				return root.GenFishCompletion(c.Out, true)
			default:
				return root.GenPowerShellCompletionWithDesc(c.Out)
			}
		},
	}
}

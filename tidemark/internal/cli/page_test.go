package cli_test

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/tidemark/internal/cli"
	"github.com/tidemark/tidemark/tidemark/internal/client"
)

var update = flag.Bool("update", false, "write docs/cli.md anew")

// The page is made from the commands: go test ./tidemark/internal/cli -run CommandLinePage -update
func TestCommandLinePageIsThatOfTheCommands(t *testing.T) {
	t.Parallel()
	file := filepath.Join("..", "..", "..", "docs", "cli.md")
	page := commandLinePage()
	if *update {
		require.NoError(t, os.WriteFile(file, []byte(page), 0o600))
	}
	there, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Equal(t, page, string(there), "run this test with -update")
}

func commandLinePage() string {
	root := cli.NewRoot(cli.Surroundings{Environ: map[string]string{"XDG_STATE_HOME": "/home/you/.local/state"}})
	_, statuses, _ := strings.Cut(root.Long, "Exit status:\n")
	var b strings.Builder
	b.WriteString(`# The command line

Made from the commands themselves; a test holds the two together. Every command takes ` + "`--output json`" + ` where it answers
anything. Long work shows a progress bar on a terminal and plain lines in a pipe, on the standard error output, so that what is
printed can be read by a program. Errors say what to do.

## Exit status

| status | meaning |
| --- | --- |
`)
	for line := range strings.Lines(statuses) {
		status, meaning, _ := strings.Cut(strings.TrimSpace(line), " ")
		fmt.Fprintf(&b, "| %s | %s |\n", status, strings.TrimSpace(meaning))
	}
	b.WriteString("\n## Environment\n\n| variable | default | what it is |\n| --- | --- | --- |\n")
	for _, s := range client.Settings() {
		value, what := "empty", s.Description
		if s.Value != "" {
			value = "`" + s.Value + "`"
		}
		if s.Secret != "" {
			what += "; secret: `" + s.Name + "_FILE` too"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s |\n", s.Name, value, what)
	}
	b.WriteString("\n`up` and `doctor` take the services' variables as well: [configuration](configuration.md).\n")
	root.InitDefaultCompletionCmd() // cobra adds it when the command line runs
	for _, cmd := range root.Commands() {
		describe(&b, cmd, "##")
	}
	return b.String()
}

func describe(b *strings.Builder, cmd *cobra.Command, heading string) {
	if !cmd.IsAvailableCommand() || cmd.IsAdditionalHelpTopicCommand() {
		return
	}
	long, _, _ := strings.Cut(cmd.Long, "\nExit status:")
	fmt.Fprintf(b, "\n%s %s\n\n```\n%s\n```\n\n%s\n", heading, cmd.CommandPath(), cmd.UseLine(), strings.TrimSpace(long))
	if cmd.Example != "" {
		fmt.Fprintf(b, "\n```sh\n%s\n```\n", strings.ReplaceAll(strings.TrimPrefix(cmd.Example, "  "), "\n  ", "\n"))
	}
	var flags []string
	cmd.LocalFlags().VisitAll(func(f *pflag.Flag) {
		if f.Hidden || f.Name == "help" {
			return
		}
		name := "--" + f.Name
		if f.Shorthand != "" {
			name = "-" + f.Shorthand + ", " + name
		}
		if kind, _ := pflag.UnquoteUsage(f); kind != "" {
			name += " " + kind
		}
		text := f.Usage
		if f.DefValue != "" && f.DefValue != "false" && f.DefValue != "[]" {
			text += " (default " + f.DefValue + ")"
		}
		flags = append(flags, fmt.Sprintf("| `%s` | %s |\n", name, strings.ReplaceAll(text, "|", `\|`)))
	})
	if len(flags) > 0 {
		fmt.Fprintf(b, "\n| flag | what it does |\n| --- | --- |\n%s", strings.Join(flags, ""))
	}
	for _, sub := range cmd.Commands() {
		describe(b, sub, heading+"#")
	}
}

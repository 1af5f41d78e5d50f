package cli

import (
	"bufio"
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
)

// consent is how somebody agrees to what cannot be taken back: by --yes, or by an answer at a terminal. Without either nothing is
// done, so that a script which meant something else loses nothing.
type consent struct{ yes, dryRun bool }

func (o *consent) flags(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&o.yes, "yes", false, "do it without asking; needed where there is no terminal to ask at")
	cmd.Flags().BoolVar(&o.dryRun, "dry-run", false, "say what would be done and lost, and do nothing")
}

// agrees reports whether what is about to be done, told as one sentence without a full stop, is agreed to. With --dry-run it is
// printed and not done. The error says that nobody could be asked, or that the answer was no.
func (c *command) agrees(ctx context.Context, o consent, sentence string) (bool, error) {
	switch {
	case o.dryRun:
		c.print(map[string]any{"dry_run": true, "would": sentence}, [2]string{"dry run", sentence})
		return false, nil
	case o.yes:
		return true, nil
	case !c.Interactive:
		return false, end(misused, "%s.\nNothing was done, since there is no terminal to ask at: --yes does it, --dry-run only says what it would do", sentence)
	}
	fmt.Fprintf(c.Err, "%s.\nGo on? [y/N] ", sentence)
	answers := make(chan string, 1)
	go func() { // a read of a terminal cannot be called off
		line, _ := bufio.NewReader(c.In).ReadString('\n')
		answers <- strings.ToLower(strings.TrimSpace(line))
	}()
	select {
	case answer := <-answers:
		if answer == "y" || answer == "yes" {
			return true, nil
		}
	case <-ctx.Done():
	}
	return false, end(misused, "nothing was done")
}

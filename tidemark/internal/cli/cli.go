// Package cli is the command line: it reads arguments, calls the client or the app, prints for people or as JSON, and
// turns what came of it into an exit status. It holds no knowledge of the services but their answers.
package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/tidemark/tidemark/shared/service"
	"github.com/tidemark/tidemark/tidemark/internal/client"
)

// Exit statuses, for scripts.
const (
	ok        = 0
	failed    = 1 // no answer, a failure on the other side, or something is not as it should be
	misused   = 2 // the command line or the environment is wrong
	refused   = 3 // the service refused the request: sending it again will not help
	uncertain = 4 // the command may have been accepted; the same --key repeats it safely
	notYet    = 5 // what was asked for is not there yet
	rejected  = 6 // the record is a dead letter
)

const exitStatuses = `
Exit status:
  0  done
  1  no answer, a failure on the other side, or something is not as it should be
  2  the command line or the environment is wrong
  3  the service refused the request: sending it again will not help
  4  the command may have been accepted: repeat it with the key that is printed
  5  what was asked for is not there yet
  6  the record is a dead letter`

// Surroundings are what a command sees of the process it runs in. All are required.
type Surroundings struct {
	Environ  map[string]string // the environment
	In       io.Reader         // the standard input, for `stamp --file -` and the like
	Out, Err io.Writer         // the standard output and the standard error output
	Terminal bool              // whether Err is a terminal, which may show a progress bar
	// Interactive is whether In and Err both are, so that somebody can be asked.
	Interactive bool
}

// ended is how a command that was understood came to its end.
type ended struct {
	status int
	err    error
}

func (e *ended) Error() string { return e.err.Error() }
func (e *ended) Unwrap() error { return e.err }

func end(status int, format string, args ...any) error {
	return &ended{status, fmt.Errorf(format, args...)}
}

// command is one run of the command line.
type command struct {
	Surroundings
	output string
}

// Run carries out one command line and returns its exit status.
func Run(ctx context.Context, args []string, around Surroundings) int {
	root := newRoot(around)
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return ok
	}
	var e *ended
	if !errors.As(err, &e) { // cobra's own: it did not get as far as running a command
		fmt.Fprintf(around.Err, "tidemark: %v\nTry: tidemark --help\n", err)
		return misused
	}
	fmt.Fprintf(around.Err, "tidemark: %v\n", e.err)
	return e.status
}

// newRoot returns the whole command line.
func newRoot(around Surroundings) *cobra.Command {
	c := &command{Surroundings: around}
	root := &cobra.Command{
		Use:           "tidemark",
		Short:         "Commands in over HTTP, a Kafka log, an exactly-once projection in Postgres",
		Long:          "tidemark up runs everything in one process; the other commands are a client of what runs.\n" + exitStatuses,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.AddCommand(c.up(), c.env(), c.keys(), c.stamp(), c.ticket(), c.status())
	root.AddCommand(c.endpoints(), c.deadletters(), c.rebuild(), c.audit(), c.doctor())
	root.SetOut(c.Out)
	root.SetErr(c.Err)
	return root
}

// withOutput adds the choice between text and JSON.
func (c *command) withOutput(cmd *cobra.Command) *cobra.Command {
	cmd.Flags().StringVarP(&c.output, "output", "o", "text", "text or json")
	_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"text", "json"}, cobra.ShellCompDirectiveNoFileComp))
	cmd.PreRunE = func(*cobra.Command, []string) error {
		if c.output != "text" && c.output != "json" {
			return fmt.Errorf("--output %q: must be text or json", c.output)
		}
		return nil
	}
	return cmd
}

// print writes v as JSON, or the rows as text: a name and a value each. Rows without a value are left out.
func (c *command) print(v any, rows ...[2]string) {
	if c.output == "json" {
		encoder := json.NewEncoder(c.Out)
		encoder.SetEscapeHTML(false)
		encoder.SetIndent("", "  ")
		_ = encoder.Encode(v)
		return
	}
	w := tabwriter.NewWriter(c.Out, 0, 0, 2, ' ', 0)
	for _, row := range rows {
		if row[1] != "" {
			fmt.Fprintf(w, "%s\t%s\n", row[0], row[1])
		}
	}
	_ = w.Flush()
}

// client returns a client of the services that the environment names.
func (c *command) client() (*client.Client, error) {
	services, err := client.LoadServices(c.Environ)
	if err != nil {
		return nil, &ended{misused, err}
	}
	return client.New(services), nil
}

// status of a request that did not succeed, with advice where there is some.
func requestFailed(err error) error {
	var problem *client.Problem
	if errors.As(err, &problem) {
		switch {
		case problem.Status == 404 || problem.Status == 504:
			return &ended{notYet, err}
		case problem.Status == 401:
			return end(refused, "%w\nTIDEMARK_API_KEY names the key to show: one that is active (tidemark keys list says which are).", err)
		case problem.Status == 429:
			return &ended{failed, err}
		case problem.Status/100 == 4:
			return &ended{refused, err}
		}
		return &ended{failed, err}
	}
	var unreachable *client.Unreachable
	if errors.As(err, &unreachable) {
		where := "its URL's variable"
		if s, ok := service.ByName(unreachable.Service); ok {
			where = s.URLVariable()
		}
		return end(failed, "%w\nIs it running? tidemark up starts everything here; %s names one elsewhere.", err, where)
	}
	return &ended{failed, err}
}

func text(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

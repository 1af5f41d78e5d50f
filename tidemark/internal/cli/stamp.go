package cli

import (
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/tidemark/tidemark/shared/api/query"
	"github.com/tidemark/tidemark/shared/ticket"
	"github.com/tidemark/tidemark/tidemark/internal/client"
)

// stamped is the JSON answer of stamp.
type stamped struct {
	client.Accepted
	Key    string           `json:"key"`
	Record *query.Timestamp `json:"record,omitempty"`
}

func (c *command) stamp() *cobra.Command {
	var key, file string
	var from int64
	var wait, patience time.Duration
	cmd := &cobra.Command{
		Use:   "stamp [INSTANT | --file FILE]",
		Short: "Send timestamp commands and print their tickets",
		Long: `Send a timestamp command and print its ticket and its position in the log.

INSTANT is an RFC 3339 instant, now where none is given. Every command is sent with a key, so that one whose outcome is
unknown can be repeated: with the same key and instant it is the same command and makes one row, however often it is sent.

With --file every line of a file is a command: an RFC 3339 instant, or JSON as the bulk stream takes it ("…" or
{"event_timestamp":"…","id":"…"}, both members optional); empty lines are passed over. The lines go over one stream, and
again when it breaks or the log is down, for as long as --retry-for lasts without a line accepted. Every line has a key,
its own id or one made of --key, its number and its content: a run that did not get to its end says how to go on, and
nothing counts twice. The key is printed on the standard error output before anything is sent, so a run that was cut in any
way, by a signal or a closed pipe too, goes on with --key, from its beginning or from --from-line. Lines of the standard
input are answered as their answers come; so is every line with --output json: its number, ticket, position and key, or
its error.
` + exitStatuses,
		Example: "  tidemark stamp 2009-09-28T19:03:12Z --wait\n  tidemark stamp --file instants.txt --output json > tickets.ndjson\n  tail -f instants.txt | tidemark stamp --file -",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if file != "" {
				if len(args) > 0 || wait > 0 {
					return end(misused, "--file takes the instants from the file: give neither INSTANT nor --wait")
				}
				return c.stampFile(cmd.Context(), file, key, from, patience)
			}
			var instant string
			if len(args) == 1 {
				instant = args[0]
			}
			if key == "" {
				id, err := ticket.New()
				if err != nil {
					return &ended{failed, err}
				}
				key = id.String()
			}
			services, err := c.client()
			if err != nil {
				return err
			}
			defer services.Close()
			sent, err := services.Stamp(cmd.Context(), instant, key)
			if err != nil {
				return stampFailed(err, instant, key)
			}
			answer := stamped{Accepted: sent, Key: key}
			rows := [][2]string{{"ticket", sent.Id}, {"position", sent.Position}}
			if wait > 0 {
				record, err := services.Record(cmd.Context(), sent.Id, sent.Position, wait)
				if err != nil {
					c.print(answer, rows...)
					return requestFailed(fmt.Errorf("accepted, but its row was not seen within %s: %w", wait, err))
				}
				answer.Record = &record
				rows = append(rows, [2]string{"event_timestamp", record.EventTimestamp}, [2]string{"created_at", record.CreatedAt})
			}
			c.print(answer, rows...)
			return nil
		},
	}
	cmd.Flags().StringVar(&key, "key", "", "key of the command (a UUID); a fresh one where none is given")
	cmd.Flags().StringVarP(&file, "file", "f", "", "stamp each line of a file; - is the standard input")
	cmd.Flags().Int64Var(&from, "from-line", 1, "with --file: pass over the lines before this one")
	cmd.Flags().DurationVar(&patience, "retry-for", time.Minute, "with --file: how long to go on trying while nothing is accepted")
	cmd.Flags().DurationVar(&wait, "wait", 0, "wait so long for the row; --wait alone means 5s")
	cmd.Flags().Lookup("wait").NoOptDefVal = "5s"
	return c.withOutput(cmd)
}

// outcomeUnknown says that a command may have been accepted although it ended in an error.
func outcomeUnknown(err error) bool {
	var problem *client.Problem
	if errors.As(err, &problem) {
		return problem.RetryKey != ""
	}
	var unreachable *client.Unreachable
	return errors.As(err, &unreachable) && unreachable.Unknown()
}

// stampFailed tells a refusal from an outcome that nobody knows.
func stampFailed(err error, instant, key string) error {
	if !outcomeUnknown(err) {
		return requestFailed(err)
	}
	again := "tidemark stamp"
	if instant != "" {
		again += " " + instant
	}
	return end(uncertain, "%w\nThe command may have been accepted. This repeats it safely: %s --key %s", err, again, key)
}

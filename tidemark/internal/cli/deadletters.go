package cli

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/tidemark/tidemark/shared/api/query"
	"github.com/tidemark/tidemark/tidemark/internal/client"
)

const letterPage = 500 // letters of one request for a list

// exported is one line of an export, and of what redrive --file takes.
type exported struct {
	Position   string `json:"position"`
	Payload    string `json:"payload"`
	ReasonCode string `json:"reason_code,omitempty"`
	Reason     string `json:"reason,omitempty"`
}

func (c *command) deadletters() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "deadletters",
		Short: "List, show, discard and redrive dead letters",
		Long: `List, show, discard and redrive dead letters: records that cannot be read, or that Postgres refuses.

A decision is an event in the log, so that a rebuild keeps it. A dead letter is decided once: a second decision is refused with
what was decided and when, and nothing is written. A run that was cut, or whose outcome is unknown, goes on with the key that it
printed first: tidemark deadletters … --key KEY. What it decided before then counts as done.
` + exitStatuses,
	}
	cmd.AddCommand(c.lettersList(), c.lettersSummary(), c.lettersShow(), c.lettersDiscard(), c.lettersRedrive(), c.lettersExport())
	return cmd
}

// searched adds the flags that choose dead letters.
func (c *command) searched(cmd *cobra.Command, s *client.LetterSearch) {
	cmd.Flags().StringVar(&s.State, "state", "open", "open, discarded, redriven or all")
	_ = cmd.RegisterFlagCompletionFunc("state", cobra.FixedCompletions([]string{"open", "discarded", "redriven", "all"}, cobra.ShellCompDirectiveNoFileComp))
	c.searchedOpen(cmd, s)
}

// searchedOpen is searched for what is done to open ones only.
func (c *command) searchedOpen(cmd *cobra.Command, s *client.LetterSearch) {
	cmd.Flags().StringVarP(&s.Text, "search", "q", "", "a text in the payload or in the reason")
	cmd.Flags().StringVar(&s.ReasonCode, "reason-code", "", "why they were rejected, such as decode")
	c.projectionFlag(cmd, &s.Projection, "of this projection only; of all unless given")
	cmd.Flags().IntVar(&s.Partition, "partition", -1, "of this partition only; any unless given")
}

// each hands the letters of a search to got, page by page, until it returns false.
func each(ctx context.Context, services *client.Client, s client.LetterSearch, after string, got func(query.DeadLetter) (bool, error)) (next string, err error) {
	for {
		page, following, err := services.DeadLetters(ctx, s, after, letterPage)
		if err != nil {
			return after, requestFailed(err)
		}
		for _, d := range page {
			more, err := got(d)
			if err != nil || !more {
				return d.Position, err
			}
		}
		if following == "" {
			return "", nil
		}
		after = following
	}
}

func (c *command) lettersList() *cobra.Command {
	var s client.LetterSearch
	var limit int
	var after string
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List dead letters, the newest first",
		Long: `List dead letters, the newest first by the log's own time: the open ones, on which nobody has decided, unless --state says else.
` + exitStatuses,
		Example: "  tidemark deadletters list -q event_timestamp --limit 20",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			services, err := c.client()
			if err != nil {
				return err
			}
			defer services.Close()
			s.Newest = true
			items := []query.DeadLetter{}
			next, err := each(cmd.Context(), services, s, after, func(d query.DeadLetter) (bool, error) {
				if len(items) == limit {
					return false, nil
				}
				items = append(items, d)
				return true, nil
			})
			if err != nil {
				return err
			}
			if next != "" && len(items) > 0 {
				next = items[len(items)-1].Position
			}
			if c.output == "json" {
				c.print(map[string]any{"items": items, "next": next})
				return nil
			}
			w := tabwriter.NewWriter(c.Out, 0, 0, 2, ' ', 0)
			for _, d := range items {
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", d.Position, d.FirstSeenAt, d.State, oneLine(d.Reason, 80), oneLine(text(d.Payload), 60))
			}
			_ = w.Flush()
			if next != "" {
				fmt.Fprintf(c.Err, "tidemark: there are more: --after %s\n", next)
			}
			return nil
		},
	}
	c.searched(cmd, &s)
	cmd.Flags().IntVar(&limit, "limit", 50, "most letters to list")
	cmd.Flags().StringVar(&after, "after", "", "only those that follow this one in the list, as it said itself")
	return c.withOutput(cmd)
}

func (c *command) lettersSummary() *cobra.Command {
	var s client.LetterSearch
	cmd := &cobra.Command{
		Use:   "summary",
		Short: "Count dead letters by reason, producer and hour",
		Long: `Count dead letters by reason, producer and hour, the newest hour first: the open ones, on which nobody has decided, unless
--state says else. At most the newest 10,000 of each projection are looked at; where there are more, standard error says so.
` + exitStatuses,
		Example: "  tidemark deadletters summary --state all",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			services, err := c.client()
			if err != nil {
				return err
			}
			defer services.Close()
			sum, err := services.LetterSummary(cmd.Context(), s)
			if err != nil {
				return requestFailed(err)
			}
			if c.output == "json" {
				c.print(sum)
				return nil
			}
			w := tabwriter.NewWriter(c.Out, 0, 0, 2, ' ', 0)
			for _, g := range sum.Groups {
				producer := g.Producer
				if producer == "" {
					producer = "-"
				}
				fmt.Fprintf(w, "%s\t%s\t%s\t%d\n", g.Hour, g.ReasonCode, oneLine(producer, 60), g.Letters)
			}
			_ = w.Flush()
			if sum.Bounded {
				fmt.Fprintln(c.Err, "tidemark: only the newest 10,000 dead letters of each projection are counted")
			}
			return nil
		},
	}
	c.searched(cmd, &s)
	return c.withOutput(cmd)
}

func oneLine(s string, most int) string {
	s = strings.Join(strings.Fields(strings.ToValidUTF8(s, "?")), " ")
	if runes := []rune(s); len(runes) > most {
		return string(runes[:most]) + "…"
	}
	return s
}

func (c *command) lettersShow() *cobra.Command {
	return c.withOutput(&cobra.Command{
		Use:     "show POSITION",
		Short:   "Show one dead letter with its whole payload, its headers and what was decided on it",
		Long:    "Show one dead letter with its whole payload, its headers and what was decided on it.\n" + exitStatuses,
		Example: "  tidemark deadletters show timestamp.command.v1/3@17",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			services, err := c.client()
			if err != nil {
				return err
			}
			defer services.Close()
			d, err := services.DeadLetter(cmd.Context(), args[0])
			if err != nil {
				return requestFailed(err)
			}
			rows := [][2]string{
				{"position", d.Position}, {"projection", d.Projection}, {"first seen", d.FirstSeenAt}, {"state", string(d.State)},
				{"reason", d.Reason + " (" + d.ReasonCode + ")"}, {"headers", headers(d.Headers)},
				{"payload", text(d.Payload)}, {"encoding", string(d.PayloadEncoding)}, {"bytes", strconv.Itoa(d.PayloadBytes)},
			}
			if d.Decision != nil {
				rows = append(rows, [2]string{"decision", string(d.Decision.Decision)}, [2]string{"decided at", d.Decision.DecidedAt},
					[2]string{"by", d.Decision.By}, [2]string{"note", d.Decision.Note}, [2]string{"new ticket", text(d.Decision.Ticket)},
					[2]string{"decided in", d.Decision.Position})
			}
			c.print(d, rows...)
			return nil
		},
	})
}

// headers are a letter's as JSON, as they came.
func headers(came any) string {
	text, err := json.Marshal(came)
	if err != nil || came == nil {
		return ""
	}
	return string(text)
}

func (c *command) lettersExport() *cobra.Command {
	var s client.LetterSearch
	var file string
	cmd := &cobra.Command{
		Use:   "export",
		Short: "Write dead letters as NDJSON, to be edited and redriven",
		Long: `Write dead letters as NDJSON, one a line: position, payload and reason. Edit the payloads and hand the file to
tidemark deadletters redrive --file. A payload that is no text cannot be edited so, and is left out with a warning.
` + exitStatuses,
		Example: "  tidemark deadletters export --reason-code decode > letters.ndjson",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			services, err := c.client()
			if err != nil {
				return err
			}
			defer services.Close()
			into := c.Out
			if file != "" {
				f, err := os.OpenFile(file, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
				if err != nil {
					return &ended{misused, err}
				}
				defer func() { err = errors.Join(err, f.Close()) }()
				into = f
			}
			out := bufio.NewWriter(into)
			shown := c.progress("exporting", 0)
			defer shown.end()
			written, left := 0, 0
			_, err = each(cmd.Context(), services, s, "", func(d query.DeadLetter) (bool, error) {
				if d.PayloadTruncated {
					whole, err := services.DeadLetter(cmd.Context(), d.Position)
					if err != nil {
						return false, requestFailed(err)
					}
					d.Payload, d.PayloadEncoding = whole.Payload, whole.PayloadEncoding
				}
				if d.PayloadEncoding == query.Base64 {
					left++
					fmt.Fprintf(c.Err, "tidemark: %s is left out: its payload is no text (tidemark deadletters show has it in base64)\n", d.Position)
					return true, nil
				}
				encoder := json.NewEncoder(out)
				encoder.SetEscapeHTML(false)
				written++
				shown.at(int64(written), 0, "exporting", fmt.Sprintf("%d letters", written))
				return true, encoder.Encode(exported{d.Position, text(d.Payload), d.ReasonCode, d.Reason})
			})
			shown.end()
			if err = errors.Join(err, out.Flush()); err != nil {
				return err
			}
			if file != "" {
				c.print(map[string]any{"file": file, "written": written, "left_out": left},
					[2]string{"file", file}, [2]string{"written", strconv.Itoa(written)}, [2]string{"left out", strconv.Itoa(left)})
			}
			return nil
		},
	}
	c.searched(cmd, &s)
	cmd.Flags().StringVarP(&file, "file", "f", "", "write to this new file instead of the standard output")
	return c.withOutput(cmd)
}

package cli

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	door "github.com/tidemark/tidemark/shared/api/command"
	"github.com/tidemark/tidemark/shared/api/query"
	"github.com/tidemark/tidemark/shared/ticket"
	"github.com/tidemark/tidemark/tidemark/internal/client"
)

const (
	letterPage  = 500     // letters of one request for a list
	letterBatch = 1_000   // that one request may decide on
	batchBytes  = 3 << 20 // of payloads in one request: the service takes 8 MiB, and JSON makes them longer
	longestJSON = 16 << 20

	visibleWithin = 5 * time.Second // a decision is, unless the projection is down
)

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
		Long: `List, show, discard and redrive dead letters: records that could not be projected.

A decision is an event in the log, so that a rebuild keeps it. A dead letter is decided once: a second decision is refused with
what was decided and when, and nothing is written. A run that was cut, or whose outcome is unknown, goes on with the key that it
printed first: tidemark deadletters … --key KEY. What it decided before then counts as done.
` + exitStatuses,
	}
	cmd.AddCommand(c.lettersList(), c.lettersShow(), c.lettersDiscard(), c.lettersRedrive(), c.lettersExport())
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
		Short: "List dead letters in the order of their positions",
		Long: `List dead letters in the order of their positions: the open ones, on which nobody has decided, unless --state says else.
` + exitStatuses,
		Example: "  tidemark deadletters list -q event_timestamp --limit 20",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			services, err := c.client()
			if err != nil {
				return err
			}
			defer services.Close()
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
	cmd.Flags().StringVar(&after, "after", "", "only those above this position")
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

func (c *command) lettersDiscard() *cobra.Command {
	var s client.LetterSearch
	var note, key string
	var all bool
	cmd := &cobra.Command{
		Use:   "discard [POSITION… | --all]",
		Short: "Discard dead letters: nothing more will be done about them",
		Long: `Discard dead letters: those that are named, or with --all every open one of a search.
` + exitStatuses,
		Example: "  tidemark deadletters discard timestamp.command.v1/3@17 --note 'a test of last week'\n  tidemark deadletters discard --all -q load-test",
		RunE: func(cmd *cobra.Command, args []string) error {
			if all == (len(args) > 0) {
				return end(misused, "name positions, or choose with --all and a search")
			}
			services, err := c.client()
			if err != nil {
				return err
			}
			defer services.Close()
			if all {
				s.State = "open"
				if args, err = openPositions(cmd.Context(), services, s); err != nil {
					return err
				}
			}
			if !all {
				if err := areLetters(cmd.Context(), services, args); err != nil {
					return err
				}
			}
			return c.decide(cmd.Context(), services, decision{len(args), "discarded", key, func(int) int { return 0 }, func(from, to int, key string) ([]door.DecisionResult, string, error) {
				return services.Discard(cmd.Context(), args[from:to], note, key)
			}})
		},
	}
	c.searchedOpen(cmd, &s)
	cmd.Flags().BoolVar(&all, "all", false, "every open one that the search finds")
	keyFlag(cmd, &key)
	cmd.Flags().StringVar(&note, "note", "", "why, for those who look later")
	return c.withOutput(cmd)
}

// areLetters refuses a position that was typed and is no dead letter's: the client tells the door that they are, and a
// decision on a sound record makes every rebuild from then on reject it.
func areLetters(ctx context.Context, services *client.Client, positions []string) error {
	for _, at := range positions {
		if _, err := services.DeadLetter(ctx, at); err != nil {
			return requestFailed(fmt.Errorf("%s: %w", at, err))
		}
	}
	return nil
}

func openPositions(ctx context.Context, services *client.Client, s client.LetterSearch) ([]string, error) {
	var found []string
	_, err := each(ctx, services, s, "", func(d query.DeadLetter) (bool, error) {
		found = append(found, d.Position)
		return true, nil
	})
	return found, err
}

func (c *command) lettersRedrive() *cobra.Command {
	var file, payload, note, key string
	cmd := &cobra.Command{
		Use:   "redrive (POSITION --payload JSON | --file FILE)",
		Short: "Redrive dead letters: write a corrected command in the place of each",
		Long: `Redrive dead letters: write a new command in the place of each, one with its new payload, or with --file all lines of a file as export writes them,
after any editing. Only position and payload of a line are read. A payload that is still broken is refused with its reason,
and so is a letter that was decided on before; nothing of its batch of up to 1,000 lines is written then.
` + exitStatuses,
		Example: "  tidemark deadletters export -q 2026-13-01 > letters.ndjson\n  sed -i 's/2026-13-01/2026-12-01/' letters.ndjson\n  tidemark deadletters redrive --file letters.ndjson --note 'month 13'",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if (file == "") == (len(args) == 0) || (file == "") == (payload == "") {
				return end(misused, "name a position and its --payload, or a --file (- is the standard input)")
			}
			letters := []door.Letter{{Payload: payload}}
			if len(args) == 1 {
				letters[0].Position = args[0]
			} else {
				var err error
				if letters, err = c.readLetters(file); err != nil {
					return &ended{misused, err}
				}
			}
			services, err := c.client()
			if err != nil {
				return err
			}
			defer services.Close()
			if err := areLetters(cmd.Context(), services, args); err != nil {
				return err
			}
			return c.decide(cmd.Context(), services, decision{len(letters), "redriven", key, func(i int) int { return len(letters[i].Payload) }, func(from, to int, key string) ([]door.DecisionResult, string, error) {
				return services.Redrive(cmd.Context(), letters[from:to], note, key)
			}})
		},
	}
	cmd.Flags().StringVarP(&file, "file", "f", "", "redrive each line of a file that export wrote; - is the standard input")
	keyFlag(cmd, &key)
	cmd.Flags().StringVar(&payload, "payload", "", `the command in its place, such as {"command_id":"…","event_timestamp":"…"}`)
	cmd.Flags().StringVar(&note, "note", "", "why, for those who look later")
	return c.withOutput(cmd)
}

// readLetters reads what export wrote, whole: nothing is sent of a file with a broken line.
func (c *command) readLetters(file string) ([]door.Letter, error) {
	in := io.NopCloser(c.In)
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return nil, err
		}
		in = f
	}
	defer in.Close()
	var letters []door.Letter
	var broken []error
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, longestJSON)
	for number := 1; lines.Scan(); number++ {
		if len(bytes.TrimSpace(lines.Bytes())) == 0 {
			continue
		}
		var e exported
		err := json.Unmarshal(lines.Bytes(), &e)
		if err == nil && e.Position == "" {
			err = errors.New("it has no position")
		}
		if err != nil {
			broken = append(broken, fmt.Errorf("%s, line %d: %w", file, number, err))
			continue
		}
		letters = append(letters, door.Letter{Position: e.Position, Payload: e.Payload})
	}
	if err := lines.Err(); err != nil {
		broken = append(broken, fmt.Errorf("read %s: %w", file, err))
	}
	return letters, errors.Join(broken...)
}

// keyFlag adds the flag that makes a run the repetition of an earlier one.
func keyFlag(cmd *cobra.Command, key *string) {
	cmd.Flags().StringVar(key, "key", "", "key of an earlier run (a UUID), which this one repeats or continues; a fresh one where none is given")
}

// decision is what one run decides.
type decision struct {
	n      int    // letters
	what   string // becomes of them: redriven or discarded
	key    string // of the run that this one repeats; empty for none
	weight func(i int) int
	send   func(from, to int, key string) ([]door.DecisionResult, string, error)
}

// decide sends the decisions in batches, bounded in number and in the weight of their payloads, with a progress bar, and prints
// what became of them once readers see it. A batch that is refused does not keep the others. The key is printed before anything
// is sent, so that a run which is cut in any way can be repeated.
func (c *command) decide(ctx context.Context, services *client.Client, d decision) error {
	n, what, weight := d.n, d.what, d.weight
	if d.key == "" {
		id, err := ticket.New()
		if err != nil {
			return err
		}
		d.key = id.String()
		fmt.Fprintf(c.Err, "tidemark: the key of this run is %s; with --key it is repeated, and what it decided counts as done\n", d.key)
	}
	shown := c.progress(what, int64(n))
	decided := []door.DecisionResult{}
	var last string
	var failures []error
	for from, to := 0, 0; from < n; from = to {
		size := 0
		for to < n && to-from < letterBatch && (to == from || size+weight(to) <= batchBytes) {
			size += weight(to)
			to++
		}
		results, at, err := d.send(from, to, d.key)
		var refusal *client.Problem
		if err != nil {
			failures = append(failures, err)
			if !errors.As(err, &refusal) || (refusal.Status != 422 && refusal.Status != 409) || ctx.Err() != nil {
				break
			}
			continue
		}
		decided, last = append(decided, results...), at
		shown.at(int64(to), int64(n), what, fmt.Sprintf("%d of %d", to, n))
	}
	shown.end()
	// What is listed next should know of it. Where it does not yet, nothing is wrong with the decisions.
	_ = services.AwaitDecisions(ctx, decided, visibleWithin)
	if c.output == "json" {
		c.print(map[string]any{"results": decided, "position": last})
	} else {
		if len(decided) == 1 {
			one := decided[0]
			c.print(nil, [2]string{"position", one.Position}, [2]string{"ticket", text(one.Ticket)}, [2]string{"command", text(one.Command)}, [2]string{"decision", one.Decision})
		} else {
			c.print(nil, [2]string{what, strconv.Itoa(len(decided)) + " of " + strconv.Itoa(n)}, [2]string{"last decision", last})
		}
	}
	if len(failures) == 0 {
		return nil
	}
	err := errors.Join(failures...)
	status := failed
	var outcome *ended
	if errors.As(requestFailed(err), &outcome) {
		status = outcome.status
	}
	var unreachable *client.Unreachable
	if errors.As(err, &unreachable) && unreachable.Unknown() {
		status = uncertain
	}
	return end(status, "%w\n%d of %d were %s. Send the others again with --key %s: what this run decided counts as done", err, len(decided), n, what, d.key)
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

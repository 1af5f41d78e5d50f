package cli

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	door "github.com/tidemark/tidemark/shared/api/command"
	"github.com/tidemark/tidemark/shared/api/query"
	"github.com/tidemark/tidemark/shared/limits"
	"github.com/tidemark/tidemark/shared/ticket"
	"github.com/tidemark/tidemark/tidemark/internal/client"
)

const (
	batchRoom   = 16 << 10 // of a request's body, for what stands beside its letters: a note of 1,000 characters
	longestJSON = 16 << 20 // a line of an exported file

	visibleWithin = 5 * time.Second // a decision is, unless the projection is down
)

func (c *command) lettersDiscard() *cobra.Command {
	var s client.LetterSearch
	var note, key string
	var all bool
	var sure consent
	cmd := &cobra.Command{
		Use:   "discard [POSITION… | --all]",
		Short: "Discard dead letters: nothing more will be done about them",
		Long: `Discard dead letters: those that are named, or with --all every open one of a search. That cannot be taken back, so it says how
many they are and asks; where there is no terminal to ask at it needs --yes.
` + exitStatuses,
		Example: "  tidemark deadletters discard timestamp.command.v1/3@17 --note 'a test of last week'\n  tidemark deadletters discard --all -q load-test --dry-run\n  tidemark deadletters discard --all -q load-test --yes",
		RunE: func(cmd *cobra.Command, args []string) error {
			if all == (len(args) > 0) {
				return end(misused, "name positions, or choose with --all and a search")
			}
			services, err := c.client()
			if err != nil {
				return err
			}
			defer services.Close()
			var reasons string
			if all {
				s.State = "open"
				args, reasons, err = openLetters(cmd.Context(), services, s)
			} else {
				err = areLetters(cmd.Context(), services, args)
			}
			if err != nil {
				return err
			}
			if len(args) == 0 {
				return end(notYet, "no open dead letter is found")
			}
			agreed, err := c.agrees(cmd.Context(), sure, fmt.Sprintf("%s%s will be discarded: nothing more is done about them, and a decision cannot be taken back", counted(len(args), "dead letter"), reasons))
			if !agreed {
				return err
			}
			return c.decide(cmd.Context(), services, decision{len(args), "discarded", key, func(i int) int { return encodedSize(args[i]) }, func(from, to int, key string) ([]door.DecisionResult, string, error) {
				return services.Discard(cmd.Context(), args[from:to], note, key)
			}})
		},
	}
	c.searchedOpen(cmd, &s)
	cmd.Flags().BoolVar(&all, "all", false, "every open one that the search finds")
	sure.flags(cmd)
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

// openLetters are the positions that a search finds, and in words how many there are of each reason.
func openLetters(ctx context.Context, services *client.Client, s client.LetterSearch) (found []string, reasons string, err error) {
	of := map[string]int{}
	_, err = each(ctx, services, s, "", func(d query.DeadLetter) (bool, error) {
		found = append(found, d.Position)
		of[d.ReasonCode]++
		return true, nil
	})
	var words []string
	for _, code := range slices.Sorted(maps.Keys(of)) {
		words = append(words, fmt.Sprintf("%s: %d", code, of[code]))
	}
	return found, " (" + strings.Join(words, ", ") + ")", err
}

// counted is a number with its noun.
func counted(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return strconv.Itoa(n) + " " + noun + "s"
}

func (c *command) lettersRedrive() *cobra.Command {
	var file, payload, note, key string
	var sure consent
	cmd := &cobra.Command{
		Use:   "redrive (POSITION --payload JSON | --file FILE)",
		Short: "Redrive dead letters: write a corrected command in the place of each",
		Long: `Redrive dead letters: write a new command in the place of each, one with its new payload, or with --file all lines of a file as export writes them,
after any editing. Only position and payload of a line are read. A payload that is still broken is refused with its reason,
and so is a letter that was decided on before; nothing of its batch (up to 1,000 lines or 1 MiB) is written then. A file is asked about first;
where there is no terminal to ask at it needs --yes.
` + exitStatuses,
		Example: "  tidemark deadletters export -q 2026-13-01 > letters.ndjson\n  sed -i 's/2026-13-01/2026-12-01/' letters.ndjson\n  tidemark deadletters redrive --file letters.ndjson --note 'month 13' --yes",
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
			sentence := counted(len(letters), "dead letter") + " will be redriven: each becomes a new command in the log, which cannot be taken back"
			if sure.dryRun && file != "" {
				open, _, err := openLetters(cmd.Context(), services, client.LetterSearch{State: "open", Partition: -1})
				if err != nil {
					return err
				}
				is := map[string]bool{}
				for _, at := range open {
					is[at] = true
				}
				if closed := slices.DeleteFunc(slices.Clone(letters), func(l door.Letter) bool { return is[l.Position] }); len(closed) > 0 {
					sentence += fmt.Sprintf("; %d of them would be refused, the first %s: decided on, or no dead letter", len(closed), closed[0].Position)
				}
			}
			sure.yes = sure.yes || file == "" // one that is typed with its payload is meant
			agreed, err := c.agrees(cmd.Context(), sure, sentence)
			if !agreed {
				return err
			}
			return c.decide(cmd.Context(), services, decision{len(letters), "redriven", key, func(i int) int { return encodedSize(letters[i]) }, func(from, to int, key string) ([]door.DecisionResult, string, error) {
				return services.Redrive(cmd.Context(), letters[from:to], note, key)
			}})
		},
	}
	cmd.Flags().StringVarP(&file, "file", "f", "", "redrive each line of a file that export wrote; - is the standard input")
	sure.flags(cmd)
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
	n      int             // letters
	what   string          // becomes of them: redriven or discarded
	key    string          // of the run that this one repeats; empty for none
	weight func(i int) int // bytes of one in a request's body
	send   func(from, to int, key string) ([]door.DecisionResult, string, error)
}

// encodedSize is what item takes of a request's body: JSON makes a payload longer, up to six times.
func encodedSize(item any) int {
	encoded, _ := json.Marshal(item) // a letter and a position always marshal
	return len(encoded) + len(",")
}

// batchEnd is where the batch ends that begins at from: as many as one request may hold, in number and in bytes, and one at the
// least.
func (d *decision) batchEnd(from int) int {
	to, size := from, batchRoom
	for to < d.n && to-from < limits.Letters && (to == from || size+d.weight(to) <= limits.ClientBody) {
		size += d.weight(to)
		to++
	}
	return to
}

// decide sends the decisions in batches, bounded in number and in bytes, with a progress bar, and prints
// what became of them once readers see it. A batch that is refused does not keep the others. The key is printed before anything
// is sent, so that a run which is cut in any way can be repeated.
func (c *command) decide(ctx context.Context, services *client.Client, d decision) error {
	n, what := d.n, d.what
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
		to = d.batchEnd(from)
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

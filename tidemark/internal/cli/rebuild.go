package cli

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/tidemark/tidemark/shared/loop"
	"github.com/tidemark/tidemark/tidemark/internal/client"
)

const (
	watchEvery  = 500 * time.Millisecond
	watchOutage = time.Minute // without an answer, before watching ends; the rebuild goes on
	shownRows   = 5           // differences of a proof that are printed
)

// watched is what a watch waits for.
type watched int

const (
	toTheEnd watched = iota // it serves, is held at its point, or is ready where no swap is wanted
	toTheSwap
	toTheProof
	toItsEnd // until it is gone
)

func (c *command) rebuild() *cobra.Command {
	var o rebuildOptions
	cmd := &cobra.Command{
		Use:   "rebuild",
		Short: "Make the tables anew from the log, prove them, and swap",
		Long: `Make a new set of tables from the log beside those that serve, prove that both hold the same, and swap. Nobody who reads or
writes notices. tidemark rebuild alone starts one and watches it to its end; Ctrl-C ends the watching, not the rebuild.

The old set is fed on as the way back (tidemark rebuild swap) until it is dropped (tidemark rebuild drop). With --to-time or
--to-position the new set stops at a point of the log and never serves: for looking up what was shown then.
` + exitStatuses,
		Example: "  tidemark rebuild\n  tidemark rebuild start --to-time 2026-11-03T00:00:00Z",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.withServices(func(services *client.Client) error {
				g, err := c.startRebuild(cmd.Context(), services, o)
				if err != nil {
					return err
				}
				return c.watch(cmd.Context(), services, g.Generation, toTheEnd, "")
			})
		},
	}
	o.flags(cmd)
	cmd.AddCommand(c.rebuildStart(), c.rebuildStatus(), c.rebuildWatch(), c.rebuildSwap(), c.rebuildProve(), c.rebuildDrop())
	return c.withOutput(cmd)
}

type rebuildOptions struct {
	noSwap, replace    bool
	rate               int64
	toTime, toPosition string
}

func (o *rebuildOptions) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.BoolVar(&o.noSwap, "no-swap", false, "stop once the new tables are ready and proved; tidemark rebuild swap goes on")
	f.BoolVar(&o.replace, "replace-standby", false, "drop the standby generation, the way back of the last swap, to make room")
	f.Int64Var(&o.rate, "rate-limit", 0, "most records a second, to spare the database; 0 is as fast as it goes")
	f.StringVar(&o.toTime, "to-time", "", "stop at this instant of the log, and never serve")
	f.StringVar(&o.toPosition, "to-position", "", "stop behind this position, topic/partition@offset, and never serve")
	cmd.MarkFlagsMutuallyExclusive("to-time", "to-position")
}

func (o *rebuildOptions) request() client.RebuildRequest {
	r := client.RebuildRequest{Swap: !o.noSwap, RateLimit: o.rate, ReplaceStandby: o.replace}
	if o.toTime != "" || o.toPosition != "" {
		r.Swap, r.To = false, &client.RebuildPoint{Time: o.toTime, Position: o.toPosition}
	}
	return r
}

func (c *command) withServices(do func(*client.Client) error) error {
	services, err := c.client()
	if err != nil {
		return err
	}
	defer services.Close()
	return do(services)
}

func (c *command) startRebuild(ctx context.Context, services *client.Client, o rebuildOptions) (client.Generation, error) {
	g, err := services.Rebuild(ctx, o.request())
	var unreachable *client.Unreachable
	if errors.As(err, &unreachable) && unreachable.Unknown() {
		return g, end(uncertain, "%w\nIt may have begun: tidemark rebuild status", err)
	}
	if err != nil {
		return g, requestFailed(err)
	}
	return g, nil
}

func (c *command) rebuildStart() *cobra.Command {
	var o rebuildOptions
	cmd := &cobra.Command{
		Use:   "start",
		Short: "Start a rebuild and return at once",
		Long:  "Start a rebuild and return at once; tidemark rebuild watch follows it.\n" + exitStatuses,
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.withServices(func(services *client.Client) error {
				g, err := c.startRebuild(cmd.Context(), services, o)
				if err != nil {
					return err
				}
				c.print(g, generationRows(g)...)
				return nil
			})
		},
	}
	o.flags(cmd)
	return c.withOutput(cmd)
}

func (c *command) rebuildStatus() *cobra.Command {
	return c.withOutput(&cobra.Command{
		Use:   "status [GENERATION]",
		Short: "Say which generations there are and how far they are",
		Long:  "Say which generations there are, the serving one first, how far they are and what their proofs have found.\n" + exitStatuses,
		Args:  cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.withServices(func(services *client.Client) error {
				if len(args) == 1 {
					n, err := generationNumber(args[0])
					if err != nil {
						return err
					}
					g, err := services.Generation(cmd.Context(), n)
					if err != nil {
						return requestFailed(err)
					}
					c.print(g, generationRows(g)...)
					return nil
				}
				all, err := services.Generations(cmd.Context())
				if err != nil {
					return requestFailed(err)
				}
				var rows [][2]string
				for i, g := range all {
					if i > 0 {
						rows = append(rows, [2]string{" ", " "})
					}
					rows = append(rows, generationRows(g)...)
				}
				c.print(map[string]any{"generations": all}, rows...)
				return nil
			})
		},
	})
}

func (c *command) rebuildWatch() *cobra.Command {
	return c.withOutput(&cobra.Command{
		Use:   "watch [GENERATION]",
		Short: "Follow a rebuild to its end",
		Long: `Follow a rebuild to its end, the one that is under way where none is named: until the new tables serve, or are ready where no
swap is wanted, or are held at their point. The exit status is 1 when its proof has failed or it was dropped.
` + exitStatuses,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.withServices(func(services *client.Client) error {
				n, err := c.chosen(cmd.Context(), services, args, "watch", "filling", "indexing", "ready")
				if err != nil {
					return err
				}
				return c.watch(cmd.Context(), services, n, toTheEnd, "")
			})
		},
	})
}

func (c *command) rebuildSwap() *cobra.Command {
	return c.withOutput(&cobra.Command{
		Use:   "swap [GENERATION]",
		Short: "Prove a generation and have it serve: the end of a rebuild, or the way back",
		Long: `Prove a generation that is ready, or the standby of the last swap, and have it serve if the proof holds. Without a number it is
the only one that can.
` + exitStatuses,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.proved(cmd.Context(), args, "swap", (*client.Client).Swap, toTheSwap)
		},
	})
}

func (c *command) rebuildProve() *cobra.Command {
	return c.withOutput(&cobra.Command{
		Use:   "prove [GENERATION]",
		Short: "Compare a generation with the serving one, without swapping",
		Long:  "Compare a generation that is ready, or the standby, with the serving one; nothing is swapped.\n" + exitStatuses,
		Args:  cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.proved(cmd.Context(), args, "prove", (*client.Client).Prove, toTheProof)
		},
	})
}

// proved asks for something that begins with a proof, and follows it from the proof that was there before.
func (c *command) proved(ctx context.Context, args []string, what string, ask func(*client.Client, context.Context, int) error, until watched) error {
	return c.withServices(func(services *client.Client) error {
		n, err := c.chosen(ctx, services, args, what, "ready", "standby")
		if err != nil {
			return err
		}
		before, err := services.Generation(ctx, n)
		if err != nil {
			return requestFailed(err)
		}
		if err := ask(services, ctx, n); err != nil {
			return requestFailed(err)
		}
		return c.watch(ctx, services, n, until, provedAt(before))
	})
}

func (c *command) rebuildDrop() *cobra.Command {
	return c.withOutput(&cobra.Command{
		Use:   "drop GENERATION",
		Short: "Cancel a rebuild, or drop a generation that does not serve",
		Long: `Cancel a rebuild that is under way, or drop a generation that does not serve (standby, held), without a trace. A standby that is
dropped was the way back of the last swap.
` + exitStatuses,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.withServices(func(services *client.Client) error {
				n, err := generationNumber(args[0])
				if err != nil {
					return err
				}
				if err := services.Drop(cmd.Context(), n); err != nil {
					return requestFailed(err)
				}
				return c.watch(cmd.Context(), services, n, toItsEnd, "")
			})
		},
	})
}

func generationNumber(text string) (int, error) {
	n, err := strconv.Atoi(text)
	if err != nil || n < 0 {
		return 0, end(misused, "%q is no generation's number: tidemark rebuild status lists them", text)
	}
	return n, nil
}

// chosen is the generation that is named, or the only one in one of the states.
func (c *command) chosen(ctx context.Context, services *client.Client, args []string, what string, states ...string) (int, error) {
	if len(args) == 1 {
		return generationNumber(args[0])
	}
	all, err := services.Generations(ctx)
	if err != nil {
		return 0, requestFailed(err)
	}
	var fitting, there []string
	for _, g := range all {
		there = append(there, fmt.Sprintf("%d is %s", g.Generation, g.State))
		for _, s := range states {
			if g.State == s {
				fitting = append(fitting, strconv.Itoa(g.Generation))
			}
		}
	}
	if len(fitting) == 1 {
		return strconv.Atoi(fitting[0])
	}
	found := "no generation is " + strings.Join(states, " or ")
	if len(fitting) > 1 {
		found = "generations " + strings.Join(fitting, " and ") + " could be meant"
	}
	return 0, end(notYet, "%s (%s). Name one: tidemark rebuild %s GENERATION", found, strings.Join(there, ", "), what)
}

func provedAt(g client.Generation) string {
	if g.Proof == nil {
		return ""
	}
	return g.Proof.At
}

// watch follows a generation until it is where it should be, or cannot get there. A proof made at the time before is
// not the one that is waited for.
func (c *command) watch(ctx context.Context, services *client.Client, n int, until watched, before string) error {
	shown := c.progress(fmt.Sprintf("generation %d", n), 0)
	defer shown.end()
	var last client.Generation
	heard := time.Now()
	for {
		g, err := services.Generation(ctx, n)
		var refusal *client.Problem
		switch {
		case errors.As(err, &refusal) && refusal.Status == 404:
			shown.end()
			if until == toItsEnd {
				c.print(map[string]any{"generation": n, "state": "dropped"}, [2]string{"generation", fmt.Sprintf("%d, dropped", n)})
				return nil
			}
			return end(failed, "generation %d is not there any more: it was cancelled or dropped", n)
		case errors.As(err, &refusal) && refusal.Status/100 == 4:
			return requestFailed(err)
		case err != nil && ctx.Err() == nil && time.Since(heard) < watchOutage:
			shown.at(0, 0, fmt.Sprintf("generation %d", n), "consumer-service gives no answer; the rebuild goes on where it was once it is back")
		case err != nil && ctx.Err() == nil:
			return requestFailed(err)
		case err == nil:
			heard, last = time.Now(), g
			shown.generation(g)
			if over, failure := arrived(g, until, before); over {
				shown.end()
				c.print(g, generationRows(g)...)
				return failure
			}
		}
		if loop.Sleep(ctx, watchEvery) != nil {
			shown.end()
			state := ""
			if last.State != "" {
				state = " (" + last.State + ")"
			}
			return end(notYet, "the watching was ended; generation %d%s goes on: tidemark rebuild watch %d", n, state, n)
		}
	}
}

// arrived says whether the watch is over, and whether what was wanted has failed.
func arrived(g client.Generation, until watched, before string) (bool, error) {
	proved := g.Proof != nil && g.Proof.At != before
	failure := func() error {
		if g.Proof != nil && !g.Proof.OK {
			return end(failed, "the proof has failed, nothing was swapped: %s\nThe differences are above. Which side is wrong? tidemark audit --now looks at the serving one; tidemark rebuild drop %d gives the new one up", g.Proof.Finding, g.Generation)
		}
		return nil
	}
	switch until {
	case toItsEnd:
		return false, nil
	case toTheProof:
		return proved, failure()
	case toTheSwap:
		if g.State == "serving" {
			return true, nil
		}
		return proved && !g.Proof.OK, failure()
	}
	switch g.State {
	case "serving", "held", "standby":
		return true, nil
	case "ready":
		if proved && !g.Proof.OK {
			return true, failure()
		}
		return proved && !g.SwapWanted, nil
	}
	return false, nil
}

// generation shows how far it is.
func (p *progress) generation(g client.Generation) {
	var done, total int64
	var notes []string
	if at := g.Progress; at != nil {
		done, total = at.Done, at.Total
		if at.Rate > 0 {
			notes = append(notes, fmt.Sprintf("%.0f/s", at.Rate))
		}
		if at.ETASeconds != nil {
			notes = append(notes, "level in "+(time.Duration(*at.ETASeconds)*time.Second).String())
		}
		if at.Bottleneck != "" && at.Bottleneck != "none" {
			notes = append(notes, at.Bottleneck+" is the bottleneck")
		}
		if at.StalledSince != nil {
			notes = append(notes, "STALLED since "+*at.StalledSince)
		}
		if at.Note != "" {
			notes = append(notes, at.Note)
		}
	}
	p.at(done, total, fmt.Sprintf("generation %d %s", g.Generation, g.State), strings.Join(notes, ", "))
}

func generationRows(g client.Generation) [][2]string {
	rows := [][2]string{
		{"generation", fmt.Sprintf("%d, %s since %s", g.Generation, g.State, g.StateSince)},
		{"epoch, group", fmt.Sprintf("%d, %s", g.Epoch, g.Group)},
		{"schema", g.Schema},
		{"up to", text(g.Point)},
	}
	if at := g.Progress; at != nil {
		line := fmt.Sprintf("%d of %d (%.1f%%), lag %d", at.Done, at.Total, at.Percent, at.Lag)
		if at.Rate > 0 {
			line += fmt.Sprintf(", %.0f records/s", at.Rate)
		}
		if at.ETASeconds != nil {
			line += ", level in " + (time.Duration(*at.ETASeconds) * time.Second).String()
		}
		if at.Bottleneck != "" && at.Bottleneck != "none" {
			line += ", bottleneck " + at.Bottleneck
		}
		rows = append(rows, [2]string{"records", line}, [2]string{"stalled since", text(at.StalledSince)}, [2]string{"note", at.Note})
	}
	if g.RateLimit != nil {
		rows = append(rows, [2]string{"rate limit", fmt.Sprintf("%.0f records/s", *g.RateLimit)})
	}
	if g.Proof == nil {
		return rows
	}
	verdict := "holds"
	if !g.Proof.OK {
		verdict = "FAILED: " + g.Proof.Finding
	}
	rows = append(rows, [2]string{"proof", fmt.Sprintf("%s (against generation %d, at %s, in %.1f s)", verdict, g.Proof.Against, g.Proof.At, g.Proof.TookMS/1000)})
	for _, t := range g.Proof.Tables {
		same := "the same"
		if !t.OK {
			same = "NOT the same"
		}
		rows = append(rows, [2]string{"  " + t.Table, fmt.Sprintf("%s: %d rows serve, %d beside them", same, t.RowsServing, t.RowsSide)})
	}
	for i, d := range g.Proof.Differences {
		if i == shownRows {
			rows = append(rows, [2]string{"  …", fmt.Sprintf("and %d more (--output json has all)", len(g.Proof.Differences)-i)})
			break
		}
		rows = append(rows, [2]string{"  " + d.Table + " " + d.Key, "serving: " + orNone(d.Serving) + "  beside: " + orNone(d.Side)})
	}
	return rows
}

func orNone(s *string) string {
	if s == nil {
		return "(no row)"
	}
	return *s
}

package cli

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/tidemark/tidemark/shared/api/consumer"
	"github.com/tidemark/tidemark/shared/loop"
	"github.com/tidemark/tidemark/shared/position"
	"github.com/tidemark/tidemark/shared/service"
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
	untilDone watched = iota // it serves, is held at its point, or is ready where no swap is wanted
	untilSwapped
	untilProved
	untilGone
)

func (c *command) rebuild() *cobra.Command {
	var o rebuildOptions
	cmd := &cobra.Command{
		Use:   "rebuild",
		Short: "Make the tables anew from the log, verify them, and swap",
		Long: `Make a new set of tables from the log while the old one serves, verify that both hold the same, and swap. Nobody who reads or
writes notices. tidemark rebuild alone rebuilds every projection, one after the other, and watches that to its end; Ctrl-C
ends the watching, not the rebuild. With --projection it rebuilds that one only.

The old set becomes the standby: it follows the log, so that tidemark rebuild swap returns to it, until tidemark rebuild drop
removes it. With --to-time or --to-position the new set stops at a point of the log and never serves: for looking up what was
shown then. A position names its topic and so its projection; for a time, name the projection.
` + exitStatuses,
		Example: "  tidemark rebuild --projection endpoints\n  tidemark rebuild\n  tidemark rebuild start --projection timestamps --to-time 2026-11-03T00:00:00Z",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.withServices(func(services *client.Client) error {
				begun, err := c.startRebuild(cmd.Context(), services, o)
				if len(begun) == 0 {
					return err
				}
				var seen []consumer.Generation
				var failures []error
				for _, g := range begun {
					last, err := c.watch(cmd.Context(), services, g, untilDone, "")
					if last.State != "" {
						seen = append(seen, last)
					}
					failures = append(failures, err)
				}
				c.printGenerations(seen, len(begun) > 1)
				return allOf(failures)
			})
		},
	}
	o.flags(c, cmd)
	cmd.AddCommand(c.rebuildStart(), c.rebuildStatus(), c.rebuildWatch(), c.rebuildSwap(), c.rebuildProve(), c.rebuildDrop())
	return c.withOutput(cmd)
}

// allOf makes one end of several. Its status is that of the first that did not succeed.
func allOf(ends []error) error {
	var first *ended
	if err := errors.Join(ends...); errors.As(err, &first) {
		return &ended{first.status, err}
	}
	return nil
}

type rebuildOptions struct {
	projection         string
	noSwap, replace    bool
	sure               consent
	rate               int
	toTime, toPosition string
}

func (o *rebuildOptions) flags(c *command, cmd *cobra.Command) {
	f := cmd.Flags()
	c.projectionFlag(cmd, &o.projection, "rebuild this projection only; all unless given")
	f.BoolVar(&o.noSwap, "no-swap", false, "stop once the new tables are ready and verified; tidemark rebuild swap goes on")
	f.BoolVar(&o.replace, "replace-standby", false, "drop the standby, to which tidemark rebuild swap could return, to make room; asked about first")
	o.sure.flags(cmd)
	f.IntVar(&o.rate, "rate-limit", 0, "most records a second, to spare the database; 0 is unlimited")
	f.StringVar(&o.toTime, "to-time", "", "stop at this instant of the log, and never serve")
	f.StringVar(&o.toPosition, "to-position", "", "stop behind this position, topic/partition@offset, and never serve")
	cmd.MarkFlagsMutuallyExclusive("to-time", "to-position")
}

// chosen are the projections to rebuild. A position is of one topic, and so of one projection.
func (o *rebuildOptions) chosen(all []consumer.Projection) ([]string, error) {
	var names, ofTopic []string
	at, err := position.Parse(o.toPosition)
	if o.toPosition != "" && err != nil {
		return nil, end(misused, "--to-position: %w", err)
	}
	for _, p := range all {
		names = append(names, p.Projection)
		if p.Topic == at.Topic {
			ofTopic = append(ofTopic, p.Projection)
		}
	}
	switch {
	case o.projection != "":
		return named(names, o.projection)
	case o.toPosition != "" && len(ofTopic) == 0:
		return nil, end(misused, "--to-position: no projection reads the topic %s", at.Topic)
	case o.toPosition != "":
		return ofTopic, nil
	case o.toTime != "" && len(names) > 1:
		return nil, end(misused, "--to-time is for one projection: name it with --projection (there are %s)", list(names))
	}
	return names, nil
}

func (o *rebuildOptions) request() consumer.Rebuild {
	swap := !o.noSwap
	r := consumer.Rebuild{Swap: &swap}
	if o.rate > 0 {
		r.RateLimit = &o.rate
	}
	if o.replace {
		r.ReplaceStandby = &o.replace
	}
	if o.toTime != "" || o.toPosition != "" {
		swap = false
		r.To = &struct { // as it is generated
			Time     *string `json:"time,omitempty"`
			Position *string `json:"position,omitempty"`
		}{}
		if o.toTime != "" {
			r.To.Time = &o.toTime
		} else {
			r.To.Position = &o.toPosition
		}
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

// startRebuild begins what was asked for, and returns the candidates: none after --dry-run.
func (c *command) startRebuild(ctx context.Context, services *client.Client, o rebuildOptions) ([]consumer.Generation, error) {
	all, err := services.Rebuildable(ctx)
	if err != nil {
		return nil, requestFailed(err)
	}
	names, err := o.chosen(all)
	if err != nil {
		return nil, err
	}
	if o.replace || o.sure.dryRun {
		sentence, err := whatRebuildDoes(ctx, services, names, o.replace)
		if err != nil {
			return nil, err
		}
		if agreed, err := c.agrees(ctx, o.sure, sentence); !agreed {
			return nil, err
		}
	}
	var begun []consumer.Generation
	if len(names) == 1 {
		var g consumer.Generation
		g, err = services.Rebuild(ctx, names[0], o.request())
		begun = []consumer.Generation{g}
	} else {
		fmt.Fprintf(c.Err, "Rebuilding %s, one after the other (--projection names one)\n", list(names))
		r := o.request()
		begun, err = services.RebuildAll(ctx, consumer.RebuildAll{Swap: r.Swap, RateLimit: r.RateLimit, ReplaceStandby: r.ReplaceStandby})
	}
	var unreachable *client.Unreachable
	if errors.As(err, &unreachable) && unreachable.Unknown() {
		return nil, end(uncertain, "%w\nIt may have begun: tidemark rebuild status", err)
	}
	if err != nil {
		return nil, requestFailed(err)
	}
	return begun, nil
}

// whatRebuildDoes says what is rebuilt and, where standbys are replaced, which are lost.
func whatRebuildDoes(ctx context.Context, services *client.Client, names []string, replace bool) (string, error) {
	sentence := list(names) + " will be rebuilt"
	if !replace {
		return sentence, nil
	}
	for _, name := range names {
		of, err := services.Generations(ctx, name)
		if err != nil {
			return "", requestFailed(err)
		}
		for _, g := range of {
			if g.State == consumer.Standby {
				sentence += "; " + whatDropLoses(g)
			}
		}
	}
	return sentence, nil
}

func (c *command) rebuildStart() *cobra.Command {
	var o rebuildOptions
	cmd := &cobra.Command{
		Use:   "start",
		Short: "Start a rebuild and return at once",
		Long:  "Start a rebuild, of every projection or of the one that is named, and return at once; tidemark rebuild watch follows it.\n" + exitStatuses,
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.withServices(func(services *client.Client) error {
				begun, err := c.startRebuild(cmd.Context(), services, o)
				if len(begun) == 0 {
					return err
				}
				c.printGenerations(begun, len(begun) > 1)
				return nil
			})
		},
	}
	o.flags(c, cmd)
	return c.withOutput(cmd)
}

func (c *command) rebuildStatus() *cobra.Command {
	var one string
	cmd := &cobra.Command{
		Use:   "status [GENERATION]",
		Short: "Say which generations there are and how far they are",
		Long: `Say which generations there are, of every projection or of the one that is named, the serving one first, how far they are and
what their verification has found. With consumer-service down it says what the database knows of them, and its exit status is 1.
` + exitStatuses,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.withServices(func(services *client.Client) error {
				all, err := generations(cmd.Context(), services, one)
				var down *client.Unreachable
				if errors.As(err, &down) && down.Service == service.Consumer.Name {
					known, unknown := knownGenerations(cmd.Context(), services, one)
					if unknown != nil {
						return errors.Join(err, unknown)
					}
					all = known
					err = end(failed, "consumer-service is down (%w): this is what the database knows. No rebuild goes on, and none can be started.", down.Err)
				} else if err != nil {
					return err
				}
				if len(args) == 0 {
					c.printGenerations(all, true)
					return err
				}
				g, wrong := numbered(all, args[0])
				if wrong != nil {
					return wrong
				}
				c.printGenerations([]consumer.Generation{g}, false)
				return err
			})
		},
	}
	c.projectionFlag(cmd, &one, "of this projection only; of all unless given")
	return c.withOutput(cmd)
}

func (c *command) rebuildWatch() *cobra.Command {
	var one string
	cmd := &cobra.Command{
		Use:   "watch [GENERATION]",
		Short: "Follow a rebuild to its end",
		Long: `Follow a rebuild to its end, the one that is under way where none is named: until the new tables serve, or are ready where no
swap is wanted, or are held at their point. The exit status is 1 when its verification has failed or it was dropped.
` + exitStatuses,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.withServices(func(services *client.Client) error {
				g, err := chosen(cmd.Context(), services, one, args, "watch",
					consumer.Queued, consumer.Filling, consumer.Indexing, consumer.Ready)
				if err != nil {
					return err
				}
				return c.follow(cmd.Context(), services, g, untilDone, "")
			})
		},
	}
	c.projectionFlag(cmd, &one, "the one of this projection")
	return c.withOutput(cmd)
}

func (c *command) rebuildSwap() *cobra.Command {
	var one string
	cmd := &cobra.Command{
		Use:   "swap [GENERATION]",
		Short: "Verify a generation and have it serve: the end of a rebuild, or a rollback",
		Long: `Verify a generation that is ready, or the standby of the last swap, and have it serve if both hold the same. Without a number it is
the only one that can.
` + exitStatuses,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.proved(cmd.Context(), one, args, "swap", (*client.Client).Swap, untilSwapped)
		},
	}
	c.projectionFlag(cmd, &one, "the one of this projection")
	return c.withOutput(cmd)
}

func (c *command) rebuildProve() *cobra.Command {
	var one string
	cmd := &cobra.Command{
		Use:   "verify [GENERATION]",
		Short: "Compare a generation with the serving one, without swapping",
		Long:  "Compare a generation that is ready, or the standby, with the serving one; nothing is swapped.\n" + exitStatuses,
		Args:  cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.proved(cmd.Context(), one, args, "verify", (*client.Client).Prove, untilProved)
		},
	}
	c.projectionFlag(cmd, &one, "the one of this projection")
	return c.withOutput(cmd)
}

// proved asks for something that begins with a proof, and follows it from the proof that was there before.
func (c *command) proved(ctx context.Context, one string, args []string, what string, ask func(*client.Client, context.Context, string, int) error, until watched) error {
	return c.withServices(func(services *client.Client) error {
		g, err := chosen(ctx, services, one, args, what, consumer.Ready, consumer.Standby)
		if err != nil {
			return err
		}
		if err := ask(services, ctx, g.Projection, g.Generation); err != nil {
			return requestFailed(err)
		}
		return c.follow(ctx, services, g, until, provedAt(g))
	})
}

func (c *command) rebuildDrop() *cobra.Command {
	var one string
	var sure consent
	cmd := &cobra.Command{
		Use:   "drop GENERATION",
		Short: "Cancel a rebuild, or drop a generation that does not serve",
		Long: `Cancel a rebuild that is under way, or drop a generation that does not serve (standby, held), without a trace. Once the standby is
dropped, the last swap cannot be rolled back. So it says what is lost and asks; where there is no terminal to ask at it needs --yes.
` + exitStatuses,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.withServices(func(services *client.Client) error {
				g, err := chosen(cmd.Context(), services, one, args, "drop")
				if err != nil {
					return err
				}
				agreed, err := c.agrees(cmd.Context(), sure, whatDropLoses(g))
				if !agreed {
					return err
				}
				if err := services.Drop(cmd.Context(), g.Projection, g.Generation); err != nil {
					return requestFailed(err)
				}
				return c.follow(cmd.Context(), services, g, untilGone, "")
			})
		},
	}
	c.projectionFlag(cmd, &one, "the one of this projection")
	sure.flags(cmd)
	return c.withOutput(cmd)
}

// whatDropLoses says what goes with a generation.
func whatDropLoses(g consumer.Generation) string {
	what := fmt.Sprintf("generation %d of %s, %s, will be dropped with all its tables", g.Generation, g.Projection, g.State)
	if g.State == consumer.Standby {
		return what + ": the last swap can then not be rolled back"
	}
	return what + ": what was read for it is read again by another rebuild only"
}

// generations are those of every projection, or of the one that is named.
func generations(ctx context.Context, services *client.Client, one string) ([]consumer.Generation, error) {
	names, err := projectionNames(ctx, services)
	if err != nil {
		return nil, requestFailed(err)
	}
	if names, err = named(names, one); err != nil {
		return nil, err
	}
	found := []consumer.Generation{}
	for _, name := range names {
		of, err := services.Generations(ctx, name)
		if err != nil {
			return nil, requestFailed(err)
		}
		found = append(found, of...)
	}
	return found, nil
}

// knownGenerations are those that the database has, as query-service reads them.
func knownGenerations(ctx context.Context, services *client.Client, one string) ([]consumer.Generation, error) {
	all, err := services.Projections(ctx)
	if err != nil {
		return nil, requestFailed(err)
	}
	var names []string
	for _, p := range all {
		names = append(names, p.Projection)
	}
	if names, err = named(names, one); err != nil {
		return nil, err
	}
	found := []consumer.Generation{}
	for _, name := range names {
		of, err := services.KnownGenerations(ctx, name)
		if err != nil {
			return nil, requestFailed(err)
		}
		found = append(found, of...)
	}
	return found, nil
}

// numbered is the generation with the number that was typed.
func numbered(all []consumer.Generation, text string) (consumer.Generation, error) {
	n, err := strconv.Atoi(text)
	if err != nil || n < 0 || n > math.MaxInt32 {
		return consumer.Generation{}, end(misused, "%q is no generation's number: tidemark rebuild status lists them", text)
	}
	var fitting []consumer.Generation
	var projections []string
	for _, g := range all {
		if g.Generation == n {
			fitting = append(fitting, g)
			projections = append(projections, g.Projection)
		}
	}
	switch len(fitting) {
	case 0:
		return consumer.Generation{}, end(notYet, "there is no generation %d (%s)", n, there(all))
	case 1:
		return fitting[0], nil
	}
	return consumer.Generation{}, end(misused, "%s have a generation %d each: name one with --projection", list(projections), n)
}

// chosen is the generation that is numbered, or the only one in one of the states.
func chosen(ctx context.Context, services *client.Client, one string, args []string, what string, states ...consumer.GenerationState) (consumer.Generation, error) {
	all, err := generations(ctx, services, one)
	if err != nil {
		return consumer.Generation{}, err
	}
	if len(args) == 1 {
		return numbered(all, args[0])
	}
	var fitting []consumer.Generation
	var names, wanted []string
	for _, g := range all {
		if slices.Contains(states, g.State) {
			fitting = append(fitting, g)
			names = append(names, fmt.Sprintf("%d of %s", g.Generation, g.Projection))
		}
	}
	if len(fitting) == 1 {
		return fitting[0], nil
	}
	for _, s := range states {
		wanted = append(wanted, string(s))
	}
	found := "no generation is " + strings.Join(wanted, " or ")
	if len(fitting) > 1 {
		found = "generations " + list(names) + " could be meant"
	}
	return consumer.Generation{}, end(notYet, "%s (%s). Name one: tidemark rebuild %s GENERATION", found, there(all), what)
}

// there says which generations there are.
func there(all []consumer.Generation) string {
	var words []string
	for _, g := range all {
		words = append(words, fmt.Sprintf("%s: %d is %s", g.Projection, g.Generation, g.State))
	}
	return strings.Join(words, ", ")
}

// printGenerations prints one, or a list of them.
func (c *command) printGenerations(all []consumer.Generation, list bool) {
	var rows [][2]string
	for i, g := range all {
		if i > 0 {
			rows = append(rows, [2]string{" ", " "})
		}
		rows = append(rows, generationRows(g)...)
	}
	switch {
	case list:
		c.print(consumer.GenerationList{Generations: all}, rows...)
	case len(all) == 1:
		c.print(all[0], rows...)
	}
}

// follow watches one generation and prints it at the end.
func (c *command) follow(ctx context.Context, services *client.Client, g consumer.Generation, until watched, before string) error {
	last, err := c.watch(ctx, services, g, until, before)
	switch {
	case last.State != "":
		c.printGenerations([]consumer.Generation{last}, false)
	case err == nil:
		c.print(map[string]any{"projection": g.Projection, "generation": g.Generation, "state": "dropped"},
			[2]string{"generation", fmt.Sprintf("%d, dropped", g.Generation)}, [2]string{"projection", g.Projection})
	}
	return err
}

func provedAt(g consumer.Generation) string {
	if g.Proof == nil {
		return ""
	}
	return g.Proof.At
}

// watch follows a generation until it is where it should be, or cannot get there, and returns it as it was then: without
// a state where it is gone or did not get there. A proof made at the time before is not the one that is waited for.
func (c *command) watch(ctx context.Context, services *client.Client, of consumer.Generation, until watched, before string) (consumer.Generation, error) {
	none := consumer.Generation{}
	name := fmt.Sprintf("%s generation %d", of.Projection, of.Generation)
	shown := c.progress(name, 0)
	defer shown.end()
	state := of.State
	heard := time.Now()
	for {
		g, err := services.Generation(ctx, of.Projection, of.Generation)
		var refusal *client.Problem
		switch {
		case errors.As(err, &refusal) && refusal.Status == 404:
			if until == untilGone {
				return none, nil
			}
			return none, end(failed, "generation %d of %s is not there any more: it was cancelled or dropped", of.Generation, of.Projection)
		case errors.As(err, &refusal) && refusal.Status/100 == 4:
			return none, requestFailed(err)
		case err != nil && ctx.Err() == nil && time.Since(heard) < watchOutage:
			shown.at(0, 0, name, "consumer-service gives no answer; the rebuild goes on where it was once it is back")
		case err != nil && ctx.Err() == nil:
			return none, requestFailed(err)
		case err == nil:
			heard, state = time.Now(), g.State
			shown.generation(g)
			if over, failure := arrived(g, until, before); over {
				return g, failure
			}
		}
		if loop.Sleep(ctx, watchEvery) != nil {
			return none, end(notYet, "the watching was ended; generation %d of %s (%s) goes on: tidemark rebuild watch %d", of.Generation, of.Projection, state, of.Generation)
		}
	}
}

// arrived says whether the watch is over, and whether what was wanted has failed.
func arrived(g consumer.Generation, until watched, before string) (bool, error) {
	proved := g.Proof != nil && g.Proof.At != before
	failure := func() error {
		if g.Proof != nil && !g.Proof.Ok {
			return end(failed, "the verification has failed, nothing was swapped: %s\nThe differences are above. Which of the two is wrong? tidemark audit --now --projection %s looks at the serving one; tidemark rebuild drop %d gives the candidate up", g.Proof.Finding, g.Projection, g.Generation)
		}
		return nil
	}
	switch until {
	case untilGone:
		return false, nil
	case untilProved:
		return proved, failure()
	case untilSwapped:
		if g.State == consumer.Serving {
			return true, nil
		}
		return proved && !g.Proof.Ok, failure()
	}
	switch g.State {
	case consumer.Serving, consumer.Held, consumer.Standby:
		return true, nil
	case consumer.Ready:
		if proved && !g.Proof.Ok {
			return true, failure()
		}
		return proved && !g.SwapWanted, nil
	}
	return false, nil
}

// generation shows how far it is.
func (p *progress) generation(g consumer.Generation) {
	at := g.Progress
	notes := paceNotes(at)
	if at.StalledSince != nil {
		notes = append(notes, "STALLED since "+*at.StalledSince)
	}
	if at.Note != "" {
		notes = append(notes, at.Note)
	}
	p.at(at.Done, at.Total, fmt.Sprintf("%s generation %d %s", g.Projection, g.Generation, g.State), strings.Join(notes, ", "))
}

func paceNotes(at consumer.Progress) []string {
	var notes []string
	if at.Rate > 0 {
		notes = append(notes, fmt.Sprintf("%.0f records/s", at.Rate))
	}
	if at.EtaSeconds != nil {
		notes = append(notes, "caught up in "+seconds(*at.EtaSeconds))
	}
	if at.Bottleneck != "" && at.Bottleneck != consumer.None {
		notes = append(notes, string(at.Bottleneck)+" is the bottleneck")
	}
	return notes
}

func generationRows(g consumer.Generation) [][2]string {
	at := g.Progress
	line := append([]string{fmt.Sprintf("%d of %d (%.1f%%)", at.Done, at.Total, at.Percent), fmt.Sprintf("lag %d", at.Lag)}, paceNotes(at)...)
	rows := [][2]string{
		{"generation", fmt.Sprintf("%d, %s since %s", g.Generation, g.State, g.StateSince)},
		{"projection", g.Projection},
		{"epoch, group", fmt.Sprintf("%d, %s", g.Epoch, g.Group)},
		{"schema", g.Schema},
		{"up to", text(g.Point)},
		{"records", strings.Join(line, ", ")},
		{"stalled since", text(at.StalledSince)},
		{"note", at.Note},
	}
	if g.FillMs != nil {
		phases := fmt.Sprintf("fill %.1f s", *g.FillMs/1000)
		if g.IndexMs != nil {
			phases += fmt.Sprintf(", index %.1f s", *g.IndexMs/1000)
		}
		rows = append(rows, [2]string{"phases", phases})
	}
	if g.RateLimit != nil {
		rows = append(rows, [2]string{"rate limit", fmt.Sprintf("%d records/s", *g.RateLimit)})
	}
	if g.NewLog {
		rows = append(rows, [2]string{"verification", "none: new log accepted, not verified against the old one"})
	}
	if g.Proof == nil {
		return rows
	}
	holds := "passed"
	if !g.Proof.Ok {
		holds = "FAILED: " + g.Proof.Finding
	}
	rows = append(rows, [2]string{"verification", fmt.Sprintf("%s (against generation %d, at %s, in %.1f s)", holds, g.Proof.Against, g.Proof.At, g.Proof.TookMs/1000)})
	for _, t := range g.Proof.Tables {
		same := "the same"
		if !t.Ok {
			same = "NOT the same"
		}
		rows = append(rows, [2]string{"  " + t.Table, fmt.Sprintf("%s: %d rows serve, the candidate has %d", same, t.RowsServing, t.RowsCandidate)})
	}
	for i, d := range g.Proof.Differences {
		if i == shownRows {
			rows = append(rows, [2]string{"  …", fmt.Sprintf("and %d more (--output json has all)", len(g.Proof.Differences)-i)})
			break
		}
		rows = append(rows, [2]string{"  " + d.Table + " " + d.Key, "serving: " + orNone(d.Serving) + "  candidate: " + orNone(d.Candidate)})
	}
	return rows
}

func orNone(s *string) string {
	if s == nil {
		return "(no row)"
	}
	return *s
}

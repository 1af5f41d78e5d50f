package web

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/tidemark/tidemark/query-service/internal/generation"
	"github.com/tidemark/tidemark/query-service/internal/peer"
	"github.com/tidemark/tidemark/query-service/internal/projection"
)

const rebuildEvents = "/api/v1/events?watch=generations"

type rebuildView struct {
	viewer
	asked      string // which form was sent
	Projection string
	Names      []string      // of all projections
	Down       string        // why no rebuild can be started now; empty where one can, as far as is known
	Refused    *peer.Refusal // why the form that was sent did nothing; nil where it was not refused
	RefusedAt  *int          // generation that the refused form names; nil for the form that starts a rebuild
	Done       string        // words about the form that was sent, for as long as what it asked for is under way
	Serving    *generationView
	Current    *generationView // the one on its way
	Others     []generationView
	Standby    *generationView // the one of the others that a rollback returns to; nil where there is none
	Form       rebuildForm
}

// At is why the form of a generation was refused; nil where it was not.
func (v rebuildView) At(generation int) *peer.Refusal {
	if v.RefusedAt == nil || *v.RefusedAt != generation {
		return nil
	}
	return v.Refused
}

// Answered reports whether the page answers the form that starts a rebuild: what it says there of what was sent stays, and
// is not replaced by a live update.
func (v rebuildView) Answered() bool {
	return v.RefusedForm() || len(v.Form.Wrong) > 0 || v.Form.Dropping != nil
}

// RefusedForm reports whether the form that starts a rebuild was refused as a whole, and is shown.
func (v rebuildView) RefusedForm() bool {
	return v.Refused != nil && v.RefusedAt == nil && v.Current == nil
}

// RefusedPlace reports whether the refusal is shown at what it is about, so that the top of the page need not.
func (v rebuildView) RefusedPlace() bool {
	if v.RefusedAt == nil {
		return v.RefusedForm()
	}
	named := func(g generationView) bool { return g.Number == *v.RefusedAt }
	return v.Current != nil && named(*v.Current) || slices.ContainsFunc(v.Others, named)
}

type generationView struct {
	generation.Generation
	Width    string // of the bar
	Steps    []step
	Swapping bool // it is just being swapped in
}

// step is one stage of a rebuild: done, now, open or failed; and how long it took, where that is known.
type step struct{ Name, State, Took string }

// Path is that of the page of its rebuild.
func (g generationView) Path() string { return rebuildPath(g.Projection) }

// Bottleneck says in words what holds a fill up.
func (g generationView) Bottleneck() string {
	return map[string]string{
		"kafka":    "the broker: it does not hand records over any faster",
		"consumer": "consumer-service: its own work on the records takes the time",
		"postgres": "Postgres: it does not take rows any faster",
		"throttle": "the rate limit that was asked for",
	}[g.Progress.Bottleneck]
}

// IndexWidth is the width of the bar of the index that is being built; empty where its phase does not count.
func (g generationView) IndexWidth() string {
	if b := g.Progress.Index; b != nil && b.Total > 0 {
		return fmt.Sprintf("%.2f", 100*float64(min(b.Done, b.Total))/float64(b.Total))
	}
	return ""
}

// Pace says how fast a fill goes and when it ends, or that nobody knows.
func (g generationView) Pace() string {
	at := g.Progress
	switch {
	case g.State != generation.Filling:
		return ""
	case !at.Measured:
		return "how fast it goes is not known now"
	case at.ETASeconds == nil && at.Rate < 1 && !g.Stalled():
		return "the rate is being measured"
	case at.ETASeconds == nil:
		return fmt.Sprintf("%s a second", number(int64(at.Rate+0.5)))
	}
	return fmt.Sprintf("%s a second; caught up in about %s", number(int64(at.Rate+0.5)), span(time.Duration(*at.ETASeconds*float64(time.Second))))
}

// passedStep is a stage that is over, and how long it took.
type passedStep struct{ Name, Took string }

// Passed are the stages of a rebuild that has ended, of which the last ones take some milliseconds and are seldom seen while
// they do. Those whose time is not known are left out: a generation that was never a candidate has none.
func (g generationView) Passed() (passed []passedStep) {
	for _, s := range g.Steps {
		if s.Took != "" {
			passed = append(passed, passedStep{s.Name, s.Took})
		}
	}
	if !g.Serves() || g.Proof == nil || !g.Proof.OK || g.StateSince.Before(g.Proof.At) {
		return passed
	}
	return append(passed, passedStep{"Verify", tookMS(&g.Proof.TookMS)}, passedStep{"Swap", took(g.StateSince.Sub(g.Proof.At)) + " after it"})
}

// tookMS prints how long something took; nothing where that is not known.
func tookMS(ms *float64) string {
	if ms == nil {
		return ""
	}
	return took(time.Duration(*ms * float64(time.Millisecond)))
}

// Stalled reports whether consumer-service's watchdog says that it is.
func (g generationView) Stalled() bool { return g.Progress.Stalled != nil }

// Wrong reports whether somebody has to look.
func (g generationView) Wrong() bool { return g.Stalled() || g.Proof != nil && !g.Proof.OK }

// Headline is what the state means.
func (g generationView) Headline() string {
	switch {
	case g.State == generation.Queued:
		return "Waiting for the rebuild of another projection"
	case g.State == generation.Filling && g.NewLog:
		return "New log accepted: reading it into new tables"
	case g.State == generation.Filling && g.Point != nil:
		return "Reading the log up to " + *g.Point
	case g.State == generation.Filling:
		return "Reading the log into new tables"
	case g.State == generation.Indexing:
		return "Building the indexes"
	case g.State == generation.Ready && g.SwapWanted && g.NewLog:
		return "New log accepted: being swapped, not verified against the old one"
	case g.Swapping:
		return "Verified: being swapped"
	case g.State == generation.Ready && g.ProofWanted && g.SwapWanted:
		return "Caught up: being verified, then swapped"
	case g.State == generation.Ready && g.ProofWanted:
		return "Caught up: being verified"
	case g.State == generation.Ready && g.Proof != nil && !g.Proof.OK:
		return "Caught up, but the verification found a difference"
	case g.State == generation.Ready && g.SwapWanted:
		return "Caught up: being verified, then swapped"
	case g.State == generation.Ready && g.Proof != nil:
		return "Caught up, and verified"
	case g.State == generation.Ready:
		return "Caught up"
	case g.State == generation.Standby:
		return "Served before and is kept caught up, for a rollback"
	case g.State == generation.Held && g.Point == nil:
		return "Computed from the former log; kept to be read, never serves again"
	case g.State == generation.Held:
		return "Holds the tables as they were"
	case g.State == generation.Dropping:
		return "Being dropped"
	case g.State == generation.Swapping:
		return "Being swapped"
	case g.State == generation.Serving && g.NewLog:
		return "Serves every read: new log accepted, not verified against the old one"
	default:
		return "Serves every read"
	}
}

// stages of a rebuild.
const (
	stageFill   = "Fill"
	stageHold   = "Hold" // of one that stops at a point: its indexes are never made
	stageIndex  = "Index"
	stageVerify = "Verify"
	stageSwap   = "Swap"
)

// stages are those that this rebuild has, as far as was asked for, and which of them is under way: -1 before the first, as many
// as there are after the last.
func (g generationView) stages() (names []string, at int) {
	if g.Point != nil {
		names = []string{stageFill, stageHold}
	} else {
		names = []string{stageFill, stageIndex}
		served := g.Serves() || g.State == generation.Standby || g.State == generation.Held
		swaps := g.SwapWanted || served
		if !g.NewLog && (swaps || g.ProofWanted || g.Proof != nil) { // nothing to verify a new log against
			names = append(names, stageVerify)
		}
		if swaps {
			names = append(names, stageSwap)
		}
	}
	now := map[generation.State]string{generation.Filling: stageFill, generation.Indexing: stageIndex, generation.Swapping: stageSwap}[g.State]
	switch verified := g.NewLog || g.Proof != nil && g.Proof.OK && !g.ProofWanted; {
	case g.State == generation.Queued:
		return names, -1
	case g.State == generation.Ready && (g.Swapping || verified):
		now = stageSwap
	case g.State == generation.Ready:
		now = stageVerify
	}
	if at = slices.Index(names, now); at < 0 {
		at = len(names)
	}
	return names, at
}

// viewGeneration shows one; swapping says that the serving one is just being swapped.
func viewGeneration(g generation.Generation, swapping bool) generationView {
	v := generationView{Generation: g, Width: fmt.Sprintf("%.2f", g.Progress.Percent())}
	v.Swapping = swapping && g.State == generation.Ready && g.SwapWanted
	names, at := v.stages()
	for i, name := range names {
		s := step{Name: name, State: "open", Took: map[string]string{stageFill: tookMS(g.FillMS), stageIndex: tookMS(g.IndexMS)}[name]}
		switch {
		case i < at:
			s.State = "done"
		case i == at && g.State == generation.Ready && g.Proof != nil && !g.Proof.OK:
			s.State = "failed"
		case i == at:
			s.State = "now"
		}
		v.Steps = append(v.Steps, s)
	}
	return v
}

func (p *Pages) rebuild(c *gin.Context) {
	p.showRebuild(c, http.StatusOK, rebuildView{asked: c.Query("done")})
}

// notices say what was asked for, and whether it is still under way.
var notices = map[string]struct {
	words string
	under func(generation.Generation) bool
}{
	"started": {"The rebuild has been asked for.", generation.Generation.Rebuilding},
	"verify":  {"The verification has been asked for.", func(g generation.Generation) bool { return g.ProofWanted }},
	"swap": {"The swap has been asked for: it is verified first, and done only if that holds.", func(g generation.Generation) bool {
		return g.SwapWanted && !g.Serves() || g.State == generation.Swapping
	}},
	"drop": {"It is being dropped.", func(g generation.Generation) bool { return g.State == generation.Dropping }},
}

func rebuildPath(name string) string { return projectionPath(name) + "/rebuild" }

// showRebuild renders the page; v has what is known of a form that was sent.
func (p *Pages) showRebuild(c *gin.Context, status int, v rebuildView) {
	if list, ok := p.generations(c); ok {
		p.renderRebuild(c, status, v, list)
	}
}

// generations reads those of the projection that the path names; where that fails it renders why.
func (p *Pages) generations(c *gin.Context) ([]generation.Generation, bool) {
	list, err := generation.List(c.Request.Context(), p.Reader, projection.Want{}, projection.Of(c.Param("name")))
	return list, !p.failed(c, err)
}

// rebuilds are those that are under way, of every projection.
func (p *Pages) rebuilds(ctx context.Context) (views []generationView, err error) {
	list, err := generation.List(ctx, p.Reader, projection.Want{}, projection.Every())
	swapping := map[string]bool{}
	for _, g := range list { // of each projection the serving one first
		swapping[g.Projection] = swapping[g.Projection] || g.State == generation.Swapping
		if g.Rebuilding() {
			views = append(views, viewGeneration(g, swapping[g.Projection]))
		}
	}
	return views, err
}

func (p *Pages) renderRebuild(c *gin.Context, status int, v rebuildView, list []generation.Generation) {
	ctx, name := c.Request.Context(), c.Param("name")
	v.viewer, v.Projection, v.Names = p.viewer(c), name, p.names(ctx)
	l := layout{Title: "Rebuild " + name, Here: "/projections", Self: rebuildPath(name), Events: rebuildEvents + "&projection=" + url.QueryEscape(name)}
	for _, part := range p.Peers.Parts() {
		if part.Name == peer.ConsumerService && part.State == peer.Down {
			v.Down, l.Refresh = part.Words, 3
		}
	}
	swapping := false
	for _, g := range list { // the serving one first
		if notice, ok := notices[v.asked]; ok && notice.under(g) {
			v.Done = notice.words
		}
		view := viewGeneration(g, swapping)
		switch {
		case g.Serves():
			v.Serving = &view
			swapping = g.State == generation.Swapping
		case g.Rebuilding() && v.Current == nil:
			v.Current = &view
		default:
			v.Others = append(v.Others, view)
			if g.State == generation.Standby {
				v.Standby = &view
			}
		}
		if g.Moving() {
			l.Refresh = 2
		}
	}
	if v.Form.Kind == "" {
		v.Form.Kind = "swap"
	}
	l.Body = v
	p.render(c, status, "rebuild", l)
}

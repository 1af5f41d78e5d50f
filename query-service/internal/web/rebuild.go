package web

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/gin-gonic/gin"

	"github.com/tidemark/tidemark/query-service/internal/generation"
	"github.com/tidemark/tidemark/query-service/internal/peer"
	"github.com/tidemark/tidemark/query-service/internal/projection"
	consumer "github.com/tidemark/tidemark/shared/api/consumer"
)

const rebuildEvents = "/api/v1/events?watch=generations"

type rebuildView struct {
	Projection string
	Names      []string      // of all projections
	Down       string        // why no rebuild can be started now; empty where one can, as far as is known
	Refused    *peer.Refusal // what became of the form that was sent
	Done       string        // words about the form that was sent
	Serving    *generationView
	Current    *generationView // the one on its way
	Others     []generationView
	Standby    bool // a rollback could return to one of the others
	Form       rebuildForm
}

type rebuildForm struct {
	Kind           string // swap, ready or point
	RateLimit      string
	Point          string
	ReplaceStandby bool
}

type generationView struct {
	generation.Generation
	Width string // of the bar
	Steps []step
}

// step is one stage of a rebuild: done, now, open or failed.
type step struct{ Name, State string }

// Bottleneck says in words what holds a fill up.
func (g generationView) Bottleneck() string {
	return map[string]string{
		"kafka":    "the broker: it does not hand records over any faster",
		"consumer": "consumer-service: its own work on the records takes the time",
		"postgres": "Postgres: it does not take rows any faster",
		"throttle": "the rate limit that was asked for",
	}[g.Progress.Bottleneck]
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
	case g.State == generation.Filling && g.Point != nil:
		return "Reading the log up to " + *g.Point
	case g.State == generation.Filling:
		return "Reading the log into new tables"
	case g.State == generation.Indexing:
		return "Building the indexes"
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
	case g.State == generation.Held:
		return "Holds the tables as they were"
	case g.State == generation.Dropping:
		return "Being dropped"
	case g.State == generation.Swapping:
		return "Being swapped"
	default:
		return "Serves every read"
	}
}

func viewGeneration(g generation.Generation) generationView {
	v := generationView{Generation: g, Width: fmt.Sprintf("%.2f", g.Progress.Percent())}
	stages := []string{"Fill", "Index", "Verify", "Swap"}
	at := map[generation.State]int{
		generation.Queued: -1, generation.Filling: 0, generation.Indexing: 1, generation.Ready: 2, generation.Swapping: 3,
		generation.Standby: 4, generation.Serving: 4, generation.Held: 4,
	}[g.State]
	if g.Point != nil {
		stages = []string{"Fill", "Index", "Hold"}
		if g.State == generation.Held {
			at = 3
		}
	}
	if g.State == generation.Ready && g.Proof != nil && g.Proof.OK {
		at = 3
	}
	for i, name := range stages {
		s := step{name, "open"}
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
	v := rebuildView{Done: map[string]string{
		"started": "The rebuild has been asked for.",
		"verify":  "The verification has been asked for.",
		"swap":    "The swap has been asked for: it is verified first, and done only if that holds.",
		"drop":    "It is being dropped.",
	}[c.Query("done")]}
	p.showRebuild(c, http.StatusOK, v)
}

func rebuildPath(name string) string { return projectionPath(name) + "/rebuild" }

func (p *Pages) showRebuild(c *gin.Context, status int, v rebuildView) {
	ctx, name := c.Request.Context(), c.Param("name")
	list, err := generation.List(ctx, p.Reader, projection.Want{}, projection.Of(name))
	if p.failed(c, err) {
		return
	}
	v.Projection, v.Names = name, p.names(ctx)
	l := layout{Title: "Rebuild " + name, Here: "/projections", Events: rebuildEvents + "&projection=" + url.QueryEscape(name)}
	for _, part := range p.Peers.Parts() {
		if part.Name == peer.ConsumerService && part.State == peer.Down {
			v.Down, l.Refresh = part.Words, 3
		}
	}
	for _, g := range list {
		view := viewGeneration(g)
		switch {
		case g.Serves():
			v.Serving = &view
		case g.Rebuilding() && v.Current == nil:
			v.Current = &view
		default:
			v.Others = append(v.Others, view)
			v.Standby = v.Standby || g.State == generation.Standby
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

// startRebuild asks consumer-service for a new generation.
func (p *Pages) startRebuild(c *gin.Context) {
	ctx := c.Request.Context()
	f := rebuildForm{
		Kind: c.PostForm("kind"), RateLimit: strings.TrimSpace(c.PostForm("rate_limit")),
		Point: strings.TrimSpace(c.PostForm("point")), ReplaceStandby: c.PostForm("replace_standby") != "",
	}
	request, wrong := f.request()
	if wrong != "" {
		p.showRebuild(c, http.StatusBadRequest, rebuildView{Form: f, Refused: &peer.Refusal{Detail: wrong}})
		return
	}
	name := c.Param("name")
	if refused := p.refusal(ctx, p.Peers.StartRebuild(ctx, name, request)); refused != nil {
		p.showRebuild(c, refused.Status, rebuildView{Form: f, Refused: refused})
		return
	}
	c.Redirect(http.StatusSeeOther, rebuildPath(name)+"?done=started")
}

// request turns the form into a request, or says what is wrong with it. Whether a point lies in the log is left to
// consumer-service.
func (f rebuildForm) request() (consumer.Rebuild, string) {
	swap := f.Kind == "swap"
	r := consumer.Rebuild{Swap: &swap}
	if f.ReplaceStandby {
		r.ReplaceStandby = &f.ReplaceStandby
	}
	switch f.Kind {
	case "swap", "ready":
	case "point":
		if f.Point == "" {
			return r, "a rebuild to a point needs the point: an instant such as 2026-11-03T00:00:00Z, or a position such as timestamp.command.v1/3@42"
		}
		to := made(&r.To)
		if strings.Contains(f.Point, "@") {
			to.Position = &f.Point
		} else {
			to.Time = &f.Point
		}
	default:
		return r, "choose one of the three kinds of rebuild"
	}
	if f.RateLimit != "" {
		limit, err := strconv.Atoi(strings.ReplaceAll(f.RateLimit, ",", ""))
		if err != nil || limit < 1 {
			return r, fmt.Sprintf("%q is no rate limit: it is a whole number of records a second, or nothing for unlimited", f.RateLimit)
		}
		r.RateLimit = &limit
	}
	return r, ""
}

// made points *p at a new value, whose type has no name, and returns it.
func made[T any](p **T) *T {
	*p = new(T)
	return *p
}

// onGeneration makes the handler of a form that names a generation.
func (p *Pages) onGeneration(do func(ctx context.Context, projection string, generation int) error) gin.HandlerFunc {
	return func(c *gin.Context) {
		ctx, name := c.Request.Context(), c.Param("name")
		n, err := strconv.ParseInt(c.PostForm("generation"), 10, 32)
		if err != nil || n < 0 {
			p.refuse(c, "the form names no generation: go back to the page and send it again")
			return
		}
		if refused := p.refusal(ctx, do(ctx, name, int(n))); refused != nil {
			p.showRebuild(c, refused.Status, rebuildView{Refused: refused})
			return
		}
		c.Redirect(http.StatusSeeOther, rebuildPath(name)+"?done="+c.FullPath()[strings.LastIndex(c.FullPath(), "/")+1:])
	}
}

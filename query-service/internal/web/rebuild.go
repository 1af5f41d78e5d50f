package web

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"github.com/gin-gonic/gin"

	"github.com/tidemark/tidemark/query-service/internal/peer"
)

const rebuildEvents = "/api/v1/events?watch=generations"

type rebuildView struct {
	Away    *peer.Refusal // why there is no list
	Refused *peer.Refusal // what became of the form that was sent
	Done    string        // words about the form that was sent
	Serving *generationView
	Current *generationView // the one on its way
	Others  []generationView
	Standby bool // one of the others could be swapped back
	Form    rebuildForm
}

type rebuildForm struct {
	Kind           string // swap, ready or point
	RateLimit      string
	Point          string
	ReplaceStandby bool
}

type generationView struct {
	peer.Generation
	Width string // of the bar
	Steps []step
}

// step is one stage of a rebuild: done, now, open or failed.
type step struct{ Name, State string }

// Bottleneck says in words which side holds a fill up.
func (g generationView) Bottleneck() string {
	if g.Progress == nil {
		return ""
	}
	return map[string]string{
		"kafka":    "the broker: it does not hand records over any faster",
		"consumer": "consumer-service: its own work on the records takes the time",
		"postgres": "Postgres: it does not take rows any faster",
		"throttle": "the rate limit that was asked for",
	}[g.Progress.Bottleneck]
}

// Stalled reports whether consumer-service's watchdog says that it is.
func (g generationView) Stalled() bool { return g.Progress != nil && g.Progress.StalledSince != nil }

// Wrong reports whether somebody has to look.
func (g generationView) Wrong() bool { return g.Stalled() || g.Proof != nil && !g.Proof.OK }

// Headline is what the state means.
func (g generationView) Headline() string {
	switch {
	case g.State == peer.Filling && g.Point != nil:
		return "Reading the log up to " + *g.Point
	case g.State == peer.Filling:
		return "Reading the log into new tables"
	case g.State == peer.Indexing:
		return "Building the indexes"
	case g.State == peer.Ready && g.Proof != nil && !g.Proof.OK:
		return "Level with the log, but the proof found a difference"
	case g.State == peer.Ready && g.SwapWanted:
		return "Level with the log: being proved, then swapped"
	case g.State == peer.Ready && g.Proof != nil:
		return "Level with the log, and proved"
	case g.State == peer.Ready:
		return "Level with the log"
	case g.State == peer.Standby:
		return "Served before and is fed on: the way back"
	case g.State == peer.Held:
		return "Holds the rows as they were"
	case g.State == peer.Dropping:
		return "Being dropped"
	case g.State == peer.Swapping:
		return "Being swapped"
	default:
		return "Serves every read"
	}
}

func viewGeneration(g peer.Generation) generationView {
	v := generationView{Generation: g, Width: "0"}
	if g.Progress != nil {
		v.Width = fmt.Sprintf("%.2f", min(max(g.Progress.Percent, 0), 100))
	}
	stages := []string{"Fill", "Index", "Prove", "Swap"}
	at := map[string]int{peer.Filling: 0, peer.Indexing: 1, peer.Ready: 2, peer.Swapping: 3, peer.Standby: 4, peer.Serving: 4, peer.Held: 4}[g.State]
	if g.Point != nil {
		stages = []string{"Fill", "Index", "Hold"}
		if g.State == peer.Held {
			at = 3
		}
	}
	if g.State == peer.Ready && g.Proof != nil && g.Proof.OK {
		at = 3
	}
	for i, name := range stages {
		s := step{name, "open"}
		switch {
		case i < at:
			s.State = "done"
		case i == at && g.State == peer.Ready && g.Proof != nil && !g.Proof.OK:
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
		"prove":   "The proof has been asked for.",
		"swap":    "The swap has been asked for: it is proved first, and done only if the proof holds.",
		"drop":    "It is being dropped.",
	}[c.Query("done")]}
	p.showRebuild(c, http.StatusOK, v)
}

func (p *Pages) showRebuild(c *gin.Context, status int, v rebuildView) {
	ctx := c.Request.Context()
	l := layout{Title: "Rebuild", Here: "/rebuild", Events: rebuildEvents}
	list, err := p.Peers.Generations(ctx)
	if v.Away = p.refusal(ctx, err); v.Away != nil {
		if status == http.StatusOK {
			status = v.Away.Status
		}
		l.Refresh = 3
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
			v.Standby = v.Standby || g.State == peer.Standby
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
	wish, wrong := f.read()
	if wrong != "" {
		p.showRebuild(c, http.StatusBadRequest, rebuildView{Form: f, Refused: &peer.Refusal{Detail: wrong}})
		return
	}
	if refused := p.refusal(ctx, p.Peers.StartRebuild(ctx, wish)); refused != nil {
		p.showRebuild(c, refused.Status, rebuildView{Form: f, Refused: refused})
		return
	}
	c.Redirect(http.StatusSeeOther, "/rebuild?done=started")
}

// read turns the form into a wish, or says what is wrong with it. Whether a point lies in the log is
// consumer-service's to say.
func (f rebuildForm) read() (peer.Rebuild, string) {
	r := peer.Rebuild{Swap: f.Kind == "swap", ReplaceStandby: f.ReplaceStandby}
	switch f.Kind {
	case "swap", "ready":
	case "point":
		switch {
		case f.Point == "":
			return r, "a rebuild to a point needs the point: an instant such as 2026-11-03T00:00:00Z, or a position such as timestamp.command.v1/3@42"
		case strings.Contains(f.Point, "@"):
			r.To = &peer.Point{Position: f.Point}
		default:
			r.To = &peer.Point{Time: f.Point}
		}
	default:
		return r, "choose one of the three kinds of rebuild"
	}
	if f.RateLimit != "" {
		limit, err := strconv.ParseInt(strings.ReplaceAll(f.RateLimit, ",", ""), 10, 64)
		if err != nil || limit < 1 {
			return r, fmt.Sprintf("%q is no rate limit: it is a whole number of records a second, or nothing for as fast as it goes", f.RateLimit)
		}
		r.RateLimit = &limit
	}
	return r, ""
}

// onGeneration makes the handler of a form that names a generation.
func (p *Pages) onGeneration(do func(context.Context, int) error) gin.HandlerFunc {
	return func(c *gin.Context) {
		ctx := c.Request.Context()
		n, err := strconv.Atoi(c.PostForm("generation"))
		if err != nil || n < 0 {
			p.refuse(c, "the form names no generation: go back to the page and send it again")
			return
		}
		if refused := p.refusal(ctx, do(ctx, n)); refused != nil {
			p.showRebuild(c, refused.Status, rebuildView{Refused: refused})
			return
		}
		c.Redirect(http.StatusSeeOther, "/rebuild?done="+c.FullPath()[strings.LastIndex(c.FullPath(), "/")+1:])
	}
}

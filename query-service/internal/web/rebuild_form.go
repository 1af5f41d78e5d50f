package web

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"github.com/gin-gonic/gin"

	"github.com/tidemark/tidemark/query-service/internal/generation"
	"github.com/tidemark/tidemark/query-service/internal/peer"
	consumer "github.com/tidemark/tidemark/shared/api/consumer"
)

// Kinds of a rebuild, as the form names them.
const (
	rebuildSwap  = "swap"  // swapped once it is verified
	rebuildReady = "ready" // built, and swapped by hand
	rebuildPoint = "point" // stops at a time or position of the log, and never serves
)

// rebuildForm is the form that starts a rebuild, as it was filled.
type rebuildForm struct {
	Kind           string
	RateLimit      string
	Point          string
	ReplaceStandby bool
	Wrong          map[string]string // what is wrong, by field
	// Dropping is the standby that the rebuild would drop, where that is to be confirmed; else nil.
	Dropping *generationView
}

func readRebuildForm(c *gin.Context) rebuildForm {
	return rebuildForm{
		Kind: c.PostForm("kind"), RateLimit: strings.TrimSpace(c.PostForm("rate_limit")),
		Point: strings.TrimSpace(c.PostForm("point")), ReplaceStandby: c.PostForm("replace_standby") != "",
	}
}

// check notes what is wrong with each field. Fields of two kinds at once are refused, since nobody knows which was
// meant. standby is the generation that is kept as one; nil where there is none. Whether a point lies in the log is left
// to consumer-service.
func (f *rebuildForm) check(standby *generation.Generation) {
	f.Wrong = map[string]string{}
	switch f.Kind {
	case rebuildSwap, rebuildReady:
		if f.Point != "" {
			f.Wrong["point"] = "It belongs to “Up to a point”, which is not chosen: choose that, or empty this field."
		}
		if standby != nil && !f.ReplaceStandby {
			f.Wrong["replace_standby"] = fmt.Sprintf("Only one standby is kept, and generation %d is one: tick this to drop it, or choose “Up to a point”.", standby.Number)
		}
	case rebuildPoint:
		if f.Point == "" {
			f.Wrong["point"] = "Where to stop is missing: an instant such as 2026-11-03T00:00:00Z, or a position such as timestamp.command.v1/3@42."
		}
		if f.ReplaceStandby {
			f.Wrong["replace_standby"] = "A rebuild up to a point never serves and drops no standby: untick this, or choose another kind."
		}
	default:
		f.Wrong["kind"] = "Choose one of the three kinds of rebuild."
	}
	if f.RateLimit != "" && f.rateLimit() < 1 {
		f.Wrong["rate_limit"] = fmt.Sprintf("%q is no rate limit: it is a whole number of records a second, or nothing for unlimited.", f.RateLimit)
	}
}

// rateLimit is 0 where the field holds none.
func (f *rebuildForm) rateLimit() int {
	limit, err := strconv.Atoi(strings.ReplaceAll(f.RateLimit, ",", ""))
	if err != nil {
		return 0
	}
	return limit
}

// request is what consumer-service is asked for, of a form that was checked.
func (f *rebuildForm) request() consumer.Rebuild {
	swap := f.Kind == rebuildSwap
	r := consumer.Rebuild{Swap: &swap}
	if f.ReplaceStandby {
		r.ReplaceStandby = &f.ReplaceStandby
	}
	if f.Kind == rebuildPoint {
		to := made(&r.To)
		if strings.Contains(f.Point, "@") {
			to.Position = &f.Point
		} else {
			to.Time = &f.Point
		}
	}
	if limit := f.rateLimit(); limit > 0 {
		r.RateLimit = &limit
	}
	return r
}

// made points *p at a new value, whose type has no name, and returns it.
func made[T any](p **T) *T {
	*p = new(T)
	return *p
}

// startRebuild asks consumer-service for a new generation. One that drops the standby is shown what is lost first, and is
// sent again with the number of that standby.
func (p *Pages) startRebuild(c *gin.Context) {
	ctx, name, f := c.Request.Context(), c.Param("name"), readRebuildForm(c)
	list, ok := p.generations(c)
	if !ok {
		return
	}
	standby := standbyOf(list)
	if f.check(standby); len(f.Wrong) > 0 {
		p.renderRebuild(c, http.StatusBadRequest, rebuildView{Form: f}, list)
		return
	}
	if f.ReplaceStandby && standby != nil && c.PostForm("drop") != strconv.Itoa(standby.Number) {
		view := viewGeneration(*standby, false)
		f.Dropping = &view
		p.renderRebuild(c, http.StatusOK, rebuildView{Form: f}, list)
		return
	}
	if refused := p.refusal(ctx, p.Peers.StartRebuild(ctx, name, f.request())); refused != nil {
		p.startRebuildAgain(c, refused)
		return
	}
	c.Redirect(http.StatusSeeOther, rebuildPath(name)+"?done=started")
}

func (p *Pages) startRebuildAgain(c *gin.Context, refused *peer.Refusal) {
	p.showRebuild(c, refused.Status, rebuildView{Form: readRebuildForm(c), Refused: refused})
}

func standbyOf(list []generation.Generation) *generation.Generation {
	for i := range list {
		if list[i].State == generation.Standby {
			return &list[i]
		}
	}
	return nil
}

// onGeneration makes the handler of a form that names a generation.
func (p *Pages) onGeneration(do func(ctx context.Context, projection string, generation int) error) gin.HandlerFunc {
	return func(c *gin.Context) {
		ctx, name := c.Request.Context(), c.Param("name")
		n := postedGeneration(c)
		if n == nil {
			p.onGenerationAgain(c, &peer.Refusal{Status: http.StatusBadRequest, Detail: "the form names no generation: send it again from here"})
			return
		}
		if refused := p.refusal(ctx, do(ctx, name, *n)); refused != nil {
			p.onGenerationAgain(c, refused)
			return
		}
		c.Redirect(http.StatusSeeOther, rebuildPath(name)+"?done="+c.FullPath()[strings.LastIndex(c.FullPath(), "/")+1:])
	}
}

func (p *Pages) onGenerationAgain(c *gin.Context, refused *peer.Refusal) {
	p.showRebuild(c, refused.Status, rebuildView{Refused: refused, RefusedAt: postedGeneration(c)})
}

// postedGeneration is nil where the form names none.
func postedGeneration(c *gin.Context) *int {
	n, err := strconv.ParseInt(c.PostForm("generation"), 10, 32)
	if err != nil || n < 0 {
		return nil
	}
	number := int(n)
	return &number
}

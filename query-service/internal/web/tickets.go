package web

import (
	"context"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/tidemark/tidemark/query-service/internal/journey"
	"github.com/tidemark/tidemark/query-service/internal/projection"
	"github.com/tidemark/tidemark/query-service/internal/record"
	"github.com/tidemark/tidemark/query-service/internal/ticket"
	"github.com/tidemark/tidemark/shared/position"
	ids "github.com/tidemark/tidemark/shared/ticket"
)

const pageLimit = 50

type ticketView struct {
	ticket.Ticket
	journey.Times
	Made   *time.Time // what the id says, where it says a time: the door's clock, or what a caller's own key claims
	Down   string     // what is down, where that keeps the ticket from going on
	Behind int64      // for pending: offsets between what is projected and this record
}

// Changing reports whether a later look may show another state.
func (v ticketView) Changing() bool {
	return v.State == ticket.Pending || v.State == ticket.Unknown && v.Position == nil
}

// Settled reports whether the ticket has an outcome.
func (v ticketView) Settled() bool { return v.State != ticket.Pending && v.State != ticket.Unknown }

// Acknowledged is how long the door took, and Visible how long it was until the outcome could be read;
// zero where that was not seen here.
func (v ticketView) Acknowledged() time.Duration { return since(v.Sent, v.Answered) }

// Visible is counted from the sending of the POST.
func (v ticketView) Visible() time.Duration { return since(v.Sent, v.Passed) }

func since(from, to time.Time) time.Duration {
	if from.IsZero() || to.IsZero() {
		return 0
	}
	return max(to.Sub(from), time.Nanosecond)
}

// ticket shows one command on its way from the door to its row.
func (p *Pages) ticket(c *gin.Context) {
	ctx := c.Request.Context()
	id, err := ids.Parse(c.Param("id"))
	if err != nil {
		p.showLookUp(c, http.StatusBadRequest, lookUpView{ID: c.Param("id"), Wrong: err.Error()})
		return
	}
	want, err := p.Reader.Want(ctx, c.GetHeader(position.Header), c.Query("position"), c.Query("wait"), 0)
	if p.failed(c, err) {
		return
	}
	t, err := p.Tickets.Find(ctx, id, want)
	if p.failed(c, err) {
		return
	}
	v := ticketView{Ticket: t}
	if down, _ := p.whatIsDown(); down == consumerDown && v.Changing() {
		v.Down = down
	}
	if v.Settled() {
		p.Journeys.Settled(id)
	}
	v.Times = p.Journeys.Of(id)
	if made, ok := ids.Time(id); ok {
		v.Made = &made
	}
	l := layout{Title: "Ticket " + id.String(), Here: "/tickets"}
	if t.State == ticket.Pending && t.Position != nil {
		p.Journeys.Follow(ctx, id, *t.Position)
		v.Behind = t.Position.Offset + 1
		if t.Reached != nil {
			v.Behind = t.Position.Offset - t.Reached.Offset
		}
	}
	if v.Changing() {
		q := url.Values{"ticket": {id.String()}}
		if want.Asked() {
			q.Set("position", want.Position.String())
		}
		l.Events, l.Refresh = "/api/v1/events?"+q.Encode(), 1
		if t.State == ticket.Unknown {
			l.Refresh = 3
		}
	}
	l.Body = v
	p.render(c, http.StatusOK, "ticket", l)
}

type lookUpView struct {
	ID    string
	Wrong string
}

// lookUp leads from the search field to the ticket's page. It takes what people paste: an id, or the
// address that the door gave with it.
func (p *Pages) lookUp(c *gin.Context) {
	text := strings.TrimSpace(c.Query("id"))
	if text == "" {
		p.showLookUp(c, http.StatusOK, lookUpView{})
		return
	}
	given, at := text, strings.TrimSpace(c.Query("position"))
	if u, err := url.Parse(text); err == nil && strings.Contains(u.Path, "/") {
		given = u.Path[strings.LastIndex(u.Path, "/")+1:]
		if at == "" {
			at = u.Query().Get("position")
		}
	}
	id, err := ids.Parse(given)
	if err != nil {
		p.showLookUp(c, http.StatusBadRequest, lookUpView{ID: text, Wrong: err.Error()})
		return
	}
	c.Redirect(http.StatusSeeOther, ticketPath(id, at))
}

func (p *Pages) showLookUp(c *gin.Context, status int, v lookUpView) {
	p.render(c, status, "tickets", layout{Title: "Follow a ticket", Here: "/tickets", Body: v})
}

type recordsView struct {
	Records        []record.Record
	Previous, Next string // links; empty where there is nothing
	First          bool
}

func (p *Pages) records(c *gin.Context) {
	var at record.Cursor
	for parameter, above := range map[string]bool{"before": false, "after": true} {
		text := c.Query(parameter)
		if text == "" {
			continue
		}
		id, err := ids.Parse(text)
		if err != nil {
			p.refuse(c, err.Error())
			return
		}
		at = record.Cursor{ID: id, Above: above}
	}
	var page record.Page
	err := p.Reader.Read(c.Request.Context(), projection.Want{}, projection.Of(record.Projection), func(ctx context.Context, s *projection.Snapshot) (err error) {
		page, err = record.List(ctx, s, at, pageLimit)
		return err
	})
	if p.failed(c, err) {
		return
	}
	v := recordsView{Records: page.Records, First: page.Above == nil}
	if page.Below != nil {
		v.Next = "/records?before=" + page.Below.ID.String()
	}
	if page.Above != nil {
		v.Previous = "/records?after=" + page.Above.ID.String()
	}
	p.render(c, http.StatusOK, "records", layout{Title: "Records", Here: "/records", Body: v})
}

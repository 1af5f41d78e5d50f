package web

import (
	"context"
	"encoding/base64"
	"net/http"
	"strings"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/tidemark/tidemark/query-service/internal/deadletter"
	"github.com/tidemark/tidemark/query-service/internal/projection"
	"github.com/tidemark/tidemark/query-service/internal/record"
	"github.com/tidemark/tidemark/query-service/internal/ticket"
	"github.com/tidemark/tidemark/shared/position"
	"github.com/tidemark/tidemark/shared/problem"
	ids "github.com/tidemark/tidemark/shared/ticket"
)

const pageLimit = 50

type ticketView struct {
	ticket.Ticket
	Made   *time.Time // the door's clock when it gave the ticket, where the id tells
	Behind int64      // for pending: offsets between what is projected and this record
}

// ticket shows one command on its way from the door to its row. Like any read it takes a wait, which
// its script uses; the page itself comes at once.
func (p *Pages) ticket(c *gin.Context) {
	id, err := ids.Parse(c.Param("id"))
	if err != nil {
		p.refuse(c, err.Error())
		return
	}
	want, err := projection.ParseWant(c.GetHeader(position.Header), c.Query("position"), c.Query("wait"), 0)
	if err != nil {
		p.refuse(c, err.Error())
		return
	}
	t, err := ticket.Find(c.Request.Context(), p.Reader, id, want)
	if p.failed(c, err) {
		return
	}
	v := ticketView{Ticket: t}
	if made, ok := ids.Time(id); ok {
		v.Made = &made
	}
	if t.State == ticket.Pending {
		v.Behind = t.Position.Offset + 1
		if t.Reached != nil {
			v.Behind = t.Position.Offset - t.Reached.Offset
		}
	}
	p.render(c, http.StatusOK, "ticket", layout{Title: "Ticket " + id.String(), Here: "/tickets", Body: v})
}

// lookUp leads from the search field to the ticket's page.
func (p *Pages) lookUp(c *gin.Context) {
	id, err := ids.Parse(strings.TrimSpace(c.Query("id")))
	if err != nil {
		p.refuse(c, err.Error())
		return
	}
	c.Redirect(http.StatusSeeOther, ticketPath(id, strings.TrimSpace(c.Query("position"))))
}

type recordsView struct {
	Records      []record.Record
	Older, Newer string // links; empty where there is nothing
}

func (p *Pages) records(c *gin.Context) {
	var at record.Cursor
	for side, newer := range map[string]bool{"before": false, "after": true} {
		text := c.Query(side)
		if text == "" {
			continue
		}
		id, err := ids.Parse(text)
		if err != nil {
			p.refuse(c, err.Error())
			return
		}
		at = record.Cursor{ID: id, Newer: newer}
	}
	var page record.Page
	err := p.Reader.Read(c.Request.Context(), projection.Want{}, func(ctx context.Context, s *projection.Snapshot) (err error) {
		page, err = record.List(ctx, s, at, pageLimit)
		return err
	})
	if p.failed(c, err) {
		return
	}
	v := recordsView{Records: page.Records}
	if page.Older != nil {
		v.Older = "/records?before=" + page.Older.ID.String()
	}
	if page.Newer != nil {
		v.Newer = "/records?after=" + page.Newer.ID.String()
	}
	p.render(c, http.StatusOK, "records", layout{Title: "Records", Here: "/records", Body: v})
}

type letterView struct {
	deadletter.DeadLetter
	Shown    string
	Encoding string // text or base64
	Size     int64
}

type deadLettersView struct {
	Letters []letterView
	First   bool
	Next    string
}

func (p *Pages) deadLetters(c *gin.Context) {
	var after position.Position
	if text := c.Query("after"); text != "" {
		var err error
		if after, err = position.Parse(text); err != nil {
			p.refuse(c, err.Error())
			return
		}
	}
	var letters []deadletter.DeadLetter
	var next *position.Position
	err := p.Reader.Read(c.Request.Context(), projection.Want{}, func(ctx context.Context, s *projection.Snapshot) (err error) {
		letters, next, err = deadletter.List(ctx, s, after, pageLimit)
		return err
	})
	if p.failed(c, err) {
		return
	}
	v := deadLettersView{First: after.Topic == ""}
	for _, l := range letters {
		view := letterView{DeadLetter: l, Encoding: "text", Size: int64(l.PayloadBytes)}
		var isText bool
		if view.Shown, isText = l.Text(); !isText {
			view.Shown, view.Encoding = base64.StdEncoding.EncodeToString(l.Payload), "base64"
		}
		v.Letters = append(v.Letters, view)
	}
	if next != nil {
		v.Next = "/dead-letters?after=" + next.String()
	}
	p.render(c, http.StatusOK, "deadletters", layout{Title: "Dead letters", Here: "/dead-letters", Body: v})
}

func (p *Pages) refuse(c *gin.Context, detail string) {
	p.fail(c, problem.Problem{Status: http.StatusBadRequest, Detail: detail})
}

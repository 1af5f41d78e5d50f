package web

import (
	"context"
	"net/http"
	"strings"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/google/uuid"

	"github.com/tidemark/tidemark/query-service/internal/peer"
	"github.com/tidemark/tidemark/query-service/internal/projection"
	"github.com/tidemark/tidemark/query-service/internal/recent"
	"github.com/tidemark/tidemark/query-service/internal/record"
	"github.com/tidemark/tidemark/shared/instant"
	"github.com/tidemark/tidemark/shared/position"
)

const (
	newestRecords = 8
	// newestTimeout bounds their reading, which is a part of the page and no reason for it to fail: rows that do not lie
	// in about the order of the log take long to search.
	newestTimeout = time.Second
	// newestTimes keeps their reading to a twentieth of the time, whoever looks: the last minute's rows are searched one by
	// one until vacuum has been there, and a replay writes millions in a minute.
	newestTimes = 20
)

// newestOf reads them once for all pages that are open.
func newestOf(r *projection.Reader) *recent.Value[[]record.Record] {
	return &recent.Value[[]record.Record]{Times: newestTimes, Patience: newestTimeout, Read: func(ctx context.Context) (newest []record.Record, err error) {
		err = r.Read(ctx, projection.Want{}, projection.Of(record.Projection), func(ctx context.Context, s *projection.Snapshot) (err error) {
			newest, err = record.Newest(ctx, s, newestRecords)
			return err
		})
		return newest, err
	}}
}

type overviewView struct {
	viewer
	statusesView
	Form         formView
	Parts        []peer.Part
	Newest       []record.Record
	NewestUnread bool
	CommandURL   string
}

type formView struct {
	At      string
	Example string
	Refused *peer.Refusal
}

func (p *Pages) overview(c *gin.Context) { p.showOverview(c, http.StatusOK, formView{}) }

func (p *Pages) showOverview(c *gin.Context, status int, form formView) {
	ctx := c.Request.Context()
	form.Example = instant.Example
	v := overviewView{viewer: p.viewer(c), Form: form, CommandURL: p.Peers.CommandURL}
	if v.statusesView = p.statuses(ctx); v.Trouble == "" {
		var err error
		v.Newest, err = p.newest.Get(ctx)
		v.NewestUnread = err != nil // all else could be read
	}
	v.Parts = p.parts(v.DatabaseOut)
	p.render(c, status, "overview", layout{Title: "Overview", Here: "/", Self: "/", Events: statusEvents, Refresh: v.refresh(), Body: v})
}

// parts is what runs, as it was seen last; a page never waits for it. That the database is out is known here before
// readiness has looked again.
func (p *Pages) parts(databaseOut bool) []peer.Part {
	own := p.Ready.Reasons()
	me := peer.Part{Name: "query-service", What: "reads the tables, shows this page", State: peer.Up}
	db := peer.Part{Name: "database", What: "holds the tables", State: peer.Up}
	if why, down := own["database"]; down {
		db.State, db.Words = peer.Down, why
		delete(own, "database")
	}
	if databaseOut && db.State == peer.Up {
		db.State, db.Words = peer.Down, "it cannot be read"
	}
	if len(own) > 0 {
		me.State, me.Words = peer.Unready, peer.Reasons(own)
	}
	return append(p.Peers.Parts(), me, db)
}

// stamp posts a command to the door and leads to its ticket. The status of a refusal is the door's, so
// that a script that posts the form can tell.
func (p *Pages) stamp(c *gin.Context) {
	ctx := c.Request.Context()
	at, sent := strings.TrimSpace(c.PostForm("event_timestamp")), time.Now()
	got, err := p.send(c, func(key uuid.UUID) (peer.Accepted, error) { return p.Peers.Stamp(ctx, at, key) })
	if refused := p.refusal(ctx, err); refused != nil {
		p.stampAgain(c, refused)
		return
	}
	p.Journeys.Stamped(got.ID, sent, time.Now())
	if place, err := position.Parse(got.Position); err == nil {
		p.Journeys.Follow(ctx, got.ID, place)
	}
	c.Redirect(http.StatusSeeOther, ticketPath(got.ID, got.Position))
}

func (p *Pages) stampAgain(c *gin.Context, refused *peer.Refusal) {
	p.showOverview(c, refused.Status, formView{At: strings.TrimSpace(c.PostForm("event_timestamp")), Refused: refused})
}

// ticketPath names the ticket's page. A position needs no escaping in a query, and reads better without.
func ticketPath(id uuid.UUID, at string) string {
	path := "/tickets/" + id.String()
	if p, err := position.Parse(at); err == nil {
		path += "?position=" + p.String()
	}
	return path
}

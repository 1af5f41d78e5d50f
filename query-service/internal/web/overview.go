package web

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/google/uuid"

	"github.com/tidemark/tidemark/query-service/internal/projection"
	"github.com/tidemark/tidemark/query-service/internal/record"
	"github.com/tidemark/tidemark/shared/instant"
	"github.com/tidemark/tidemark/shared/position"
	"github.com/tidemark/tidemark/shared/problem"
	ids "github.com/tidemark/tidemark/shared/ticket"
)

const latestRecords = 8

type overviewView struct {
	Form       formView
	Parts      []Part
	Trouble    string // why there is no status
	Status     projection.Status
	Totals     projection.Counts
	Behind     int64
	BehindOK   bool // the lag is known
	CaughtUpAt *time.Time
	CatchingUp bool
	Replay     replayView
	Audit      projection.AuditSummary
	Findings   []projection.Audit
	Rows       []partitionRow
	Latest     []record.Record
	CommandURL string
}

type formView struct {
	At      string
	Example string
	Refused *refusal
}

type replayView struct {
	projection.Replay
	Width string // of the bar
	Words string
	Busy  bool // the rate is worth telling
}

type partitionRow struct {
	projection.Partition
	Width   string // of the lag's bar, against the largest lag
	Audit   *projection.Audit
	Current bool // the audit is of this epoch
}

// Settled is what every offset passed has become.
func (r partitionRow) Settled() int64 { return r.Applied + r.Duplicate + r.Rejected + r.Skipped }

func (p *Pages) overview(c *gin.Context) { p.showOverview(c, http.StatusOK, formView{}) }

func (p *Pages) showOverview(c *gin.Context, status int, form formView) {
	ctx := c.Request.Context()
	form.Example = instant.Example
	v := overviewView{Form: form, CommandURL: p.CommandURL}
	var wg sync.WaitGroup
	wg.Go(func() { v.Parts = p.parts(ctx) })
	err := p.Reader.Read(ctx, projection.Want{}, func(ctx context.Context, s *projection.Snapshot) error {
		var err error
		if v.Status, err = projection.ReadStatus(ctx, s); err != nil {
			return err
		}
		page, err := record.List(ctx, s, record.Cursor{}, latestRecords)
		v.Latest = page.Records
		return err
	})
	wg.Wait()
	if err != nil {
		v.Trouble = p.Problem(ctx, err).Detail
	}
	v.Status.Pace = p.Pacer.Pace()
	v.fill()
	p.render(c, status, "overview", layout{Title: "Overview", Here: "/", Body: v})
}

func (v *overviewView) fill() {
	s := v.Status
	v.Totals, v.CaughtUpAt, v.CatchingUp, v.Audit = s.Totals(), s.CaughtUpAt(), s.CatchingUp(), s.Audited()
	if v.Totals.Lag != nil {
		v.Behind, v.BehindOK = *v.Totals.Lag, true
	}
	v.Replay = replay(s.Replay())
	var most int64
	for _, p := range s.Partitions {
		if lag := p.Lag(); lag != nil {
			most = max(most, *lag)
		}
	}
	for _, p := range s.Partitions {
		row := partitionRow{Partition: p, Width: "0"}
		if lag := p.Lag(); lag != nil && most > 0 {
			row.Width = fmt.Sprintf("%.1f", 100*float64(*lag)/float64(most))
		}
		for _, a := range s.Audits {
			if a.Topic == p.Topic && a.Partition == p.Partition {
				row.Audit, row.Current = &a, a.Epoch == p.Epoch
				if row.Current && !a.OK {
					v.Findings = append(v.Findings, a)
				}
			}
		}
		v.Rows = append(v.Rows, row)
	}
}

func replay(r projection.Replay) replayView {
	v := replayView{Replay: r, Width: "0"}
	if r.Percent != nil {
		v.Width = fmt.Sprintf("%.2f", *r.Percent)
	}
	var words []string
	v.Busy = r.Rate != nil && *r.Rate >= 1
	if v.Busy {
		words = append(words, number(int64(*r.Rate+0.5))+" records a second")
	}
	switch {
	case r.ETA != nil && *r.ETA > 0:
		words = append(words, "level in about "+span(*r.ETA))
	case r.ETA == nil && r.Rate != nil:
		words = append(words, "the lag does not shrink")
	}
	v.Words = strings.Join(words, ", ")
	return v
}

// stamp posts a command to the door and leads to its ticket. The status of a refusal is the door's, so
// that a script that posts the form can tell.
func (p *Pages) stamp(c *gin.Context) {
	if err := p.origin.Check(c.Request); err != nil {
		p.fail(c, problem.Problem{Status: http.StatusForbidden, Detail: "this form was sent from another site's page; open this service's own page and send it from there"})
		return
	}
	at, retry := strings.TrimSpace(c.PostForm("event_timestamp")), c.PostForm("key")
	key, err := ids.New()
	if retry != "" {
		key, err = ids.Parse(retry)
	}
	if err != nil {
		p.showOverview(c, http.StatusBadRequest, formView{At: at, Refused: &refusal{Detail: err.Error()}})
		return
	}
	got, err := p.knock(c.Request.Context(), at, key)
	var refused *refusal
	if errors.As(err, &refused) {
		p.showOverview(c, refused.Status, formView{At: at, Refused: refused})
		return
	}
	c.Redirect(http.StatusSeeOther, ticketPath(got.ID, got.Position))
}

// ticketPath names the ticket's page. A position needs no escaping in a query, and reads better without.
func ticketPath(id uuid.UUID, at string) string {
	path := "/tickets/" + id.String()
	if p, err := position.Parse(at); err == nil {
		path += "?position=" + p.String()
	}
	return path
}

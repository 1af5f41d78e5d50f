package web

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/tidemark/tidemark/query-service/internal/peer"
	"github.com/tidemark/tidemark/query-service/internal/projection"
)

// statusView is how far and how whole the projection is, as two pages show it.
type statusView struct {
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
	Lag, Rate  chart
}

type replayView struct {
	projection.Replay
	Width string // of the bar
	Words string
	Busy  bool // the rate is worth telling
}

type partitionRow struct {
	projection.Partition
	Width     string // of the lag's bar, against the largest lag
	Audit     *projection.Audit
	Current   bool // the audit is of this epoch
	LagChart  chart
	RateChart chart
}

// status reads the status, and more by also in the same snapshot. What goes wrong is told in Trouble.
func (p *Pages) status(ctx context.Context, also func(context.Context, *projection.Snapshot) error) statusView {
	var v statusView
	err := p.Reader.Read(ctx, projection.Want{}, func(ctx context.Context, s *projection.Snapshot) (err error) {
		if v.Status, err = projection.ReadStatus(ctx, s); err != nil || also == nil {
			return err
		}
		return also(ctx, s)
	})
	if err != nil {
		v.Trouble = p.Problem(ctx, err).Detail
	}
	v.Status.Pace = p.Pacer.Pace()
	v.fill(p.Pacer.History())
	return v
}

// refresh is how soon a browser without script should look again: only while something is under way.
func (v statusView) refresh() int {
	if v.Trouble != "" || v.CatchingUp || len(v.Rows) == 0 {
		return 3
	}
	return 0
}

func (v *statusView) fill(history projection.History) {
	s := v.Status
	v.Totals, v.CaughtUpAt, v.CatchingUp, v.Audit = s.Totals(), s.CaughtUpAt(), s.CatchingUp(), s.Audited()
	if v.Totals.Lag != nil {
		v.Behind, v.BehindOK = *v.Totals.Lag, true
	}
	v.Replay = replay(s.Replay())
	v.Lag, v.Rate = lagChart(history.All), rateChart(history.All)
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
		moments := history.ByPartition[projection.Place{Topic: p.Topic, Partition: p.Partition}]
		row.LagChart, row.RateChart = lagChart(coarse(moments, sparkPoints)), rateChart(coarse(moments, sparkPoints))
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
	case r.ETA == nil && r.Rate != nil && r.Total != nil:
		words = append(words, "the lag does not shrink")
	}
	v.Words = strings.Join(words, ", ")
	return v
}

type projectionView struct {
	statusView
	Audited bool // the form has just been answered
	Refused *peer.Refusal
	// AuditRows and AuditLetters are what the audits found, of this epoch.
	AuditRows, AuditLetters int64
}

func (p *Pages) projection(c *gin.Context) {
	p.showProjection(c, http.StatusOK, projectionView{Audited: c.Query("audited") != ""})
}

func (p *Pages) showProjection(c *gin.Context, status int, v projectionView) {
	v.statusView = p.status(c.Request.Context(), nil)
	for _, r := range v.Rows {
		if r.Audit != nil && r.Current {
			v.AuditRows += r.Audit.RowsFound
			v.AuditLetters += r.Audit.DeadLettersFound
		}
	}
	p.render(c, status, "projection", layout{Title: "Projection", Here: "/projection", Events: projectionEvents, Refresh: v.refresh(), Body: v})
}

// audit has consumer-service compare counts and tables now.
func (p *Pages) audit(c *gin.Context) {
	ctx := c.Request.Context()
	if refused := p.refusal(ctx, p.Peers.Audit(ctx)); refused != nil {
		p.showProjection(c, refused.Status, projectionView{Refused: refused})
		return
	}
	c.Redirect(http.StatusSeeOther, "/projection?audited=1#audit")
}

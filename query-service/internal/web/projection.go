package web

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/tidemark/tidemark/query-service/internal/peer"
	"github.com/tidemark/tidemark/query-service/internal/projection"
	"github.com/tidemark/tidemark/query-service/internal/record"
)

// statusView is how far one projection is and whether its tables are complete.
type statusView struct {
	projection.Status
	State      projection.State
	Totals     projection.Counts
	Lag        int64
	LagKnown   bool
	LagSince   *time.Time // when the log's end was last read, where that is too long ago to know the lag
	Down       string     // of one that is down: what is, as far as is seen from here
	DownWhy    string     // what consumer-service says of itself then; may be empty
	Others     int        // further projections in the same state, where a headline speaks for several
	CaughtUpAt *time.Time
	Replay     replayView
	Audit      projection.AuditSummary
	Findings   []findingView
	Rows       []partitionRow
	LagChart   chart
	RateChart  chart
}

// findingView is an audit that failed.
type findingView struct {
	projection.Audit
	Projection string
}

type replayView struct {
	projection.Replay
	Width string // of the bar
	Words string
	Busy  bool // the rate is worth showing
}

type partitionRow struct {
	projection.Partition
	Audit     *projection.Audit
	Current   bool   // the audit is of this epoch
	Lag       *int64 // nil where it is not known
	LagChart  chart
	RateChart chart
}

// Path is that of the projection's page.
func (v statusView) Path() string { return projectionPath(v.Name) }

// Word is its state as pages write it.
func (v statusView) Word() string {
	if v.State == projection.Rebuilding && v.Replay.Percent != nil {
		return fmt.Sprintf("Rebuilding, %.1f%%", *v.Replay.Percent)
	}
	return map[projection.State]string{
		projection.Refused: "Stopped", projection.Down: "Down", projection.Rebuilding: "Rebuilding", projection.CatchingUp: "Catching up",
		projection.Serving: "Caught up", projection.Off: "Off",
	}[v.State]
}

// Mood is the colour of its state.
func (v statusView) Mood() string {
	return map[projection.State]string{
		projection.Refused: "bad", projection.Down: "bad", projection.Rebuilding: "wait", projection.CatchingUp: "wait", projection.Serving: "good",
	}[v.State]
}

// refresh is how soon a browser without script should look again: only while something is under way.
func (v statusView) refresh() int {
	if v.State == projection.Serving || v.State == projection.Off {
		return 0
	}
	return 3
}

func projectionPath(name string) string { return "/projections/" + url.PathEscape(name) }

func (p *Pages) viewStatus(s projection.Status) statusView {
	s.Pace = p.Pacer.Pace(s.Name)
	history := p.Pacer.History(s.Name)
	v := statusView{Status: s, State: s.State(), Totals: s.Totals(), CaughtUpAt: s.CaughtUpAt(), Audit: s.Audited(), Replay: viewReplay(s.Replay())}
	if v.Totals.Lag != nil {
		v.Lag, v.LagKnown = *v.Totals.Lag, true
	}
	v.LagSince = v.Totals.LagUnknownSince
	if v.State == projection.Down {
		v.Down, v.DownWhy = p.whatIsDown()
	}
	v.LagChart, v.RateChart = lagChart(history.All), rateChart(history.All)
	for _, part := range s.Partitions {
		row := partitionRow{Partition: part, Lag: part.Lag(s.ReadAt)}
		moments := history.ByPartition[projection.Place{Topic: part.Topic, Partition: part.Partition}]
		row.LagChart, row.RateChart = lagChart(coarse(moments, sparkPoints)), rateChart(coarse(moments, sparkPoints))
		for _, a := range s.Audits {
			if a.Topic == part.Topic && a.Partition == part.Partition {
				row.Audit, row.Current = &a, a.Epoch == part.Epoch
				if row.Current && !a.OK {
					v.Findings = append(v.Findings, findingView{a, s.Name})
				}
			}
		}
		v.Rows = append(v.Rows, row)
	}
	return v
}

const consumerDown = "consumer-service is down"

// whatIsDown says why a projection is down, as far as is seen from here, and what consumer-service says of itself.
func (p *Pages) whatIsDown() (what, why string) {
	for _, part := range p.Peers.Parts() {
		if part.Name != peer.ConsumerService {
			continue
		}
		switch part.State {
		case peer.Down:
			return consumerDown, part.Words
		case peer.Unready:
			return "consumer-service is not ready", part.Words
		}
	}
	return "No process reads its log", ""
}

func viewReplay(r projection.Replay) replayView {
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
		words = append(words, "caught up in about "+span(*r.ETA))
	case r.Stuck:
		words = append(words, "the lag does not shrink")
	case r.Rate == nil && r.ETA == nil:
		words = append(words, "the rate is being measured")
	}
	v.Words = strings.Join(words, ", ")
	return v
}

// statusesView is every projection, and which one a headline is about.
type statusesView struct {
	Trouble     string // why nothing can be read
	DatabaseOut bool   // it is the database that cannot be read
	Projections []statusView
	Worst       *statusView // nil where all that were begun keep up
	CaughtUpAt  *time.Time  // of those that were begun, the least
	Begun       bool        // one was
	Rebuilds    []generationView
}

// statuses reads every projection. An error is in Trouble.
func (p *Pages) statuses(ctx context.Context) statusesView {
	var v statusesView
	var all []projection.Status
	err := p.Reader.Read(ctx, projection.Want{}, projection.Every(), func(ctx context.Context, s *projection.Snapshot) (err error) {
		all, err = projection.ReadStatuses(ctx, s)
		return err
	})
	if err != nil {
		pr := p.Problem(ctx, err)
		v.Trouble, v.DatabaseOut = pr.Detail, pr.Type == "/problems/database-down"
		return v
	}
	if v.Rebuilds, err = p.rebuilds(ctx); err != nil {
		v.Trouble = p.Problem(ctx, err).Detail
	}
	for _, s := range all {
		v.Projections = append(v.Projections, p.viewStatus(s))
	}
	rank := func(s projection.State) int { return slices.Index(projection.States(), s) }
	for i, s := range v.Projections {
		if s.State == projection.Off {
			continue
		}
		v.Begun = true
		switch {
		case s.State == projection.Serving:
		case v.Worst == nil || rank(s.State) < rank(v.Worst.State):
			worst := v.Projections[i]
			v.Worst = &worst
		case s.State == v.Worst.State:
			v.Worst.Others++
			if since := s.LagSince; since != nil && v.Worst.LagSince != nil && since.Before(*v.Worst.LagSince) {
				v.Worst.LagSince = since
			}
		}
		if s.CaughtUpAt != nil && (v.CaughtUpAt == nil || s.CaughtUpAt.Before(*v.CaughtUpAt)) {
			v.CaughtUpAt = s.CaughtUpAt
		}
	}
	return v
}

// Findings are those of every projection.
func (v statusesView) Findings() []findingView {
	var all []findingView
	for _, s := range v.Projections {
		all = append(all, s.Findings...)
	}
	return all
}

func (v statusesView) refresh() int {
	if v.Trouble != "" || v.Worst != nil || !v.Begun || slices.ContainsFunc(v.Rebuilds, func(g generationView) bool { return g.Moving() }) {
		return 3
	}
	return 0
}

func (p *Pages) projections(c *gin.Context) {
	v := p.statuses(c.Request.Context())
	p.render(c, http.StatusOK, "projections", layout{Title: "Projections", Here: "/projections", Events: statusEvents, Refresh: v.refresh(), Body: v})
}

const (
	projectionEvents = "/api/v1/events?watch=projection"
	statusEvents     = "/api/v1/events?watch=projection,generations"
)

type projectionView struct {
	viewer
	statusView
	Names   []string // of all projections
	Audited bool     // the form has just been answered
	Refused *peer.Refusal
	// AuditRows and AuditLetters are what the audits found, of this epoch.
	AuditRows, AuditLetters int64
}

// HasRecords reports whether a page lists the rows.
func (v projectionView) HasRecords() bool { return v.Name == record.Projection }

func (p *Pages) projection(c *gin.Context) {
	p.showProjection(c, http.StatusOK, projectionView{Audited: c.Query("audited") != ""})
}

func (p *Pages) showProjection(c *gin.Context, status int, v projectionView) {
	ctx, name := c.Request.Context(), c.Param("name")
	var s projection.Status
	err := p.Reader.Read(ctx, projection.Want{}, projection.Of(name), func(ctx context.Context, snap *projection.Snapshot) (err error) {
		s, err = projection.ReadStatus(ctx, snap, snap.Of(name))
		return err
	})
	if p.failed(c, err) {
		return
	}
	v.viewer, v.statusView, v.Names = p.viewer(c), p.viewStatus(s), p.names(ctx)
	for _, r := range v.Rows {
		if r.Audit != nil && r.Current {
			v.AuditRows += r.Audit.RowsFound
			v.AuditLetters += r.Audit.DeadLettersFound
		}
	}
	p.render(c, status, "projection", layout{Title: "Projection " + name, Here: "/projections", Self: projectionPath(name), Events: projectionEvents + "&projection=" + url.QueryEscape(name), Refresh: v.refresh(), Body: v})
}

// names of all projections; none where they cannot be read, which the rest of the page says.
func (p *Pages) names(ctx context.Context) []string {
	known, err := p.Catalog.All(ctx)
	if err != nil {
		return nil
	}
	names := make([]string, len(known))
	for i, d := range known {
		names[i] = d.Name
	}
	return names
}

// audit has consumer-service compare counts and tables now.
func (p *Pages) audit(c *gin.Context) {
	ctx, name := c.Request.Context(), c.Param("name")
	if refused := p.refusal(ctx, p.Peers.Audit(ctx, name)); refused != nil {
		p.auditAgain(c, refused)
		return
	}
	c.Redirect(http.StatusSeeOther, projectionPath(name)+"?audited=1#audit")
}

func (p *Pages) auditAgain(c *gin.Context, refused *peer.Refusal) {
	p.showProjection(c, refused.Status, projectionView{Refused: refused})
}

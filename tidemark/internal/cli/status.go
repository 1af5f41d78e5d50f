package cli

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/tidemark/tidemark/shared/api/query"
	"github.com/tidemark/tidemark/tidemark/internal/client"
)

// state is the JSON answer of status. Projection is there where one was named, and has more of it.
type state struct {
	Services    []client.Service          `json:"services"`
	Projections []query.ProjectionSummary `json:"projections"`
	Projection  *query.Projection         `json:"projection,omitempty"`
}

// worst gathers what is wrong. Its status is that of the worst of it.
type worst struct {
	status int
	words  []string
}

// add notes one thing. What has failed is worse than what is not there yet.
func (w *worst) add(status int, format string, args ...any) {
	w.words = append(w.words, fmt.Sprintf(format, args...))
	if w.status == ok || status == failed {
		w.status = status
	}
}

func (w *worst) error() error {
	if w.status == ok {
		return nil
	}
	return end(w.status, "%s", strings.Join(w.words, "\ntidemark: "))
}

func (c *command) status() *cobra.Command {
	var one string
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Say whether the services are ready, how far the projections are and whether they are whole",
		Long: `Say whether the services are ready, and of each projection what state it is in, how far it is, what its last audit has found and
how many open and decided dead letters it has. With --projection it says more of that one.

The exit status is that of the worst of it: 1 where a service is not ready, a projection is refused or down, its lag is unknown
since nobody has read the end of its log for some seconds, or an audit has found something; 5 where a projection has not caught up with its log yet; else 0. A projection that was never begun is off, which is no
fault.
` + exitStatuses,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.withServices(func(services *client.Client) error {
				var w worst
				found := state{Services: services.Ready(cmd.Context()), Projections: []query.ProjectionSummary{}}
				var rows [][2]string
				for _, s := range found.Services {
					rows = append(rows, [2]string{s.Name, s.URL + "  " + readiness(s)})
					if !s.Ready {
						w.add(failed, "%s is not ready", s.Name)
					}
				}
				all, err := services.Projections(cmd.Context())
				if err != nil {
					w.add(failed, "the projections cannot be read: %v", err)
				}
				var names []string
				for _, p := range all {
					names = append(names, p.Projection)
				}
				if one != "" && err == nil {
					if _, err := named(names, one); err != nil {
						return err
					}
				}
				for _, p := range all {
					if one != "" && p.Projection != one {
						continue
					}
					found.Projections = append(found.Projections, p)
					rows = append(rows, [2]string{p.Projection, summary(p)})
					w.judge(p)
				}
				if one != "" && err == nil {
					whole, err := services.Projection(cmd.Context(), one)
					if err != nil {
						return requestFailed(err)
					}
					found.Projection = &whole
					rows = append(rows, projectionRows(whole)...)
				}
				c.print(found, rows...)
				return w.error()
			})
		},
	}
	c.projectionFlag(cmd, &one, "say more of this projection, and nothing of the others")
	return c.withOutput(cmd)
}

// judge notes what is wrong with a projection.
func (w *worst) judge(p query.ProjectionSummary) {
	switch p.State {
	case query.ProjectionStateRefused:
		w.add(failed, "%s is refused: %s", p.Projection, p.Refusal)
	case query.ProjectionStateDown:
		w.add(failed, "%s is down: no process reads its log; %s", p.Projection, lag(p))
	case query.ProjectionStateRebuilding:
		w.add(notYet, "%s has not caught up with its log yet: it is being rebuilt, and what it answers is a part", p.Projection)
	case query.ProjectionStateServing, query.ProjectionStateCatchingUp:
		if p.Lag == nil {
			w.add(failed, "nobody has read the end of the log of %s lately: %s", p.Projection, lag(p))
		}
	case query.ProjectionStateOff:
	}
	if p.AuditOk != nil && !*p.AuditOk {
		w.add(failed, "the audit of %s has found something: tidemark audit --projection %s", p.Projection, p.Projection)
	}
}

func readiness(s client.Service) string {
	switch {
	case s.Ready:
		return "ready"
	case s.Error != "":
		return s.Error
	}
	return "not ready: " + strings.Join(s.Reasons(), "; ")
}

func summary(p query.ProjectionSummary) string {
	known := []string{strings.ReplaceAll(string(p.State), "_", " ")}
	if p.State == query.ProjectionStateOff {
		return known[0]
	}
	known = append(known, lag(p))
	if p.CaughtUpAt != nil {
		known = append(known, "caught up "+*p.CaughtUpAt)
	}
	known = append(known, verdict(p), fmt.Sprintf("dead letters: %d open, %d decided", p.DeadLettersOpen, p.DeadLettersDecided))
	return strings.Join(known, ", ")
}

func lag(p query.ProjectionSummary) string {
	switch {
	case p.Lag != nil:
		return "lag " + strconv.FormatInt(*p.Lag, 10)
	case p.LagUnknownSince != nil:
		return "lag unknown since " + *p.LagUnknownSince
	}
	return "lag unknown"
}

func verdict(p query.ProjectionSummary) string {
	switch {
	case p.AuditOk != nil && !*p.AuditOk:
		return "audit NOT ok"
	case p.AuditOk != nil:
		return "audit ok"
	case p.State == query.ProjectionStateRebuilding:
		return "audit pending: being rebuilt"
	}
	return "audit pending"
}

func projectionRows(p query.Projection) [][2]string {
	group := "no group yet"
	if p.Group != nil {
		group = "group " + *p.Group
	}
	t := p.Totals
	rows := [][2]string{
		{"topic", p.Topic},
		{"generation", fmt.Sprintf("%d in %s, epoch %d, %s", p.Generation, p.Schema, p.Epoch, group)},
		{"records", fmt.Sprintf("%d applied, %d duplicate, %d dead letters (%d open), %d expired, %d skipped", t.Applied, t.Duplicate, t.Rejected, t.DeadLettersOpen, t.Expired, t.Skipped)},
		{"refused", p.Refusal},
	}
	switch {
	case p.State == query.ProjectionStateRebuilding:
		rows = append(rows, [2]string{"rebuilding", pace(p) + "; every count is of what was read so far"})
	case p.CatchingUp:
		rows = append(rows, [2]string{"catching up", pace(p)})
	}
	return append(rows, auditRows(p)...)
}

func pace(p query.Projection) string {
	var known []string
	if p.Replay.Percent != nil {
		known = append(known, fmt.Sprintf("%.1f%%", *p.Replay.Percent))
	}
	if p.Replay.Rate != nil {
		known = append(known, fmt.Sprintf("%.0f records/s", *p.Replay.Rate))
	}
	if p.Replay.EtaSeconds != nil {
		known = append(known, "caught up in "+seconds(*p.Replay.EtaSeconds))
	}
	if p.Replay.Rate == nil {
		known = append(known, "the rate is being measured")
	}
	return strings.Join(known, ", ")
}

func seconds(s float64) string { return (time.Duration(s) * time.Second).String() }

// auditRows say what the last audit has found, a row for each partition where it found something.
func auditRows(p query.Projection) [][2]string {
	last := ""
	if p.Audit.LastRun != nil {
		last = ", last run " + *p.Audit.LastRun
	}
	name := "audit of " + p.Projection
	switch {
	case p.Audit.Ok == nil:
		return [][2]string{{name, "pending" + last}}
	case *p.Audit.Ok:
		return [][2]string{{name, "ok" + last}}
	}
	var rows [][2]string
	for _, a := range p.Audit.Partitions {
		if !a.Ok {
			rows = append(rows, [2]string{name, fmt.Sprintf("%s/%d: %s", a.Topic, a.Partition, a.Finding)})
		}
	}
	return append(rows, [2]string{name, "NOT ok" + last})
}

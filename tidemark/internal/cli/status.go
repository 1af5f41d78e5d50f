package cli

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/tidemark/tidemark/tidemark/internal/client"
)

// state is the JSON answer of status: the projection stands there as query-service sent it.
type state struct {
	Services   []client.Service `json:"services"`
	Projection json.RawMessage  `json:"projection"`
}

func (c *command) status() *cobra.Command {
	return c.withOutput(&cobra.Command{
		Use:   "status",
		Short: "Say whether the services are ready, how far the projection is and whether it is whole",
		Long: `Say whether the services are ready, how far the projection is and whether it is whole.

The exit status is 0 when every service is ready and no audit has found anything, else 1.
` + exitStatuses,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			services, err := c.client()
			if err != nil {
				return err
			}
			defer services.Close()
			found := state{Services: services.Ready(cmd.Context())}
			var rows [][2]string
			var wrong []string
			for _, s := range found.Services {
				rows = append(rows, [2]string{s.Name, s.URL + "  " + readiness(s)})
				if !s.Ready {
					wrong = append(wrong, s.Name+" is not ready")
				}
			}
			projection, raw, err := services.Projection(cmd.Context())
			if err != nil {
				wrong = append(wrong, "the projection cannot be read: "+err.Error())
			} else {
				found.Projection = raw
				rows = append(rows, projectionRows(projection)...)
				if projection.Audit.OK != nil && !*projection.Audit.OK {
					wrong = append(wrong, "the audit has found something")
				}
			}
			c.print(found, rows...)
			if len(wrong) > 0 {
				return end(failed, "%s", strings.Join(wrong, "\ntidemark: "))
			}
			return nil
		},
	})
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

func projectionRows(p client.Projection) [][2]string {
	group, lag := "no group yet", "lag not known"
	if p.Group != nil {
		group = "group " + *p.Group
	}
	if p.Totals.Lag != nil {
		lag = "lag " + strconv.FormatInt(*p.Totals.Lag, 10)
	}
	rows := [][2]string{
		{"projection", fmt.Sprintf("generation %d, epoch %d, %s", p.Generation, p.Epoch, group)},
		{"records", fmt.Sprintf("%d applied, %d duplicate, %d rejected, %d skipped, %s", p.Totals.Applied, p.Totals.Duplicate, p.Totals.Rejected, p.Totals.Skipped, lag)},
		{"caught up", text(p.CaughtUpAt)},
	}
	if p.CatchingUp {
		rows = append(rows, [2]string{"catching up", pace(p)})
	}
	return append(rows, auditRows(p)...)
}

func pace(p client.Projection) string {
	var known []string
	if p.Replay.Percent != nil {
		known = append(known, fmt.Sprintf("%.1f%%", *p.Replay.Percent))
	}
	if p.Replay.Rate != nil {
		known = append(known, fmt.Sprintf("%.0f records/s", *p.Replay.Rate))
	}
	if p.Replay.ETASeconds != nil {
		known = append(known, "level in "+(time.Duration(*p.Replay.ETASeconds)*time.Second).String())
	}
	if len(known) == 0 {
		return "pace not known yet"
	}
	return strings.Join(known, ", ")
}

func auditRows(p client.Projection) [][2]string {
	last := ""
	if p.Audit.LastRun != nil {
		last = ", last run " + *p.Audit.LastRun
	}
	switch {
	case p.Audit.OK == nil:
		return [][2]string{{"audit", "not of every partition yet" + last}}
	case *p.Audit.OK:
		return [][2]string{{"audit", "ok" + last}}
	}
	var rows [][2]string
	for _, a := range p.Audit.Partitions {
		if !a.OK {
			rows = append(rows, [2]string{"audit", fmt.Sprintf("%s/%d: %s", a.Topic, a.Partition, a.Finding)})
		}
	}
	return append(rows, [2]string{"audit", "NOT ok" + last})
}

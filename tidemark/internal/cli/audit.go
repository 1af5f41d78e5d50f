package cli

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/tidemark/tidemark/shared/api/consumer"
	"github.com/tidemark/tidemark/shared/api/query"
	"github.com/tidemark/tidemark/tidemark/internal/client"
)

// lastAudit is what a projection's last audit has found.
type lastAudit struct {
	Projection string `json:"projection"`
	query.Audit
}

func (c *command) audit() *cobra.Command {
	var now bool
	var one string
	cmd := &cobra.Command{
		Use:   "audit",
		Short: "Say whether the tables hold what was counted",
		Long: `Say whether the tables hold what was counted, of every projection or of the one that is named: what the last audits have found,
or with --now what audits that are run now find. A projection that was never begun is passed over.

An audit compares rows and dead letters with the counts of every partition, in one snapshot, so that a lost row shows. The
exit status is 1 when it has found something, or has not been run.
` + exitStatuses,
		Example: "  tidemark audit --now\n  tidemark audit --projection endpoints",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.withServices(func(services *client.Client) error {
				names, err := begun(cmd.Context(), services, one)
				if err != nil {
					return err
				}
				if now {
					return c.auditNow(cmd.Context(), services, names)
				}
				return c.audited(cmd.Context(), services, names)
			})
		},
	}
	cmd.Flags().BoolVar(&now, "now", false, "run them now and wait for them")
	c.projectionFlag(cmd, &one, "of this projection only; of all unless given")
	return c.withOutput(cmd)
}

// begun are the projections to audit: the one that was named, or all that were ever begun.
func begun(ctx context.Context, services *client.Client, one string) ([]string, error) {
	all, err := services.Projections(ctx)
	if err != nil {
		return nil, requestFailed(err)
	}
	var names, on []string
	for _, p := range all {
		names = append(names, p.Projection)
		if p.State != query.ProjectionStateOff {
			on = append(on, p.Projection)
		}
	}
	if one != "" {
		return named(names, one)
	}
	if len(on) == 0 {
		return nil, end(notYet, "there is nothing to audit: no projection was begun yet")
	}
	return on, nil
}

// audited says what the last audits have found.
func (c *command) audited(ctx context.Context, services *client.Client, names []string) error {
	var w worst
	audits := []lastAudit{}
	var rows [][2]string
	for _, name := range names {
		p, err := services.Projection(ctx, name)
		if err != nil {
			return requestFailed(err)
		}
		audits = append(audits, lastAudit{name, p.Audit})
		rows = append(rows, auditRows(p)...)
		switch {
		case p.Audit.Ok == nil:
			w.add(failed, "%s", auditPending(p))
		case !*p.Audit.Ok:
			w.found(name)
		}
	}
	c.print(map[string]any{"ok": w.status == ok, "audits": audits}, rows...)
	return w.error()
}

// auditPending says why there is no verdict.
func auditPending(p query.Projection) string {
	if p.State == query.ProjectionStateRebuilding {
		return fmt.Sprintf("%s is being rebuilt (%s): an audit says something once it has caught up", p.Projection, pace(p))
	}
	return fmt.Sprintf("not every partition of %s was audited yet: tidemark audit --now does it", p.Projection)
}

// auditNow audits one projection after the other. One that cannot be audited does not keep the others.
func (c *command) auditNow(ctx context.Context, services *client.Client, names []string) error {
	var w worst
	var failures []error
	audits := []consumer.Audit{}
	var rows [][2]string
	shown := c.progress("auditing", 0)
	for i, name := range names {
		shown.at(int64(i), int64(len(names)), "auditing "+name, "rows and dead letters of all partitions")
		a, err := services.Audit(ctx, name)
		if err != nil {
			failures = append(failures, fmt.Errorf("%s: %w", name, err))
			continue
		}
		audits = append(audits, a)
		rows = append(rows, [2]string{name, "audited at " + a.AuditedAt})
		for _, p := range a.Partitions {
			rows = append(rows, [2]string{fmt.Sprintf("  partition %d", p.Partition), auditWords(p)})
		}
		if !a.Ok {
			w.found(name)
		}
	}
	shown.end()
	c.print(map[string]any{"ok": w.status == ok && len(failures) == 0, "audits": audits}, rows...)
	if err := w.error(); err != nil {
		return end(failed, "%w", errors.Join(append(failures, err)...))
	}
	if len(failures) > 0 {
		return requestFailed(errors.Join(failures...))
	}
	return nil
}

func (w *worst) found(projection string) {
	w.add(failed, "the audit of %s has found something: what is in the tables is not what was counted\nThe log still has it: start consumer-service under a KAFKA_GROUP_ID that never served, and it reads everything again", projection)
}

func auditWords(p consumer.PartitionAudit) string {
	if !p.Ok {
		return "NOT ok: " + p.Finding
	}
	return fmt.Sprintf("ok: %d rows, %d dead letters", p.RowsFound, p.DeadLettersFound)
}

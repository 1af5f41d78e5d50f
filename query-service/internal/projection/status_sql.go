package projection

import (
	"context"
	"fmt"
	"time"

	"github.com/tidemark/tidemark/shared/schema"
)

// ReadStatus reads the status of one projection in s. Pace is added by the caller, who measures it.
func ReadStatus(ctx context.Context, s *Snapshot, of Served) (Status, error) {
	st := Status{Served: of}
	var head struct {
		Group     *string    `db:"group_name"`
		StartedAt *time.Time `db:"started_at"`
		Running   bool       `db:"running"`
		Refusal   *string    `db:"refusal"`
		ReadAt    time.Time  `db:"read_at"`
		Decisions int64      `db:"decisions"`
	}
	err := s.Get(ctx, &head, `
SELECT g.group_name, g.started_at, coalesce(p.run_at > now() - interval '10 seconds', false) AS running, now() AS read_at,
	(`+fmt.Sprintf(standingRefusal, of.Table(schema.Progress))+`) AS refusal,
	(SELECT coalesce(sum(next_offset), 0)::bigint FROM public.decision_progress) AS decisions
FROM public.projection_generations g JOIN public.projections p USING (projection) WHERE g.projection = $1 AND g.generation = $2`, of.Name, of.Generation)
	if err != nil {
		return Status{}, fmt.Errorf("read the generation of %s: %w", of.Name, err)
	}
	st.Group, st.StartedAt, st.ReadAt, st.Running = head.Group, head.StartedAt, head.ReadAt, head.Running
	if head.Refusal != nil {
		st.Refusal = *head.Refusal
	}
	err = s.Select(ctx, &st.Partitions, `
SELECT topic, partition, epoch, first_offset, next_offset, applied, duplicate, rejected, expired, skipped, dropped,
	log_end, log_end_at, caught_up_at, updated_at
FROM `+of.Table(schema.Progress)+` ORDER BY topic, partition`)
	if err != nil {
		return Status{}, fmt.Errorf("read the progress of %s: %w", of.Name, err)
	}
	if err := s.decided.count(ctx, s, &st, head.Decisions); err != nil {
		return Status{}, err
	}
	err = s.Select(ctx, &st.Audits, `
SELECT topic, partition, audited_at, took_ms, epoch, first_offset, next_offset, applied, duplicate, rejected, expired, skipped, dropped,
	rows_found, dead_letters_found, rows_ahead, ok, finding
FROM `+of.Table(schema.Audits)+` ORDER BY topic, partition`)
	if err != nil {
		return Status{}, fmt.Errorf("read the audits of %s: %w", of.Name, err)
	}
	return st, nil
}

// ReadStatuses reads the status of every projection in the snapshot's scope, by name.
func ReadStatuses(ctx context.Context, s *Snapshot) ([]Status, error) {
	out := make([]Status, 0, len(s.Served()))
	for _, of := range s.Served() {
		st, err := ReadStatus(ctx, s, of)
		if err != nil {
			return nil, err
		}
		out = append(out, st)
	}
	return out, nil
}

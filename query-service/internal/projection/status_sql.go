package projection

import (
	"context"
	"fmt"
	"time"
)

// ReadStatus reads the status in s. Pace is added by the caller, who measures it.
func ReadStatus(ctx context.Context, s *Snapshot) (Status, error) {
	st := Status{Generation: s.Generation, Epoch: s.Epoch}
	var head struct {
		Group     *string    `db:"group_name"`
		StartedAt *time.Time `db:"started_at"`
		ReadAt    time.Time  `db:"read_at"`
	}
	err := s.Get(ctx, &head, `SELECT group_name, started_at, now() AS read_at FROM public.generations WHERE generation = $1`, s.Generation)
	if err != nil {
		return Status{}, fmt.Errorf("read the generation: %w", err)
	}
	st.Group, st.StartedAt, st.ReadAt = head.Group, head.StartedAt, head.ReadAt
	err = s.Select(ctx, &st.Partitions, `
		SELECT topic, partition, epoch, first_offset, next_offset, applied, duplicate, rejected, skipped, log_end, log_end_at, caught_up_at, updated_at
		FROM public.projection_progress ORDER BY topic, partition`)
	if err != nil {
		return Status{}, fmt.Errorf("read the progress: %w", err)
	}
	err = s.Select(ctx, &st.Audits, `
		SELECT topic, partition, audited_at, took_ms, epoch, first_offset, next_offset, applied, duplicate, rejected, skipped,
			rows_found, dead_letters_found, rows_ahead, ok, finding
		FROM public.projection_audits ORDER BY topic, partition`)
	if err != nil {
		return Status{}, fmt.Errorf("read the audits: %w", err)
	}
	return st, nil
}

package receipt

import (
	"context"
	"fmt"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/tidemark/tidemark/shared/event"
	"github.com/tidemark/tidemark/shared/postgres"
)

// Postgres is the outbox of one projection in a database.
type Postgres struct {
	DB         *sqlx.DB
	Projection string
}

var _ Store = (*Postgres)(nil)

// Alone implements Store.
func (p *Postgres) Alone(ctx context.Context, do func(context.Context) error) (called bool, err error) {
	tx, err := p.DB.BeginTxx(ctx, nil)
	if err != nil {
		return false, fmt.Errorf("begin: %w", err)
	}
	defer func() { _ = tx.Rollback() }() // nothing was written; it gives the lock back
	if err := tx.GetContext(ctx, &called, `SELECT pg_try_advisory_xact_lock(hashtextextended($1, 0))`, "tidemark receipts "+p.Projection); err != nil {
		return false, fmt.Errorf("take the publishers' lock: %w", err)
	}
	if !called {
		return false, nil
	}
	return true, do(ctx)
}

// Oldest implements Store.
func (p *Postgres) Oldest(ctx context.Context, limit int) ([]Row, error) {
	var rows []struct {
		Number     int64      `db:"receipt_id"`
		Group      string     `db:"group_name"`
		Generation int        `db:"generation"`
		Epoch      int64      `db:"epoch"`
		Served     bool       `db:"served"`
		Topic      string     `db:"topic"`
		Partition  int32      `db:"partition"`
		From       int64      `db:"from_offset"`
		Next       int64      `db:"next_offset"`
		Outcomes   string     `db:"outcomes"`
		CaughtUpAt *time.Time `db:"caught_up_at"`
		DecidedAt  time.Time  `db:"decided_at"`
	}
	if err := p.DB.SelectContext(ctx, &rows, `
SELECT receipt_id, group_name, generation, epoch, served, topic, partition, from_offset, next_offset, outcomes, caught_up_at, decided_at
FROM public.projection_receipt_outbox WHERE projection = $1 ORDER BY receipt_id LIMIT $2`, p.Projection, limit); err != nil {
		return nil, fmt.Errorf("read the outbox: %w", err)
	}
	out := make([]Row, len(rows))
	for i, r := range rows {
		runs, err := event.DecodeRuns([]byte(r.Outcomes), r.Next-r.From)
		if err != nil {
			return nil, fmt.Errorf("read receipt %d: %w", r.Number, err)
		}
		if r.CaughtUpAt != nil {
			at := r.CaughtUpAt.UTC()
			r.CaughtUpAt = &at
		}
		out[i] = Row{r.Number, event.Receipt{
			Group: r.Group, Generation: r.Generation, Epoch: r.Epoch, Served: r.Served, Topic: r.Topic, Partition: r.Partition,
			From: r.From, Next: r.Next, Outcomes: runs, CaughtUpAt: r.CaughtUpAt, DecidedAt: r.DecidedAt.UTC(),
		}}
	}
	return out, nil
}

// Delete implements Store.
func (p *Postgres) Delete(ctx context.Context, numbers []int64) error {
	wanted := postgres.Int8s(len(numbers))
	for _, n := range numbers {
		wanted.Int8(n)
	}
	if _, err := p.DB.ExecContext(ctx, `DELETE FROM public.projection_receipt_outbox WHERE receipt_id = ANY ($1::bigint[])`, wanted.Bytes()); err != nil {
		return fmt.Errorf("empty the outbox: %w", err)
	}
	return nil
}

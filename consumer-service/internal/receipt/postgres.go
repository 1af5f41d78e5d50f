package receipt

import (
	"context"
	"fmt"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/tidemark/tidemark/shared/event"
	"github.com/tidemark/tidemark/shared/postgres"
)

// Postgres has the outboxes of all generations of a database, each in its schema.
type Postgres struct{ DB *sqlx.DB }

var _ Store = (*Postgres)(nil)

// publishLock is the advisory lock of who publishes.
const publishLock = 0x7469_6465_7265_6370 // "tiderecp"

// Alone implements Store.
func (p *Postgres) Alone(ctx context.Context, do func(context.Context) error) (called bool, err error) {
	tx, err := p.DB.BeginTxx(ctx, nil)
	if err != nil {
		return false, fmt.Errorf("begin: %w", err)
	}
	defer func() { _ = tx.Rollback() }() // nothing was written; it gives the lock back
	if err := tx.GetContext(ctx, &called, `SELECT pg_try_advisory_xact_lock($1)`, int64(publishLock)); err != nil {
		return false, fmt.Errorf("take the publishers' lock: %w", err)
	}
	if !called {
		return false, nil
	}
	return true, do(ctx)
}

// Outboxes implements Store: schemas that have one, whatever their generation is doing.
func (p *Postgres) Outboxes(ctx context.Context) ([]string, error) {
	var schemas []string
	if err := p.DB.SelectContext(ctx, &schemas, `
SELECT n.nspname FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.relname = 'receipt_outbox' AND c.relkind = 'r' AND (n.nspname = 'public' OR n.nspname ~ '^tidemark_g[0-9]+$')
ORDER BY n.nspname`); err != nil {
		return nil, fmt.Errorf("look for outboxes: %w", err)
	}
	return schemas, nil
}

// Oldest implements Store.
func (p *Postgres) Oldest(ctx context.Context, outbox string, limit int) ([]Row, error) {
	var rows []struct {
		Number     int64     `db:"receipt_id"`
		Group      string    `db:"group_name"`
		Generation int       `db:"generation"`
		Epoch      int64     `db:"epoch"`
		Topic      string    `db:"topic"`
		Partition  int32     `db:"partition"`
		From       int64     `db:"from_offset"`
		Next       int64     `db:"next_offset"`
		Outcomes   string    `db:"outcomes"`
		DecidedAt  time.Time `db:"decided_at"`
	}
	if err := p.DB.SelectContext(ctx, &rows, fmt.Sprintf(`
SELECT receipt_id, group_name, generation, epoch, topic, partition, from_offset, next_offset, outcomes, decided_at
FROM %s.receipt_outbox ORDER BY receipt_id LIMIT $1`, outbox), limit); err != nil {
		if gone(err) {
			return nil, nil
		}
		return nil, fmt.Errorf("read the outbox of %s: %w", outbox, err)
	}
	out := make([]Row, len(rows))
	for i, r := range rows {
		runs, err := event.DecodeRuns([]byte(r.Outcomes), r.Next-r.From)
		if err != nil {
			return nil, fmt.Errorf("read receipt %d of %s: %w", r.Number, outbox, err)
		}
		out[i] = Row{r.Number, event.Receipt{
			Group: r.Group, Generation: r.Generation, Epoch: r.Epoch, Topic: r.Topic, Partition: r.Partition,
			From: r.From, Next: r.Next, Outcomes: runs, DecidedAt: r.DecidedAt.UTC(),
		}}
	}
	return out, nil
}

// Delete implements Store.
func (p *Postgres) Delete(ctx context.Context, outbox string, numbers []int64) error {
	wanted := postgres.Int8s(len(numbers))
	for _, n := range numbers {
		wanted.Int8(n)
	}
	_, err := p.DB.ExecContext(ctx, fmt.Sprintf(`DELETE FROM %s.receipt_outbox WHERE receipt_id = ANY ($1::bigint[])`, outbox), wanted.Bytes())
	if err != nil && !gone(err) {
		return fmt.Errorf("empty the outbox of %s: %w", outbox, err)
	}
	return nil
}

// gone says that a generation was dropped, and its outbox with it.
func gone(err error) bool {
	state := postgres.State(err)
	return state == "42P01" || state == "3F000"
}

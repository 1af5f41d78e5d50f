package decision

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/tidemark/tidemark/shared/event"
	"github.com/tidemark/tidemark/shared/position"
	"github.com/tidemark/tidemark/shared/postgres"
	"github.com/tidemark/tidemark/shared/schema"
)

// Postgres is the store of a database: one for all of its generations.
type Postgres struct{ DB *sqlx.DB }

var _ Store = (*Postgres)(nil)

// Save implements Store. Nothing changes where the tables have it already, as when a process starts and
// reads everything again. Rows are taken in the order of their keys: two processes
// that save the same never wait for each other in a circle.
func (p *Postgres) Save(ctx context.Context, partition int32, next int64, decisions []Decision) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	tx, err := p.DB.BeginTxx(ctx, nil)
	if err != nil {
		return fmt.Errorf("begin: %w", err)
	}
	defer func() { _ = tx.Rollback() }() // after a commit it does nothing
	if err := save(ctx, tx, first(decisions)); err != nil {
		return err
	}
	if _, err := tx.ExecContext(ctx, `
INSERT INTO public.decision_progress AS p (partition, next_offset) VALUES ($1, $2)
ON CONFLICT (partition) DO UPDATE SET next_offset = excluded.next_offset WHERE p.next_offset < excluded.next_offset`, partition, next); err != nil {
		return fmt.Errorf("note how far decisions are read: %w", err)
	}
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	return nil
}

// first leaves one decision a position, in the order of positions: one statement cannot touch a row twice.
func first(decisions []Decision) []Decision {
	sorted := slices.Clone(decisions)
	slices.SortFunc(sorted, func(a, b Decision) int {
		c := cmp.Or(
			cmp.Compare(a.Position.Topic, b.Position.Topic), cmp.Compare(a.Position.Partition, b.Position.Partition),
			cmp.Compare(a.Position.Offset, b.Position.Offset))
		switch {
		case c != 0:
			return c
		case a.Before(b):
			return -1
		}
		return 1
	})
	return slices.CompactFunc(sorted, func(a, b Decision) bool { return a.Position == b.Position })
}

func save(ctx context.Context, tx *sqlx.Tx, decisions []Decision) error {
	n := len(decisions)
	if n == 0 {
		return nil
	}
	topics, partitions, offsets := postgres.Texts(n), postgres.Int8s(n), postgres.Int8s(n)
	kinds, commands, notes, by := postgres.Texts(n), postgres.Texts(n), postgres.Texts(n), postgres.Texts(n)
	times, places, at := postgres.Timestamps(n), postgres.Int8s(n), postgres.Int8s(n)
	for _, d := range decisions {
		topics.Text(d.Position.Topic)
		partitions.Int8(int64(d.Position.Partition))
		offsets.Int8(d.Position.Offset)
		kinds.Text(string(d.Decision))
		command := ""
		if d.Decision == event.Redrive {
			command = d.CommandID.String()
		}
		commands.Text(command)
		notes.Text(held(d.Note))
		by.Text(held(d.By))
		times.Timestamp(d.At)
		places.Int8(int64(d.Partition))
		at.Int8(d.Offset)
	}
	if _, err := tx.ExecContext(ctx, `
INSERT INTO public.dead_letter_decisions AS d (topic, partition, "offset", decision, command_id, note, decided_by, decided_at, decision_partition, decision_offset)
SELECT r.topic, r.partition, r."offset", r.decision, nullif(r.command_id, '')::uuid, r.note, r.decided_by, r.decided_at, r.decision_partition, r.decision_offset
FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::text[], $5::text[], $6::text[], $7::text[], $8::timestamptz[], $9::bigint[], $10::bigint[])
	AS r (topic, partition, "offset", decision, command_id, note, decided_by, decided_at, decision_partition, decision_offset)
ON CONFLICT (topic, partition, "offset") DO UPDATE SET decision = excluded.decision, command_id = excluded.command_id, note = excluded.note,
	decided_by = excluded.decided_by, decided_at = excluded.decided_at,
	decision_partition = excluded.decision_partition, decision_offset = excluded.decision_offset
WHERE (excluded.decided_at, excluded.decision_partition, excluded.decision_offset) <= (d.decided_at, d.decision_partition, d.decision_offset)
	AND (excluded.decision, excluded.command_id, excluded.note, excluded.decided_by, excluded.decided_at, excluded.decision_partition, excluded.decision_offset)
		IS DISTINCT FROM (d.decision, d.command_id, d.note, d.decided_by, d.decided_at, d.decision_partition, d.decision_offset)`,
		topics.Bytes(), partitions.Bytes(), offsets.Bytes(), kinds.Bytes(), commands.Bytes(), notes.Bytes(), by.Bytes(), times.Bytes(), places.Bytes(), at.Bytes()); err != nil {
		return fmt.Errorf("write decisions: %w", err)
	}
	return nil
}

// held is a text as Postgres can hold it: without the one character that it cannot.
func held(s string) string {
	out := []rune(s)
	return string(slices.DeleteFunc(out, func(r rune) bool { return r == 0 }))
}

// Progress implements Store.
func (p *Postgres) Progress(ctx context.Context) (map[int32]int64, error) {
	var rows []struct {
		Partition int32 `db:"partition"`
		Next      int64 `db:"next_offset"`
	}
	if err := p.DB.SelectContext(ctx, &rows, `SELECT partition, next_offset FROM public.decision_progress`); err != nil {
		return nil, fmt.Errorf("read how far decisions are read: %w", err)
	}
	out := make(map[int32]int64, len(rows))
	for _, r := range rows {
		out[r.Partition] = r.Next
	}
	return out, nil
}

// Topic implements Store.
func (p *Postgres) Topic(ctx context.Context) (id string, err error) {
	if err := p.DB.GetContext(ctx, &id, `SELECT coalesce(max(topic_id), '') FROM public.decision_progress`); err != nil {
		return "", fmt.Errorf("read which log decisions come from: %w", err)
	}
	return id, nil
}

// Renew implements Store. The id stands in the row of partition 0, which every log has.
func (p *Postgres) Renew(ctx context.Context, id string) error {
	return postgres.Tx(ctx, p.DB, func(tx *sqlx.Tx) error {
		var former bool
		if err := tx.GetContext(ctx, &former, `SELECT EXISTS (SELECT FROM public.decision_progress WHERE topic_id <> $1)`, id); err != nil {
			return fmt.Errorf("read which log decisions come from: %w", err)
		}
		if former {
			for _, table := range []string{"dead_letter_decisions", "decision_progress"} {
				if _, err := tx.ExecContext(ctx, `DELETE FROM public.`+table); err != nil {
					return fmt.Errorf("forget what the former log decided: %w", err)
				}
			}
		}
		if _, err := tx.ExecContext(ctx, `
INSERT INTO public.decision_progress (partition, next_offset, topic_id) VALUES (0, 0, $1)
ON CONFLICT (partition) DO UPDATE SET topic_id = excluded.topic_id`, id); err != nil {
			return fmt.Errorf("note which log decisions come from: %w", err)
		}
		return nil
	})
}

// Forget implements Store.
func (p *Postgres) Forget(ctx context.Context, since func(topic string) time.Time) error {
	var topics []string
	if err := p.DB.SelectContext(ctx, &topics, `SELECT DISTINCT topic FROM public.dead_letter_decisions ORDER BY topic`); err != nil {
		return fmt.Errorf("list the topics that were decided on: %w", err)
	}
	for _, topic := range topics {
		from := since(topic)
		if from.IsZero() {
			continue
		}
		if _, err := p.DB.ExecContext(ctx, `DELETE FROM public.dead_letter_decisions WHERE topic = $1 AND decided_at < $2`, topic, from); err != nil {
			return fmt.Errorf("forget decisions on letters of a topic that was replaced: %w", err)
		}
	}
	return nil
}

// WithoutLetter implements Store, for the generations that serve.
func (p *Postgres) WithoutLetter(ctx context.Context, decisions []Decision) ([]position.Position, error) {
	if len(decisions) == 0 {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	var projections []struct {
		Topic  string `db:"topic"`
		Schema string `db:"schema_name"`
	}
	if err := p.DB.SelectContext(ctx, &projections, `SELECT topic, schema_name FROM public.projections ORDER BY topic`); err != nil {
		return nil, fmt.Errorf("list the projections: %w", err)
	}
	var out []position.Position
	for _, of := range projections {
		own := slices.DeleteFunc(slices.Clone(decisions), func(d Decision) bool { return d.Position.Topic != of.Topic })
		if len(own) == 0 {
			continue
		}
		partitions, offsets := postgres.Int8s(len(own)), postgres.Int8s(len(own))
		for _, d := range own {
			partitions.Int8(int64(d.Position.Partition))
			offsets.Int8(d.Position.Offset)
		}
		var rows []struct {
			Partition int32 `db:"partition"`
			Offset    int64 `db:"offset"`
		}
		if err := p.DB.SelectContext(ctx, &rows, `
SELECT r.partition, r."offset" FROM unnest($2::bigint[], $3::bigint[]) AS r (partition, "offset")
JOIN `+postgres.Qualified(of.Schema, schema.Progress)+` g ON g.topic = $1 AND g.partition = r.partition AND r."offset" >= g.first_offset AND r."offset" < g.next_offset
WHERE NOT EXISTS (SELECT FROM `+postgres.Qualified(of.Schema, schema.DeadLetters)+` l WHERE l.topic = $1 AND l.partition = r.partition AND l."offset" = r."offset")`,
			of.Topic, partitions.Bytes(), offsets.Bytes()); err != nil {
			return nil, fmt.Errorf("look for decisions on what is no dead letter: %w", err)
		}
		for _, r := range rows {
			out = append(out, position.Position{Topic: of.Topic, Partition: r.Partition, Offset: r.Offset})
		}
	}
	return out, nil
}

package projection

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/tidemark/tidemark/shared/event"
	"github.com/tidemark/tidemark/shared/kafka"
	"github.com/tidemark/tidemark/shared/position"
	"github.com/tidemark/tidemark/shared/postgres"
)

// store is the SQL of one generation. Statements name schema and columns; where they are written, {g}
// stands for the schema and {row} for the condition that finds the generation's row.
type store struct {
	db         *sqlx.DB
	topic      string
	group      string // of the consumers, for receipts
	schema     string
	row        string
	statements *statements
}

// Public is the schema that the serving generation's tables are always in, whatever its number.
const Public = "public"

const servingRow = `g.state IN ('serving', 'swapping')`

// newStore is the store of the serving generation, or of the side generation of that number.
func newStore(db *sqlx.DB, topic string, side *int) store {
	s := store{db: db, topic: topic, schema: Public, row: servingRow, statements: &statements{}}
	if side != nil {
		s.schema, s.row = SideSchema(*side), fmt.Sprintf("g.generation = %d", *side)
	}
	return s
}

// SideSchema names the schema of a generation that does not serve.
func SideSchema(generation int) string { return fmt.Sprintf("tidemark_g%d", generation) }

// in puts the generation's names into a statement.
func (s store) in(query string) string {
	return strings.NewReplacer("{g}", s.schema, "{row}", s.row).Replace(query)
}

// statements are prepared when first used, and by database/sql once more on each connection that uses
// them: to plan the fast write costs the server more than to run it for a lone command.
type statements struct {
	mu   sync.Mutex
	fast *sqlx.Stmt
}

func (s store) preparedFast(ctx context.Context) (*sqlx.Stmt, error) {
	s.statements.mu.Lock()
	defer s.statements.mu.Unlock()
	if s.statements.fast == nil {
		fast, err := s.db.PreparexContext(ctx, s.in(writeFast))
		if err != nil {
			return nil, err
		}
		s.statements.fast = fast
	}
	return s.statements.fast, nil
}

const selectGeneration = `
SELECT i.database_id, g.generation, g.state, g.epoch, g.group_name, g.cluster_id
FROM public.generations g CROSS JOIN public.database_identity i
WHERE {row}`

// generation reads the state of the generation, without a lock.
func (s store) generation(ctx context.Context) (generation, error) {
	var g generation
	if err := s.db.GetContext(ctx, &g, s.in(selectGeneration)); err != nil {
		return g, fmt.Errorf("read the generation: %w", err)
	}
	return g, nil
}

// entering is what a member brings to the start of a session.
type entering struct {
	group      string
	cluster    string
	partitions int
	own        []int32
	committed  map[int32]kafka.Committed
	accepted   map[int32]int64 // starts of the log that the operator has accepted
}

// entered is what it is told.
type entered struct {
	generation
	progress  map[int32]progress // of its own partitions
	startOver string             // why a new epoch was begun, or ""
}

// enter decides, under the generation row's lock, under which epoch a session begins, and starts over
// where the group's name or Kafka's own reset asks for it. It gives every partition its progress row.
func (s store) enter(ctx context.Context, e entering) (out entered, err error) {
	err = postgres.Tx(ctx, s.db, func(tx *sqlx.Tx) error {
		if err := tx.GetContext(ctx, &out.generation, s.in(selectGeneration+` FOR UPDATE OF g`)); err != nil {
			return fmt.Errorf("lock the generation: %w", err)
		}
		g := &out.generation
		if g.State == "swapping" {
			return errSwapping
		}
		if err := judgeCluster(*g, e.cluster); err != nil {
			return err
		}
		var served bool
		if err := tx.GetContext(ctx, &served, `SELECT EXISTS (SELECT FROM public.projection_groups WHERE group_name = $1)`, e.group); err != nil {
			return fmt.Errorf("look for the group's name: %w", err)
		}
		name, err := judgeName(*g, e.group, served)
		if err != nil {
			return err
		}
		if err := s.ensureProgress(ctx, tx, e, g.Epoch); err != nil {
			return err
		}
		if out.progress, err = s.progress(ctx, tx, e.own); err != nil {
			return err
		}
		if name == newName {
			out.startOver = fmt.Sprintf("KAFKA_GROUP_ID is %q and was %q", e.group, *g.GroupName)
		} else {
			for _, p := range slices.Sorted(slices.Values(e.own)) {
				reset, err := judgeCommitted(*g, position.Position{Topic: s.topic, Partition: p}, e.committed[p], out.progress[p].NextOffset)
				if err != nil {
					return err
				}
				if reset && out.startOver == "" {
					out.startOver = fmt.Sprintf("the group's offset for %s/%d was reset to %d and the projection was at %d", s.topic, p, e.committed[p].Offset, out.progress[p].NextOffset)
				}
			}
		}
		if out.startOver != "" {
			if err := s.startOver(ctx, tx, e); err != nil {
				return err
			}
		}
		if name != sameName {
			if err := s.rename(ctx, tx, e.group); err != nil {
				return err
			}
		}
		if g.ClusterID == nil {
			if _, err := tx.ExecContext(ctx, s.in(`UPDATE public.generations g SET cluster_id = $1 WHERE {row}`), e.cluster); err != nil {
				return fmt.Errorf("note the cluster: %w", err)
			}
		}
		if err := tx.GetContext(ctx, &out.generation, s.in(selectGeneration)); err != nil {
			return fmt.Errorf("read the generation: %w", err)
		}
		out.progress, err = s.progress(ctx, tx, e.own)
		return err
	})
	return out, err
}

func (s store) ensureProgress(ctx context.Context, tx *sqlx.Tx, e entering, epoch int64) error {
	partitions, starts := postgres.Int8s(e.partitions), postgres.Int8s(e.partitions)
	for p := range e.partitions {
		partitions.Int8(int64(p))
		starts.Int8(e.accepted[int32(p)])
	}
	if _, err := tx.ExecContext(ctx, s.in(`
INSERT INTO {g}.projection_progress (topic, partition, epoch, first_offset, next_offset)
SELECT $1, n.partition, $2, n.start, n.start FROM unnest($3::bigint[], $4::bigint[]) AS n (partition, start)
ON CONFLICT (topic, partition) DO NOTHING`), s.topic, epoch, partitions.Bytes(), starts.Bytes()); err != nil {
		return fmt.Errorf("give each partition its progress: %w", err)
	}
	return nil
}

// startOver begins a new epoch: progress at the start of the log for all partitions, dead letters gone,
// rows left to be recognised.
func (s store) startOver(ctx context.Context, tx *sqlx.Tx, e entering) error {
	var epoch int64
	if err := tx.GetContext(ctx, &epoch, s.in(`
UPDATE public.generations g SET epoch = nextval('public.projection_epochs'), started_at = now() WHERE {row} RETURNING epoch`)); err != nil {
		return fmt.Errorf("begin a new epoch: %w", err)
	}
	for _, statement := range []string{
		s.in(`DELETE FROM {g}.projection_progress WHERE topic = $1`),
		s.in(`DELETE FROM {g}.dead_letters WHERE topic = $1`),
		s.in(`DELETE FROM {g}.projection_audits WHERE topic = $1`),
	} {
		if _, err := tx.ExecContext(ctx, statement, s.topic); err != nil {
			return fmt.Errorf("start over: %w", err)
		}
	}
	return s.ensureProgress(ctx, tx, e, epoch)
}

func (s store) rename(ctx context.Context, tx *sqlx.Tx, group string) error {
	for _, statement := range []string{
		`UPDATE public.projection_groups SET replaced_at = now() WHERE replaced_at IS NULL AND group_name <> $1`,
		`INSERT INTO public.projection_groups (group_name) VALUES ($1)`,
		s.in(`UPDATE public.generations g SET group_name = $1, started_at = coalesce(g.started_at, now()) WHERE {row}`),
	} {
		if _, err := tx.ExecContext(ctx, statement, group); err != nil {
			return fmt.Errorf("note the group's name: %w", err)
		}
	}
	return nil
}

// querier is a pool or a transaction.
type querier interface {
	SelectContext(ctx context.Context, dest any, query string, args ...any) error
}

func (s store) progress(ctx context.Context, q querier, own []int32) (map[int32]progress, error) {
	wanted := postgres.Int8s(len(own))
	for _, p := range own {
		wanted.Int8(int64(p))
	}
	var rows []progress
	if err := q.SelectContext(ctx, &rows, s.in(`
SELECT partition, epoch, first_offset, next_offset, last_offset, last_created_at, last_record_hash
FROM {g}.projection_progress WHERE topic = $1 AND partition = ANY ($2::bigint[])`), s.topic, wanted.Bytes()); err != nil {
		return nil, fmt.Errorf("read the progress: %w", err)
	}
	out := make(map[int32]progress, len(rows))
	for _, r := range rows {
		out[r.Partition] = r
	}
	return out, nil
}

// outcomes counts what became of a batch's records.
type outcomes struct {
	applied, duplicate, rejected int64
	fates                        []event.Outcome // of each record; nil where they are what the batch's own fates are
}

// writeFast moves the fence, and whatever it inserts reads from the fence: no fence, no row.
const writeFast = `
WITH fence AS (
	UPDATE {g}.projection_progress
	SET next_offset = $5, last_offset = $6, last_created_at = $7, last_record_hash = $8,
		applied = applied + $9, rejected = rejected + $10, skipped = skipped + $11, updated_at = now()
	WHERE topic = $1 AND partition = $2 AND epoch = $3 AND next_offset = $4
	RETURNING topic, partition
), records AS (
	INSERT INTO {g}.timestamp_records (id, event_timestamp, created_at, partition, "offset")
	SELECT r.id, r.event_timestamp, r.created_at, $2, r."offset"
	FROM unnest($12::uuid[], $13::timestamptz[], $14::timestamptz[], $15::bigint[]) AS r (id, event_timestamp, created_at, "offset")
	WHERE EXISTS (SELECT FROM fence)
), dead AS (
	INSERT INTO {g}.dead_letters (topic, partition, "offset", payload, headers, reason_code, reason, first_seen_at)
	SELECT $1, $2, d."offset", d.payload, d.headers::jsonb, d.reason_code, d.reason, d.first_seen_at
	FROM unnest($16::bigint[], $17::bytea[], $18::text[], $19::text[], $20::text[], $21::timestamptz[])
		AS d ("offset", payload, headers, reason_code, reason, first_seen_at)
	WHERE EXISTS (SELECT FROM fence)
), receipt AS (
	INSERT INTO {g}.receipt_outbox (group_name, generation, epoch, topic, partition, from_offset, next_offset, outcomes)
	SELECT $23, coalesce(g.generation, -1), $3, $1, $2, $4, $5, $22
	FROM fence LEFT JOIN public.generations g ON g.epoch = $3
)
SELECT count(*) FROM fence`

// writeFast is the whole batch as one statement. It works where no id of the batch is there yet and
// Postgres takes every row; else it fails with a unique violation or a data exception, having changed
// nothing. errFenced where the progress is not at the batch's beginning in this epoch.
func (s store) writeFast(ctx context.Context, epoch int64, b batch) (outcomes, error) {
	ids, events := postgres.UUIDs(len(b.entries)), postgres.Timestamps(len(b.entries))
	created, offsets := postgres.Timestamps(len(b.entries)), postgres.Int8s(len(b.entries))
	for _, e := range b.entries {
		ids.UUID(e.id)
		events.Timestamp(e.event)
		created.Timestamp(e.created)
		offsets.Int8(e.offset)
	}
	o := outcomes{applied: int64(len(b.entries)), rejected: int64(len(b.letters))}
	last, dead := b.last(), lettersOf(b, b.letters)
	fast, err := s.preparedFast(ctx) //nolint:sqlclosecheck // kept; the pool closes it
	if err != nil {
		return outcomes{}, fmt.Errorf("prepare to write: %w", err)
	}
	var written int
	err = fast.GetContext(ctx, &written,
		s.topic, b.partition, epoch, b.from, b.next, last.Offset, last.Timestamp, recordHash(last),
		o.applied, o.rejected, b.skipped, ids.Bytes(), events.Bytes(), created.Bytes(), offsets.Bytes(),
		dead.offsets.Bytes(), dead.payloads.Bytes(), dead.headers.Bytes(), dead.codes.Bytes(), dead.reasons.Bytes(), dead.seen.Bytes(),
		b.fastReceipt(), s.group)
	switch {
	case err != nil:
		return outcomes{}, fmt.Errorf("write a batch: %w", err)
	case written == 0:
		return outcomes{}, errFenced
	}
	return o, nil
}

type letterArrays struct {
	offsets, payloads, headers, codes, reasons, seen postgres.Array
}

func lettersOf(b batch, letters []letter) letterArrays {
	n := len(letters)
	a := letterArrays{postgres.Int8s(n), postgres.Byteas(n), postgres.Texts(n), postgres.Texts(n), postgres.Texts(n), postgres.Timestamps(n)}
	for _, l := range letters {
		r := b.records[l.record]
		a.offsets.Int8(r.Offset)
		a.payloads.Bytea(r.Value)
		a.headers.Text(headersJSON(r.Headers))
		a.codes.Text(l.code)
		a.reasons.Text(l.reason)
		a.seen.Timestamp(r.Timestamp)
	}
	return a
}

// skip books offsets that hold markers or nothing, from the projection's end up to next.
func (s store) skip(ctx context.Context, epoch int64, partition int32, from, next int64) error {
	outcomes := string(event.AppendRuns(nil, []event.Run{{Outcome: event.Skipped, Count: next - from}}))
	var booked int
	err := s.db.GetContext(ctx, &booked, s.in(`
WITH fence AS (
	UPDATE {g}.projection_progress SET next_offset = $5, skipped = skipped + $6, updated_at = now()
	WHERE topic = $1 AND partition = $2 AND epoch = $3 AND next_offset = $4
	RETURNING topic, partition
), receipt AS (
	INSERT INTO {g}.receipt_outbox (group_name, generation, epoch, topic, partition, from_offset, next_offset, outcomes)
	SELECT $8, coalesce(g.generation, -1), $3, $1, $2, $4, $5, $7
	FROM fence LEFT JOIN public.generations g ON g.epoch = $3
)
SELECT count(*) FROM fence`), s.topic, partition, epoch, from, next, next-from, outcomes, s.group)
	switch {
	case err != nil:
		return fmt.Errorf("book skipped offsets: %w", err)
	case booked == 0:
		return errFenced
	}
	return nil
}

// watermark notes where the log ended at a time, for all partitions at once, and that those which had
// reached it were caught up then. Rows that a writer holds are left for the next time.
func (s store) watermark(ctx context.Context, at time.Time, ends map[int32]int64) error {
	partitions, offsets := postgres.Int8s(len(ends)), postgres.Int8s(len(ends))
	for p, end := range ends {
		partitions.Int8(int64(p))
		offsets.Int8(end)
	}
	_, err := s.db.ExecContext(ctx, s.in(`
UPDATE {g}.projection_progress p
SET log_end = w.log_end, log_end_at = $2,
	caught_up_at = CASE WHEN p.next_offset >= w.log_end THEN greatest(p.caught_up_at, $2) ELSE p.caught_up_at END
FROM unnest($3::bigint[], $4::bigint[]) AS w (partition, log_end)
WHERE p.topic = $1 AND p.partition = w.partition AND p.partition IN (
	SELECT f.partition FROM {g}.projection_progress f WHERE f.topic = $1 ORDER BY f.partition FOR UPDATE SKIP LOCKED
)`), s.topic, at, partitions.Bytes(), offsets.Bytes())
	if err != nil {
		return fmt.Errorf("note the watermark: %w", err)
	}
	return nil
}

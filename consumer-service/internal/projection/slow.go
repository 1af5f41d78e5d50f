package projection

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"

	"github.com/tidemark/tidemark/shared/event"
	"github.com/tidemark/tidemark/shared/postgres"
)

// slow is one batch written in an explicit transaction, for the ids that are there already and the
// records that Postgres refuses.
type slow struct {
	store
	tx    *sqlx.Tx
	epoch int64
	batch

	whole   bool // all progress rows are locked, so rows may be taken from any partition
	careful bool // some record is refused: every write stands under a savepoint

	counted map[int32]int64 // next_offset of the partitions whose progress is locked
	out     outcomes
	fates   []event.Outcome // of each record; a set that is placed again after a savepoint overwrites its own
	refused []letter
	moves   map[int32]int64 // partition → applied records of it that have become duplicates
}

// row is one of timestamp_records.
type row struct {
	ID        uuid.UUID `db:"id"`
	Event     time.Time `db:"event_timestamp"`
	Created   time.Time `db:"created_at"`
	Partition int32     `db:"partition"`
	Offset    int64     `db:"offset"`
}

// writeSlow writes b by the rule for one id in two records. With careful, records that Postgres refuses
// become dead letters; w judges whether they are too many (errBroken, nothing written).
func (s store) writeSlow(ctx context.Context, epoch int64, b batch, careful bool, w *window) (outcomes, error) {
	for _, whole := range []bool{false, true} {
		job := slow{store: s, epoch: epoch, batch: b, whole: whole, careful: careful, fates: b.fates(), moves: map[int32]int64{}}
		judged := *w
		err := postgres.Tx(ctx, s.db, func(tx *sqlx.Tx) error {
			job.tx = tx
			return job.write(ctx, &judged)
		})
		switch {
		case err == nil:
			*w = judged
			job.out.fates = job.fates
			return job.out, nil
		case errors.Is(err, errTakes) && !whole:
			continue
		default:
			return outcomes{}, err
		}
	}
	return outcomes{}, errTakes // the second round may take
}

func (j *slow) write(ctx context.Context, w *window) error {
	if err := j.lock(ctx); err != nil {
		return err
	}
	if err := j.place(ctx, j.entries); err != nil {
		return err
	}
	refused := map[int]bool{}
	for _, l := range j.refused {
		refused[l.record] = true
	}
	for i := range j.records {
		if w.add(refused[i]) {
			return j.broken()
		}
	}
	letters := append(slices.Clone(j.letters), j.refused...)
	j.out.rejected = int64(len(letters))
	if err := j.bury(ctx, letters); err != nil {
		return err
	}
	return j.advance(ctx)
}

// lock takes the batch's own progress row, or all of them in the order of partitions; a careful job holds the
// table's definition, too.
func (j *slow) lock(ctx context.Context) error {
	var rows []progress
	if err := j.tx.SelectContext(ctx, &rows, j.in(`
SELECT partition, epoch, first_offset, next_offset FROM {g}.projection_progress
WHERE topic = $1 AND (partition = $2 OR $3) ORDER BY partition FOR UPDATE`), j.topic, j.partition, j.whole); err != nil {
		return fmt.Errorf("lock the progress: %w", err)
	}
	j.counted = map[int32]int64{}
	for _, p := range rows {
		if p.Epoch == j.epoch {
			j.counted[p.Partition] = p.NextOffset
		}
	}
	if next, ok := j.counted[j.partition]; !ok || next != j.from {
		return errFenced
	}
	if !j.careful {
		return nil
	}
	// A savepoint that is rolled back gives its table locks up. Without this one a change of the table could
	// slip in between two halves, and some records would be judged by the table before it and some after.
	if _, err := j.tx.ExecContext(ctx, j.in(`LOCK TABLE {g}.timestamp_records IN ROW EXCLUSIVE MODE`)); err != nil {
		return fmt.Errorf("hold the table as it is: %w", err)
	}
	return nil
}

// place gives each entry its outcome. In a careful job a set that Postgres refuses is halved until the
// refused record stands alone. The halves keep the order of (id, created, offset), so the right one
// never takes a row from the left one.
func (j *slow) place(ctx context.Context, entries []entry) error {
	if len(entries) == 0 {
		return nil
	}
	if !j.careful {
		return j.placeAll(ctx, entries)
	}
	const savepoint = "before_placing"
	if _, err := j.tx.ExecContext(ctx, "SAVEPOINT "+savepoint); err != nil {
		return fmt.Errorf("set a savepoint: %w", err)
	}
	before, moves := j.out, maps.Clone(j.moves)
	err := j.placeAll(ctx, entries)
	if err == nil {
		if _, err := j.tx.ExecContext(ctx, "RELEASE SAVEPOINT "+savepoint); err != nil {
			return fmt.Errorf("release a savepoint: %w", err)
		}
		return nil
	}
	if sorted(err) != refused {
		return err
	}
	if _, rollback := j.tx.ExecContext(ctx, "ROLLBACK TO SAVEPOINT "+savepoint+"; RELEASE SAVEPOINT "+savepoint); rollback != nil {
		return fmt.Errorf("go back to a savepoint: %w", rollback)
	}
	j.out, j.moves = before, moves
	if len(entries) == 1 {
		j.refused = append(j.refused, letter{record: entries[0].record, code: reasonRefused, reason: refusal(err)})
		j.fates[entries[0].record] = event.Rejected
		if len(j.refused) > windowMost*(len(j.records)/windowSize+1) {
			return j.broken() // some thousand of these records has more than a tenth, wherever they lie
		}
		return nil
	}
	half := len(entries) / 2
	if err := j.place(ctx, entries[:half]); err != nil {
		return err
	}
	return j.place(ctx, entries[half:])
}

// broken is errBroken with what Postgres said of the last record, in words alone: it is nobody's poison.
func (j *slow) broken() error {
	return fmt.Errorf("%w (%s)", errBroken, j.refused[len(j.refused)-1].reason)
}

// refusal words Postgres's error by its code and constraint alone: its message depends on the server's
// language and version, and a rebuild must give the same bytes.
func refusal(err error) string {
	if c := postgres.Constraint(err); c != "" {
		return fmt.Sprintf("Postgres refuses the row: SQLSTATE %s, constraint %s", postgres.State(err), c)
	}
	return fmt.Sprintf("Postgres refuses the row: SQLSTATE %s", postgres.State(err))
}

func (j *slow) placeAll(ctx context.Context, entries []entry) error {
	// Of the batch's own records with one id, the first is the only candidate.
	candidates := make([]entry, 0, len(entries))
	for _, e := range entries {
		if n := len(candidates); n > 0 && candidates[n-1].id == e.id {
			j.out.duplicate++
			j.fates[e.record] = event.Duplicate
			continue
		}
		j.fates[e.record] = event.Applied
		candidates = append(candidates, e)
	}
	inserted, err := j.insert(ctx, candidates)
	if err != nil {
		return err
	}
	j.out.applied += int64(len(inserted))
	if len(inserted) == len(candidates) {
		return nil
	}
	rest := slices.DeleteFunc(candidates, func(e entry) bool { return inserted[e.id] })
	there, err := j.existing(ctx, rest)
	if err != nil {
		return err
	}
	var rewrites []entry
	for _, e := range rest {
		r, ok := there[e.id]
		if !ok {
			return errVanish
		}
		switch same := r.Partition == j.partition && r.Offset == e.offset; {
		case same:
			j.out.applied++
			if !r.Event.Equal(e.event) || !r.Created.Equal(e.created) {
				rewrites = append(rewrites, e)
			}
		case j.before(e, r):
			j.out.applied++
			rewrites = append(rewrites, e)
			if err := j.taken(r); err != nil {
				return err
			}
		default:
			j.out.duplicate++
			j.fates[e.record] = event.Duplicate
		}
	}
	return j.rewrite(ctx, rewrites)
}

// before is the rule: the lowest (created_at, partition, offset) is the row.
func (j *slow) before(e entry, r row) bool {
	if c := e.created.Compare(r.Created); c != 0 {
		return c < 0
	}
	if j.partition != r.Partition {
		return j.partition < r.Partition
	}
	return e.offset < r.Offset
}

// taken moves a record from applied to duplicate where its row is taken from it and it was counted in
// this epoch: its offset lies below its partition's progress.
func (j *slow) taken(r row) error {
	if r.Partition == j.partition {
		if r.Offset < j.from {
			j.moves[r.Partition]++
		}
		return nil
	}
	if !j.whole {
		return errTakes
	}
	if next, ok := j.counted[r.Partition]; ok && r.Offset < next {
		j.moves[r.Partition]++
	}
	return nil
}

func (j *slow) insert(ctx context.Context, entries []entry) (map[uuid.UUID]bool, error) {
	ids, events := postgres.UUIDs(len(entries)), postgres.Timestamps(len(entries))
	created, offsets := postgres.Timestamps(len(entries)), postgres.Int8s(len(entries))
	for _, e := range entries {
		ids.UUID(e.id)
		events.Timestamp(e.event)
		created.Timestamp(e.created)
		offsets.Int8(e.offset)
	}
	var added []uuid.UUID
	if err := j.tx.SelectContext(ctx, &added, j.in(`
INSERT INTO {g}.timestamp_records (id, event_timestamp, created_at, partition, "offset")
SELECT r.id, r.event_timestamp, r.created_at, $1, r."offset"
FROM unnest($2::uuid[], $3::timestamptz[], $4::timestamptz[], $5::bigint[]) AS r (id, event_timestamp, created_at, "offset")
ON CONFLICT (id) DO NOTHING RETURNING id`), j.partition, ids.Bytes(), events.Bytes(), created.Bytes(), offsets.Bytes()); err != nil {
		return nil, fmt.Errorf("insert the rows that are new: %w", err)
	}
	out := make(map[uuid.UUID]bool, len(added))
	for _, id := range added {
		out[id] = true
	}
	return out, nil
}

func (j *slow) existing(ctx context.Context, entries []entry) (map[uuid.UUID]row, error) {
	ids := postgres.UUIDs(len(entries))
	for _, e := range entries {
		ids.UUID(e.id)
	}
	var rows []row
	if err := j.tx.SelectContext(ctx, &rows, j.in(`
SELECT id, event_timestamp, created_at, partition, "offset" FROM {g}.timestamp_records
WHERE id = ANY ($1::uuid[]) ORDER BY id FOR UPDATE`), ids.Bytes()); err != nil {
		return nil, fmt.Errorf("lock the rows that are there: %w", err)
	}
	out := make(map[uuid.UUID]row, len(rows))
	for _, r := range rows {
		out[r.ID] = r
	}
	return out, nil
}

func (j *slow) rewrite(ctx context.Context, entries []entry) error {
	if len(entries) == 0 {
		return nil
	}
	ids, events := postgres.UUIDs(len(entries)), postgres.Timestamps(len(entries))
	created, offsets := postgres.Timestamps(len(entries)), postgres.Int8s(len(entries))
	for _, e := range entries {
		ids.UUID(e.id)
		events.Timestamp(e.event)
		created.Timestamp(e.created)
		offsets.Int8(e.offset)
	}
	if _, err := j.tx.ExecContext(ctx, j.in(`
UPDATE {g}.timestamp_records t
SET event_timestamp = r.event_timestamp, created_at = r.created_at, partition = $1, "offset" = r."offset"
FROM unnest($2::uuid[], $3::timestamptz[], $4::timestamptz[], $5::bigint[]) AS r (id, event_timestamp, created_at, "offset")
WHERE t.id = r.id`), j.partition, ids.Bytes(), events.Bytes(), created.Bytes(), offsets.Bytes()); err != nil {
		return fmt.Errorf("rewrite rows: %w", err)
	}
	return nil
}

// bury writes the dead letters. One that a hand left there is overwritten.
func (j *slow) bury(ctx context.Context, letters []letter) error {
	if len(letters) == 0 {
		return nil
	}
	d := lettersOf(j.batch, letters)
	if _, err := j.tx.ExecContext(ctx, j.in(`
INSERT INTO {g}.dead_letters (topic, partition, "offset", payload, headers, reason_code, reason, first_seen_at)
SELECT $1, $2, d."offset", d.payload, d.headers::jsonb, d.reason_code, d.reason, d.first_seen_at
FROM unnest($3::bigint[], $4::bytea[], $5::text[], $6::text[], $7::text[], $8::timestamptz[])
	AS d ("offset", payload, headers, reason_code, reason, first_seen_at)
ON CONFLICT (topic, partition, "offset") DO UPDATE
SET payload = excluded.payload, headers = excluded.headers, reason_code = excluded.reason_code, reason = excluded.reason,
	first_seen_at = excluded.first_seen_at`),
		j.topic, j.partition, d.offsets.Bytes(), d.payloads.Bytes(), d.headers.Bytes(), d.codes.Bytes(), d.reasons.Bytes(), d.seen.Bytes()); err != nil {
		return fmt.Errorf("write dead letters: %w", err)
	}
	return nil
}

// advance moves the progress, and the counts of records that lost their row.
func (j *slow) advance(ctx context.Context) error {
	for p, n := range j.moves {
		if _, err := j.tx.ExecContext(ctx, j.in(`
UPDATE {g}.projection_progress SET applied = applied - $3, duplicate = duplicate + $3
WHERE topic = $1 AND partition = $2`), j.topic, p, n); err != nil {
			return fmt.Errorf("move outcomes: %w", err)
		}
	}
	last := j.last()
	var next int64
	err := j.tx.GetContext(ctx, &next, j.in(`
WITH fence AS (
	UPDATE {g}.projection_progress
	SET next_offset = $5, last_offset = $6, last_created_at = $7, last_record_hash = $8,
		applied = applied + $9, duplicate = duplicate + $10, rejected = rejected + $11, skipped = skipped + $12, updated_at = now()
	WHERE topic = $1 AND partition = $2 AND epoch = $3 AND next_offset = $4
	RETURNING next_offset
), receipt AS (
	INSERT INTO {g}.receipt_outbox (group_name, generation, epoch, topic, partition, from_offset, next_offset, outcomes)
	SELECT $14, coalesce(g.generation, -1), $3, $1, $2, $4, $5, $13
	FROM fence LEFT JOIN public.generations g ON g.epoch = $3
)
SELECT next_offset FROM fence`),
		j.topic, j.partition, j.epoch, j.from, j.next, last.Offset, last.Timestamp, recordHash(last),
		j.out.applied, j.out.duplicate, j.out.rejected, j.skipped, j.receipt(j.fates), j.group)
	if errors.Is(err, sql.ErrNoRows) {
		return errFenced
	}
	if err != nil {
		return fmt.Errorf("advance the progress: %w", err)
	}
	return nil
}

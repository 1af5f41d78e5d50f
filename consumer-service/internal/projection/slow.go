package projection

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/tidemark/tidemark/shared/event"
	"github.com/tidemark/tidemark/shared/postgres"
)

// slowWrite is one batch written in an explicit transaction, for the keys that are there already and the records that
// Postgres refuses.
type slowWrite struct {
	store
	tx    *sqlx.Tx
	epoch int64
	log   *reached
	batch

	whole   bool // all progress rows are locked, so rows may be taken from any partition
	careful bool // some record is refused: every write stands under a savepoint

	counted map[int32]int64 // next_offset of the partitions whose progress is locked
	out     counts
	of      []event.Outcome // of each record; a set that is placed again after a savepoint overwrites its own
	refused []Letter
	moves   map[int32]int64 // partition → applied records of it that have become duplicates
}

// standingRow is the row that stands where a row of the batch was to be inserted.
type standingRow struct {
	N         int       `db:"n"` // index among the rows that were looked for
	Created   time.Time `db:"created_at"`
	Partition int32     `db:"partition"`
	Offset    int64     `db:"offset"`
	Differs   bool      `db:"differs"` // in any column that is no part of the key
}

// writeSlow writes b by the rule for one key in two records. With careful, records that Postgres refuses become dead
// letters; w judges whether they are too many (errBrokenDeploy, nothing written).
func (s store) writeSlow(ctx context.Context, epoch int64, b batch, careful bool, w *window, log *reached) (counts, error) {
	for _, whole := range []bool{false, true} {
		j := slowWrite{store: s, epoch: epoch, log: log, batch: b, whole: whole, careful: careful}
		judged := *w
		err := postgres.Tx(ctx, s.db, func(tx *sqlx.Tx) error {
			j.tx = tx
			return j.write(ctx, &judged)
		})
		switch {
		case err == nil:
			*w = judged
			j.out.of = j.of
			return j.out, nil
		case errors.Is(err, errTakesRow) && !whole:
			continue
		default:
			return counts{}, err
		}
	}
	return counts{}, errTakesRow // the second round may take
}

func (j *slowWrite) write(ctx context.Context, w *window) error {
	if err := j.lock(ctx); err != nil {
		return err
	}
	if err := j.settle(ctx); err != nil {
		return err
	}
	refused := map[int]bool{}
	for _, l := range j.refused {
		refused[l.Record] = true
	}
	for i := range j.records {
		if w.add(refused[i]) {
			return j.broken()
		}
	}
	j.out.rejected, j.out.expired = int64(len(j.letters)), int64(len(j.expired))
	if err := j.writeLetters(ctx); err != nil {
		return err
	}
	return j.advance(ctx)
}

// lock takes the batch's own progress row, or all of them in the order of partitions; a careful write holds the
// tables' definitions, too.
func (j *slowWrite) lock(ctx context.Context) error {
	if j.def.Main.Spec().Day != "" { // before any row, as whoever drops a day does
		if _, err := j.tx.ExecContext(ctx, j.in(`LOCK TABLE ONLY {main} IN ROW EXCLUSIVE MODE`)); err != nil {
			return fmt.Errorf("hold the table's days: %w", err)
		}
	}
	var rows []progress
	if err := j.tx.SelectContext(ctx, &rows, j.in(`
SELECT partition, epoch, first_offset, next_offset FROM {g}.projection_progress
WHERE topic = $1 AND (partition = $2 OR $3) ORDER BY partition FOR UPDATE`), j.def.Topic.Name, j.partition, j.whole); err != nil {
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
	// A savepoint that is rolled back gives its table locks up. Without these a change of a table could slip in between
	// two halves, and some records would be judged by the table before it and some after.
	if _, err := j.tx.ExecContext(ctx, `LOCK TABLE `+postgres.Qualified(j.schema, j.def.Tables()...)+` IN ROW EXCLUSIVE MODE`); err != nil {
		return fmt.Errorf("hold the tables as they are: %w", err)
	}
	return nil
}

// settle places the rows and folds the applied ones. A record that Postgres refuses becomes a dead letter. Then all of it
// is done again without that record, since another record with its key may be the row now: so the tables hold the same
// however the records are cut into batches.
func (j *slowWrite) settle(ctx context.Context) error {
	for {
		j.out, j.of, j.moves = counts{}, j.outcomes(), map[int32]int64{}
		if !j.careful {
			if err := j.placeAll(ctx, j.placed); err != nil {
				return err
			}
			return j.foldAll(ctx, j.appliedByOffset())
		}
		var refused []Letter
		err := j.attempt(ctx, func() error {
			if err := j.bisect(ctx, j.placed, &refused, j.placeAll); err != nil {
				return err
			}
			if len(refused) == 0 {
				// What can be folded may depend on what was folded before: only the first record that is refused is known.
				if err := j.bisect(ctx, j.appliedByOffset(), &refused, func(ctx context.Context, rows []int) error {
					if len(refused) > 0 {
						return errSomeRefused
					}
					return j.foldAll(ctx, rows)
				}); err != nil {
					return err
				}
			}
			if len(refused) > 0 {
				return errSomeRefused
			}
			return nil
		})
		if !errors.Is(err, errSomeRefused) {
			return err
		}
		j.refused = append(j.refused, refused...)
		if len(j.refused) > windowMost*(len(j.records)/windowSize+1) {
			return j.broken() // some thousand of these records has more than a tenth, wherever they lie
		}
		j.reject(refused)
	}
}

// errSomeRefused takes an attempt back whose refused records are known.
var errSomeRefused = errors.New("some records are refused")

// attempt calls do under a savepoint, and goes back to it where do fails.
func (j *slowWrite) attempt(ctx context.Context, do func() error) error {
	const savepoint = "before_attempt"
	if _, err := j.tx.ExecContext(ctx, "SAVEPOINT "+savepoint); err != nil {
		return fmt.Errorf("set a savepoint: %w", err)
	}
	out, moves, of := j.out, maps.Clone(j.moves), slices.Clone(j.of)
	if err := do(); err != nil {
		if _, back := j.tx.ExecContext(ctx, "ROLLBACK TO SAVEPOINT "+savepoint+"; RELEASE SAVEPOINT "+savepoint); back != nil {
			return fmt.Errorf("go back to a savepoint: %w", errors.Join(back, err))
		}
		j.out, j.moves, j.of = out, moves, of
		return err
	}
	if _, err := j.tx.ExecContext(ctx, "RELEASE SAVEPOINT "+savepoint); err != nil {
		return fmt.Errorf("release a savepoint: %w", err)
	}
	return nil
}

// bisect calls do with rows, and with halves of them where Postgres refuses some, until a refused record stands alone. The
// halves keep the order of the rows, so of two records with one key the right half never takes the row from the left one.
func (j *slowWrite) bisect(ctx context.Context, rows []int, refused *[]Letter, do func(context.Context, []int) error) error {
	if len(rows) == 0 {
		return nil
	}
	err := j.attempt(ctx, func() error { return do(ctx, rows) })
	if err == nil || remedyFor(err) != findRecord {
		return err
	}
	if len(rows) == 1 {
		*refused = append(*refused, Letter{j.rows.Record(rows[0]), ReasonRefused, refusalWords(err)})
		if len(*refused) > windowMost*(len(j.records)/windowSize+1) {
			j.refused = append(j.refused, *refused...)
			return j.broken()
		}
		return nil
	}
	half := len(rows) / 2
	if err := j.bisect(ctx, rows[:half], refused, do); err != nil {
		return err
	}
	return j.bisect(ctx, rows[half:], refused, do)
}

// broken is errBrokenDeploy with what Postgres said of the last record, in words alone: it is nobody's poison.
func (j *slowWrite) broken() error {
	return fmt.Errorf("%w (%s)", errBrokenDeploy, j.refused[len(j.refused)-1].Reason)
}

// refusalWords words Postgres's error by its code and constraint alone: its message depends on the server's
// language and version, and a rebuild must give the same bytes.
func refusalWords(err error) string {
	if c := postgres.Constraint(err); c != "" {
		return fmt.Sprintf("Postgres refuses the row: SQLSTATE %s, constraint %s", postgres.State(err), c)
	}
	return fmt.Sprintf("Postgres refuses the row: SQLSTATE %s", postgres.State(err))
}

func (j *slowWrite) placeAll(ctx context.Context, rows []int) error {
	// Of the batch's own records with one key, the first is the only candidate.
	candidates := make([]int, 0, len(rows))
	for _, i := range rows {
		if n := len(candidates); n > 0 && j.rows.Same(candidates[n-1], i) {
			j.out.duplicate++
			j.of[j.rows.Record(i)] = event.Duplicate
			continue
		}
		j.of[j.rows.Record(i)] = event.Applied
		candidates = append(candidates, i)
	}
	inserted, err := j.insert(ctx, candidates)
	if err != nil {
		return err
	}
	j.out.applied += int64(len(inserted))
	if len(inserted) == len(candidates) {
		return nil
	}
	rest := slices.DeleteFunc(candidates, func(i int) bool { return inserted[j.batch.of(i).Offset] })
	there, err := j.existing(ctx, rest)
	if err != nil {
		return err
	}
	var rewrites []int
	for n, i := range rest {
		r, ok := there[n]
		if !ok {
			return errRowVanished
		}
		switch offset := j.batch.of(i).Offset; {
		case r.Partition == j.partition && r.Offset == offset: // its own row
			j.out.applied++
			if r.Differs {
				rewrites = append(rewrites, i)
			}
		case j.before(i, r):
			j.out.applied++
			rewrites = append(rewrites, i)
			if err := j.taken(r); err != nil {
				return err
			}
		default:
			j.out.duplicate++
			j.of[j.rows.Record(i)] = event.Duplicate
		}
	}
	return j.rewrite(ctx, rewrites)
}

// before is the rule that decides between row i and the one that stands: of a keyed projection the lower offset is the
// row, of a spread one the lower (log time, partition, offset). A keyed row that bears another partition was put there by
// a hand.
func (j *slowWrite) before(i int, standing standingRow) bool {
	mine := j.batch.of(i)
	if j.def.Kind == Keyed {
		return standing.Partition != j.partition || mine.Offset < standing.Offset
	}
	return cmp.Or(mine.Timestamp.Compare(standing.Created), cmp.Compare(j.partition, standing.Partition), cmp.Compare(mine.Offset, standing.Offset)) < 0
}

// taken moves a record from applied to duplicate where its row is taken from it and it was counted in
// this epoch: its offset lies below its partition's progress.
func (j *slowWrite) taken(r standingRow) error {
	if r.Partition == j.partition {
		if r.Offset < j.from {
			j.moves[r.Partition]++
		}
		return nil
	}
	if j.def.Kind == Keyed {
		return nil
	}
	if !j.whole {
		return errTakesRow
	}
	if next, ok := j.counted[r.Partition]; ok && r.Offset < next {
		j.moves[r.Partition]++
	}
	return nil
}

// rowArguments are the parameters of every statement about some rows: {rows} stands for the arrays behind the first three.
func (j *slowWrite) rowArguments(rows []int) []any {
	created, offsets := j.places(rows)
	return append([]any{j.partition, created, offsets}, j.rows.Arrays(rows)...)
}

func (j *slowWrite) insert(ctx context.Context, rows []int) (map[int64]bool, error) {
	var added []int64
	if err := j.tx.SelectContext(ctx, &added, j.in(`
INSERT INTO {main} ({columns}, created_at, partition, "offset")
SELECT {picked}, r.created_at, $1, r."offset"
FROM unnest({rows}, $2::timestamptz[], $3::bigint[]) AS r ({columns}, created_at, "offset")
ON CONFLICT ({key}) DO NOTHING RETURNING "offset"`), j.rowArguments(rows)...); err != nil {
		return nil, fmt.Errorf("insert the rows that are new: %w", err)
	}
	out := make(map[int64]bool, len(added))
	for _, offset := range added {
		out[offset] = true
	}
	return out, nil
}

// existing locks the rows that stand, in the order of their keys.
func (j *slowWrite) existing(ctx context.Context, rows []int) (map[int]standingRow, error) {
	var found []standingRow
	if err := j.tx.SelectContext(ctx, &found, j.in(`
SELECT r.n::integer - 1 AS n, t.created_at, t.partition, t."offset", ({differs}) AS differs
FROM unnest({rows}, $2::timestamptz[], $3::bigint[]) WITH ORDINALITY AS r ({columns}, created_at, "offset", n)
JOIN {main} t ON {same key} WHERE $1::integer IS NOT NULL ORDER BY r.n FOR UPDATE OF t`), j.rowArguments(rows)...); err != nil {
		return nil, fmt.Errorf("lock the rows that are there: %w", err)
	}
	out := make(map[int]standingRow, len(found))
	for _, r := range found {
		out[r.N] = r
	}
	return out, nil
}

func (j *slowWrite) rewrite(ctx context.Context, rows []int) error {
	if len(rows) == 0 {
		return nil
	}
	if _, err := j.tx.ExecContext(ctx, j.in(`
UPDATE {main} t SET {assigned}, created_at = r.created_at, partition = $1, "offset" = r."offset"
FROM unnest({rows}, $2::timestamptz[], $3::bigint[]) AS r ({columns}, created_at, "offset")
WHERE {same key}`), j.rowArguments(rows)...); err != nil {
		return fmt.Errorf("rewrite rows: %w", err)
	}
	return nil
}

// foldAll folds rows, whose offsets rise.
func (j *slowWrite) foldAll(ctx context.Context, rows []int) error {
	if len(rows) == 0 || !j.def.Main.Spec().Folds {
		return nil
	}
	return j.rows.Fold(ctx, j.tx, j.schema, j.partition, rows)
}

// appliedByOffset are the rows whose records are applied, in the order of their offsets.
func (j *slowWrite) appliedByOffset() []int {
	return slices.DeleteFunc(j.byOffset(), func(i int) bool { return j.of[j.rows.Record(i)] != event.Applied })
}

// byOffset are the rows that are to stand, in the order of their offsets.
func (b *batch) byOffset() []int {
	rows := slices.Clone(b.placed)
	slices.SortFunc(rows, func(x, y int) int { return cmp.Compare(b.rows.Record(x), b.rows.Record(y)) })
	return rows
}

// writeLetters writes the dead letters. One that a hand left there is overwritten.
func (j *slowWrite) writeLetters(ctx context.Context) error {
	if len(j.letters) == 0 {
		return nil
	}
	d := j.letterArrays()
	if _, err := j.tx.ExecContext(ctx, j.in(`
INSERT INTO {g}.dead_letters (topic, partition, "offset", payload, headers, reason_code, reason, first_seen_at)
SELECT $1, $2, d."offset", d.payload, d.headers::jsonb, d.reason_code, d.reason, d.first_seen_at
FROM unnest($3::bigint[], $4::bytea[], $5::text[], $6::text[], $7::text[], $8::timestamptz[])
	AS d ("offset", payload, headers, reason_code, reason, first_seen_at)
ON CONFLICT (topic, partition, "offset") DO UPDATE
SET payload = excluded.payload, headers = excluded.headers, reason_code = excluded.reason_code, reason = excluded.reason,
	first_seen_at = excluded.first_seen_at`),
		j.def.Topic.Name, j.partition, d.offsets.Bytes(), d.payloads.Bytes(), d.headers.Bytes(), d.codes.Bytes(), d.reasons.Bytes(), d.seen.Bytes()); err != nil {
		return fmt.Errorf("write dead letters: %w", err)
	}
	return nil
}

// advance moves the progress, and the counts of records that lost their row.
func (j *slowWrite) advance(ctx context.Context) error {
	for p, n := range j.moves {
		if _, err := j.tx.ExecContext(ctx, j.in(`
UPDATE {g}.projection_progress SET applied = applied - $3, duplicate = duplicate + $3
WHERE topic = $1 AND partition = $2`), j.def.Topic.Name, p, n); err != nil {
			return fmt.Errorf("move outcomes: %w", err)
		}
	}
	last := j.last()
	var end *int64
	var at *time.Time
	if j.log != nil {
		end, at = &j.log.end, &j.log.at
	}
	var next int64
	err := j.tx.GetContext(ctx, &next, j.in(`
WITH fence AS (
	UPDATE {g}.projection_progress
	SET next_offset = $5, last_offset = $6, last_created_at = $7, last_record_hash = $8,
		applied = applied + $9, duplicate = duplicate + $10, rejected = rejected + $11, expired = expired + $12, skipped = skipped + $13, updated_at = now(),
		log_end = greatest(log_end, $16), log_end_at = greatest(log_end_at, $17),
		caught_up_at = CASE WHEN $5 >= $16 THEN greatest(caught_up_at, $17) ELSE caught_up_at END
	WHERE topic = $1 AND partition = $2 AND epoch = $3 AND next_offset = $4
	RETURNING next_offset
), receipt AS (
	INSERT INTO public.projection_receipt_outbox (projection, group_name, generation, epoch, served, topic, partition, from_offset, next_offset, outcomes)
	SELECT {projection}, $15, coalesce(g.generation, -1), $3, coalesce(g.state IN ('serving', 'swapping'), false), $1, $2, $4, $5, $14
	FROM fence LEFT JOIN public.projection_generations g ON g.projection = {projection} AND g.epoch = $3
)
SELECT next_offset FROM fence`),
		j.def.Topic.Name, j.partition, j.epoch, j.from, j.next, last.Offset, last.Timestamp, recordHash(last),
		j.out.applied, j.out.duplicate, j.out.rejected, j.out.expired, j.skipped, j.receipt(j.of), j.group, end, at)
	if errors.Is(err, sql.ErrNoRows) {
		return errFenced
	}
	if err != nil {
		return fmt.Errorf("advance the progress: %w", err)
	}
	return nil
}

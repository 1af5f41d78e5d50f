package projection

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/tidemark/tidemark/shared/event"
	"github.com/tidemark/tidemark/shared/postgres"
	"github.com/tidemark/tidemark/shared/schema"
)

// store is the SQL of one generation. Statements name schema and columns; where they are written, {g} stands for the
// schema of the generation's tables, {projection} for the projection as a literal, {row} for the condition that finds the
// generation's row g, {main} for the main table, {columns} for its own columns, and so on (see texts).
type store struct {
	db     *sqlx.DB
	def    *Definition
	group  string // of the consumers, for receipts
	schema string
	texts  *texts
	days   *dayCache
}

// newStore is the store of the serving generation, or of the candidate of that number.
func newStore(db *sqlx.DB, def *Definition, group string, candidate *int) store {
	s := store{db: db, def: def, group: group, schema: def.ServingSchema(), days: &dayCache{}}
	row := "g.projection = '" + def.Name + "' AND g.state IN ('serving', 'swapping')"
	if candidate != nil {
		s.schema = schema.Candidate(def.Name, *candidate)
		row = fmt.Sprintf("g.projection = '%s' AND g.generation = %d", def.Name, *candidate)
	}
	s.texts = newTexts(def, s.schema, row)
	return s
}

// texts makes each statement's text once.
type texts struct {
	replacer *strings.Replacer
	mu       sync.Mutex
	made     map[string]string
	fast     *sqlx.Stmt
}

func newTexts(def *Definition, in, row string) *texts {
	spec := def.Main.Spec()
	var columns, picked, fast, slow, key, joined, differs, assigned []string
	for n, c := range spec.Columns {
		columns = append(columns, postgres.Quoted(c.Name))
		picked = append(picked, "r."+postgres.Quoted(c.Name))
		fast = append(fast, fmt.Sprintf("$%d::%s[]", firstColumn+n, c.Type))
		slow = append(slow, fmt.Sprintf("$%d::%s[]", 4+n, c.Type))
		assigned = append(assigned, fmt.Sprintf("%[1]s = r.%[1]s", postgres.Quoted(c.Name)))
		if n < len(spec.Key) {
			key = append(key, postgres.Quoted(c.Name))
			joined = append(joined, fmt.Sprintf("t.%[1]s = r.%[1]s", postgres.Quoted(c.Name)))
			continue
		}
		differs = append(differs, fmt.Sprintf("t.%[1]s IS DISTINCT FROM r.%[1]s", postgres.Quoted(c.Name)))
	}
	differs = append(differs, "t.created_at IS DISTINCT FROM r.created_at")
	list := func(parts []string) string { return strings.Join(parts, ", ") }
	return &texts{made: map[string]string{}, replacer: strings.NewReplacer(
		"{g}", postgres.Quoted(in), "{row}", row, "{projection}", "'"+def.Name+"'",
		"{main}", postgres.Qualified(in, spec.Name), "{columns}", list(columns), "{picked}", list(picked), "{arrays}", list(fast), "{rows}", list(slow),
		"{key}", list(key), "{same key}", strings.Join(joined, " AND "), "{differs}", strings.Join(differs, " OR "), "{assigned}", list(assigned),
	)}
}

// in puts the generation's names into a statement.
func (s store) in(query string) string {
	s.texts.mu.Lock()
	defer s.texts.mu.Unlock()
	text, ok := s.texts.made[query]
	if !ok {
		text = s.texts.replacer.Replace(query)
		s.texts.made[query] = text
	}
	return text
}

// prepared is the fast write, prepared when first used, and by database/sql once more on each connection that uses it: to
// plan it costs the server more than to run it for a lone command.
func (s store) prepared(ctx context.Context) (*sqlx.Stmt, error) {
	text := s.in(writeFast)
	s.texts.mu.Lock()
	defer s.texts.mu.Unlock()
	if s.texts.fast == nil {
		fast, err := s.db.PreparexContext(ctx, text)
		if err != nil {
			return nil, err
		}
		s.texts.fast = fast
	}
	return s.texts.fast, nil
}

const selectGeneration = `
SELECT i.database_id, g.generation, g.state, g.epoch, g.group_name, g.cluster_id, g.topic_id, clock_timestamp() AS now
FROM public.projection_generations g CROSS JOIN public.database_identity i
WHERE {row}`

// generation reads the state of the generation, without a lock.
func (s store) generation(ctx context.Context) (generation, error) {
	var g generation
	if err := s.db.GetContext(ctx, &g, s.in(selectGeneration)); err != nil {
		return g, fmt.Errorf("read the generation: %w", err)
	}
	return g, nil
}

// standing reads the generation and the progress of one partition of it in one moment. The progress is nil where there is
// none.
func (s store) standing(ctx context.Context, partition int32) (generation, *progress, error) {
	var row struct {
		generation
		ProgressEpoch *int64 `db:"progress_epoch"`
		Next          *int64 `db:"next_offset"`
	}
	err := s.db.GetContext(ctx, &row, s.in(`
SELECT i.database_id, g.generation, g.state, g.epoch, g.group_name, g.cluster_id, g.topic_id, p.epoch AS progress_epoch, p.next_offset
FROM public.projection_generations g CROSS JOIN public.database_identity i
	LEFT JOIN {g}.projection_progress p ON p.topic = $1 AND p.partition = $2
WHERE {row}`), s.def.Topic.Name, partition)
	if s.schema != s.def.ServingSchema() && remedyFor(err) == rereadState { // the tables went first: its row tells why
		g, err := s.generation(ctx)
		return g, nil, err
	}
	if err != nil {
		return generation{}, nil, fmt.Errorf("read the generation: %w", err)
	}
	if row.ProgressEpoch == nil {
		return row.generation, nil, nil
	}
	return row.generation, &progress{Partition: partition, Epoch: *row.ProgressEpoch, NextOffset: *row.Next}, nil
}

// staleMark is the age at which the mark of a swap is anybody's to take back: a swap takes a second or two
// at most, so whoever set this one is dead or was stopped.
const staleMark = 5 * time.Second

// takeBack ends the swap of a process that died in the middle of it, or does nothing.
func (s store) takeBack(ctx context.Context) error {
	if _, err := s.db.ExecContext(ctx, s.in(`
UPDATE public.projection_generations SET state = 'serving', state_since = clock_timestamp(), swapping_since = NULL
WHERE projection = {projection} AND state = 'swapping' AND swapping_since < clock_timestamp() - $1 * interval '1 second'`), staleMark.Seconds()); err != nil {
		return fmt.Errorf("take the mark of a swap back: %w", err)
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
SELECT partition, epoch, first_offset, next_offset, last_offset, last_created_at, last_record_hash, caught_up_at IS NOT NULL AS caught_up
FROM {g}.projection_progress WHERE topic = $1 AND partition = ANY ($2::bigint[])`), s.def.Topic.Name, wanted.Bytes()); err != nil {
		return nil, fmt.Errorf("read the progress: %w", err)
	}
	out := make(map[int32]progress, len(rows))
	for _, r := range rows {
		out[r.Partition] = r
	}
	return out, nil
}

// skip books offsets that hold markers or nothing, from the progress up to next.
func (s store) skip(ctx context.Context, epoch int64, partition int32, from, next int64) error {
	outcomes := string(event.AppendRuns(nil, []event.Run{{Outcome: event.Skipped, Count: next - from}}))
	var booked int
	err := s.db.GetContext(ctx, &booked, s.in(`
WITH fence AS (
	UPDATE {g}.projection_progress SET next_offset = $5, skipped = skipped + $6, updated_at = now()
	WHERE topic = $1 AND partition = $2 AND epoch = $3 AND next_offset = $4
	RETURNING topic, partition
), receipt AS (
	INSERT INTO public.projection_receipt_outbox (projection, group_name, generation, epoch, served, topic, partition, from_offset, next_offset, outcomes)
	SELECT {projection}, $8, coalesce(g.generation, -1), $3, coalesce(g.state IN ('serving', 'swapping'), false), $1, $2, $4, $5, $7
	FROM fence LEFT JOIN public.projection_generations g ON g.projection = {projection} AND g.epoch = $3
)
SELECT count(*) FROM fence`), s.def.Topic.Name, partition, epoch, from, next, next-from, outcomes, s.group)
	switch {
	case err != nil:
		return fmt.Errorf("book skipped offsets: %w", err)
	case booked == 0:
		return errFenced
	}
	return nil
}

// reached is where the log ended at a time, by the database's clock.
type reached struct {
	end int64
	at  time.Time
}

// watermark notes where the log ended at a time, by the database's clock, for all partitions at once, and that those which
// had reached it were caught up then. Rows that a writer holds are left for the next time; that writer notes it. It returns
// how far each partition is.
func (s store) watermark(ctx context.Context, at time.Time, ends map[int32]int64) (map[int32]int64, error) {
	partitions, offsets := postgres.Int8s(len(ends)), postgres.Int8s(len(ends))
	for p, end := range ends {
		partitions.Int8(int64(p))
		offsets.Int8(end)
	}
	var rows []struct {
		Partition int32 `db:"partition"`
		Next      int64 `db:"next_offset"`
	}
	if err := s.db.SelectContext(ctx, &rows, s.in(`
WITH noted AS (
	UPDATE {g}.projection_progress p
	SET log_end = w.log_end, log_end_at = $2,
		caught_up_at = CASE WHEN p.next_offset >= w.log_end THEN greatest(p.caught_up_at, $2) ELSE p.caught_up_at END
	FROM unnest($3::bigint[], $4::bigint[]) AS w (partition, log_end)
	WHERE p.topic = $1 AND p.partition = w.partition AND p.partition IN (
		SELECT f.partition FROM {g}.projection_progress f WHERE f.topic = $1 ORDER BY f.partition FOR UPDATE SKIP LOCKED
	)
)
SELECT partition, next_offset FROM {g}.projection_progress WHERE topic = $1`), s.def.Topic.Name, at, partitions.Bytes(), offsets.Bytes()); err != nil {
		return nil, fmt.Errorf("note the watermark: %w", err)
	}
	next := make(map[int32]int64, len(rows))
	for _, r := range rows {
		next[r.Partition] = r.Next
	}
	return next, nil
}

// tellIdle writes a receipt without offsets for each of the partitions that is caught up: silence with it is health,
// silence without it is not.
func (s store) tellIdle(ctx context.Context, partitions []int32) error {
	own := postgres.Int8s(len(partitions))
	for _, p := range partitions {
		own.Int8(int64(p))
	}
	if _, err := s.db.ExecContext(ctx, s.in(`
INSERT INTO public.projection_receipt_outbox (projection, group_name, generation, epoch, served, topic, partition, from_offset, next_offset, outcomes, caught_up_at)
SELECT {projection}, $2, g.generation, g.epoch, g.state IN ('serving', 'swapping'), p.topic, p.partition, p.next_offset, p.next_offset, '[]', p.caught_up_at
FROM {g}.projection_progress p JOIN public.projection_generations g ON g.epoch = p.epoch AND {row}
WHERE p.topic = $1 AND p.partition = ANY ($3::bigint[]) AND p.next_offset >= p.log_end AND p.caught_up_at IS NOT NULL
ORDER BY p.partition`), s.def.Topic.Name, s.group, own.Bytes()); err != nil {
		return fmt.Errorf("tell that partitions are idle: %w", err)
	}
	return nil
}

// runs notes that this process runs the projection, and that it does not refuse its log.
func (s store) runs(ctx context.Context) error {
	if _, err := s.db.ExecContext(ctx, s.in(`
UPDATE public.projections SET run_at = clock_timestamp(), refusal = '', refused_at = NULL WHERE projection = {projection}`)); err != nil {
		return fmt.Errorf("note that the projection runs: %w", err)
	}
	return nil
}

// waits notes that this process runs the projection, and what it waits for before it reads its log; readers are answered with
// the reason, as if it refused.
func (s store) waits(ctx context.Context, reason string) error {
	if _, err := s.db.ExecContext(ctx, s.in(`
UPDATE public.projections SET run_at = clock_timestamp(), refusal = $1, refused_at = clock_timestamp() WHERE projection = {projection}`), printable(reason)); err != nil {
		return fmt.Errorf("note what is waited for: %w", err)
	}
	return nil
}

var (
	errGone = errors.New("the generation is gone")
	// errNotWritten says that a candidate is no longer filled: it serves now, or is being dropped. Its worker ends soon.
	errNotWritten = errors.New("the generation is not written any more")
)

// candidateGeneration reads the row of a candidate that is written, or says why it is not.
func (s store) candidateGeneration(ctx context.Context, tx *sqlx.Tx) (g generation, err error) {
	err = tx.GetContext(ctx, &g, s.in(selectGeneration))
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return g, errGone
	case err != nil:
		return g, fmt.Errorf("read the generation: %w", err)
	case !written(g.State):
		return g, fmt.Errorf("%w: generation %d is %s", errNotWritten, g.Number, g.State)
	}
	return g, nil
}

// written reports whether a generation that does not serve is written.
func written(state string) bool {
	switch state {
	case "filling", "indexing", "ready", "standby":
		return true
	}
	return false
}

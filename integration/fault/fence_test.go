package fault_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/google/uuid"
	"github.com/lib/pq"

	"github.com/tidemark/tidemark/integration/story"
)

// sleepWithBatch stops a consumer that has read a batch and not yet reached Postgres with it, lets its successor commit
// the same records, and then lets the old statements through.
//
// Primary keys would hide a statement that should not have written, so what the successor wrote is taken aside first:
// whatever is there afterwards, a fenced writer has written. The fence must have been counted.
func sleepWithBatch(r *rand.Rand, l *deployment, w *writers) fault {
	m, asleep := l.pick(r), between(r, 0, 500*time.Millisecond)
	sample := newSample(r)
	return fault{fmt.Sprintf("stop %s with batches in flight, %s longer than its session", m.name, asleep), func(ctx context.Context) (err error) {
		before, held, err := l.hold(ctx, m, sample, w)
		defer func() { // also when something went wrong in between
			m.db.Pass()
			err = errors.Join(err, m.service.Signal(syscall.SIGCONT))
		}()
		if err != nil {
			return err
		}
		if err := m.service.Signal(syscall.SIGSTOP); err != nil {
			return err
		}
		if err := l.passed(ctx, sample.ends); err != nil {
			return fmt.Errorf("the successor of %s: %w", m.name, err)
		}
		pause(ctx, asleep)
		return l.without(ctx, sample, func() error {
			m.db.Pass()
			if err := m.service.Signal(syscall.SIGCONT); err != nil {
				return err
			}
			return m.fencedMoreThan(ctx, before, len(held))
		})
	}}
}

// sample is a set of records whose outcome a test follows: one readable and one unreadable record in each partition, in
// either order, so that batches of one record are of both kinds.
type sample struct {
	messages []story.Message
	ids      []uuid.UUID
	letters  story.Vector // offsets of the unreadable ones
	ends     story.Vector
}

func newSample(r *rand.Rand) *sample {
	s := &sample{letters: story.Vector{}, ends: story.Vector{}}
	for p := range int32(12) {
		id := uuid.New()
		s.ids = append(s.ids, id)
		two := []story.Message{{Partition: p, Key: id.String(), Value: command(id, someTime(r))}, poison(r, p)}
		r.Shuffle(2, func(i, j int) { two[i], two[j] = two[j], two[i] })
		s.messages = append(s.messages, two...)
	}
	return s
}

func (s *sample) write(log *story.Log) error {
	records, err := log.Write(s.messages...)
	if err != nil {
		return err
	}
	for i, r := range records {
		s.ends[r.Partition] = max(s.ends[r.Partition], r.Offset+1)
		if s.messages[i].Key == "" {
			s.letters[r.Partition] = r.Offset
		}
	}
	return nil
}

// hold writes the sample and returns when a consumer has statements with some of it under way that do not reach Postgres:
// the partitions that it holds, and its count of fenced batches. Nothing else is written while that is arranged, so that
// the batches are known.
func (l *deployment) hold(ctx context.Context, m *member, s *sample, w *writers) (fenced int, held []int32, err error) {
	if err := l.serving(ctx); err != nil {
		return 0, nil, err
	}
	// A fresh client: one that went through a restart of the broker may hold a partition back for seconds.
	log, err := story.OpenLog(l.story.Broker.Brokers())
	if err != nil {
		return 0, nil, err
	}
	defer func() { err = errors.Join(err, log.Close()) }()
	w.quiet.Lock()
	defer w.quiet.Unlock()
	ends, err := log.Ends()
	if err != nil {
		return 0, nil, err
	}
	if err := l.passed(ctx, ends); err != nil {
		return 0, nil, err
	}
	if fenced, err = m.fenced(ctx); err != nil {
		return 0, nil, err
	}
	m.db.Hang()
	if err := s.write(log); err != nil {
		return 0, nil, err
	}
	return fenced, held, story.Eventually(ctx, "wait for the other consumer", func(ctx context.Context) error {
		at, err := l.timestamps.Progress(ctx, l.db)
		if err != nil {
			return err
		}
		held = nil
		for p, end := range s.ends {
			switch at[p] {
			case end:
			case ends[p]:
				held = append(held, p)
			default:
				return fmt.Errorf("partition %d is at %d, between %d and %d", p, at[p], ends[p], end)
			}
		}
		if len(held) == 0 || len(held) == len(s.ends) {
			return fmt.Errorf("consumer %s holds %d partitions", m.name, len(held))
		}
		return nil
	})
}

// fenced reads a consumer's count of batches that the fence held back.
func (m *member) fenced(ctx context.Context) (int, error) {
	client := story.NewClient(5 * time.Second)
	defer client.Close()
	answer, err := client.Get(ctx, m.service.URL()+"/metrics")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(answer.Body)) {
		if value, ok := strings.CutPrefix(line, `tidemark_projection_fenced_total{projection="timestamps"} `); ok {
			return strconv.Atoi(strings.TrimSpace(value))
		}
	}
	return 0, fmt.Errorf("consumer %s does not count fenced batches: %s", m.name, answer)
}

// fencedMoreThan waits until a consumer has counted the fence at least once since before, and up to a moment longer for
// all the batches that it held.
func (m *member) fencedMoreThan(ctx context.Context, before, batches int) error {
	patience := time.Now().Add(2 * time.Second)
	return story.Eventually(ctx, "wait for the fence", func(ctx context.Context) error {
		now, err := m.fenced(ctx)
		switch {
		case err != nil:
			return err
		case now-before >= batches, now > before && time.Now().After(patience):
			return nil
		}
		return fmt.Errorf("consumer %s was fenced %d times, with %d batches in flight", m.name, now-before, batches)
	})
}

// without takes a sample's rows and dead letters aside, and requires that they are still gone after do; then it puts them
// back.
func (l *deployment) without(ctx context.Context, s *sample, do func() error) (err error) {
	tx, err := l.db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }() // after a commit it does nothing
	partitions, offsets := make([]int64, 0, len(s.letters)), make([]int64, 0, len(s.letters))
	for p, offset := range s.letters {
		partitions, offsets = append(partitions, int64(p)), append(offsets, offset)
	}
	for _, take := range []struct {
		sql  string
		args []any
	}{
		{`CREATE SCHEMA aside`, nil},
		{`CREATE TABLE aside.rows (LIKE public.timestamp_records)`, nil},
		{`CREATE TABLE aside.letters (LIKE public.dead_letters)`, nil},
		{`WITH t AS (DELETE FROM public.timestamp_records WHERE id = ANY ($1) RETURNING *) INSERT INTO aside.rows SELECT * FROM t`, []any{pq.Array(s.ids)}},
		{`WITH t AS (DELETE FROM public.dead_letters WHERE (partition, "offset") IN (SELECT * FROM unnest($1::bigint[], $2::bigint[])) RETURNING *)
			INSERT INTO aside.letters SELECT * FROM t`, []any{pq.Array(partitions), pq.Array(offsets)}},
	} {
		if _, err := tx.ExecContext(ctx, take.sql, take.args...); err != nil {
			return fmt.Errorf("take a sample aside: %w", err)
		}
	}
	var rows, letters int
	if err := tx.QueryRowContext(ctx, `SELECT (SELECT count(*) FROM aside.rows), (SELECT count(*) FROM aside.letters)`).Scan(&rows, &letters); err != nil {
		return err
	}
	if rows != len(s.ids) || letters != len(s.letters) {
		return fmt.Errorf("the successor wrote %d rows and %d dead letters of %d and %d", rows, letters, len(s.ids), len(s.letters))
	}
	if err := tx.Commit(); err != nil {
		return err
	}
	if err := do(); err != nil {
		return err
	}
	if err := l.db.QueryRowContext(ctx, `SELECT
		(SELECT count(*) FROM public.timestamp_records t JOIN aside.rows a USING (id)),
		(SELECT count(*) FROM public.dead_letters t JOIN aside.letters a USING (topic, partition, "offset"))`).Scan(&rows, &letters); err != nil {
		return err
	}
	if rows > 0 || letters > 0 {
		return fmt.Errorf("a writer that was fenced has written all the same: %d rows, %d dead letters", rows, letters)
	}
	_, err = l.db.ExecContext(ctx, `
		INSERT INTO public.timestamp_records SELECT * FROM aside.rows;
		INSERT INTO public.dead_letters SELECT * FROM aside.letters;
		DROP SCHEMA aside CASCADE`)
	if err != nil {
		return fmt.Errorf("put a sample back: %w", err)
	}
	return nil
}

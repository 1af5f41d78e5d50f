package projection

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/tidemark/tidemark/shared/topic"
)

const (
	// mostFlights is how many transactions of one group of readers are under way at most. One is enough while all goes
	// well. The others are for a connection that is stuck, which would else hold every read.
	mostFlights = 4
	// stuckAfter is how long a read waits for the transaction before it until another one is begun.
	stuckAfter = 10 * time.Millisecond
	// mostGathered is how many reads may wait for a transaction.
	mostGathered = 10_000
)

// Grouped answers reads of one row each, many of them from one snapshot.
//
// A read that finds no transaction under way begins one. The reads that come meanwhile gather, and the next
// transaction, which begins once that one has ended, answers all of them. So the more reads there are, the less each of
// them costs, and they never take more than mostFlights connections.
//
// What is promised:
//   - A read is answered only from a snapshot that was opened after it came.
//   - The position of each is checked on that snapshot. One that is not passed goes back to waiting, within its own
//     time; the others are answered.
//   - One that gives up leaves the transaction to the others. A transaction that fails, fails for each of its reads;
//     it is not tried again for them.
//   - None waits for an answer longer than a transaction may take.
//
// Reads that name the same projections are together; those that wait for a position of another projection than the one
// they read are apart from them, since that one's progress is read too. A Grouped is safe for concurrent use.
type Grouped[K, V any] struct {
	reader *Reader
	read   func(context.Context, *Snapshot, []K) ([]V, error)

	mu     sync.Mutex
	queues map[string]*queue[K, V]
}

// NewGrouped reads by read, which returns a value for each key, in the order of the keys.
func NewGrouped[K, V any](r *Reader, read func(context.Context, *Snapshot, []K) ([]V, error)) *Grouped[K, V] {
	return &Grouped[K, V]{reader: r, read: read, queues: map[string]*queue[K, V]{}}
}

// Read returns the value of key from a snapshot of the projections in scope in which want holds. Its errors are those
// of Reader.Read.
func (g *Grouped[K, V]) Read(ctx context.Context, want Want, scope Scope, key K) (value V, err error) {
	read, err := g.reader.resolve(ctx, scope)
	if err != nil {
		return value, err
	}
	awaited, err := g.reader.awaited(ctx, want)
	if err != nil {
		return value, err
	}
	q := g.queue(read, awaited, want)
	err = g.reader.whenPassed(ctx, want, func() error {
		value, err = q.join(ctx, want, key)
		return err
	})
	return value, g.reader.counted(err)
}

// queue returns the one of the reads that a transaction can answer together.
func (g *Grouped[K, V]) queue(read []Definition, awaited Definition, want Want) *queue[K, V] {
	decisions := want.Asked() && want.Position.Topic == topic.DeadLetterCommand.Name
	if awaited.Name == "" && !decisions && len(read) == 1 {
		awaited = read[0] // who waits for nothing is with those who wait for what they read
	}
	names := make([]string, 0, len(read)+1)
	for _, d := range read {
		names = append(names, d.Name)
	}
	if decisions {
		names = append(names, "waiting for decisions")
	} else {
		names = append(names, "waiting for "+awaited.Name)
	}
	id := strings.Join(names, ", ")
	g.mu.Lock()
	defer g.mu.Unlock()
	q := g.queues[id]
	if q == nil {
		q = &queue[K, V]{reader: g.reader, answers: g.read}
		g.queues[id] = q
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.read, q.awaited = read, awaited // as the newest release of consumer-service defines them
	return q
}

// queue is the reads of one kind that wait for a transaction, and how many transactions are under way.
type queue[K, V any] struct {
	reader  *Reader
	answers func(context.Context, *Snapshot, []K) ([]V, error)

	mu       sync.Mutex
	read     []Definition
	awaited  Definition
	gathered []*member[K, V] // the first to come first
	flights  int
}

// member is one read of a group.
type member[K, V any] struct {
	key      K
	want     Want
	done     chan struct{} // closed once value and err are set
	value    V
	err      error
	answered bool // by the transaction's goroutine only
}

func (m *member[K, V]) answer(value V, err error) {
	if !m.answered {
		m.value, m.err, m.answered = value, err, true
		close(m.done)
	}
}

// join waits for the next transaction and returns its answer.
func (q *queue[K, V]) join(ctx context.Context, want Want, key K) (V, error) {
	var none V
	came := time.Now()
	m := &member[K, V]{key: key, want: want, done: make(chan struct{})}
	q.mu.Lock()
	if len(q.gathered) >= mostGathered {
		q.mu.Unlock()
		return none, &BusyError{shortOfWaits, errTooManyWaits}
	}
	q.gathered = append(q.gathered, m)
	q.begin(ctx, 1)
	q.mu.Unlock()
	stuck, over := time.NewTimer(stuckAfter), time.NewTimer(tryTimeout+time.Second) // its transaction should say so first
	defer stuck.Stop()
	defer over.Stop()
	for {
		select {
		case <-m.done:
			return m.value, m.err
		case <-stuck.C:
			q.mu.Lock()
			if slices.Contains(q.gathered, m) {
				q.begin(ctx, mostFlights)
			}
			q.mu.Unlock()
		case <-ctx.Done():
			q.leave(m)
			return none, context.Cause(ctx)
		case <-over.C:
			q.leave(m)
			return none, q.reader.busyOrDown(came, errNoAnswer)
		}
	}
}

// errNoAnswer ends a read whose transaction did not come to its end, nor to an error, in time.
var errNoAnswer = errors.Join(errors.New("no transaction answered this read in time"), context.DeadlineExceeded)

// leave takes a read out that has not been taken into a transaction yet.
func (q *queue[K, V]) leave(m *member[K, V]) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if i := slices.Index(q.gathered, m); i >= 0 {
		q.gathered = slices.Delete(q.gathered, i, i+1)
	}
}

// begin starts a transaction unless most are under way, with mu held.
func (q *queue[K, V]) begin(ctx context.Context, most int) {
	if q.flights < most {
		q.flights++
		go q.fly(context.WithoutCancel(ctx)) // it is for others too: one reader's leaving is no reason to stop
	}
}

// fly runs one transaction after the other until nobody is left.
func (q *queue[K, V]) fly(ctx context.Context) {
	for {
		q.mu.Lock()
		if len(q.gathered) == 0 {
			q.flights--
			q.mu.Unlock()
			return
		}
		read, awaited := q.read, q.awaited
		q.mu.Unlock()
		q.answerAll(ctx, read, awaited)
	}
}

// take empties the queue.
func (q *queue[K, V]) take() []*member[K, V] {
	q.mu.Lock()
	defer q.mu.Unlock()
	group := q.gathered
	q.gathered = nil
	return group
}

// answerAll is one transaction, and an answer for each read that had come before it began.
func (q *queue[K, V]) answerAll(ctx context.Context, read []Definition, awaited Definition) {
	var group []*member[K, V]
	taken := false
	err := q.reader.snapshot(ctx, read, awaited, func() []Want {
		group, taken = q.take(), true
		wants := make([]Want, len(group))
		for i, m := range group {
			wants[i] = m.want
		}
		return wants
	}, func(ctx context.Context, s *Snapshot) error { return q.answerFrom(ctx, s, group) })
	if !taken { // no connection was to be had
		group = q.take()
	}
	var none V
	for _, m := range group {
		m.answer(none, err) // those that have no answer yet
	}
}

func (q *queue[K, V]) answerFrom(ctx context.Context, s *Snapshot, group []*member[K, V]) error {
	q.reader.grouped.Observe(float64(len(group)))
	var none V
	passed, keys := make([]*member[K, V], 0, len(group)), make([]K, 0, len(group))
	for _, m := range group {
		if err := s.passed(ctx, m.want); err != nil {
			m.answer(none, err)
			continue
		}
		passed, keys = append(passed, m), append(keys, m.key)
	}
	if len(passed) == 0 {
		return nil
	}
	values, err := q.answers(ctx, s, keys)
	if err != nil {
		return err
	}
	for i, m := range passed {
		m.answer(values[i], nil)
	}
	return nil
}

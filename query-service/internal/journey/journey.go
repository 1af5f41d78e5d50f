// Package journey remembers when the tickets that are looked at here passed each step on their way: sent
// to the door, answered by it, visible as an outcome. The log's own time of a record is in its row; these
// times are nowhere else, since the projection has none that a rebuild would not change.
//
// It is a memory of one process, bounded, for the pages: a ticket that another process watched, or that
// nobody watched, has no times here, and the page says what it knows.
package journey

import (
	"context"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/tidemark/tidemark/shared/position"
)

const (
	mostKept     = 4096
	mostFollowed = 256
	followFor    = time.Minute
)

// Times of one ticket, by this process's clock; zero where a step was not seen.
type Times struct {
	Sent     time.Time // the command, to the door
	Answered time.Time // the door's ticket
	Passed   time.Time // the projection seen past the position: the outcome can be read
}

// Book keeps the times of the last few thousand tickets. It is safe for concurrent use.
type Book struct {
	await func(context.Context, position.Position) error
	mu    sync.Mutex
	times map[uuid.UUID]*entry
	order []uuid.UUID // the oldest first
	busy  int
	done  sync.WaitGroup
}

type entry struct {
	Times
	followed bool
}

// NewBook follows tickets by await, which returns nil once the projection has passed a position.
func NewBook(await func(context.Context, position.Position) error) *Book {
	return &Book{await: await, times: map[uuid.UUID]*entry{}}
}

// Stamped notes that the door gave this ticket.
func (b *Book) Stamped(id uuid.UUID, sent, answered time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	e := b.entry(id)
	e.Sent, e.Answered = sent, answered
}

// Of returns what was seen of id.
func (b *Book) Of(id uuid.UUID) Times {
	b.mu.Lock()
	defer b.mu.Unlock()
	if e := b.times[id]; e != nil {
		return e.Times
	}
	return Times{}
}

// Settled notes that the outcome of id has just been read, where that was not noted yet and somebody
// follows it: a reader can be a moment faster.
func (b *Book) Settled(id uuid.UUID) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if e := b.times[id]; e != nil && e.followed && e.Passed.IsZero() {
		e.Passed = time.Now()
	}
}

// Follow notes when the projection passes at, the position of id's record, without waiting for it. Past
// the bound it does nothing.
func (b *Book) Follow(ctx context.Context, id uuid.UUID, at position.Position) {
	b.mu.Lock()
	defer b.mu.Unlock()
	e := b.entry(id)
	if e.followed || b.busy == mostFollowed {
		return
	}
	e.followed = true
	b.busy++
	b.done.Go(func() {
		// The page that asked is answered long before: only a stop, which ends await, cuts this short.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), followFor)
		defer cancel()
		err := b.await(ctx, at)
		b.mu.Lock()
		defer b.mu.Unlock()
		b.busy--
		e.followed = err == nil
		if err == nil && e.Passed.IsZero() {
			e.Passed = time.Now()
		}
	})
}

// Close waits for those that follow a ticket. What await waits for must have been released before.
func (b *Book) Close() { b.done.Wait() }

func (b *Book) entry(id uuid.UUID) *entry {
	if e := b.times[id]; e != nil {
		return e
	}
	if len(b.order) == mostKept {
		delete(b.times, b.order[0])
		b.order = b.order[1:]
	}
	e := &entry{}
	b.times[id] = e
	b.order = append(b.order, id)
	return e
}

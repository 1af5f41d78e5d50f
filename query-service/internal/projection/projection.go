// Package projection reads the tables that consumer-service computes from the log, in snapshots, and
// knows how far they are.
//
// A read may name a position of the log that must have been passed: it is then answered from a
// snapshot in which the projection is past it, or not at all. Each try is one new transaction, so that
// progress and rows are of one moment; none is held open while waiting, or it would keep old rows
// alive and block a swap of generations.
//
//	Reader.Read ── hint says not yet ──▶ Watch.Await ── a poll saw it pass ──┐
//	     │                                                                  ▼
//	     └──────────────────────────────▶ one snapshot: passed? ── yes ──▶ the caller's queries
//	                                          └ no, and time left: await again
//
// What a poll saw is only ever a reason to look; the snapshot decides. So a projection that is started
// over between the two is waited for, not answered from.
//
// The package leaves what a row means to record, ticket and deadletter.
package projection

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/tidemark/tidemark/shared/position"
)

// tryTimeout bounds one transaction, the wait for a connection included.
const tryTimeout = 5 * time.Second

// Want is what a read asks of the projection before it is answered. The zero value asks nothing.
type Want struct {
	Position position.Position // to be passed; none where its topic is empty
	Wait     time.Duration     // at most; 0 looks once
}

// Asked reports whether a position was named.
func (w Want) Asked() bool { return w.Position.Topic != "" }

// NotReachedError says that the wait ended before the projection passed the position.
type NotReachedError struct {
	Want       Want
	Reached    *position.Position // the last one passed in that partition; nil where there is none
	Generation int
	Epoch      int64
}

func (e *NotReachedError) Error() string {
	return fmt.Sprintf("the projection has not passed %s, it is at %s", e.Want.Position, e.ReachedWord())
}

// ReachedWord prints the last position passed, or none.
func (e *NotReachedError) ReachedWord() string {
	if e.Reached == nil {
		return "none"
	}
	return e.Reached.String()
}

var (
	// ErrStopping ends the waits of a service that is being stopped.
	ErrStopping = errors.New("the service is stopping")
	// ErrTooManyWaits refuses a wait beyond the most that are held at once.
	ErrTooManyWaits = errors.New("too many reads are waiting")
)

// Place is one partition of one topic.
type Place struct {
	Topic     string
	Partition int32
}

// Progress is how far one partition is projected.
type Progress struct {
	Epoch       int64
	FirstOffset int64 // the first that was read
	NextOffset  int64 // all below it are projected
}

// Snapshot is one moment of the serving generation. It is valid inside the function that Read calls.
type Snapshot struct {
	Generation int
	Epoch      int64
	conn       *sqlx.Conn
	at         *Progress // of the partition that was asked for
}

// Progress is how far the partition of the wanted position is; zero where none was asked for.
func (s *Snapshot) Progress() Progress {
	if s.at == nil {
		return Progress{}
	}
	return *s.at
}

// Get reads one row into dest, sql.ErrNoRows where there is none.
func (s *Snapshot) Get(ctx context.Context, dest any, query string, args ...any) error {
	return s.conn.GetContext(ctx, dest, query, args...)
}

// Select reads rows into dest, a pointer to a slice.
func (s *Snapshot) Select(ctx context.Context, dest any, query string, args ...any) error {
	return s.conn.SelectContext(ctx, dest, query, args...)
}

// Reader opens snapshots, after waiting where a read asks for it. It is safe for concurrent use.
type Reader struct {
	db    *sqlx.DB
	watch *Watch
}

// NewReader reads from db and lets watch do the waiting.
func NewReader(db *sqlx.DB, watch *Watch) *Reader { return &Reader{db: db, watch: watch} }

// Read calls fn with a snapshot in which want holds. It returns *NotReachedError when the wait ends
// first, fn's error as it is, and any other error where the database could not be read.
func (r *Reader) Read(ctx context.Context, want Want, fn func(context.Context, *Snapshot) error) error {
	if !want.Asked() {
		return r.try(ctx, want, fn)
	}
	deadline := time.Now().Add(want.Wait)
	waiting, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	look := want.Wait <= 0 || r.watch.Hint(want.Position)
	for {
		if !look {
			err := r.watch.Await(waiting, want.Position)
			if errors.Is(err, ErrStopping) || errors.Is(err, ErrTooManyWaits) {
				return err
			}
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			// Passed, or the wait is over: look either way, the snapshot has the last word.
		}
		err := r.try(ctx, want, fn)
		var behind *NotReachedError
		if !errors.As(err, &behind) || !time.Now().Before(deadline) {
			return err
		}
		look = false
	}
}

// try is one transaction. Its first statement takes the locks, in the order in which a swap of
// generations takes them, before the snapshot is chosen: so either side of a swap is seen whole.
func (r *Reader) try(ctx context.Context, want Want, fn func(context.Context, *Snapshot) error) (err error) {
	ctx, cancel := context.WithTimeout(ctx, tryTimeout)
	defer cancel()
	s, err := r.open(ctx, want.Position)
	if err != nil {
		return err
	}
	defer func() {
		if ended := end(ctx, s.conn); err == nil {
			err = ended
		}
	}()
	if at := want.Position; want.Asked() && (s.at == nil || s.at.NextOffset <= at.Offset) {
		behind := &NotReachedError{Want: want, Generation: s.Generation, Epoch: s.Epoch}
		if s.at != nil && s.at.NextOffset > s.at.FirstOffset {
			at.Offset = s.at.NextOffset - 1
			behind.Reached = &at
		}
		return behind
	}
	return fn(ctx, s)
}

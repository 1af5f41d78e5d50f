package projection

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/tidemark/tidemark/shared/postgres"
)

// What a read that was answered with busy was short of, as the metric has it.
const (
	shortOfTime        = "time"
	shortOfConnections = "connections"
	shortOfLocks       = "locks"
	shortOfWaits       = "waits"
)

// BusyError says that the read had to be given up although the database works: there is more to read than it, or this
// process, can do in time. Asking again later is the remedy.
type BusyError struct {
	ShortOf string // time, connections, locks or waits
	Err     error  // what ended the read
}

func (e *BusyError) Error() string {
	return "too little of " + e.ShortOf + " for this read: " + e.Err.Error()
}

// Unwrap returns what ended the read.
func (e *BusyError) Unwrap() error { return e.Err }

// connectError says that no connection was to be had.
type connectError struct{ err error }

func (e *connectError) Error() string { return fmt.Sprintf("connect: %v", e.err) }
func (e *connectError) Unwrap() error { return e.err }

// lastAnswer is when the database last answered any read.
type lastAnswer struct {
	mu sync.Mutex
	at time.Time
}

// noteUnless notes an answer that came before ctx ended.
func (l *lastAnswer) noteUnless(ctx context.Context) {
	if ctx.Err() != nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.at = time.Now()
}

func (l *lastAnswer) since(t time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.at.After(t)
}

// busyOrDown returns *BusyError for what ended a read that began at an instant and that the database was too busy for,
// any other error as it is. By SQLSTATE (Postgres manual, appendix A), 53300 is a server that takes no more
// connections, 55P03 a lock that was not given and 57014 a statement that ran out of its time. Where this process's own
// patience ended, the database is busy if it has answered another read since this one began, and down if it has not.
func (r *Reader) busyOrDown(began time.Time, err error) error {
	switch postgres.State(err) {
	case "53300":
		return &BusyError{shortOfConnections, err}
	case "55P03":
		return &BusyError{shortOfLocks, err}
	case "57014":
		return &BusyError{shortOfTime, err}
	}
	if !errors.Is(err, context.DeadlineExceeded) || !r.answered.since(began) {
		return err
	}
	var connect *connectError
	if errors.As(err, &connect) {
		return &BusyError{shortOfConnections, err}
	}
	return &BusyError{shortOfTime, err}
}

// counted counts a read that ends with *BusyError, and returns its error.
func (r *Reader) counted(err error) error {
	var busy *BusyError
	if errors.As(err, &busy) {
		r.busy.WithLabelValues(busy.ShortOf).Inc()
	}
	return err
}

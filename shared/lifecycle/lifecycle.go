// Package lifecycle stops what was started, in reverse order, within a deadline.
//
// Register a cleanup the moment its resource exists: then a failed start and a clean stop use the same stack. The stack
// goes on past a cleanup that fails or hangs. That is safe, since the database and the log survive a process that is
// killed, and so one that is cut off while it stops.
package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"
)

type cleanup struct {
	name string
	stop func(context.Context) error
}

// Stack holds named cleanups. It is not safe for concurrent use; one goroutine wires and unwires.
type Stack struct {
	Log      *slog.Logger // where each cleanup is logged, at debug; nowhere unless given
	cleanups []cleanup
}

// Add registers stop under a name that a log line can carry.
func (s *Stack) Add(name string, stop func(context.Context) error) {
	s.cleanups = append(s.cleanups, cleanup{name, stop})
}

// Stop runs every cleanup, last in first out, all within timeout, and joins their errors. A cleanup
// that does not return in time is reported and left behind.
func (s *Stack) Stop(timeout time.Duration) error {
	// The caller's context has ended by now: that is why it stops.
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	var errs []error
	for i := len(s.cleanups) - 1; i >= 0; i-- {
		c := s.cleanups[i]
		done := make(chan error, 1)
		go func() { done <- c.stop(ctx) }()
		select {
		case err := <-done:
			if err != nil {
				errs = append(errs, fmt.Errorf("stop %s: %w", c.name, err))
			}
		case <-ctx.Done():
			errs = append(errs, fmt.Errorf("stop %s: not done within %s", c.name, timeout))
		}
		if s.Log != nil {
			s.Log.Debug("stopped", "part", c.name)
		}
	}
	s.cleanups = nil
	return errors.Join(errs...)
}

// Go runs a loop until its turn to stop comes. The loop's context has ctx's values, but outlives ctx, which ends when
// the service is asked to stop. The loop must return soon after its own context ends.
func (s *Stack) Go(ctx context.Context, name string, run func(context.Context)) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	done := make(chan struct{})
	go func() { defer close(done); run(ctx) }()
	s.Add(name, func(stopping context.Context) error {
		cancel()
		select {
		case <-done:
			return nil
		case <-stopping.Done():
			return stopping.Err()
		}
	})
}

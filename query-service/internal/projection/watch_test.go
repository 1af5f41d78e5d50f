package projection

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/shared/position"
	"github.com/tidemark/tidemark/shared/topic"
)

// fakeLog is progress that a test moves by hand. Each read takes a millisecond.
type fakeLog struct {
	next  atomic.Int64 // of partition 0
	reads atomic.Int64
	fails atomic.Bool
	asked atomic.Pointer[[]string] // the topics of the last read
}

func (f *fakeLog) read(ctx context.Context, topics []string) (map[Place]int64, error) {
	f.asked.Store(&topics)
	seen := f.next.Load()
	f.reads.Add(1)
	time.Sleep(time.Millisecond) // of the bubble that its test runs in
	if f.fails.Load() {
		return nil, errors.New("down")
	}
	return map[Place]int64{{topic.TimestampCommand.Name, 0}: seen}, ctx.Err()
}

func offset(n int64) position.Position {
	return position.Position{Topic: topic.TimestampCommand.Name, Offset: n}
}

func newWatch(t *testing.T, f *fakeLog) *Watch {
	w := NewWatch(f.read, strings.ToUpper, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); w.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	return w
}

func TestAwaitEndsSoonAfterThePositionIsPassed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeLog{}
		w := newWatch(t, f)
		for _, wait := range []time.Duration{0, 3 * time.Millisecond, 50 * time.Millisecond, 10 * time.Second} {
			next := f.next.Load()
			time.AfterFunc(wait, func() { f.next.Add(1) })
			start := time.Now()
			require.NoError(t, w.Await(t.Context(), offset(next)))
			late := time.Since(start) - wait
			require.GreaterOrEqual(t, late, time.Duration(0))
			require.LessOrEqual(t, late, wait/8+longestPause/20, "after %s", wait)
		}
	})
}

func TestNobodyWaitingMeansNoPolls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeLog{}
		w := newWatch(t, f)
		time.Sleep(time.Hour)
		require.Zero(t, f.reads.Load())
		f.next.Store(1)
		require.NoError(t, w.Await(t.Context(), offset(0)))
		polls := f.reads.Load()
		time.Sleep(time.Hour)
		require.LessOrEqual(t, f.reads.Load(), polls+1)
	})
}

func TestManyWaitsShareThePolls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeLog{}
		w := newWatch(t, f)
		done := make(chan error, 1000)
		for i := range int64(1000) {
			go func() { done <- w.Await(t.Context(), offset(i%10)) }()
		}
		for range 10 {
			time.Sleep(20 * time.Millisecond)
			f.next.Add(1)
		}
		for range 1000 {
			require.NoError(t, <-done)
		}
		require.Less(t, f.reads.Load(), int64(100))
	})
}

func TestALongWaitIsPolledSeldomAndANewOneAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeLog{}
		w := newWatch(t, f)
		ctx, cancel := context.WithCancel(t.Context())
		gone := make(chan error, 1)
		go func() { gone <- w.Await(ctx, offset(1_000_000)) }()
		time.Sleep(time.Minute)
		require.Less(t, f.reads.Load(), int64(700))
		f.next.Store(1)
		start := time.Now()
		require.NoError(t, w.Await(t.Context(), offset(0)))
		require.LessOrEqual(t, time.Since(start), 10*time.Millisecond)
		cancel()
		require.ErrorIs(t, <-gone, context.Canceled)
	})
}

// A poll that began before the call may have read an older state than the caller knows of.
func TestAPollUnderWayWakesNobodyWhoCameLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeLog{}
		w := newWatch(t, f)
		first := make(chan error, 1)
		f.next.Store(5)
		go func() { first <- w.Await(t.Context(), offset(4)) }()
		time.Sleep(500 * time.Microsecond) // the poll has read 5 and has not returned yet
		f.next.Store(0)
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		require.ErrorIs(t, w.Await(ctx, offset(4)), context.DeadlineExceeded)
		require.NoError(t, <-first)
	})
}

func TestAFailingPollIsRepeated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeLog{}
		f.fails.Store(true)
		f.next.Store(1)
		w := newWatch(t, f)
		time.AfterFunc(3*time.Second, func() { f.fails.Store(false) })
		start := time.Now()
		require.NoError(t, w.Await(t.Context(), offset(0)))
		require.Less(t, time.Since(start), 3200*time.Millisecond)
	})
}

func TestReleaseEndsEveryWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWatch(t, &fakeLog{})
		done := make(chan error, 1)
		go func() { done <- w.Await(t.Context(), offset(0)) }()
		time.Sleep(time.Second)
		w.Release()
		require.ErrorIs(t, <-done, ErrStopping)
		require.ErrorIs(t, w.Await(t.Context(), offset(0)), ErrStopping)
		w.Release()
	})
}

func TestWaitsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWatch(t, &fakeLog{})
		done := make(chan error, mostWaiters)
		for range mostWaiters {
			go func() { done <- w.Await(t.Context(), offset(0)) }()
		}
		synctest.Wait()
		require.ErrorIs(t, w.Await(t.Context(), offset(0)), errTooManyWaits)
		w.Release()
		for range mostWaiters {
			require.ErrorIs(t, <-done, ErrStopping)
		}
	})
}

func TestOnlyTheTopicsThatAreWaitedForArePolled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeLog{}
		w := newWatch(t, f)
		ctx, cancel := context.WithCancel(t.Context())
		other := make(chan error, 2)
		for range 2 {
			go func() { other <- w.Await(ctx, position.Position{Topic: "other.v1", Offset: 1}) }()
		}
		time.Sleep(time.Second)
		require.Equal(t, []string{"other.v1"}, *f.asked.Load())
		mine := make(chan error, 1)
		go func() { mine <- w.Await(t.Context(), offset(0)) }()
		time.Sleep(time.Second)
		require.ElementsMatch(t, []string{"other.v1", topic.TimestampCommand.Name}, *f.asked.Load())
		cancel()
		require.ErrorIs(t, <-other, context.Canceled)
		require.ErrorIs(t, <-other, context.Canceled)
		f.next.Store(1)
		require.NoError(t, <-mine)
		require.Equal(t, []string{topic.TimestampCommand.Name}, *f.asked.Load())
		require.True(t, w.Hint(offset(0)))
	})
}

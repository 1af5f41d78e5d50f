package journey

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/tidemark/tidemark/shared/position"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var somewhere = position.Position{Topic: "t", Partition: 1, Offset: 7}

func TestEachStepHasItsTime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		passed := make(chan struct{})
		b := NewBook(func(ctx context.Context, p position.Position) error {
			require.Equal(t, somewhere, p)
			select {
			case <-passed:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
		id, start := uuid.New(), time.Now()
		time.Sleep(5 * time.Millisecond)
		b.Stamped(id, start, time.Now())
		request, answered := context.WithCancel(t.Context())
		b.Follow(request, id, somewhere)
		answered() // the page that asked is gone
		time.Sleep(20 * time.Millisecond)
		require.Equal(t, Times{Sent: start, Answered: start.Add(5 * time.Millisecond)}, b.Of(id))
		close(passed)
		b.Close()
		require.Equal(t, start.Add(25*time.Millisecond), b.Of(id).Passed)
		time.Sleep(time.Second)
		b.Settled(id)
		require.Equal(t, start.Add(25*time.Millisecond), b.Of(id).Passed, "the first time counts")
	})
}

func TestAReaderThatIsFasterSettlesIt(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := NewBook(func(ctx context.Context, _ position.Position) error { <-ctx.Done(); return ctx.Err() })
		id := uuid.New()
		b.Settled(id)
		require.Zero(t, b.Of(id), "nobody follows it")
		b.Follow(t.Context(), id, somewhere)
		b.Settled(id)
		require.Equal(t, time.Now(), b.Of(id).Passed)
		b.Close() // after a minute: synctest's clock makes it no time
	})
}

func TestTheBookIsBounded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		began := 0
		b := NewBook(func(ctx context.Context, _ position.Position) error { <-ctx.Done(); return ctx.Err() })
		first := uuid.New()
		b.Stamped(first, time.Now(), time.Now())
		for range mostKept {
			id := uuid.New()
			b.Follow(t.Context(), id, somewhere)
			if b.times[id].followed {
				began++
			}
		}
		require.Equal(t, mostFollowed, began)
		require.Len(t, b.times, mostKept)
		require.Zero(t, b.Of(first), "the oldest is forgotten")
		b.Close()
	})
}

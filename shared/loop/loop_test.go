package loop

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

var errTold = errors.New("told to stop")

func TestSleepEndsWithItsContext(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		require.NoError(t, Sleep(t.Context(), time.Minute))
		require.Equal(t, time.Minute, time.Since(began))

		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(time.Second, func() { cancel(errTold) })
		began = time.Now()
		require.ErrorIs(t, Sleep(ctx, time.Hour), errTold)
		require.Equal(t, time.Second, time.Since(began))
		for range 100 { // both are ready: the end wins every time
			require.ErrorIs(t, Sleep(ctx, 0), errTold)
		}
	})
}

func TestBackoffGrowsToItsMostAndBeginsAnew(t *testing.T) {
	t.Parallel()
	b := Backoff{First: time.Second, Most: 8 * time.Second}
	grows := func() {
		for _, longest := range []time.Duration{1, 2, 4, 8, 8, 8} {
			longest *= time.Second
			got := b.Next()
			require.GreaterOrEqual(t, got, longest/2)
			require.LessOrEqual(t, got, longest)
		}
	}
	grows()
	b.Reset()
	grows()
	var unset Backoff
	require.LessOrEqual(t, unset.Next(), 100*time.Millisecond)
	for range 20 {
		require.LessOrEqual(t, unset.Next(), 5*time.Second)
	}
	require.GreaterOrEqual(t, unset.Next(), 2500*time.Millisecond)
	seen := map[time.Duration]bool{}
	for range 20 {
		seen[unset.Next()] = true
	}
	require.Greater(t, len(seen), 1, "pauses are drawn")
}

func TestEveryRunsAtOnceAndAtEachTick(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		began, ran := time.Now(), []time.Duration{}
		Every(ctx, time.Second, func(context.Context) {
			ran = append(ran, time.Since(began))
			switch len(ran) {
			case 2:
				time.Sleep(3500 * time.Millisecond) // three ticks pass, and are one
			case 5:
				cancel()
			}
		})
		const s = time.Second
		require.Equal(t, []time.Duration{0, s, s + 3500*time.Millisecond, 5 * s, 6 * s}, ran)
	})
}

func TestAKickRunsTheLoopAtOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		kick, began, ran := NewKick(), time.Now(), []time.Duration{}
		time.AfterFunc(200*time.Millisecond, func() { kick.Send(); kick.Send(); kick.Send() })
		kick.Every(ctx, time.Second, func(context.Context) {
			if ran = append(ran, time.Since(began)); len(ran) == 4 {
				cancel()
			}
		})
		// The kicks of one moment are one or, where the first was taken in between, two.
		require.Equal(t, 200*time.Millisecond, ran[1])
		require.LessOrEqual(t, ran[3], 2*time.Second)

		kick.Send() // nobody waits
		began = time.Now()
		require.NoError(t, kick.Sleep(t.Context(), time.Hour))
		require.Zero(t, time.Since(began))
	})
}

func TestRetryStopsAtSuccessAtAFinalErrorAndWithItsContext(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		tries := 0
		require.NoError(t, Retry(t.Context(), Backoff{}, func(context.Context) (bool, error) {
			if tries++; tries < 3 {
				return false, errors.New("not yet")
			}
			return false, nil
		}))
		require.Equal(t, 3, tries)
		final := errors.New("never")
		require.ErrorIs(t, Retry(t.Context(), Backoff{}, func(context.Context) (bool, error) { return true, final }), final)
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(time.Minute, func() { cancel(errTold) })
		require.ErrorIs(t, Retry(ctx, Backoff{}, func(context.Context) (bool, error) { return false, final }), errTold)
	})
}

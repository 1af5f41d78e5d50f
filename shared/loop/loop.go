// Package loop holds the waits that background loops are made of: a sleep that a context ends, a pause that grows with
// each failure, a kick that ends a wait early, and a function that runs at every tick.
//
// All of them return as soon as their context ends. None of them starts a goroutine.
package loop

import (
	"context"
	"math/rand/v2"
	"time"
)

// Sleep returns nil after d, or the cause of ctx's end as soon as that has come.
func Sleep(ctx context.Context, d time.Duration) error { return Kick(nil).Sleep(ctx, d) }

// Every runs run at once and then every d, until ctx ends. Ticks that pass during a run are one: the next run then
// follows at once.
func Every(ctx context.Context, d time.Duration, run func(context.Context)) {
	Kick(nil).Every(ctx, d, run)
}

// Retry repeats try until it succeeds, until it says that its error is final, or until ctx ends, whose cause is the
// error then. The pauses are those of b.
func Retry(ctx context.Context, b Backoff, try func(context.Context) (final bool, err error)) error {
	for {
		final, err := try(ctx)
		if final || err == nil {
			return err
		}
		if err := b.Sleep(ctx); err != nil {
			return err
		}
	}
}

// Kick ends the waits of one loop early. Kicks that come while nobody waits are one, which ends the next wait at once. It
// is safe for concurrent use.
type Kick chan struct{}

// NewKick returns a kick for one loop.
func NewKick() Kick { return make(Kick, 1) }

// Send kicks. It never waits.
func (k Kick) Send() {
	select {
	case k <- struct{}{}:
	default:
	}
}

// Sleep is like the package's Sleep, but returns nil as soon as it is kicked.
func (k Kick) Sleep(ctx context.Context, d time.Duration) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	select {
	case <-time.After(d):
		return nil
	case <-k:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Every is like the package's Every, but also runs as soon as it is kicked.
func (k Kick) Every(ctx context.Context, d time.Duration, run func(context.Context)) {
	tick := time.NewTicker(d)
	defer tick.Stop()
	for ctx.Err() == nil {
		run(ctx)
		select {
		case <-tick.C:
		case <-k:
		case <-ctx.Done():
		}
	}
}

// Backoff is the pause after each of several failures in a row. It doubles from First to Most, and half of it is drawn at
// random, so that many who fail together do not come back together. It is not safe for concurrent use.
type Backoff struct {
	First time.Duration // most of the first pause; 100 ms unless given
	Most  time.Duration // most of any pause; 5 s unless given

	last time.Duration
}

// Next returns the next pause: between half of what it has grown to and all of it.
func (b *Backoff) Next() time.Duration {
	first, most := b.First, b.Most
	if first <= 0 {
		first = 100 * time.Millisecond
	}
	if most <= 0 {
		most = 5 * time.Second
	}
	b.last = min(max(2*b.last, first), most)
	return b.last/2 + rand.N(b.last/2+1) //nolint:gosec // jitter needs no secrecy
}

// Sleep sleeps for the next pause, as the package's Sleep does.
func (b *Backoff) Sleep(ctx context.Context) error { return Sleep(ctx, b.Next()) }

// Reset begins anew, after a success.
func (b *Backoff) Reset() { b.last = 0 }

// Package recent shares one reading among many readers: a hundred open pages then cost no more than one.
package recent

import (
	"context"
	"sync"
	"time"
)

// Value is a reading that is good for a while. It is safe for concurrent use; its fields are set once.
type Value[T any] struct {
	For      time.Duration // how long a reading is good
	Times    int           // how many times as long as it took it is good at least, so that readings take no more than that part of the time
	Patience time.Duration // how long one may take
	Read     func(context.Context) (T, error)

	mu    sync.Mutex
	value T
	err   error
	at    time.Time
	took  time.Duration
}

// Get returns the last reading, an error alike, or a new one where that is too old. Whoever comes while
// it is being read waits for it and shares it.
func (v *Value[T]) Get(ctx context.Context) (T, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if !v.at.IsZero() && time.Since(v.at) < max(v.For, time.Duration(v.Times)*v.took) {
		return v.value, v.err
	}
	// It is read for the others too: the first one's leaving is no reason to stop.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), v.Patience)
	defer cancel()
	began := time.Now()
	v.value, v.err = v.Read(ctx)
	v.at = time.Now()
	v.took = v.at.Sub(began)
	return v.value, v.err
}

// Forget makes the next Get read anew.
func (v *Value[T]) Forget() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.at = time.Time{}
}

package projection

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/tidemark/tidemark/shared/loop"
	"github.com/tidemark/tidemark/shared/position"
)

const (
	shortestPause = 2 * time.Millisecond
	longestPause  = 100 * time.Millisecond
	pollTimeout   = 2 * time.Second
	mostWaiters   = 10_000
)

// errTooManyWaits refuses a wait beyond mostWaiters.
var errTooManyWaits = errors.New("too many reads are waiting")

// Watch lets many reads share one poll of the progress. While nobody waits it reads nothing; while
// somebody does, it polls the topics that are waited for, at a pace that follows the youngest wait: 2 ms apart for one that has just
// come, up to 100 ms for those that have waited long.
type Watch struct {
	read func(ctx context.Context, topics []string) (map[Place]int64, error)
	log  *slog.Logger

	mu      sync.Mutex
	waiters map[*waiter]struct{}
	latest  map[Place]int64 // as of the last poll of its topic
	stopped bool
	stop    chan struct{} // closed by Release
	kick    loop.Kick     // somebody has begun to wait

	label   func(topic string) string // the projection's name, for the metrics
	waiting *prometheus.GaugeVec
	seconds *prometheus.HistogramVec
}

type waiter struct {
	place  Place
	offset int64
	since  time.Time
	passed chan struct{}
}

// NewWatch polls by read, which returns the next offset of each partition of the topics. label names, for the metrics, the
// projection that reads a topic. Run must be called.
func NewWatch(read func(ctx context.Context, topics []string) (map[Place]int64, error), label func(topic string) string, registry prometheus.Registerer, log *slog.Logger) *Watch {
	w := &Watch{
		read: read, label: label, log: log,
		waiters: map[*waiter]struct{}{}, latest: map[Place]int64{}, stop: make(chan struct{}), kick: loop.NewKick(),
		waiting: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "tidemark_query_waiters", Help: "Reads that wait for the projection to pass their position; decisions are waited for too.",
		}, []string{"projection"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "tidemark_query_wait_seconds", Help: "How long reads waited for their position, by projection and how it ended.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30},
		}, []string{"projection", "end"}),
	}
	registry.MustRegister(w.waiting, w.seconds)
	return w
}

// Hint reports whether the last poll of its topic, however old, saw p passed.
func (w *Watch) Hint(p position.Position) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.latest[Place{p.Topic, p.Partition}] > p.Offset
}

// Await returns nil once a poll that began after the call has seen p passed; the error of ctx when
// that ends first; ErrStopping after Release; errTooManyWaits at once where the bound is reached.
func (w *Watch) Await(ctx context.Context, p position.Position) error {
	me := &waiter{Place{p.Topic, p.Partition}, p.Offset, time.Now(), make(chan struct{})}
	w.mu.Lock()
	if w.stopped {
		w.mu.Unlock()
		return ErrStopping
	}
	if len(w.waiters) >= mostWaiters {
		w.mu.Unlock()
		return errTooManyWaits
	}
	w.waiters[me] = struct{}{}
	w.mu.Unlock()
	projection := w.label(p.Topic)
	waiting := w.waiting.WithLabelValues(projection)
	waiting.Inc()
	defer waiting.Dec()
	w.kick.Send()
	end := func(how string) { w.seconds.WithLabelValues(projection, how).Observe(time.Since(me.since).Seconds()) }
	select {
	case <-me.passed:
		end("passed")
		return nil
	case <-ctx.Done():
		end("gave_up")
	case <-w.stop:
	}
	w.mu.Lock()
	delete(w.waiters, me)
	w.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	return ErrStopping
}

// Release ends every wait, and those to come, with ErrStopping. It may be called again.
func (w *Watch) Release() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.stopped {
		w.stopped = true
		close(w.stop)
	}
}

// Run polls while somebody waits, until ctx ends.
func (w *Watch) Run(ctx context.Context) {
	defer w.Release()
	failing := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-w.kick:
		}
		for w.anyone() {
			err := w.poll(ctx)
			if ctx.Err() != nil {
				return
			}
			if err != nil && !failing {
				w.log.Warn("progress cannot be read while reads wait for it", "err", err)
			}
			failing = err != nil
			if w.pause(ctx) != nil {
				return
			}
		}
	}
}

func (w *Watch) anyone() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.waiters) > 0
}

// poll wakes those who began to wait before it began, and whose position has been passed.
func (w *Watch) poll(ctx context.Context) error {
	w.mu.Lock()
	asked := make([]*waiter, 0, len(w.waiters))
	var topics []string
	for a := range w.waiters {
		asked = append(asked, a)
		if !slices.Contains(topics, a.place.Topic) {
			topics = append(topics, a.place.Topic)
		}
	}
	w.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, pollTimeout)
	defer cancel()
	next, err := w.read(ctx, topics)
	if err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	maps.Copy(w.latest, next)
	for _, a := range asked {
		if _, still := w.waiters[a]; still && next[a.place] > a.offset {
			delete(w.waiters, a)
			close(a.passed)
		}
	}
	return nil
}

// pause waits until the next poll is due: never shorter than shortestPause, however many come, and no longer than that
// once somebody new is in a hurry.
func (w *Watch) pause(ctx context.Context) error {
	if err := loop.Sleep(ctx, shortestPause); err != nil {
		return err
	}
	rest := w.pace() - shortestPause
	if rest <= 0 {
		return nil
	}
	return w.kick.Sleep(ctx, rest)
}

// pace is an eighth of the age of the youngest wait: whoever waited for t waits at most t/8 too long.
func (w *Watch) pace() time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	youngest := longestPause * 8
	for a := range w.waiters {
		youngest = min(youngest, time.Since(a.since))
	}
	return min(max(youngest/8, shortestPause), longestPause)
}

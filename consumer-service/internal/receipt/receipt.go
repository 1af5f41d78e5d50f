// Package receipt brings receipts from the outbox to the log: what was decided of each offset, for
// whoever wants to know without asking the database.
//
// A receipt is written to the outbox in the transaction that decided it, so there is one
// for every offset that was passed, and none for one that was not. From there it goes to
// projection.receipt.v1 and is deleted once every in-sync replica has it. A process that dies in between,
// or an acknowledgement that is lost, makes it go out again, with the same bytes: its row is all that it is
// made of. There are no holes: a row that is not acknowledged stays.
//
// One process at a time publishes the receipts of a projection, by an advisory lock. It is held in a transaction that
// touches no table, so it keeps neither a swap of generations nor a migration waiting; and when its holder hangs, the
// server ends it, and the worst that follows is a repeat.
package receipt

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/tidemark/tidemark/shared/event"
	"github.com/tidemark/tidemark/shared/kafka"
	"github.com/tidemark/tidemark/shared/loop"
)

// Log is where receipts go; *kafka.Publisher takes them.
type Log interface {
	PublishAll(topic string, msgs ...*message.Message) []kafka.Result
}

var _ Log = (*kafka.Publisher)(nil)

// Store is the outbox of one projection; *Postgres has it.
type Store interface {
	// Alone calls do while no other process is inside, and reports whether it was called.
	Alone(ctx context.Context, do func(context.Context) error) (called bool, err error)
	// Oldest returns up to limit rows, the lowest numbers first.
	Oldest(ctx context.Context, limit int) ([]Row, error)
	// Delete forgets rows. Those that are not there any more are no error.
	Delete(ctx context.Context, numbers []int64) error
}

// Row is one receipt in the outbox.
type Row struct {
	Number int64
	event.Receipt
}

// Options of a publisher. All are required but Every.
type Options struct {
	Projection string // whose receipts these are
	Store      Store
	Log        Log
	Topic      string
	Ensure     func(context.Context) error // makes the topic where there is none
	Metrics    *Metrics
	Logger     *slog.Logger
	Every      time.Duration // between two looks that nobody asked for; 5 s unless given
}

// Metrics of the publishers of a process, by projection.
type Metrics struct {
	published *prometheus.CounterVec
	oldest    *prometheus.GaugeVec
}

// NewMetrics registers the metrics.
func NewMetrics(r prometheus.Registerer) *Metrics {
	m := &Metrics{
		published: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tidemark_receipts_published_total", Help: "Receipts that this process brought to the log, repeats included.",
		}, []string{"projection"}),
		oldest: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "tidemark_receipt_outbox_oldest_seconds", Help: "Age of the oldest receipt that is not in the log yet, as this process last saw it; 0 where none is.",
		}, []string{"projection"}),
	}
	r.MustRegister(m.published, m.oldest)
	return m
}

// Publisher empties the outbox of one projection.
type Publisher struct {
	options   Options
	kick      loop.Kick
	published prometheus.Counter
	oldest    prometheus.Gauge
}

const (
	page     = 1000                  // rows at once
	gather   = 50 * time.Millisecond // after a kick: receipts come in company
	mostRuns = 8000                  // in one record, which is then well below what Kafka takes
)

// New returns a publisher that does not run yet.
func New(o Options) *Publisher {
	if o.Every == 0 {
		o.Every = 5 * time.Second
	}
	return &Publisher{
		options: o, kick: loop.NewKick(),
		published: o.Metrics.published.WithLabelValues(o.Projection), oldest: o.Metrics.oldest.WithLabelValues(o.Projection),
	}
}

// Kick says that there is something in the outbox. It never waits.
func (p *Publisher) Kick() { p.kick.Send() }

// Run publishes until ctx ends, whenever same says that the log is the one the tables were computed from: the receipts of
// one log have no place in another. A log or a database that is down is waited for.
func (p *Publisher) Run(ctx context.Context, same func() bool) {
	made, failing := false, false
	wait := loop.Backoff{}
	for {
		full, err := false, error(nil)
		if same() {
			if !made {
				err = p.options.Ensure(ctx)
				made = err == nil
			}
			if err == nil {
				full, err = p.publishPage(ctx)
			}
		}
		if ctx.Err() != nil {
			return
		}
		if err != nil && !failing && !errors.Is(err, errElsewhere) {
			p.options.Logger.Warn("cannot publish receipts, they stay in the outbox", "projection", p.options.Projection, "topic", p.options.Topic, "err", err)
		}
		failing = err != nil && !errors.Is(err, errElsewhere)
		switch {
		case err != nil:
			err = wait.Sleep(ctx)
		case full:
			wait.Reset()
		default:
			wait.Reset()
			err = p.await(ctx)
		}
		if err != nil {
			return
		}
	}
}

// await waits for a kick or until it is time.
func (p *Publisher) await(ctx context.Context) error {
	start := time.Now()
	if err := p.kick.Sleep(ctx, p.options.Every); err != nil || time.Since(start) >= p.options.Every {
		return err
	}
	return loop.Sleep(ctx, gather)
}

// errElsewhere says that another process publishes just now. It may have looked before the newest receipt came, so this one
// looks again soon.
var errElsewhere = errors.New("another process publishes")

// publishPage publishes up to a page, and reports whether there is more.
func (p *Publisher) publishPage(ctx context.Context) (full bool, err error) {
	inside, err := p.options.Store.Alone(ctx, func(ctx context.Context) error {
		n, age, err := p.drain(ctx)
		full = n == page
		p.oldest.Set(age.Seconds())
		return err
	})
	if err == nil && !inside {
		return false, errElsewhere
	}
	return full && err == nil, err
}

func (p *Publisher) drain(ctx context.Context) (n int, oldest time.Duration, err error) {
	rows, err := p.options.Store.Oldest(ctx, page)
	if err != nil || len(rows) == 0 {
		return 0, 0, err
	}
	var msgs []*message.Message
	owner := []int{} // of each message: its row
	for i, r := range rows {
		for _, part := range split(r.Receipt) {
			msgs = append(msgs, kafka.NewMessage(part.Key(), event.AppendReceipt(nil, part), ""))
			owner = append(owner, i)
		}
	}
	lost := map[int]error{}
	for i, result := range p.options.Log.PublishAll(p.options.Topic, msgs...) {
		if result.Err != nil {
			lost[owner[i]] = result.Err
		}
	}
	done := make([]int64, 0, len(rows))
	for i, r := range rows {
		if lost[i] == nil {
			done = append(done, r.Number)
			p.published.Inc()
		} else {
			oldest = max(oldest, time.Since(r.DecidedAt))
			err = fmt.Errorf("publish %d of %d receipts: %w", len(lost), len(rows), lost[i])
		}
	}
	if len(done) > 0 {
		err = errors.Join(err, p.options.Store.Delete(ctx, done))
	}
	return len(rows), oldest, err
}

// split cuts a receipt whose outcomes change too often for one record, always at the same places.
func split(r event.Receipt) []event.Receipt {
	if len(r.Outcomes) <= mostRuns {
		return []event.Receipt{r}
	}
	var parts []event.Receipt
	for runs := r.Outcomes; len(runs) > 0; {
		part := r
		part.Outcomes = runs[:min(len(runs), mostRuns)]
		runs = runs[len(part.Outcomes):]
		part.Next = part.From
		for _, run := range part.Outcomes {
			part.Next += run.Count
		}
		r.From = part.Next
		parts = append(parts, part)
	}
	return parts
}

// Package receipt brings receipts from the outboxes to the log: what was decided of each offset, for
// whoever wants to know without asking the database.
//
// A receipt is written to the outbox of its generation in the transaction that decided it, so there is one
// for every offset that was passed, and none for one that was not. From there it goes to
// projection.receipt.v1 and is deleted once every in-sync replica has it. A process that dies in between,
// or an acknowledgement that is lost, makes it go out again, with the same bytes: its row is all that it is
// made of. There are no holes: a row that is not acknowledged stays.
//
// One process at a time publishes, by an advisory lock. It is held in a transaction that touches no table,
// so it keeps neither a swap of generations nor a migration waiting; and when its holder hangs, the
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
)

// Log is where receipts go; *kafka.Publisher takes them.
type Log interface {
	PublishAll(topic string, msgs ...*message.Message) []kafka.Result
}

var _ Log = (*kafka.Publisher)(nil)

// Store are the outboxes; *Postgres has them.
type Store interface {
	// Alone calls do while no other process is inside, and reports whether it was called.
	Alone(ctx context.Context, do func(context.Context) error) (called bool, err error)
	// Outboxes names the outboxes that there are, one a generation.
	Outboxes(ctx context.Context) ([]string, error)
	// Oldest returns up to limit rows of one, the lowest numbers first.
	Oldest(ctx context.Context, outbox string, limit int) ([]Row, error)
	// Delete forgets rows. Those that are not there any more are no error.
	Delete(ctx context.Context, outbox string, numbers []int64) error
}

// Row is one receipt in an outbox.
type Row struct {
	Number int64
	event.Receipt
}

// Options of a publisher. All are required but Every.
type Options struct {
	Store    Store
	Log      Log
	Topic    string
	Ensure   func(context.Context) error // makes the topic where there is none
	Registry prometheus.Registerer
	Logger   *slog.Logger
	Every    time.Duration // between two looks that nobody asked for; 1 s unless given
}

// Publisher empties the outboxes.
type Publisher struct {
	options Options
	kick    chan struct{}

	published prometheus.Counter
	oldest    prometheus.Gauge
}

const (
	page     = 1000                  // rows at once
	gather   = 50 * time.Millisecond // after a kick: receipts come in company
	mostRuns = 8000                  // in one record, which is then well below what Kafka takes
)

// New registers the metrics.
func New(o Options) *Publisher {
	if o.Every == 0 {
		o.Every = time.Second
	}
	p := &Publisher{
		options: o, kick: make(chan struct{}, 1),
		published: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "tidemark_receipts_published_total", Help: "Receipts that this process brought to the log, repeats included.",
		}),
		oldest: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "tidemark_receipt_outbox_oldest_seconds", Help: "Age of the oldest receipt that is not in the log yet, as this process last saw it; 0 where none is.",
		}),
	}
	o.Registry.MustRegister(p.published, p.oldest)
	return p
}

// Kick says that there is something in an outbox. It never waits.
func (p *Publisher) Kick() {
	select {
	case p.kick <- struct{}{}:
	default:
	}
}

// Run publishes until ctx ends, whenever same says that the log is the one the tables were computed from: the receipts of
// one log have no place in another. A log or a database that is away is waited for.
func (p *Publisher) Run(ctx context.Context, same func() bool) {
	made, failing := false, false
	wait := time.Duration(0)
	for {
		if !same() {
			if !p.pause(ctx, 0) {
				return
			}
			continue
		}
		full, err := false, error(nil)
		if !made {
			err = p.options.Ensure(ctx)
			made = err == nil
		}
		if err == nil {
			full, err = p.round(ctx)
		}
		if ctx.Err() != nil {
			return
		}
		if err != nil && !failing {
			p.options.Logger.Warn("cannot publish receipts, they stay in their outbox", "topic", p.options.Topic, "err", err)
		}
		failing = err != nil
		switch {
		case err != nil:
			wait = min(max(2*wait, 100*time.Millisecond), 5*time.Second)
		case full:
			wait = 0
			continue
		default:
			wait = 0
		}
		if !p.pause(ctx, wait) {
			return
		}
	}
}

// pause waits for a kick or until it is time; after a failure for so long, whoever kicks.
func (p *Publisher) pause(ctx context.Context, failed time.Duration) bool {
	kick, rest := p.kick, p.options.Every
	if failed > 0 {
		kick, rest = nil, failed
	}
	select {
	case <-ctx.Done():
		return false
	case <-time.After(rest):
		return true
	case <-kick:
	}
	select {
	case <-ctx.Done():
		return false
	case <-time.After(gather):
		return true
	}
}

// round publishes up to a page of each outbox, and reports whether one has more.
func (p *Publisher) round(ctx context.Context) (full bool, err error) {
	_, err = p.options.Store.Alone(ctx, func(ctx context.Context) error {
		outboxes, err := p.options.Store.Outboxes(ctx)
		if err != nil {
			return err
		}
		var errs []error // one generation's outbox may go while it is read, and keeps no other one waiting
		var oldest time.Duration
		for _, outbox := range outboxes {
			n, age, err := p.drain(ctx, outbox)
			full, oldest = full || n == page, max(oldest, age)
			errs = append(errs, err)
		}
		p.oldest.Set(oldest.Seconds())
		return errors.Join(errs...)
	})
	return full && err == nil, err
}

func (p *Publisher) drain(ctx context.Context, outbox string) (n int, oldest time.Duration, err error) {
	rows, err := p.options.Store.Oldest(ctx, outbox, page)
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
		err = errors.Join(err, p.options.Store.Delete(ctx, outbox, done))
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

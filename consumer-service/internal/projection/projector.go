package projection

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/jmoiron/sqlx"
	"go.opentelemetry.io/otel/trace"

	"github.com/tidemark/tidemark/consumer-service/internal/decision"
	"github.com/tidemark/tidemark/shared/event"
	"github.com/tidemark/tidemark/shared/kafka"
	"github.com/tidemark/tidemark/shared/position"
)

// Log is what the projection asks of Kafka outside its subscription; *kafka.Reader answers.
type Log interface {
	ClusterID(ctx context.Context) (string, error)
	Bounds(ctx context.Context, topic string, partitions []int32) (map[int32]kafka.Bounds, error)
	StableEnds(ctx context.Context, topic string, partitions []int32) (map[int32]int64, error)
	Committed(ctx context.Context, group, topic string, partitions []int32) (map[int32]kafka.Committed, error)
	RecordAt(ctx context.Context, topic string, partition int32, offset int64) (kafka.Record, bool, error)
	Explain(ctx context.Context, topic string, partition int32, from, to int64) (kafka.Gap, error)
}

var _ Log = (*kafka.Reader)(nil)

// Decisions is what was decided on dead letters; *decision.Book knows.
type Decisions interface {
	// CatchUp returns once every decision is known that is in the log now.
	CatchUp(ctx context.Context) error
	// Of returns what was decided on offsets from up to next of one partition.
	Of(topic string, partition int32, from, next int64) map[int64]event.Decision
}

var _ Decisions = (*decision.Book)(nil)

// Readiness is told what keeps the projection from its work; *httpapi.Readiness listens.
type Readiness interface {
	Ready(part string)
	Unready(part, reason string)
}

// Options of a projector. All are required but AcceptLogStart, Side, Tracer and Written.
type Options struct {
	DB         *sqlx.DB
	Log        Log
	Decisions  Decisions
	Topic      string
	Group      string // the configured name: another than the one on record starts the projection over
	Partitions int    // of the topic
	// Side makes this the projector of a generation that does not serve, nil for the one that does.
	Side *Side
	// AcceptLogStart names, by partition, the offset at which a log that lost its beginning may start.
	AcceptLogStart map[int32]int64
	AuditInterval  time.Duration
	Ready          Readiness
	Metrics        *Metrics
	Tracer         trace.Tracer // nil traces nothing
	Logger         *slog.Logger
	// Written is called when there is a new receipt in the outbox.
	Written func()
	// Stop is called when this process must not go on: the error is a *Refusal.
	Stop func(error)
}

// Projector writes the partitions that sessions assign to it: one of a process those of the generation
// that serves, another one those of a generation at its side.
type Projector struct {
	Options
	store store

	mu      sync.Mutex
	session kafka.Session // nil between sessions
	claims  map[int32]*claim
}

// Parts of the service's readiness that the projection speaks for.
const (
	PartClaims    = "claims"
	PartDatabase  = "database"
	PartWatermark = "watermark"
)

// BetweenSessions is the reason while a session has ended and the next one has not begun.
const BetweenSessions = "between two sessions of the consumer group"

// New returns a projector that owns nothing yet.
func New(o Options) *Projector {
	if o.Written == nil {
		o.Written = func() {}
	}
	p := &Projector{Options: o}
	if o.Side == nil {
		p.store = newStore(o.DB, o.Topic, nil)
	} else {
		p.store = newStore(o.DB, o.Topic, &o.Side.Generation)
	}
	p.store.group = o.Group
	return p
}

// SetUp begins a session: it decides the epoch, makes sure that this is the log the tables were
// computed from, and seeks every partition to where the tables end. What fails for a while is repeated
// for as long as the session lives; a Refusal stops the process.
func (p *Projector) SetUp(s kafka.Session) error {
	ctx := s.Context()
	wait := backoff{}
	for {
		err := p.enter(ctx, s)
		var refusal *Refusal
		switch {
		case err == nil:
			p.Ready.Ready(PartDatabase)
			p.Ready.Ready(PartClaims)
			return nil
		case errors.As(err, &refusal):
			p.Ready.Unready(PartClaims, refusal.Reason)
			p.Stop(refusal)
			<-ctx.Done() // consuming nothing until the process has stopped
			return refusal
		case ctx.Err() != nil:
			return nil // a session that is over is no error; the next one sets up again
		case errors.Is(err, errSwapping):
			p.Ready.Unready(PartClaims, "waiting to set up: "+err.Error())
			if err := p.store.takeBack(ctx); err != nil {
				p.Logger.Warn("cannot take the mark of a swap back", "err", err)
			}
			if pause(ctx, swapPoll) != nil {
				return nil
			}
			continue
		}
		p.Logger.Warn("cannot set up yet", "err", err)
		p.Ready.Unready(PartClaims, "waiting to set up: "+reason(err))
		if wait.sleep(ctx) != nil {
			return nil
		}
	}
}

func (p *Projector) enter(ctx context.Context, s kafka.Session) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	own := s.Partitions()
	cluster, err := p.Log.ClusterID(ctx)
	if err != nil {
		return err
	}
	committed, err := p.Log.Committed(ctx, p.Group, p.Topic, own)
	if err != nil {
		return err
	}
	if err := p.sameLog(ctx, cluster, own); err != nil { // before anything is written, decisions too
		return err
	}
	if err := p.Decisions.CatchUp(ctx); err != nil { // a rebuild would else bring back what was decided on
		return err
	}
	entering := entering{group: p.Group, cluster: cluster, partitions: p.Partitions, own: own, committed: committed, accepted: p.AcceptLogStart}
	var in entered
	if p.Side == nil {
		in, err = p.store.enter(ctx, entering)
	} else {
		in, err = p.store.enterSide(ctx, entering)
	}
	if err != nil {
		return err
	}
	if in.startOver != "" {
		p.Logger.Warn("the projection starts over", "epoch", in.Epoch, "reason", in.startOver)
	}
	claims := make(map[int32]*claim, len(own))
	for _, partition := range own {
		at := in.progress[partition]
		s.Seek(partition, at.NextOffset, in.mark())
		claims[partition] = &claim{epoch: in.Epoch, mark: in.mark(), next: at.NextOffset}
	}
	if err := p.commit(ctx, s, in); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.session, p.claims = s, claims
	p.Side.assigned(len(own), p.Partitions)
	p.Logger.Info("session begins", "group", p.Group, "epoch", in.Epoch, "partitions", own)
	return nil
}

// sameLog refuses a log that the tables were not computed from. Whoever is about to start over looks at
// the last record of all partitions, since all of them will be at zero afterwards; any other member at
// those of its own.
func (p *Projector) sameLog(ctx context.Context, cluster string, own []int32) error {
	g, err := p.store.generation(ctx)
	if err != nil {
		return err
	}
	if err := judgeCluster(g, cluster); err != nil {
		return err
	}
	all := p.all()
	at, err := p.store.progress(ctx, p.store.db, all)
	if err != nil {
		return err
	}
	bounds, err := p.Log.Bounds(ctx, p.Topic, all)
	if err != nil {
		return err
	}
	startsOver := p.Side == nil && (g.GroupName == nil || *g.GroupName != p.Group)
	for _, partition := range all {
		had, ok := at[partition]
		if !ok {
			had = progress{Partition: partition, NextOffset: p.AcceptLogStart[partition]}
		}
		if err := judgeBounds(p.Topic, had, bounds[partition], p.AcceptLogStart[partition], startsOver); err != nil {
			return err
		}
		if had.LastOffset == nil || *had.LastOffset < bounds[partition].Start || !startsOver && !slices.Contains(own, partition) {
			continue
		}
		r, found, err := p.Log.RecordAt(ctx, p.Topic, partition, *had.LastOffset)
		if err != nil {
			return err
		}
		if err := judgeLast(p.Topic, had, r, found); err != nil {
			return err
		}
	}
	return nil
}

// all are the topic's partitions.
func (p *Projector) all() []int32 {
	all := make([]int32, p.Partitions)
	for i := range all {
		all[i] = int32(i)
	}
	return all
}

// commit makes sure that Kafka holds this epoch's mark before anything is consumed: else a reset by
// Kafka's own tool could not be told from what an earlier epoch left there.
func (p *Projector) commit(ctx context.Context, s kafka.Session, in entered) error {
	if len(in.progress) == 0 {
		return nil
	}
	s.Commit()
	now, err := p.Log.Committed(ctx, p.Group, p.Topic, s.Partitions())
	if err != nil {
		return err
	}
	for partition, c := range now {
		if c.Offset != in.progress[partition].NextOffset || c.Metadata != in.mark() {
			return fmt.Errorf("the group's committed offset for %s/%d is %d (%q) and should be %d (%q)", p.Topic, partition, c.Offset, c.Metadata, in.progress[partition].NextOffset, in.mark())
		}
	}
	return nil
}

// CleanUp ends the session.
func (p *Projector) CleanUp() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.session, p.claims = nil, nil
	p.Ready.Unready(PartClaims, BetweenSessions)
}

// Serving reports whether a session is under way, and with it whether the log was found to be the tables' own.
func (p *Projector) Serving() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.session != nil
}

// claimed returns the claim of a partition, nil where there is none.
func (p *Projector) claimed(partition int32) *claim {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.claims[partition]
}

// Project writes one batch and acknowledges it, however long the database is away; or gives it back,
// and with it the session, when the projection is elsewhere by now.
func (p *Projector) Project(b *kafka.Batch) {
	c := p.claimed(b.Partition)
	if c == nil {
		b.End()
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	// A session that ends leaves the batch a moment to finish; a cut statement is harmless, only wasteful.
	ctx, cancel := context.WithCancel(context.WithoutCancel(b.Context()))
	defer cancel()
	defer context.AfterFunc(b.Context(), func() { time.AfterFunc(2*time.Second, cancel) })()

	if err := p.take(ctx, b.Partition, c, b.Records); err != nil {
		if b.Context().Err() == nil {
			p.Logger.Warn("the session is given back", "partition", b.Partition, "offset", b.Records[0].Offset, "err", err)
		}
		b.End()
		return
	}
	b.Done(c.next, c.mark)
}

// project writes records until they are in the tables. An error means that the session is over.
func (p *Projector) project(ctx context.Context, partition int32, c *claim, records []kafka.Record) error {
	records = records[below(records, c.next):]
	wait := backoff{}
	for len(records) > 0 {
		start := time.Now()
		b := prepare(partition, c.next, records)
		b.decide(p.Decisions.Of(p.Topic, partition, b.from, b.next))
		prepared := time.Now()
		err := p.explain(ctx, b)
		var o outcomes
		if err == nil {
			wrote := time.Now()
			o, err = p.write(ctx, c.epoch, b, &c.window)
			if p.Tracer != nil {
				p.traceBatch(b, o, err, start, wrote)
			}
		}
		if err == nil {
			c.next = b.next
			p.Metrics.wrote(partition, o, b, time.Since(start))
			p.Written()
			p.Ready.Ready(PartDatabase)
			p.Side.spent(prepared.Sub(start), time.Since(prepared))
			p.trace(ctx, b)
			return nil
		}
		p.Side.spent(prepared.Sub(start), time.Since(prepared))
		switch {
		case errors.Is(err, errFenced):
			p.Metrics.fenced.Inc()
			epoch := c.epoch
			next, over := p.reread(ctx, partition, c)
			switch {
			case over != nil:
				return over
			case next < c.next:
				return fmt.Errorf("the projection of partition %d is at %d, behind %d", partition, next, c.next)
			case next == c.next && c.epoch != epoch: // a swap, and nothing was lost by it
				continue
			case next == c.next: // as it should be: the tables were locked, or changed by a hand
				p.Ready.Unready(PartDatabase, reason(err))
				p.Logger.Error("cannot write", "topic", p.Topic, "partition", partition, "offset", c.next, "err", err)
				if wait.sleep(ctx) != nil {
					return ctx.Err()
				}
			}
			c.next = next
			records = records[below(records, next):]
		case errors.Is(err, errSkipped), ctx.Err() != nil:
			return err
		case sorted(err) == again:
			p.Metrics.repeated.Inc()
		default:
			p.Logger.Error("cannot write", "topic", p.Topic, "partition", partition, "offset", c.next, "err", err)
			p.Ready.Unready(PartDatabase, reason(err))
			if wait.sleep(ctx) != nil {
				return ctx.Err()
			}
		}
	}
	return nil
}

// write tries the fast way first; only what it cannot decide goes the slow way.
func (p *Projector) write(ctx context.Context, epoch int64, b batch, w *window) (outcomes, error) {
	careful := false
	if !b.repeats() {
		o, err := p.store.writeFast(ctx, epoch, b)
		if err == nil {
			for range min(len(b.records), windowSize) {
				w.add(false)
			}
			return o, nil
		}
		if err = asFence(err); errors.Is(err, errFenced) {
			return o, err
		}
		switch sorted(err) {
		case refused:
			careful = true
		case conflict:
		default:
			return o, err
		}
	}
	p.Metrics.slow.Inc()
	o, err := p.store.writeSlow(ctx, epoch, b, careful, w)
	if err != nil && !careful && sorted(err) == refused {
		o, err = p.store.writeSlow(ctx, epoch, b, true, w)
	}
	return o, asFence(err)
}

// asFence turns the errors of a swap under way into the fence that they amount to. What is no swap
// comes back: the progress is then found unmoved, and the wait is as for a database that is away.
func asFence(err error) error {
	if err != nil && !errors.Is(err, errFenced) && sorted(err) == fence {
		return fmt.Errorf("%w: %w", errFenced, err)
	}
	return err
}

// explain counts what stands in the gaps of a batch. On this topic nothing but transaction markers of
// other producers may.
func (p *Projector) explain(ctx context.Context, b batch) error {
	if b.skipped == 0 {
		return nil
	}
	at := b.from
	for _, r := range b.records {
		if r.Offset > at {
			if err := p.explainGap(ctx, b.partition, at, r.Offset); err != nil {
				return err
			}
		}
		at = r.Offset + 1
	}
	return nil
}

func (p *Projector) explainGap(ctx context.Context, partition int32, from, to int64) error {
	g, err := p.Log.Explain(ctx, p.Topic, partition, from, to)
	if err != nil {
		return err
	}
	if g.Records > 0 {
		return fmt.Errorf("%w: %d in [%d, %d) of partition %d", errSkipped, g.Records, from, to, partition)
	}
	p.Metrics.gap(g)
	if g.Missing > 0 {
		p.Logger.Error("the log has offsets that hold nothing", "topic", p.Topic, "partition", partition, "offset", from, "to", to, "missing", g.Missing)
	}
	return nil
}

func (p *Projector) trace(ctx context.Context, b batch) {
	if !p.Logger.Enabled(ctx, slog.LevelDebug) {
		return
	}
	for _, e := range b.entries {
		correlation := ""
		for _, h := range b.records[e.record].Headers {
			if string(h.Key) == event.HeaderCorrelationID {
				correlation = string(h.Value)
			}
		}
		p.Logger.Debug("projected", "position", position.Position{Topic: p.Topic, Partition: b.partition, Offset: e.offset}.String(),
			"command_id", e.id, "correlation_id", correlation)
	}
}

// reason words an error for an operator.
func reason(err error) string {
	if errors.Is(err, errBroken) {
		return err.Error() + "; mend the tables or go back to the release before, it goes on by itself"
	}
	return "the database or the log does not answer as it should: " + err.Error()
}

// backoff waits longer each time, with jitter, up to five seconds.
type backoff struct{ last time.Duration }

func (b *backoff) sleep(ctx context.Context) error {
	b.last = min(max(2*b.last, 100*time.Millisecond), 5*time.Second)
	return pause(ctx, b.last/2+rand.N(b.last/2)) //nolint:gosec // jitter needs no secrecy
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

package projection

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jmoiron/sqlx"
	"go.opentelemetry.io/otel/trace"

	"github.com/tidemark/tidemark/consumer-service/internal/decision"
	"github.com/tidemark/tidemark/shared/event"
	"github.com/tidemark/tidemark/shared/kafka"
	"github.com/tidemark/tidemark/shared/loop"
	"github.com/tidemark/tidemark/shared/position"
	"github.com/tidemark/tidemark/shared/postgres"
	"github.com/tidemark/tidemark/shared/topic"
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

// Options of a projector. All are required but AcceptLogStart, NewLog, Pace, Tracer and Written.
type Options struct {
	DB        *sqlx.DB
	Log       Log
	Decisions Decisions
	// Definition is what is projected; its topic has its number of partitions filled in.
	Definition *Definition
	// Group is the consumer group as it is configured. Under the role Serving, another name than the one on record starts
	// the projection over.
	Group string
	Role  Role
	// Pace limits the projector; without limits where nil.
	Pace *Pace
	// AcceptLogStart names, by partition, the offset at which a log that lost its beginning may start.
	AcceptLogStart map[int32]int64
	// Identity tells whether the topic is still the one that the tables were computed from.
	Identity Identity
	// NewLog is what happens where it is not, under the role Serving; nil refuses.
	NewLog NewLog
	// AuditInterval is the least time between two audits of the serving generation.
	AuditInterval time.Duration
	Ready         Readiness
	Metrics       *Metrics
	Tracer        trace.Tracer // nil traces nothing
	Logger        *slog.Logger
	// Written is called when there is a new receipt in the outbox; nil calls nothing.
	Written func()
	// Stop is called once, when this projector must not go on; it consumes nothing more then. Whoever runs it ends its
	// membership in the group, and the process where the refusal is final.
	Stop func(*Refusal)
}

// Projector writes the partitions that sessions assign to it, those of one generation of one projection.
type Projector struct {
	Options
	store store
	stop  func(*Refusal)

	mu       sync.Mutex
	session  kafka.Session // nil between sessions
	stopped  bool          // it refused to go on; the reason stays in the readiness
	assigned map[int32]*assignment
	troubles map[int32]string // partitions that cannot be written, and why
	looks    identityLooks
}

// Parts of the service's readiness that a projection speaks for; Part puts its name before them.
const (
	PartLog        = "log"
	PartAssignment = "assignment"
	PartDatabase   = "database"
	PartWatermark  = "watermark"
	PartPartitions = "partitions"
)

// Part names a part of the readiness of one projection.
func Part(projection, part string) string { return projection + " " + part }

// BetweenSessions is the reason while a session has ended and the next one has not begun.
const BetweenSessions = "between two sessions of the consumer group"

// New returns a projector that owns nothing yet.
func New(o Options) *Projector {
	if o.Written == nil {
		o.Written = func() {}
	}
	if o.Pace == nil {
		o.Pace = &Pace{}
	}
	p := &Projector{Options: o, store: newStore(o.DB, o.Definition, o.Group, o.Role.candidate()), troubles: map[int32]string{}}
	var once sync.Once
	p.stop = func(r *Refusal) {
		once.Do(func() {
			p.mu.Lock()
			p.stopped = true
			p.unready(PartAssignment, r.Reason)
			p.mu.Unlock()
			o.Stop(r)
		})
	}
	return p
}

func (p *Projector) topic() string { return p.Definition.Topic.Name }

func (p *Projector) ready(part string) { p.Ready.Ready(Part(p.Definition.Name, part)) }

func (p *Projector) unready(part, reason string) {
	p.Ready.Unready(Part(p.Definition.Name, part), reason)
}

// troubled notes that a partition cannot be written; "" takes it back. While one cannot, the service is unready, whatever
// its neighbours do.
func (p *Projector) troubled(partition int32, reason string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	had, was := p.troubles[partition]
	switch {
	case reason == "" && !was, reason != "" && had == reason:
		return
	case reason == "":
		delete(p.troubles, partition)
	default:
		p.troubles[partition] = reason
	}
	p.tellTroubles()
}

func (p *Projector) tellTroubles() {
	if len(p.troubles) == 0 {
		p.ready(PartPartitions)
		return
	}
	by := map[string][]string{}
	for _, partition := range slices.Sorted(maps.Keys(p.troubles)) {
		by[p.troubles[partition]] = append(by[p.troubles[partition]], fmt.Sprint(partition))
	}
	var words []string
	for _, reason := range slices.Sorted(maps.Keys(by)) {
		words = append(words, fmt.Sprintf("%s: %s", strings.Join(by[reason], ", "), reason))
	}
	p.unready(PartPartitions, strings.Join(words, "; "))
}

// SetUp begins a session: it decides the epoch, makes sure that this is the log the tables were
// computed from, and seeks every partition to where the tables end. What fails for a while is repeated
// for as long as the session lives; a Refusal stops the projector.
func (p *Projector) SetUp(s kafka.Session) error {
	ctx := s.Context()
	wait := &loop.Backoff{}
	for {
		err := p.enter(ctx, s)
		var refusal *Refusal
		var accepted *newLogAccepted
		switch {
		case err == nil:
			p.ready(PartDatabase)
			p.ready(PartAssignment)
			return nil
		case errors.As(err, &refusal):
			p.refuseToGoOn(ctx, refusal)
			<-ctx.Done() // consuming nothing until the membership has ended
			return refusal
		case ctx.Err() != nil:
			return nil // a session that is over is no error; the next one sets up again
		case errors.As(err, &accepted):
			if err := p.awaitNewLog(ctx, accepted); err != nil && ctx.Err() == nil {
				p.Logger.Warn("cannot note that a new log is waited for", "projection", p.Definition.Name, "err", err)
			}
			if loop.Sleep(ctx, newLogPoll) != nil {
				return nil
			}
			continue
		case errors.Is(err, errNotWritten):
			p.Logger.Debug("nothing is to be written", "topic", p.topic(), "reason", err.Error())
			if loop.Sleep(ctx, notWrittenPoll) != nil {
				return nil
			}
			continue
		case errors.Is(err, errSwapping):
			p.unready(PartAssignment, "waiting to set up: "+err.Error())
			if err := p.store.takeBack(ctx); err != nil {
				p.Logger.Warn("cannot take the mark of a swap back", "err", err)
			}
			if loop.Sleep(ctx, swapPoll) != nil {
				return nil
			}
			continue
		}
		p.Logger.Warn("cannot set up yet", "projection", p.Definition.Name, "err", err)
		p.unready(PartAssignment, "waiting to set up: "+p.reason(err))
		if wait.Sleep(ctx) != nil {
			return nil
		}
	}
}

// noteRefusal writes the refusal where query-service finds it. It is told in readiness and log as well, so a database that
// is down loses nothing. A final one is of this process alone: one that is started under an old name over and over would else
// keep readers from what another process projects.
func (p *Projector) noteRefusal(ctx context.Context, r *Refusal) {
	if p.Role.candidate() != nil || r.Final {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if err := NoteRefusal(ctx, p.DB, r.Reason, p.Definition.Name); err != nil {
		p.Logger.Warn("cannot note the refusal", "projection", p.Definition.Name, "err", err)
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
	g, topicID, err := p.ownTopic(ctx, cluster)
	if err != nil {
		return err
	}
	committed, err := p.Log.Committed(ctx, p.Group, p.topic(), own)
	if err != nil {
		return err
	}
	bounds, err := p.sameLog(ctx, g, own) // before anything is written, decisions too
	if err != nil {
		return err
	}
	if err := p.Decisions.CatchUp(ctx); err != nil { // a rebuild would else bring back what was decided on
		return err
	}
	in, err := p.Role.enter(ctx, p.store, entering{
		group: p.Group, cluster: cluster, topicID: topicID, partitions: p.Definition.Topic.Partitions, own: own, committed: committed, starts: p.starts(bounds),
	})
	if err != nil {
		return err
	}
	if in.startOver != "" {
		p.Logger.Warn("the projection starts over", "projection", p.Definition.Name, "epoch", in.Epoch, "reason", in.startOver)
	}
	assigned := make(map[int32]*assignment, len(own))
	for _, partition := range own {
		at := in.progress[partition]
		if start := bounds[partition].Start; at.NextOffset < start { // expired before it was read
			if err := p.store.skip(ctx, in.Epoch, partition, at.NextOffset, start); err != nil {
				return err
			}
			p.Metrics.gap(kafka.Gap{Missing: start - at.NextOffset})
			p.Logger.Error("records expired before they were read", "topic", p.topic(), "partition", partition, "offset", at.NextOffset, "to", start)
			at.NextOffset = start
			in.progress[partition] = at
		}
		s.Seek(partition, at.NextOffset, in.metadata())
		assigned[partition] = &assignment{epoch: in.Epoch, metadata: in.metadata(), next: at.NextOffset, wrote: time.Now()}
	}
	if err := p.commit(ctx, s, in); err != nil {
		return err
	}
	if p.Role.candidate() == nil { // noted before the service is ready: nobody finds a projection off that is being read
		if err := p.store.runs(ctx); err != nil {
			return err
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.session, p.assigned = s, assigned
	p.Pace.divide(len(own), p.Definition.Topic.Partitions)
	p.Logger.Info("session begins", "projection", p.Definition.Name, "group", p.Group, "epoch", in.Epoch, "partitions", own)
	return nil
}

// starts are where an epoch that begins now would begin to read.
func (p *Projector) starts(bounds map[int32]kafka.Bounds) map[int32]int64 {
	return startsOf(p.Definition.Topic, bounds, p.AcceptLogStart)
}

func startsOf(of topic.Spec, bounds map[int32]kafka.Bounds, accepted map[int32]int64) map[int32]int64 {
	if of.Kept == topic.Forever {
		return accepted
	}
	starts := make(map[int32]int64, len(bounds))
	for partition, b := range bounds {
		starts[partition] = b.Start
	}
	return starts
}

// LogStarts returns where reading of a topic begins, by partition: where the operator has accepted that a log which is kept
// forever begins, else where the log begins now.
func LogStarts(ctx context.Context, log Log, of topic.Spec, accepted map[int32]int64) (map[int32]int64, error) {
	if of.Kept == topic.Forever {
		return accepted, nil
	}
	bounds, err := log.Bounds(ctx, of.Name, partitionsOf(of))
	if err != nil {
		return nil, err
	}
	return startsOf(of, bounds, accepted), nil
}

func partitionsOf(of topic.Spec) []int32 {
	all := make([]int32, of.Partitions)
	for i := range all {
		all[i] = int32(i)
	}
	return all
}

// sameLog refuses a log that the tables were not computed from. Whoever is about to start over looks at
// the last record of all partitions, since all of them will be at zero afterwards; any other member at
// those of its own.
func (p *Projector) sameLog(ctx context.Context, g generation, own []int32) (map[int32]kafka.Bounds, error) {
	all := p.all()
	at, err := p.store.progress(ctx, p.store.db, all)
	if err != nil {
		return nil, err
	}
	bounds, err := p.Log.Bounds(ctx, p.topic(), all)
	if err != nil {
		return nil, err
	}
	startsOver := p.Role.startsOver(g, p.Group)
	for _, partition := range all {
		had, ok := at[partition]
		if !ok {
			had = progress{Partition: partition, NextOffset: p.AcceptLogStart[partition]}
		}
		if err := judgeBounds(p.Definition.Topic, had, bounds[partition], p.AcceptLogStart[partition], startsOver); err != nil {
			return nil, err
		}
		if had.LastOffset == nil || *had.LastOffset < bounds[partition].Start || !startsOver && !slices.Contains(own, partition) {
			continue
		}
		r, found, err := p.Log.RecordAt(ctx, p.topic(), partition, *had.LastOffset)
		if err != nil {
			return nil, err
		}
		if err := judgeLast(p.Definition.Topic, had, r, found); err != nil {
			return nil, err
		}
	}
	return bounds, nil
}

func (p *Projector) all() []int32 { return partitionsOf(p.Definition.Topic) }

// commit makes sure that Kafka holds this epoch's metadata before anything is consumed: else a reset by
// Kafka's own tool could not be told from what an earlier epoch left there.
func (p *Projector) commit(ctx context.Context, s kafka.Session, in entered) error {
	if len(in.progress) == 0 {
		return nil
	}
	s.Commit()
	now, err := p.Log.Committed(ctx, p.Group, p.topic(), s.Partitions())
	if err != nil {
		return err
	}
	for partition, c := range now {
		if c.Offset != in.progress[partition].NextOffset || c.Metadata != in.metadata() {
			return fmt.Errorf("the group's committed offset for %s/%d is %d (%q) and should be %d (%q)", p.topic(), partition, c.Offset, c.Metadata, in.progress[partition].NextOffset, in.metadata())
		}
	}
	return nil
}

// CleanUp ends the session.
func (p *Projector) CleanUp() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.session, p.assigned = nil, nil
	if !p.stopped {
		p.unready(PartAssignment, BetweenSessions)
	}
	clear(p.troubles) // whoever has those partitions now tells of them
	p.tellTroubles()
}

// InSession reports whether a session is under way, and with it whether the log was found to be the tables' own.
func (p *Projector) InSession() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.session != nil
}

// of returns the assignment of a partition, nil where there is none.
func (p *Projector) of(partition int32) *assignment {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.assigned[partition]
}

// Project writes one batch and acknowledges it, however long the database is down; or gives it back,
// and with it the session, when another session writes the partition by now.
func (p *Projector) Project(b *kafka.Batch) {
	a := p.of(b.Partition)
	if a == nil {
		b.End()
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	// A session that ends leaves the batch a moment to finish; a cut statement is harmless, only wasteful.
	ctx, cancel := context.WithCancel(context.WithoutCancel(b.Context()))
	defer cancel()
	defer context.AfterFunc(b.Context(), func() { time.AfterFunc(2*time.Second, cancel) })()

	if err := p.take(ctx, b.Partition, a, b.Records); err != nil {
		if b.Context().Err() == nil {
			p.Logger.Warn("the session is given back", "topic", p.topic(), "partition", b.Partition, "offset", b.Records[0].Offset, "err", err)
		}
		b.End()
		return
	}
	b.Done(a.next, a.metadata)
}

// take projects records, as many at a time as the limit allows, and none at or above the partition's stop.
func (p *Projector) take(ctx context.Context, partition int32, a *assignment, records []kafka.Record) error {
	if stop, ok := p.Pace.stop(partition); ok {
		records = records[:below(records, stop)]
	}
	for len(records) > 0 {
		n, err := p.Pace.admit(ctx, len(records))
		if err != nil {
			return err
		}
		if err := p.project(ctx, partition, a, records[:n]); err != nil {
			return err
		}
		records = records[n:]
	}
	return nil
}

// project writes records until they are in the tables. An error means that the session is over.
func (p *Projector) project(ctx context.Context, partition int32, a *assignment, records []kafka.Record) error {
	records = records[below(records, a.next):]
	wait := &loop.Backoff{}
	for len(records) > 0 {
		start := time.Now()
		b := p.Definition.prepare(partition, a.next, records)
		b.decide(p.Decisions.Of(p.topic(), partition, b.from, b.next))
		prepared := time.Now()
		err := p.explain(ctx, b)
		var o counts
		if err == nil {
			wrote := time.Now()
			o, err = p.write(ctx, a.epoch, b, &a.window, a.log.Load())
			if p.Tracer != nil {
				p.traceBatch(b, o, err, start, wrote)
			}
		}
		p.Pace.spent(prepared.Sub(start), time.Since(prepared))
		if err == nil {
			a.next, a.wrote = b.next, time.Now()
			p.Metrics.wrote(partition, o, b, time.Since(start))
			p.Written()
			p.troubled(partition, "")
			p.logRows(ctx, b)
			return nil
		}
		switch {
		case errors.Is(err, errFenced):
			p.Metrics.fenced.Inc()
			epoch := a.epoch
			next, over := p.reread(ctx, partition, a)
			switch {
			case over != nil:
				return over
			case next < a.next:
				return fmt.Errorf("the projection of partition %d is at %d, behind %d", partition, next, a.next)
			case next == a.next && a.epoch != epoch: // a swap, and nothing was lost by it
				continue
			case next == a.next: // as it should be: the tables were locked, or changed by a hand
				if err := p.holdOn(ctx, partition, a, err, wait); err != nil {
					return err
				}
			}
			a.next = next
			records = records[below(records, next):]
		case errors.Is(err, errUndelivered), ctx.Err() != nil:
			return err
		case remedyFor(err) == repeatAtOnce:
			p.Metrics.repeated.Inc()
		default:
			if err := p.holdOn(ctx, partition, a, err, wait); err != nil {
				return err
			}
		}
	}
	return nil
}

// holdOn tells of an error that waiting may mend, and waits.
func (p *Projector) holdOn(ctx context.Context, partition int32, a *assignment, err error, wait *loop.Backoff) error {
	p.Logger.Error("cannot write", "topic", p.topic(), "partition", partition, "offset", a.next, "err", err)
	p.troubled(partition, p.reason(err))
	return wait.Sleep(ctx)
}

// write tries the fast way first; only what it cannot decide goes the slow way.
func (p *Projector) write(ctx context.Context, epoch int64, b batch, w *window, log *reached) (counts, error) {
	if err := p.store.ensureDays(ctx, epoch, b); err != nil {
		return counts{}, asFence(err)
	}
	o, err := p.writeRows(ctx, epoch, b, w, log)
	if err != nil && p.Definition.Main.Spec().Day != "" && remedyFor(err) == makeDay {
		p.store.days.forget() // a hand took a day away: the next try makes it
	}
	return o, err
}

func (p *Projector) writeRows(ctx context.Context, epoch int64, b batch, w *window, log *reached) (counts, error) {
	careful := false
	if !b.repeats() {
		o, err := p.store.writeFast(ctx, epoch, b, log)
		if err == nil {
			for range min(len(b.records), windowSize) {
				w.add(false)
			}
			return o, nil
		}
		if err = asFence(err); errors.Is(err, errFenced) {
			return o, err
		}
		switch remedyFor(err) {
		case findRecord:
			careful = true
		case decideRows:
		default:
			return o, err
		}
	}
	p.Metrics.slow.Inc()
	o, err := p.store.writeSlow(ctx, epoch, b, careful, w, log)
	if err != nil && !careful && remedyFor(err) == findRecord {
		o, err = p.store.writeSlow(ctx, epoch, b, true, w, log)
	}
	return o, asFence(err)
}

// asFence turns the errors of a swap under way into the fence that they amount to. What is no swap
// comes back: the progress is then found unmoved, and the wait is as for a database that is down.
func asFence(err error) error {
	if err != nil && !errors.Is(err, errFenced) && remedyFor(err) == rereadState {
		return fmt.Errorf("%w: %w", errFenced, err)
	}
	return err
}

// explain counts what stands in the gaps of a batch. A log that is written in transactions or compacted has gaps by its
// nature: they are booked as they are. On any other one nothing but other producers' markers may stand there.
func (p *Projector) explain(ctx context.Context, b batch) error {
	if b.skipped == 0 {
		return nil
	}
	if of := p.Definition.Topic; of.Transactional || of.Kept == topic.Compacted {
		p.Metrics.bookedGap(b.skipped)
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
	g, err := p.Log.Explain(ctx, p.topic(), partition, from, to)
	if err != nil {
		return err
	}
	if g.Records > 0 {
		return fmt.Errorf("%w: %d in [%d, %d) of partition %d", errUndelivered, g.Records, from, to, partition)
	}
	p.Metrics.gap(g)
	if g.Missing > 0 {
		p.Logger.Error("the log has offsets that hold nothing", "topic", p.topic(), "partition", partition, "offset", from, "to", to, "missing", g.Missing)
	}
	return nil
}

// logRows writes a line for each row, at debug.
func (p *Projector) logRows(ctx context.Context, b batch) {
	if !p.Logger.Enabled(ctx, slog.LevelDebug) {
		return
	}
	for _, i := range b.placed {
		r, correlation := b.of(i), ""
		for _, h := range r.Headers {
			if string(h.Key) == event.HeaderCorrelationID {
				correlation = string(h.Value)
			}
		}
		p.Logger.Debug("projected", "position", position.Position{Topic: p.topic(), Partition: b.partition, Offset: r.Offset}.String(),
			"command_id", b.rows.Describe(i), "correlation_id", correlation)
	}
}

// reason words an error for whoever reads /ready, who may be anybody: the log has the error itself.
func (p *Projector) reason(err error) string {
	if errors.Is(err, errBrokenDeploy) {
		return err.Error() + "; mend the tables or go back to the release before, it goes on by itself"
	}
	if errors.Is(err, errNoTopic) || kafka.IsOtherLog(err) {
		return err.Error()
	}
	if cause := p.cause(err); cause != "" {
		return cause
	}
	return "the database or Kafka does not do as it should; the service's log says more"
}

// cause says what of the database or the brokers err comes from; empty where it comes from neither.
func (p *Projector) cause(err error) string {
	if cause, ours := postgres.CauseIn(p.DB, err); ours {
		return cause.Found
	}
	if cause, told := kafka.CauseOf(err); told {
		return cause.Found
	}
	return ""
}

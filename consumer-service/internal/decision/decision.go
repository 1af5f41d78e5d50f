// Package decision keeps what was decided on dead letters: it reads deadletter.command.v1 from its start,
// with a plain reader outside any group, and follows it for as long as the process lives.
//
// Promises: every process knows every decision that was in the log when one of its sessions began, before
// it projects anything in it (CatchUp). Of several decisions on one position the first one holds, by log
// time, partition and offset, in whatever order they are read; the tables say so, too, whoever writes
// them, since a decision is a fact that has no owner: two processes that write the same do no harm.
// decision_progress says up to where the tables have it.
//
//	log ──► Book.Run ──► in memory: what is rejected whatever the code could do with it
//	             └─────► dead_letter_decisions, then decision_progress: what people are shown
//
// A record that decides nothing (no decision can be read in it) is passed over and logged: it will be the
// same in every rebuild. What a decided record's outcome is, is the projection's business.
package decision

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/tidemark/tidemark/shared/event"
	"github.com/tidemark/tidemark/shared/kafka"
	"github.com/tidemark/tidemark/shared/position"
)

// Log is what a book asks of Kafka; *kafka.Reader answers.
type Log interface {
	Bounds(ctx context.Context, topic string, partitions []int32) (map[int32]kafka.Bounds, error)
	StableEnds(ctx context.Context, topic string, partitions []int32) (map[int32]int64, error)
	ReadFrom(ctx context.Context, topic string, partition int32, offset int64) ([]kafka.Record, int64, error)
}

var _ Log = (*kafka.Reader)(nil)

// Store keeps decisions where people can see them; *Postgres does.
type Store interface {
	// Save writes decisions, of which an earlier one on the same position stays, and that one partition
	// of their log is read up to next, in one transaction.
	Save(ctx context.Context, partition int32, next int64, decisions []Decision) error
	// Progress returns up to where each partition is saved.
	Progress(ctx context.Context) (map[int32]int64, error)
	// Topic returns the id of the log of decisions that the tables know; empty where they know none.
	Topic(ctx context.Context) (string, error)
	// Renew notes that id as the log of decisions. Where the tables knew another one, they forget what came from it.
	Renew(ctx context.Context, id string) error
	// Forget deletes decisions on letters of a topic that were made before the log time that since gives for it.
	Forget(ctx context.Context, since func(topic string) time.Time) error
	// WithoutLetter returns the positions of those decisions whose record is projected and no dead letter.
	WithoutLetter(ctx context.Context, decisions []Decision) ([]position.Position, error)
}

// Decision is one record of the log of decisions.
type Decision = event.DecisionRecord

// Options of a book. All are required but Every, TopicID, Accepts and Since.
type Options struct {
	Log        Log
	Store      Store
	Topic      string // of decisions
	Partitions int    // of Topic
	Logger     *slog.Logger
	Every      time.Duration // between two looks at the log's end; 200 ms unless given
	// TopicID returns the id of a topic as it is now, empty where it is not there. Nil looks at no id.
	TopicID func(ctx context.Context, topic string) (string, error)
	// Accepts says whether the operator accepts a log of decisions of this id in place of another. What was decided in the
	// former one is forgotten then, as a rebuild would find nothing of it. Nil accepts none.
	Accepts func(id string) bool
	// Since is the log time from which on decisions on letters of a topic count: the time at which the topic that stands
	// there now was accepted in place of another, zero where that never was. Earlier ones name offsets of the former topic.
	// Nil counts all.
	Since func(topic string) time.Time
	// Refuse is called when the log of decisions is not the one that the tables know. The process must
	// not go on: what was decided would be undone.
	Refuse func(reason string)
}

// Book is what was decided, as far as it is read. Run fills it; it is safe for concurrent use.
type Book struct {
	options Options
	kick    chan struct{} // somebody waits
	begun   chan struct{} // closed when somebody has first asked for them
	begin   sync.Once

	mu        sync.Mutex
	positions map[place]map[int64]Decision
	next      map[int32]int64 // read and saved up to here
	moved     chan struct{}   // closed when next has moved
	anew      bool            // the next round begins at the start: Since has changed, or the log

	topicID string    // of the log that is read; of Run alone
	looked  time.Time // when it was last compared; of Run alone
}

// lookEvery is the time between two looks at the id of a log in which nothing is decided.
const lookEvery = 3 * time.Second

// place is a partition of a log whose dead letters are decided on.
type place struct {
	topic     string
	partition int32
}

// New returns an empty book.
func New(o Options) *Book {
	if o.Every == 0 {
		o.Every = 200 * time.Millisecond
	}
	if o.Since == nil {
		o.Since = func(string) time.Time { return time.Time{} }
	}
	return &Book{options: o, kick: make(chan struct{}, 1), begun: make(chan struct{}), positions: map[place]map[int64]Decision{}, next: map[int32]int64{}, moved: make(chan struct{})}
}

// Of returns what was decided on offsets from up to next of one partition, nil where nothing was.
func (b *Book) Of(topic string, partition int32, from, next int64) map[int64]event.Decision {
	b.mu.Lock()
	defer b.mu.Unlock()
	decided := b.positions[place{topic, partition}]
	if len(decided) == 0 {
		return nil
	}
	var out map[int64]event.Decision
	add := func(offset int64, d Decision) {
		if out == nil {
			out = map[int64]event.Decision{}
		}
		out[offset] = d.Decision
	}
	if int64(len(decided)) < next-from {
		for offset, d := range decided {
			if offset >= from && offset < next {
				add(offset, d)
			}
		}
		return out
	}
	for offset := from; offset < next; offset++ {
		if d, ok := decided[offset]; ok {
			add(offset, d)
		}
	}
	return out
}

// CatchUp returns once everything is read and saved that the log of decisions holds now, or with ctx. Nothing is read before
// it is first called: whoever calls it has made sure that this is the log that the tables know.
func (b *Book) CatchUp(ctx context.Context) error {
	b.begin.Do(func() { close(b.begun) })
	ends, err := b.options.Log.StableEnds(ctx, b.options.Topic, b.all())
	if err != nil {
		return fmt.Errorf("see how far decisions go: %w", err)
	}
	for {
		b.mu.Lock()
		behind, moved := b.anew, b.moved
		for p, end := range ends {
			behind = behind || b.next[p] < end
		}
		b.mu.Unlock()
		if !behind {
			return nil
		}
		select {
		case b.kick <- struct{}{}:
		default: // it is on its way already
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("decisions are not read to their end yet: %w", ctx.Err())
		case <-moved:
		}
	}
}

// Reread makes CatchUp wait until everything is read and sorted out once more: another topic was accepted, and decisions on
// letters of the former one no longer count.
func (b *Book) Reread() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.anew = true
	b.next = map[int32]int64{}
}

// begins forgets what is in memory where everything is to be read once more, and reports whether it is.
func (b *Book) begins(known bool) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.anew {
		b.anew = false
		b.positions, b.next = map[place]map[int64]Decision{}, map[int32]int64{}
		return true
	}
	return !known
}

func (b *Book) all() []int32 {
	all := make([]int32, b.options.Partitions)
	for i := range all {
		all[i] = int32(i)
	}
	return all
}

// Run reads from the first call of CatchUp until ctx ends. A log or a database that is down is waited for.
func (b *Book) Run(ctx context.Context) {
	select {
	case <-ctx.Done():
		return
	case <-b.begun:
	}
	known, failing := false, false
	wait := b.options.Every
	for {
		err := b.round(ctx, &known)
		var other *otherLog
		switch {
		case ctx.Err() != nil:
			return
		case errors.As(err, &other):
			b.options.Logger.Error("decisions are refused", "topic", b.options.Topic, "err", err)
			b.options.Refuse(other.Error())
			<-ctx.Done()
			return
		case err != nil:
			if !failing { // it will be the same for a while
				b.options.Logger.Warn("cannot read decisions on dead letters", "topic", b.options.Topic, "err", err)
			}
			wait = min(2*wait, 2*time.Second)
		default:
			wait = b.options.Every
		}
		failing = err != nil
		kick := b.kick
		if failing {
			kick = nil // a broker that is down is not asked more often for that
		}
		select {
		case <-ctx.Done():
			return
		case <-kick:
		case <-time.After(wait):
		}
	}
}

type otherLog struct{ reason string }

func (e *otherLog) Error() string { return e.reason }

// sameTopic refuses a log of decisions that was made anew, or forgets the former one where the operator accepts it.
func (b *Book) sameTopic(ctx context.Context) error {
	if b.options.TopicID == nil {
		return nil
	}
	id, err := b.options.TopicID(ctx, b.options.Topic)
	if err != nil {
		return err
	}
	if id == "" {
		return fmt.Errorf("%s is not there: no topic has this name", b.options.Topic)
	}
	was, err := b.options.Store.Topic(ctx)
	switch {
	case err != nil:
		return err
	case was != "" && was != id && (b.options.Accepts == nil || !b.options.Accepts(id)):
		return &otherLog{fmt.Sprintf("%s is another topic than the one that this database's decisions come from: it has the id %s and had %s, so it was deleted and made anew; bring the old one back, or, if what was decided is given up, set ACCEPT_NEW_LOG=%s@%s and restart", b.options.Topic, id, was, b.options.Topic, id)}
	case was == id:
		b.topicID, b.looked = id, time.Now()
		return nil
	}
	if was != "" {
		b.options.Logger.Warn("an accepted new log of decisions takes the place of the former one, whose decisions are forgotten", "topic", b.options.Topic, "topic_id", id, "was", was)
	}
	if err := b.options.Store.Renew(ctx, id); err != nil {
		return err
	}
	b.topicID, b.looked = id, time.Now()
	return nil
}

// stillSameTopic reports whether the log is the one whose beginning was read. It is asked before anything is read from it, and
// every few seconds.
func (b *Book) stillSameTopic(ctx context.Context, news bool) (bool, error) {
	if b.options.TopicID == nil || !news && time.Since(b.looked) < lookEvery {
		return true, nil
	}
	id, err := b.options.TopicID(ctx, b.options.Topic)
	switch {
	case err != nil:
		return false, err
	case id == "":
		return false, fmt.Errorf("%s is not there: no topic has this name", b.options.Topic)
	}
	b.looked = time.Now()
	return id == b.topicID, nil
}

// same refuses a log that lost its beginning, or that is shorter than what was read of it.
func (b *Book) same(ctx context.Context) error {
	saved, err := b.options.Store.Progress(ctx)
	if err != nil {
		return err
	}
	bounds, err := b.options.Log.Bounds(ctx, b.options.Topic, b.all())
	if err != nil {
		return err
	}
	for p, at := range bounds {
		switch {
		case at.Start > 0:
			return &otherLog{fmt.Sprintf("%s/%d starts at offset %d, not at 0: decisions on dead letters were deleted from a log that is kept forever, and a rebuild would undo them; bring them back", b.options.Topic, p, at.Start)}
		case saved[p] > at.Stable:
			return &otherLog{fmt.Sprintf("%s/%d ends at offset %d and this database has read up to %d: this is not the log that its decisions come from (was the topic deleted and created anew?); bring the log back, or start with an empty database", b.options.Topic, p, at.Stable, saved[p])}
		}
	}
	return nil
}

// round reads each partition to its end as it is now.
func (b *Book) round(ctx context.Context, known *bool) error {
	if b.begins(*known) {
		*known = false
		if err := b.sameTopic(ctx); err != nil {
			return err
		}
		if err := b.same(ctx); err != nil {
			return err
		}
		if err := b.options.Store.Forget(ctx, b.options.Since); err != nil {
			return err
		}
		*known = true
	}
	ends, err := b.options.Log.StableEnds(ctx, b.options.Topic, b.all())
	if err != nil {
		return err
	}
	b.mu.Lock()
	news := false
	for p, end := range ends {
		news = news || b.next[p] != end
	}
	b.mu.Unlock()
	switch same, err := b.stillSameTopic(ctx, news); {
	case err != nil:
		return err
	case !same: // it is judged as at the start
		b.Reread()
		return nil
	}
	for p, end := range ends {
		b.mu.Lock()
		at, begun := b.next[p]
		b.mu.Unlock()
		if !begun && end == 0 {
			if err := b.take(ctx, p, 0, nil); err != nil { // so that the tables say that there is nothing
				return err
			}
		}
		for at < end {
			records, next, err := b.options.Log.ReadFrom(ctx, b.options.Topic, p, at)
			if err != nil {
				return err
			}
			if next <= at {
				return fmt.Errorf("%s/%d gives nothing at offset %d and ends at %d", b.options.Topic, p, at, end)
			}
			if err := b.take(ctx, p, next, records); err != nil {
				return err
			}
			at = next
		}
	}
	return nil
}

// take notes what was read: in memory first, since the projection must not miss it, then in the tables.
func (b *Book) take(ctx context.Context, partition int32, next int64, records []kafka.Record) error {
	decisions := make([]Decision, 0, len(records))
	for _, r := range records {
		c, err := event.DecodeDeadLetterCommand(r.Value)
		if err != nil {
			at := position.Position{Topic: b.options.Topic, Partition: partition, Offset: r.Offset}
			b.options.Logger.Warn("a record decides nothing", "position", at.String(), "err", err)
			continue
		}
		if r.Timestamp.Before(b.options.Since(c.Position.Topic)) {
			continue // it is about a record of a topic that was replaced
		}
		decisions = append(decisions, Decision{DeadLetterCommand: c, At: r.Timestamp, Partition: partition, Offset: r.Offset})
	}
	b.mu.Lock()
	for _, d := range decisions {
		at := place{d.Position.Topic, d.Position.Partition}
		if b.positions[at] == nil {
			b.positions[at] = map[int64]Decision{}
		}
		if had, ok := b.positions[at][d.Position.Offset]; !ok || d.Before(had) {
			d.Note, d.By = "", "" // the tables have the words
			b.positions[at][d.Position.Offset] = d
		}
	}
	b.mu.Unlock()
	if err := b.options.Store.Save(ctx, partition, next, decisions); err != nil {
		return err
	}
	b.warn(ctx, decisions)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.next[partition] = next
	close(b.moved)
	b.moved = make(chan struct{})
	return nil
}

// warn tells of decisions on what is no dead letter: a rebuild will reject those records, and the tables are
// until then not what the log says.
func (b *Book) warn(ctx context.Context, decisions []Decision) {
	found, err := b.options.Store.WithoutLetter(ctx, decisions)
	if err != nil {
		b.options.Logger.Debug("cannot look for dead letters", "err", err) // nothing depends on it
	}
	for _, at := range found {
		b.options.Logger.Error("a decision is about a record that is no dead letter: a rebuild will reject it", "position", at.String())
	}
}

package kafka

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"sync"
	"time"

	"github.com/Shopify/sarama"
	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
)

// handlerHook is the one of watermill-kafka's tracing hooks that the subscriber needs.
type handlerHook func(sarama.ConsumerGroupHandler) sarama.ConsumerGroupHandler

func (handlerHook) WrapConsumer(c sarama.Consumer) sarama.Consumer { return c }

func (handlerHook) WrapPartitionConsumer(c sarama.PartitionConsumer) sarama.PartitionConsumer {
	return c
}

func (handlerHook) WrapSyncProducer(_ *sarama.Config, p sarama.SyncProducer) sarama.SyncProducer {
	return p
}

func (h handlerHook) WrapConsumerGroupHandler(inner sarama.ConsumerGroupHandler) sarama.ConsumerGroupHandler {
	return h(inner)
}

// standIn turns a batch's stand-in into the message that carries its name.
type standIn struct{}

func (standIn) Unmarshal(m *sarama.ConsumerMessage) (*message.Message, error) {
	return message.NewMessage(string(m.Key), nil), nil
}

// session is Sarama's session as set-up sees it.
type session struct {
	sarama.ConsumerGroupSession
	ending *ending
}

func (s session) End() { s.ending.end() }

func (s session) Partitions() []int32 {
	for _, partitions := range s.Claims() { // one topic a subscriber
		return partitions
	}
	return nil
}

// Seek needs both calls: each moves one way only.
func (s session) Seek(partition int32, offset int64, metadata string) {
	for topic := range s.Claims() {
		s.MarkOffset(topic, partition, offset, metadata)
		s.ResetOffset(topic, partition, offset, metadata)
	}
}

// ending is how a session is given back: Sarama ends it as soon as one of its assignments has ended.
type ending struct {
	once  sync.Once
	ended chan struct{}
}

func (e *ending) end() { e.once.Do(func() { close(e.ended) }) }

// assignment is one partition of a session, which Sarama calls a claim. Its messages are the stand-ins of batches.
type assignment struct {
	sarama.ConsumerGroupClaim
	*ending
	feed    chan *sarama.ConsumerMessage
	batches sync.Map // *sarama.ConsumerMessage (stand-in) → *Batch
}

func (a *assignment) Messages() <-chan *sarama.ConsumerMessage { return a.feed }

// committingSession commits, for an acknowledged stand-in, what its batch says: nothing where the batch was ended.
type committingSession struct {
	sarama.ConsumerGroupSession
	assignment *assignment
}

func (s committingSession) MarkMessage(m *sarama.ConsumerMessage, _ string) {
	found, ok := s.assignment.batches.LoadAndDelete(m)
	if !ok {
		return
	}
	if b := found.(*Batch); b.commit != nil {
		s.MarkOffset(b.Topic, b.Partition, b.commit.offset, b.commit.metadata)
	}
}

func isFencedInstance(err error) bool { return errors.Is(err, sarama.ErrFencedInstancedId) }

// watermillLogger passes what Watermill says on to slog, a level lower: reconnecting is its daily work
// and shows in readiness. It also shows errors to watch, since Watermill reports them nowhere else.
type watermillLogger struct {
	log     *slog.Logger
	watch   func(error)
	repeats *repeats
}

// newWatermillLogger returns Watermill's logging on log. Watch, where given, sees every error; the log has equal ones once a
// second, with how often they came.
func newWatermillLogger(log *slog.Logger, watch func(error)) watermill.LoggerAdapter {
	return watermillLogger{log: log, watch: watch, repeats: &repeats{seen: map[string]*repeat{}}}
}

func (l watermillLogger) Error(msg string, err error, f watermill.LogFields) {
	if l.watch != nil && err != nil {
		l.watch(err)
	}
	times := l.repeats.count(fmt.Sprint(msg, ": ", err), time.Now())
	if times == 0 {
		return
	}
	l.log.Warn("watermill", append(attrs(f), "said", msg, "err", err, "times", times)...)
}

// repeats holds back equal errors: a broker that is gone makes a client say the same a hundred times a second.
type repeats struct {
	mu   sync.Mutex
	seen map[string]*repeat
}

// repeat is an error that was logged, and how often it came since.
type repeat struct {
	logged time.Time
	times  int
}

// repeatEvery is how often equal errors are logged.
const repeatEvery = time.Second

// count returns how often what has come since it was last to be logged, this time included, or 0 while that is too recent.
func (r *repeats) count(what string, now time.Time) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	last, found := r.seen[what]
	if found && now.Sub(last.logged) < repeatEvery {
		last.times++
		return 0
	}
	if !found {
		last = &repeat{}
		r.seen[what] = last
	}
	times := last.times + 1
	last.logged, last.times = now, 0
	maps.DeleteFunc(r.seen, func(_ string, l *repeat) bool { return now.Sub(l.logged) > time.Minute })
	return times
}

func (l watermillLogger) Info(msg string, f watermill.LogFields) {
	l.log.Debug("watermill", append(attrs(f), "said", msg)...)
}

func (watermillLogger) Debug(string, watermill.LogFields) {}
func (watermillLogger) Trace(string, watermill.LogFields) {}

func (l watermillLogger) With(f watermill.LogFields) watermill.LoggerAdapter {
	return watermillLogger{log: l.log.With(attrs(f)...), watch: l.watch, repeats: l.repeats}
}

func attrs(f watermill.LogFields) []any {
	out := make([]any, 0, 2*len(f))
	for k, v := range f {
		out = append(out, k, v)
	}
	return out
}

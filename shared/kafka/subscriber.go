package kafka

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/Shopify/sarama"
	wkafka "github.com/ThreeDotsLabs/watermill-kafka/v2/pkg/kafka"
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/tidemark/tidemark/shared/config"
	"github.com/tidemark/tidemark/shared/loop"
)

// Record is one record of the log, as it was read.
type Record struct {
	Offset    int64
	Timestamp time.Time // the log's own time, milliseconds
	Key       []byte
	Value     []byte // nil where the record has none
	Headers   []Header
}

// Header is one header of a record; either part may hold any bytes.
type Header struct{ Key, Value []byte }

// Session is the time for which the group's protocol assigns partitions to this member. It ends when the
// group rebalances, when the broker or a topic is lost, or when a batch calls End. Another follows by itself.
type Session interface {
	// Context ends with the session.
	Context() context.Context
	// Partitions are the assigned ones, in no order.
	Partitions() []int32
	// Seek sets where reading starts and what is committed with it. It works during set-up only.
	Seek(partition int32, offset int64, metadata string)
	// End gives all partitions back, so that set-up is done anew. It returns at once.
	End()
	// Commit sends the offsets of Seek and of acknowledged batches. It reports no error, since Sarama's
	// does not: fetch the committed offsets to see.
	Commit()
}

// Batch is what one partition had ready: records in the order of their offsets, perhaps with gaps.
// One batch of a partition is in flight at a time; the next is gathered meanwhile. Exactly one of Done
// and End must be called.
type Batch struct {
	Topic     string
	Partition int32
	Records   []Record

	session    context.Context //nolint:containedctx // a batch belongs to a session, which ends without asking it
	assignment *assignment
	msg        *message.Message
	commit     *commit  // nil until Done
	bytes      int      // of its records' values
	headers    []Header // room for those of records to come
}

// mostBytes bounds the values of a batch, which ends once they are this many bytes.
const mostBytes = 4 << 20

func (b *Batch) add(m *sarama.ConsumerMessage) {
	r := Record{Offset: m.Offset, Timestamp: m.Timestamp.UTC(), Key: m.Key, Value: m.Value}
	if n := len(m.Headers); n > 0 {
		if n > cap(b.headers)-len(b.headers) {
			b.headers = make([]Header, 0, max(n, headersAtOnce))
		}
		from := len(b.headers)
		for _, h := range m.Headers {
			b.headers = append(b.headers, Header{Key: h.Key, Value: h.Value})
		}
		r.Headers = slices.Clip(b.headers[from:])
	}
	b.Records = append(b.Records, r)
	b.bytes += len(m.Value)
}

// headersAtOnce is for how many headers a batch makes room at a time: one allocation a record is a tenth of what reading
// costs.
const headersAtOnce = 256

func (b *Batch) full(most int) bool { return len(b.Records) >= most || b.bytes >= mostBytes }

// commit is what a batch that is done commits for its partition.
type commit struct {
	offset   int64
	metadata string
}

// Context ends with the session that the batch belongs to.
func (b *Batch) Context() context.Context { return b.session }

// Done acknowledges the batch: next and metadata are committed for its partition some time later.
func (b *Batch) Done(next int64, metadata string) {
	b.commit = &commit{next, metadata}
	b.msg.Ack()
}

// End gives the batch back unacknowledged and ends its session, so that set-up is done anew.
func (b *Batch) End() {
	b.assignment.end()
	b.msg.Ack() // without a commit an acknowledgement only frees the subscriber; a nack would deliver it for ever
}

// SubscriberOptions say what a group member consumes and how. All are required but InstanceID and Fenced.
type SubscriberOptions struct {
	Kafka      config.Kafka // where the brokers are and how a client proves who it is
	ClientID   string       // the name under which brokers log the member
	Group      string       // the consumer group
	InstanceID string       // makes the member static: no other process may have the same; none unless given
	BatchSize  int          // most records in a batch
	Log        *slog.Logger // where the subscriber logs

	// SetUp runs at the start of each session, before anything is consumed. It seeks every partition
	// and may block for as long as the session lives. An error ends the session, and the next one
	// follows at once, so wait rather than fail.
	SetUp func(Session) error
	// CleanUp runs at the end of each session, when all its batches are done or ended.
	CleanUp func()
	// Fenced is called when another process has taken over InstanceID; optional. Each
	// would else put the other out of the group for ever, so the caller ends this one.
	Fenced func(instanceID string)
}

// Subscriber is one member of a consumer group that delivers batches. It wraps Watermill's own
// subscriber, which reconnects by itself; the handler hook turns its one-by-one delivery into batches,
// eight times as fast.
//
// It is not for compacted topics: Sarama's consumer stays for ever at a batch of several offsets that compaction has
// emptied, where a fetch holds nothing else. Reader.ReadFrom goes past it.
type Subscriber struct {
	o       SubscriberOptions
	inner   *wkafka.Subscriber
	batches sync.Map // message UUID → *Batch
	serial  atomic.Uint64
	current atomic.Pointer[ending] // of the session
	pause   func()                 // before the next try to join the group
	joined  atomic.Bool            // whether a session has begun since the last try

	leftBehind atomic.Bool    // the caller of Subscribe did not wait for the broker
	left       sync.WaitGroup // what was left behind then
}

// joinResult is what comes of joining the group.
type joinResult struct {
	messages <-chan *message.Message
	err      error
}

// NewSubscriber returns a member that has not joined yet.
func NewSubscriber(o SubscriberOptions) (*Subscriber, error) {
	s := &Subscriber{o: o}
	c, err := baseConfig(o.Kafka, o.ClientID)
	if err != nil {
		return nil, err
	}
	c.ChannelBufferSize = 4096
	c.Consumer.Return.Errors = true
	c.Consumer.IsolationLevel = sarama.ReadCommitted
	c.Consumer.Offsets.Initial = sarama.OffsetOldest
	// Without a retention Sarama commits with a request version that Kafka 4 no longer answers.
	c.Consumer.Offsets.Retention = 365 * 24 * time.Hour
	c.Consumer.Group.ResetInvalidOffsets = false // an offset outside the log is refused, never reset
	c.Consumer.Group.Session.Timeout = 6 * time.Second
	c.Consumer.Group.Heartbeat.Interval = time.Second
	c.Consumer.Group.Rebalance.Timeout = 20 * time.Second
	c.Consumer.Group.InstanceId = o.InstanceID
	c.Consumer.Retry.BackoffFunc = s.partitionLost
	c.Consumer.MaxWaitTime = 500 * time.Millisecond // an idle partition costs two requests a second; a session ends within it
	c.Consumer.MaxProcessingTime = 500 * time.Millisecond
	c.Consumer.Fetch.Default = 1 << 20
	inner, err := wkafka.NewSubscriber(wkafka.SubscriberConfig{
		Brokers: o.Kafka.Brokers, ConsumerGroup: o.Group, Unmarshaler: standIn{}, OverwriteSaramaConfig: c,
		NackResendSleep: wkafka.NoSleep, ReconnectRetrySleep: time.Second, Tracer: handlerHook(s.wrap),
	}, newWatermillLogger(o.Log, s.noticeFencing))
	if err != nil {
		return nil, fmt.Errorf("make the subscriber: %w", err)
	}
	s.inner = inner
	return s, nil
}

// Subscribe joins the group and delivers batches until Close is called; then the channel is closed. It fails at once where no
// broker answers: try again. ctx bounds the joining only. Sarama waits up to forty seconds for a broker that takes connections
// and does not answer; when ctx ends meanwhile, the attempt is left behind and the subscriber is closed.
func (s *Subscriber) Subscribe(ctx context.Context, topic string) (<-chan *Batch, error) {
	living := context.WithoutCancel(ctx) // until Close
	backoff, first := loop.Backoff{Most: mostPause}, true
	s.pause = func() {
		switch {
		case first, s.joined.Swap(false):
			first = false
			backoff.Reset()
		default:
			_ = backoff.Sleep(living) // it has no end
		}
	}
	joining := make(chan joinResult, 1)
	go func() {
		messages, err := s.inner.Subscribe(living, topic)
		joining <- joinResult{messages, err}
	}()
	var messages <-chan *message.Message
	select {
	case j := <-joining:
		if j.err != nil {
			return nil, fmt.Errorf("subscribe to %s: %w", topic, explained(j.err))
		}
		messages = j.messages
	case <-ctx.Done():
		s.leftBehind.Store(true)
		s.left.Go(func() { // ends with Sarama's own limits
			j := <-joining
			s.left.Go(func() { _ = s.inner.Close() }) // nobody is there to be told
			if j.err == nil {
				for m := range j.messages {
					m.Ack()
				}
			}
		})
		return nil, fmt.Errorf("subscribe to %s: %w", topic, unanswered(ctx))
	}
	out := make(chan *Batch)
	go func() {
		defer close(out)
		for m := range messages {
			found, ok := s.batches.LoadAndDelete(m.UUID)
			if !ok { // every message is made by the handler below, once
				s.o.Log.Error("a message without a batch was dropped", "topic", topic)
				m.Ack()
				continue
			}
			b := found.(*Batch)
			b.msg = m
			out <- b
		}
	}()
	return out, nil
}

// partitionLost is called when a partition has lost its broker, its leader or its topic. It returns how long to wait
// until the partition is read on at the same offset. By then the topic may be another one of the same name, so the
// session ends, and the next one's set-up can compare their identities.
func (s *Subscriber) partitionLost(int) time.Duration {
	if e := s.current.Load(); e != nil {
		e.end()
	}
	return 2 * time.Second
}

// Close leaves the group once the batches in flight are done or ended. Batches must be taken from the
// channel until it is closed.
func (s *Subscriber) Close() error {
	if s.leftBehind.Load() {
		return nil
	}
	return s.inner.Close()
}

// mostPause is the most between two tries to join the group. Close waits for a pause that has begun.
const mostPause = 2 * time.Second

// wrap is called before each try to join the group, and one that failed is followed by the next at once. Where no session came
// of the last try, the next one waits: a broker that refuses would else be asked without a pause.
func (s *Subscriber) wrap(inner sarama.ConsumerGroupHandler) sarama.ConsumerGroupHandler {
	s.pause()
	return &groupHandler{s: s, inner: inner}
}

// noticeFencing is shown every error that Watermill reports.
func (s *Subscriber) noticeFencing(err error) {
	if isFencedInstance(err) && s.o.Fenced != nil {
		s.o.Fenced(s.o.InstanceID)
	}
}

// groupHandler stands between Sarama and Watermill's handler.
type groupHandler struct {
	s       *Subscriber
	inner   sarama.ConsumerGroupHandler
	current *ending // of the session; sessions of one handler follow each other
}

func (h *groupHandler) Setup(sess sarama.ConsumerGroupSession) error {
	h.current = &ending{ended: make(chan struct{})}
	h.s.current.Store(h.current)
	h.s.joined.Store(true)
	return h.s.o.SetUp(session{sess, h.current})
}

func (h *groupHandler) Cleanup(sess sarama.ConsumerGroupSession) error {
	h.s.o.CleanUp()
	return h.inner.Cleanup(sess)
}

// ConsumeClaim feeds Watermill's handler one message a batch: a stand-in whose key names the batch. An
// acknowledged stand-in would commit its own offset; what its batch commits takes the place of that.
func (h *groupHandler) ConsumeClaim(sess sarama.ConsumerGroupSession, c sarama.ConsumerGroupClaim) error {
	a := &assignment{ConsumerGroupClaim: c, feed: make(chan *sarama.ConsumerMessage), ending: h.current}
	gathered := make(chan struct{})
	go func() {
		defer close(gathered)
		defer close(a.feed)
		h.gather(sess, a)
	}()
	err := h.inner.ConsumeClaim(committingSession{sess, a}, a)
	a.end()
	<-gathered
	return err
}

// gather makes a batch of whatever has arrived and offers it. While the batch before is in flight, the
// offer stands and the batch grows.
func (h *groupHandler) gather(sess sarama.ConsumerGroupSession, a *assignment) {
	in := a.ConsumerGroupClaim.Messages()
	before := 0 // records of the batch before: in a replay all batches are full, and none has to grow
	for {
		var first *sarama.ConsumerMessage
		select {
		case m, ok := <-in:
			if !ok {
				return
			}
			first = m
		case <-a.ended:
			return
		}
		b := &Batch{Topic: a.Topic(), Partition: a.Partition(), Records: make([]Record, 0, before), session: sess.Context(), assignment: a}
		b.add(first)
		id := strconv.FormatUint(h.s.serial.Add(1), 36)
		stand := &sarama.ConsumerMessage{Topic: b.Topic, Partition: b.Partition, Offset: first.Offset, Key: []byte(id)}
		h.s.batches.Store(id, b)
		a.batches.Store(stand, b)
		if !h.offer(b, stand, in, a) {
			h.s.batches.Delete(id)
			return
		}
		before = len(b.Records)
	}
}

// offer returns true once the batch was taken, false when the assignment has ended.
func (h *groupHandler) offer(b *Batch, stand *sarama.ConsumerMessage, in <-chan *sarama.ConsumerMessage, a *assignment) bool {
	for {
		// What is there already is taken first; else select would offer a batch of one half the time.
		for !b.full(h.s.o.BatchSize) && len(in) > 0 {
			m, ok := <-in
			if !ok {
				return false
			}
			b.add(m)
		}
		more := in
		if b.full(h.s.o.BatchSize) {
			more = nil
		}
		select {
		case a.feed <- stand:
			return true
		case m, ok := <-more:
			if !ok {
				return false
			}
			b.add(m)
		case <-a.ended:
			return false
		}
	}
}

package kafka

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/Shopify/sarama"
	wkafka "github.com/ThreeDotsLabs/watermill-kafka/v2/pkg/kafka"
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/tidemark/tidemark/shared/config"
	"github.com/tidemark/tidemark/shared/event"
	"github.com/tidemark/tidemark/shared/position"
)

// Result is what became of one published message. Err is nil when every in-sync replica has it, and
// then Position is its place. An error that is ErrNotSent says that nothing of the message reached
// a broker; after any other it may be in the log or not.
type Result struct {
	Position position.Position
	Err      error
}

// ErrNotSent says that a message is not in the log and will not be: there was no broker to send it to,
// or the broker refused it before it was written.
var ErrNotSent = errors.New("not sent")

// PublisherOptions of a publisher. Kafka, ClientID, Producer and Log are required.
type PublisherOptions struct {
	Kafka    config.Kafka // where the brokers are and how to be let in
	ClientID string
	Producer string // service/version, the producer header of every record
	Log      *slog.Logger

	// RetryFor bounds how long one Publish repeats what a broker did not answer or could not take
	// (a change of leader, a restart); 5 s unless given. The broker recognises repeats.
	RetryFor time.Duration
	// OnState is told nil when the publisher is connected and why when it is not, from one goroutine.
	OnState func(error)
}

// Publisher is Watermill's Kafka publisher with the producer under it exchanged, through Watermill's
// own hook, by one that sends all messages of a Publish at once and knows where each one went.
//
// It connects in the background, for as long as it takes, and does so anew, under a new producer id,
// after a flight that failed: what the broker remembers of the old one's sequence is then nobody's
// concern. Publish answers ErrNotSent meanwhile. It is safe for concurrent use, but messages are sent
// one Publish at a time.
type Publisher struct {
	options PublisherOptions
	stop    context.CancelFunc
	done    chan struct{}
	wake    chan struct{}

	publishing sync.Mutex // held while a flight is under way

	mu      sync.Mutex
	current *wkafka.Publisher
	why     error // that current is nil
	closed  bool
}

var _ message.Publisher = (*Publisher)(nil)

// NewPublisher returns a publisher that is still connecting. Close ends it.
func NewPublisher(o PublisherOptions) (*Publisher, error) {
	if len(o.Kafka.Brokers) == 0 || o.ClientID == "" || o.Producer == "" || o.Log == nil {
		return nil, errors.New("a publisher needs brokers, a client id, a producer's name and a logger")
	}
	if o.RetryFor == 0 {
		o.RetryFor = 5 * time.Second
	}
	if o.OnState == nil {
		o.OnState = func(error) {}
	}
	// Close ends what runs in the background; a caller's context would end too early for the last flight.
	ctx, stop := context.WithCancel(context.Background())
	p := &Publisher{
		options: o, stop: stop, done: make(chan struct{}), wake: make(chan struct{}, 1),
		why: fmt.Errorf("%w: still connecting to %v", ErrNotSent, o.Kafka.Brokers),
	}
	go p.keepConnected(ctx)
	return p, nil
}

// NewMessage returns a message that is keyed by key (no key for "", and then any partition) and carries
// value and the correlation id. The publisher adds its producer header. The message is for publishing
// only: it cannot be acknowledged, and so saves the channels for that.
func NewMessage(key string, value []byte, correlationID string) *message.Message {
	m := &message.Message{UUID: key, Payload: value}
	if correlationID != "" {
		m.Metadata = message.Metadata{event.HeaderCorrelationID: correlationID}
	}
	return m
}

// WithHeader adds a header to a message that was not published yet, and returns it.
func WithHeader(m *message.Message, name, value string) *message.Message {
	if m.Metadata == nil {
		m.Metadata = message.Metadata{}
	}
	m.Metadata[name] = value
	return m
}

// Publish sends the messages together and returns when each is acknowledged or has failed; the error
// joins those of the messages that failed.
func (p *Publisher) Publish(topic string, msgs ...*message.Message) error {
	var errs []error
	for _, r := range p.PublishAll(topic, msgs...) {
		if r.Err != nil {
			errs = append(errs, r.Err)
		}
	}
	return errors.Join(errs...)
}

// PublishAll is Publish with the result of each message, in the order of msgs: some may fail while
// others are acknowledged.
func (p *Publisher) PublishAll(topic string, msgs ...*message.Message) []Result {
	if len(msgs) == 0 {
		return nil
	}
	p.publishing.Lock()
	defer p.publishing.Unlock()
	results := make([]Result, len(msgs))
	p.mu.Lock()
	c, why := p.current, p.why
	p.mu.Unlock()
	if c == nil {
		for i := range results {
			results[i].Err = why
		}
		return results
	}
	f := &flight{results: results}
	ctx := withFlight(f)
	for _, m := range msgs {
		m.SetContext(ctx)
	}
	if err := c.Publish(topic, msgs...); err != nil && !f.flown {
		for i := range results { // Watermill stopped before the flight took off
			results[i].Err = fmt.Errorf("%w: %w", ErrNotSent, err)
		}
	}
	if f.broken != nil {
		p.lose(c, f.broken)
	}
	return results
}

// State is nil while the publisher is connected, else why it is not.
func (p *Publisher) State() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.current != nil {
		return nil
	}
	return p.why
}

// Close waits for the flight under way, if any, and ends the connection. Whoever publishes later is
// answered ErrNotSent.
func (p *Publisher) Close() error {
	p.stop()
	select {
	case <-p.done:
	case <-time.After(time.Second): // a broker hangs while it is connected to; that attempt ends by itself
	}
	p.publishing.Lock()
	defer p.publishing.Unlock()
	p.mu.Lock()
	c := p.current
	p.closed, p.current, p.why = true, nil, fmt.Errorf("%w: the publisher is closed", ErrNotSent)
	p.mu.Unlock()
	if c == nil {
		return nil
	}
	return c.Close()
}

func (p *Publisher) lose(c *wkafka.Publisher, why error) {
	p.mu.Lock()
	p.current, p.why = nil, fmt.Errorf("%w: the connection to Kafka is being made anew", ErrNotSent)
	p.mu.Unlock()
	p.options.Log.Warn("flight failed, the producer is replaced", "err", why)
	select {
	case p.wake <- struct{}{}:
	default:
	}
	// Closing waits for a broker that hangs; nobody should wait with it.
	go func() { _ = c.Close() }()
}

func (p *Publisher) keepConnected(ctx context.Context) {
	defer close(p.done)
	for {
		for wait := 100 * time.Millisecond; ; wait = min(2*wait, 400*time.Millisecond) {
			err := p.connect()
			if err == nil {
				break
			}
			p.options.OnState(err)
			select {
			case <-time.After(wait):
			case <-ctx.Done():
				return
			}
		}
		p.options.OnState(nil)
		select {
		case <-p.wake:
			p.options.OnState(errors.New("the connection to Kafka is being made anew after a failure"))
		case <-ctx.Done():
			return
		}
	}
}

func (p *Publisher) connect() error {
	fly, err := newFlights(p.options)
	if err != nil {
		return fmt.Errorf("connect to Kafka at %v: %w", p.options.Kafka.Brokers, err)
	}
	stock, err := stockConfig(p.options)
	if err != nil {
		return errors.Join(err, fly.Close())
	}
	inner, err := wkafka.NewPublisher(wkafka.PublisherConfig{
		Brokers:               p.options.Kafka.Brokers,
		Marshaler:             marshaler{producer: []byte(p.options.Producer)},
		OverwriteSaramaConfig: stock,
		Tracer: producerHook(func(stock sarama.SyncProducer) sarama.SyncProducer {
			_ = stock.Close() // nothing was sent
			fly.SyncProducer = stock
			return fly
		}),
	}, NewWatermillLogger(p.options.Log, nil))
	if err != nil {
		return errors.Join(fmt.Errorf("connect to Kafka at %v: %w", p.options.Kafka.Brokers, err), fly.Close())
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return errors.Join(errors.New("the publisher is closed"), inner.Close())
	}
	p.current = inner
	return nil
}

// stockConfig is for the producer that Watermill makes before its hook exchanges it.
func stockConfig(o PublisherOptions) (*sarama.Config, error) {
	c, err := baseConfig(o.Kafka, o.ClientID)
	if err != nil {
		return nil, err
	}
	c.Metadata.Retry.Max = 0
	c.Metadata.Full = false
	c.Producer.Return.Successes = true
	c.Producer.RequiredAcks = sarama.WaitForAll
	c.Producer.Partitioner = NewPartitioner
	return c, nil
}

// producerHook is the one of watermill-kafka's tracing hooks that the publisher needs.
type producerHook func(sarama.SyncProducer) sarama.SyncProducer

func (producerHook) WrapConsumer(c sarama.Consumer) sarama.Consumer { return c }

func (producerHook) WrapPartitionConsumer(c sarama.PartitionConsumer) sarama.PartitionConsumer {
	return c
}

func (producerHook) WrapConsumerGroupHandler(h sarama.ConsumerGroupHandler) sarama.ConsumerGroupHandler {
	return h
}

func (w producerHook) WrapSyncProducer(_ *sarama.Config, p sarama.SyncProducer) sarama.SyncProducer {
	return w(p)
}

// marshaler turns a message into a record: its UUID is the key, its metadata the headers.
type marshaler struct{ producer []byte }

func (m marshaler) Marshal(topic string, msg *message.Message) (*sarama.ProducerMessage, error) {
	f, ok := msg.Context().Value(flightKey{}).(*flight)
	if !ok {
		return nil, errors.New("the message is part of no flight")
	}
	headers := make([]sarama.RecordHeader, 0, len(msg.Metadata)+1)
	for name, value := range msg.Metadata {
		headers = append(headers, sarama.RecordHeader{Key: headerName(name), Value: []byte(value)})
	}
	if len(headers) > 1 { // in a fixed order, so that equal messages are equal records
		slices.SortFunc(headers, func(a, b sarama.RecordHeader) int { return bytes.Compare(a.Key, b.Key) })
	}
	headers = append(headers, sarama.RecordHeader{Key: producerHeader, Value: m.producer})
	out := &sarama.ProducerMessage{Topic: topic, Value: sarama.ByteEncoder(msg.Payload), Headers: headers, Metadata: f}
	if msg.UUID != "" {
		out.Key = sarama.StringEncoder(msg.UUID)
	}
	return out, nil
}

var correlationHeader, producerHeader = []byte(event.HeaderCorrelationID), []byte(event.HeaderProducer)

func headerName(name string) []byte {
	if name == event.HeaderCorrelationID {
		return correlationHeader
	}
	return []byte(name)
}

package kafka

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/Shopify/sarama"
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/tidemark/tidemark/shared/config"
	"github.com/tidemark/tidemark/shared/event"
	"github.com/tidemark/tidemark/shared/loop"
	"github.com/tidemark/tidemark/shared/position"
)

// Result is the outcome of one published message. Err is nil when every in-sync replica has the message, and then
// Position is its place. An error that is ErrNotSent says that the message is not in the log and will not be; after any
// other error it may be there or not.
type Result struct {
	Position position.Position
	Err      error
}

// ErrNotSent says that a message is not in the log and will not be: there was no broker to send it to,
// or the broker refused it before it was written.
var ErrNotSent = errors.New("not sent")

// ErrTooLarge is, beside ErrNotSent, the error of a record that is larger than its topic takes.
var ErrTooLarge error = sarama.ErrMessageSizeTooLarge

// PublisherOptions of a publisher. Kafka, ClientID, Producer and Log are required.
type PublisherOptions struct {
	Kafka    config.Kafka // where the brokers are and how a client proves who it is
	ClientID string       // the name under which brokers log the publisher
	Producer string       // the producer header of every record, service/version
	Log      *slog.Logger // where a lost connection is logged

	// RetryFor bounds how long one Publish repeats what a broker did not answer or could not take
	// (a change of leader, a restart); 5 s unless given. The broker recognises repeats.
	RetryFor time.Duration
	// OnState is called, from one goroutine, with nil when the publisher has connected, and with the reason when it
	// is not connected; optional.
	OnState func(error)
}

// Publisher is a Watermill publisher that sends all messages of a Publish together and returns the position of each
// (see flight). A message becomes a record whose key is the message's UUID and whose headers are its metadata, by name,
// and then the producer's name.
//
// It connects in the background, for as long as it takes. After a flight that failed it connects anew, under a new
// producer id, so that the sequence numbers that the broker remembers of the old id do not matter any more. Meanwhile
// Publish answers ErrNotSent. It is safe for concurrent use, but one Publish is sent at a time.
type Publisher struct {
	options PublisherOptions
	stop    context.CancelFunc
	done    chan struct{}
	wake    loop.Kick // the connection is lost

	publishing sync.Mutex // held while a flight is under way

	mu      sync.Mutex
	current *flights
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
		options: o, stop: stop, done: make(chan struct{}), wake: loop.NewKick(),
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
	f := &flight{topic: topic, msgs: msgs, results: results}
	c.fly(f)
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

func (p *Publisher) lose(c *flights, why error) {
	p.mu.Lock()
	p.current, p.why = nil, fmt.Errorf("%w: the connection to Kafka is being made anew", ErrNotSent)
	p.mu.Unlock()
	p.options.Log.Warn("flight failed, the producer is replaced", "err", why)
	p.wake.Send()
	// Closing waits for a broker that hangs; nobody should wait with it.
	go func() { _ = c.Close() }()
}

func (p *Publisher) keepConnected(ctx context.Context) {
	defer close(p.done)
	for {
		retry := loop.Backoff{First: 100 * time.Millisecond, Most: 400 * time.Millisecond}
		logged := ""
		for err := p.connect(); err != nil; err = p.connect() {
			if err.Error() != logged { // it will be the same for a while
				logged = err.Error()
				p.options.Log.Warn("cannot connect to Kafka yet", "err", err)
			}
			p.options.OnState(err)
			if retry.Sleep(ctx) != nil {
				return
			}
		}
		p.options.OnState(nil)
		select {
		case <-p.wake:
			p.options.OnState(Cause{"the connection to Kafka is being made anew after a failure", "wait"})
		case <-ctx.Done():
			return
		}
	}
}

func (p *Publisher) connect() error {
	c, err := newFlights(p.options)
	if err != nil {
		return fmt.Errorf("connect to Kafka at %v: %w", p.options.Kafka.Brokers, err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return errors.Join(errors.New("the publisher is closed"), c.Close())
	}
	p.current = c
	return nil
}

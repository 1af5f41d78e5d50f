package kafka

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/Shopify/sarama"

	"github.com/tidemark/tidemark/shared/config"
)

// # Calls that end with their context
//
// Sarama's calls take no context. One to a broker that hangs returns when the read timeout is over, ten seconds later,
// holds its connection until then, and keeps whoever asks the same broker waiting behind it. So every call runs in a
// goroutine of its own, and whoever asked leaves when their context ends. The call left behind ends by the read timeout.
//
// Its connection is taken out of use at once: the next call makes a new one and does not wait behind a broker that
// hangs. It is closed when the last call that uses it has returned. Connecting is done once for all who wait for it, so
// that a broker that hangs keeps one goroutine that connects and those that were left behind, and no more.

// connection is a client with those who use it.
type connection struct {
	client sarama.Client
	users  sync.WaitGroup
}

// connecting is one attempt to connect. Its err may be read once done is closed.
type connecting struct {
	done chan struct{}
	err  error
}

// ask calls the brokers with the reader's client, and returns what call returns, or an error with the cause of ctx's end
// as soon as that has come. A call of several requests should look at ctx between
// them.
func ask[T any](ctx context.Context, r *Reader, call func(sarama.Client) (T, error)) (T, error) {
	type answer struct {
		value T
		err   error
	}
	var none T
	c, err := r.use(ctx)
	if err != nil {
		return none, err
	}
	answers := make(chan answer, 1)
	go func() {
		defer c.users.Done()
		value, err := call(c.client)
		answers <- answer{value, err}
	}()
	select {
	case a := <-answers:
		return a.value, a.err
	case <-ctx.Done():
		r.retire(c)
		return none, unanswered(ctx)
	}
}

func unanswered(ctx context.Context) error {
	return fmt.Errorf("the broker has not answered: %w", context.Cause(ctx))
}

var errReaderClosed = errors.New("the log reader is closed")

// use returns the connection with one user more, and connects where there is none.
func (r *Reader) use(ctx context.Context) (*connection, error) {
	for {
		if ctx.Err() != nil {
			return nil, unanswered(ctx)
		}
		r.mu.Lock()
		if r.closed {
			r.mu.Unlock()
			return nil, errReaderClosed
		}
		if c := r.current; c != nil {
			c.users.Add(1)
			r.mu.Unlock()
			return c, nil
		}
		if r.attempt == nil {
			r.attempt = &connecting{done: make(chan struct{})}
			go r.connect(r.attempt)
		}
		a := r.attempt
		r.mu.Unlock()
		select {
		case <-a.done:
			if a.err != nil {
				return nil, a.err
			}
		case <-ctx.Done():
			return nil, unanswered(ctx)
		}
	}
}

func (r *Reader) connect(a *connecting) {
	client, err := newReaderClient(r.kafka, r.clientID)
	r.mu.Lock()
	defer r.mu.Unlock()
	defer close(a.done)
	r.attempt = nil
	switch {
	case err != nil:
		a.err = fmt.Errorf("connect to Kafka: %w", err)
	case r.closed:
		a.err = errors.Join(errReaderClosed, client.Close())
	default:
		r.current = &connection{client: client}
	}
}

// retire takes a connection out of use, and closes it once nobody uses it any more.
func (r *Reader) retire(c *connection) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.current != c {
		return // somebody else has
	}
	r.current = nil
	go func() {
		c.users.Wait()
		_ = c.client.Close() // nothing was written
	}()
}

// Close ends the connection. Calls under way go on to their end, and the connection with the last of them; whoever asks
// later is told that the reader is closed. An attempt to connect is waited for, a second at most.
func (r *Reader) Close() error {
	r.mu.Lock()
	r.closed = true
	c, attempt := r.current, r.attempt
	r.mu.Unlock()
	if c != nil {
		r.retire(c)
	}
	if attempt != nil {
		select {
		case <-attempt.done:
		case <-time.After(time.Second): // a broker hangs while it is connected to; that attempt ends by itself
		}
	}
	return nil
}

// newReaderClient returns a client that looks for nothing in the background, since that would hold the connection while a
// broker hangs, and that repeats nothing by itself, so that a call that was left behind ends soon. Each call refreshes what
// it finds to be out of date, and whoever asks repeats it.
func newReaderClient(k config.Kafka, clientID string) (sarama.Client, error) {
	c, err := baseConfig(k, clientID)
	if err != nil {
		return nil, err
	}
	c.Metadata.RefreshFrequency = 0
	c.Metadata.Retry.Max = 0
	c.Admin.Retry.Max = 1 // Sarama counts tries here
	client, err := sarama.NewClient(k.Brokers, c)
	return client, explained(err)
}

package stack

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"syscall"
	"time"

	"github.com/tidemark/tidemark/shared/freeport"
	"github.com/tidemark/tidemark/shared/loop"
	"github.com/tidemark/tidemark/tidemark/embedded/broker"
)

// The kinds of broker that stories run on.
const (
	ApacheKafka = "kafka"
	Embedded    = "embedded"
)

// Broker is what both kinds can do. Its address, records and cluster id stay over restarts.
type Broker interface {
	Brokers() []string
	ClusterID() string
	Restart(ctx context.Context) error
	Close(ctx context.Context) error
}

var (
	_ Broker = (*Kafka)(nil)
	_ Broker = (*EmbeddedBroker)(nil)
)

// StartBroker starts a broker of that kind for tests that disturb nothing but what both kinds have in common.
func StartBroker(ctx context.Context, kind string) (Broker, error) {
	switch kind {
	case ApacheKafka:
		return StartKafka(ctx, KafkaOptions{FastStart: true})
	case Embedded:
		return StartEmbeddedBroker(ctx)
	default:
		return nil, fmt.Errorf("no kind of broker is called %q: choose %s or %s", kind, ApacheKafka, Embedded)
	}
}

// EmbeddedBroker is the broker of `tidemark up`, in this process, with its records in a temporary folder.
type EmbeddedBroker struct {
	dir    string
	broker *broker.Broker
}

// StartEmbeddedBroker starts one. The context bounds the start only.
func StartEmbeddedBroker(ctx context.Context) (*EmbeddedBroker, error) {
	dir, err := os.MkdirTemp("", "tidemark-broker-")
	if err != nil {
		return nil, fmt.Errorf("start the embedded broker: %w", err)
	}
	e := &EmbeddedBroker{dir: dir}
	port, err := freeport.Find(ctx)
	if err == nil {
		err = e.start(ctx, port)
	}
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	return e, nil
}

func (e *EmbeddedBroker) start(ctx context.Context, port int) (err error) {
	e.broker, err = broker.Start(ctx, broker.Options{DataDir: e.dir, Port: port, Log: slog.New(slog.DiscardHandler)})
	return err
}

// Brokers returns its address.
func (e *EmbeddedBroker) Brokers() []string { return e.broker.Addresses() }

// ClusterID returns the id that clients see.
func (e *EmbeddedBroker) ClusterID() string { return e.broker.ClusterID() }

// Restart closes it in order and starts it again on the same port and records.
func (e *EmbeddedBroker) Restart(ctx context.Context) error {
	if err := e.broker.Close(); err != nil {
		return err
	}
	for {
		err := e.start(ctx, 0)
		if !errors.Is(err, syscall.EADDRINUSE) {
			return err
		}
		// A service that is being started holds the closed listener open until it runs its own program.
		if loop.Sleep(ctx, 10*time.Millisecond) != nil {
			return err
		}
	}
}

// Close stops it and removes its records.
func (e *EmbeddedBroker) Close(context.Context) error {
	return errors.Join(e.broker.Close(), os.RemoveAll(e.dir))
}

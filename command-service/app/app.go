// Package app wires the command-service: a publisher, the doors before it, a guard of each topic
// that they write, and the HTTP API. It reads no environment and keeps nothing global, so that several can run in
// one process.
package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/tidemark/tidemark/command-service/internal/deadletter"
	"github.com/tidemark/tidemark/command-service/internal/door"
	"github.com/tidemark/tidemark/command-service/internal/httpapi"
	api "github.com/tidemark/tidemark/shared/api/command"
	"github.com/tidemark/tidemark/shared/config"
	manners "github.com/tidemark/tidemark/shared/httpapi"
	"github.com/tidemark/tidemark/shared/kafka"
	"github.com/tidemark/tidemark/shared/lifecycle"
	"github.com/tidemark/tidemark/shared/telemetry"
	"github.com/tidemark/tidemark/shared/topic"
)

// Name of the service, in logs and towards Kafka.
const Name = "command-service"

// Config is everything that can be set.
type Config struct {
	config.HTTP
	config.Log
	config.Kafka
	config.Telemetry
	ProduceDeadline time.Duration `env:"PRODUCE_DEADLINE" desc:"the longest a command waits for the log's answer"`
	QueryURL        string        `env:"QUERY_URL" desc:"base URL of query-service, where tickets are read"`
}

// DefaultConfig is a service on port 7080 of this host.
func DefaultConfig() Config {
	return Config{
		HTTP: config.DefaultHTTP(7080), Log: config.Log{Level: "info"}, Kafka: config.DefaultKafka(), Telemetry: config.DefaultTelemetry(),
		ProduceDeadline: 5 * time.Second, QueryURL: "http://127.0.0.1:7082",
	}
}

// longestDeadline leaves an answer room within the server's write timeout.
const longestDeadline = time.Minute

// Validate checks what is this service's own.
func (c Config) Validate() error {
	var late error
	if c.ProduceDeadline < 10*time.Millisecond || c.ProduceDeadline > longestDeadline {
		late = fmt.Errorf("PRODUCE_DEADLINE=%s is outside 10ms to %s", c.ProduceDeadline, longestDeadline)
	}
	return errors.Join(late, config.ServiceURL("QUERY_URL", c.QueryURL))
}

// Options of one run.
type Options struct {
	Config    Config
	Log       *slog.Logger
	Topic     string               // name of the topic of commands, topic.TimestampCommand's unless given
	Decisions string               // name of the topic of decisions on dead letters, topic.DeadLetterCommand's unless given
	Watch     WatchOptions         // how often the log is looked after
	Listening func(address string) // told once the port is open; may be nil
}

// Run serves until ctx ends or something that waiting cannot mend is found: a port that is taken, or, at
// the start, a topic that could lose what it holds (a *kafka.GuardError). A broker that is away is waited
// for, unready.
func Run(ctx context.Context, o Options) (err error) {
	commands, decided := topic.TimestampCommand.Sized(o.Config.Kafka), topic.DeadLetterCommand.Sized(o.Config.Kafka)
	if o.Topic != "" {
		commands.Name = o.Topic
	}
	if o.Decisions != "" {
		decided.Name = o.Decisions
	}
	told := ctx
	ctx, fail := context.WithCancelCause(told)
	defer fail(nil)
	stack := &lifecycle.Stack{Log: o.Log}
	defer func() {
		if err == nil && told.Err() == nil { // nobody told it to stop: something failed
			err = context.Cause(ctx)
		}
		err = errors.Join(err, stack.Stop(o.Config.ShutdownTimeout))
	}()

	registry := prometheus.NewRegistry()
	export, err := telemetry.NewExporter(ctx, telemetry.ExportOptions{Config: o.Config.Telemetry, Service: Name, Registry: registry, Log: o.Log})
	if err != nil {
		return err
	}
	stack.Add("telemetry", export.Stop)
	ready := manners.NewReadiness(partLog, partDecisions, partPublisher)
	publisher, err := kafka.NewPublisher(kafka.PublisherOptions{
		Kafka: o.Config.Kafka, ClientID: Name, Producer: Name + "/" + telemetry.Version, Log: o.Log,
		// A flight ends before its passengers' deadline, so that most of them hear the truth.
		RetryFor: o.Config.ProduceDeadline * 4 / 5,
		OnState:  publisherState(ready),
	})
	if err != nil {
		return err
	}
	stack.Add("publisher", func(context.Context) error { return publisher.Close() })

	metrics := door.NewMetrics(registry)
	entrance, err := door.New(door.Options{
		Topic: commands.Name, Partitions: int32(commands.Partitions), Log: publisher,
		Deadline: o.Config.ProduceDeadline, Metrics: metrics, Tracer: export.Tracer(),
	})
	if err != nil {
		return err
	}
	stack.Add("door", entrance.Close)
	decisions, err := door.New(door.Options{Topic: decided.Name, Log: publisher, Deadline: o.Config.ProduceDeadline, Metrics: metrics.Beside(), Tracer: export.Tracer()})
	if err != nil {
		return err
	}
	stack.Add("door of decisions", decisions.Close)
	reader := kafka.NewReader(o.Config.Kafka, Name)
	stack.Add("log reader", func(context.Context) error { return reader.Close() })
	letters := deadletter.New(deadletter.Options{
		Commands: entrance, Decisions: decisions, Log: reader, Topic: commands.Name, Partitions: int32(commands.Partitions), Deadline: o.Config.ProduceDeadline,
	})

	stack.Go(ctx, "guard", func(ctx context.Context) { guardDoor(ctx, o, reader, commands, partLog, entrance, ready, fail) })
	stack.Go(ctx, "guard of decisions", func(ctx context.Context) {
		guardDoor(ctx, o, reader, decided, partDecisions, decisions, ready, fail)
	})

	engine, err := manners.NewEngine(manners.Options{
		Log: o.Log, Registry: registry, Tracer: export.Tracer(), Spec: api.Spec, HTTP: o.Config.HTTP, MaxBodies: httpapi.Bodies,
	})
	if err != nil {
		return err
	}
	stack.Go(ctx, "keys and certificate", engine.Watch)
	manners.Mount(engine, Name, ready)
	if err := httpapi.Mount(ctx, engine.Engine, entrance, letters, strings.TrimSuffix(o.Config.QueryURL, "/"), o.Log); err != nil {
		return err
	}
	server, err := manners.Listen(ctx, engine, longestDeadline+15*time.Second, fail)
	if err != nil {
		return err
	}
	stack.Add("server", server.Stop)
	stack.Add("readiness", func(context.Context) error {
		ready.Unready("process", "the service is being stopped")
		return nil
	})
	if o.Listening != nil {
		o.Listening(server.Address())
	}
	<-ctx.Done()
	return nil
}

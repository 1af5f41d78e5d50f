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

	"github.com/tidemark/tidemark/command-service/internal/deadletter"
	"github.com/tidemark/tidemark/command-service/internal/door"
	"github.com/tidemark/tidemark/command-service/internal/httpapi"
	api "github.com/tidemark/tidemark/shared/api/command"
	"github.com/tidemark/tidemark/shared/config"
	manners "github.com/tidemark/tidemark/shared/httpapi"
	"github.com/tidemark/tidemark/shared/kafka"
	"github.com/tidemark/tidemark/shared/service"
	"github.com/tidemark/tidemark/shared/telemetry"
	"github.com/tidemark/tidemark/shared/topic"
)

// Name of the service, in logs and towards Kafka.
var Name = service.Command.Name

// Config is everything that can be set.
type Config struct {
	config.HTTP
	config.Log
	config.Kafka
	config.Telemetry
	ProduceDeadline time.Duration `env:"PRODUCE_DEADLINE" desc:"the longest a command waits for the log's answer"`
	QueryURL        string        `env:"QUERY_URL" desc:"base URL of query-service, where tickets are read"`
}

// DefaultConfig is a service on its usual port of this host.
func DefaultConfig() Config {
	return Config{
		HTTP: config.DefaultHTTP(service.Command.Port), Log: config.Log{Level: "info"}, Kafka: config.DefaultKafka(), Telemetry: config.DefaultTelemetry(),
		ProduceDeadline: 5 * time.Second, QueryURL: service.Query.DefaultURL(),
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
func Run(ctx context.Context, o Options) error {
	commands, decided := topic.TimestampCommand.Sized(o.Config.Kafka), topic.DeadLetterCommand.Sized(o.Config.Kafka)
	if o.Topic != "" {
		commands.Name = o.Topic
	}
	if o.Decisions != "" {
		decided.Name = o.Decisions
	}
	return service.Run(ctx, service.Options{
		Name: Name, Log: o.Log, Telemetry: o.Config.Telemetry, Listening: o.Listening,
		API:   manners.Options{HTTP: o.Config.HTTP, Spec: api.Spec, MaxBodies: httpapi.Bodies},
		Parts: []string{partLog, partDecisions, partPublisher},
	}, func(ctx context.Context, s *service.Service) error {
		publisher, err := kafka.NewPublisher(kafka.PublisherOptions{
			Kafka: o.Config.Kafka, ClientID: Name, Producer: Name + "/" + telemetry.Version, Log: o.Log,
			// A flight ends before its passengers' deadline, so that most of them hear the truth.
			RetryFor: o.Config.ProduceDeadline * 4 / 5,
			OnState:  publisherState(s.Ready),
		})
		if err != nil {
			return err
		}
		s.Stack.Add("publisher", func(context.Context) error { return publisher.Close() })

		metrics := door.NewMetrics(s.Registry)
		entrance, err := door.New(door.Options{
			Topic: commands.Name, Partitions: int32(commands.Partitions), Log: publisher,
			Deadline: o.Config.ProduceDeadline, Metrics: metrics, Tracer: s.Tracer,
		})
		if err != nil {
			return err
		}
		s.Stack.Add("door", entrance.Close)
		decisions, err := door.New(door.Options{Topic: decided.Name, Log: publisher, Deadline: o.Config.ProduceDeadline, Metrics: metrics.Beside(), Tracer: s.Tracer})
		if err != nil {
			return err
		}
		s.Stack.Add("door of decisions", decisions.Close)
		reader := kafka.NewReader(o.Config.Kafka, Name)
		s.Stack.Add("log reader", func(context.Context) error { return reader.Close() })
		letters := deadletter.New(deadletter.Options{
			Commands: entrance, Decisions: decisions, Log: reader, Topic: commands.Name, Partitions: int32(commands.Partitions), Deadline: o.Config.ProduceDeadline,
		})

		s.Stack.Go(ctx, "guard", func(ctx context.Context) { guardDoor(ctx, o, reader, commands, partLog, entrance, s.Ready, s.Fail) })
		s.Stack.Go(ctx, "guard of decisions", func(ctx context.Context) {
			guardDoor(ctx, o, reader, decided, partDecisions, decisions, s.Ready, s.Fail)
		})

		if err := httpapi.Mount(ctx, s.Engine.Engine, entrance, letters, strings.TrimSuffix(o.Config.QueryURL, "/"), o.Log); err != nil {
			return err
		}
		return s.Listen(ctx, longestDeadline+15*time.Second)
	})
}

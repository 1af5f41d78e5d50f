// Package app wires command-service: a publisher, a door for each topic, a guard that opens and shuts each door,
// and the HTTP API. It reads no environment and keeps nothing global, so that several can run in one process.
package app

import (
	"cmp"
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
	sharedhttp "github.com/tidemark/tidemark/shared/httpapi"
	"github.com/tidemark/tidemark/shared/kafka"
	"github.com/tidemark/tidemark/shared/limits"
	"github.com/tidemark/tidemark/shared/logid"
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
	AcceptNewLog    []string      `env:"ACCEPT_NEW_LOG" desc:"topic@id, by commas: topics that were deleted and made anew, accepted by the operator; means nothing once their ids are known"`
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
	_, accepted := logid.ParseAcceptance(c.AcceptNewLog)
	return errors.Join(late, accepted, config.ServiceURL("QUERY_URL", c.QueryURL))
}

// Options of one run.
type Options struct {
	Config    Config               // everything that an operator can set; required
	Log       *slog.Logger         // where the service logs; required
	Topic     string               // name of the topic of timestamps; topic.TimestampCommand's unless given
	Endpoints string               // name of the topic of endpoints; topic.EndpointCommand's unless given
	Decisions string               // name of the topic of decisions on dead letters; topic.DeadLetterCommand's unless given
	Identity  string               // name of the topic in which ids of topics are noted; topic.LogIdentity's unless given
	Watch     WatchOptions         // how often topics are checked
	Listening func(address string) // called once the port is open, with the address that was bound; optional
}

// Run serves until ctx ends, or until it finds something that waiting cannot mend: a port that is taken, or, at
// the start, a topic that could lose what it holds (a *kafka.GuardError). It waits for a broker that is down,
// unready.
func Run(ctx context.Context, o Options) error {
	stamps, endpoints, decided := topic.TimestampCommand.Sized(o.Config.Kafka), topic.EndpointCommand.Sized(o.Config.Kafka), topic.DeadLetterCommand.Sized(o.Config.Kafka)
	stamps.Name, endpoints.Name, decided.Name = cmp.Or(o.Topic, stamps.Name), cmp.Or(o.Endpoints, endpoints.Name), cmp.Or(o.Decisions, decided.Name)
	noted := topic.LogIdentity.Sized(o.Config.Kafka)
	noted.Name = cmp.Or(o.Identity, noted.Name)
	accepted, err := logid.ParseAcceptance(o.Config.AcceptNewLog)
	if err != nil {
		return err
	}
	return service.Run(ctx, service.Options{
		Name: Name, Log: o.Log, Telemetry: o.Config.Telemetry, Listening: o.Listening,
		API:   sharedhttp.Options{HTTP: o.Config.HTTP, Spec: api.Spec, MaxBodies: limits.Bodies},
		Parts: []string{partLog, partEndpoints, partDecisions, partPublisher},
	}, func(ctx context.Context, s *service.Service) error {
		publisher, err := kafka.NewPublisher(kafka.PublisherOptions{
			Kafka: o.Config.Kafka, ClientID: Name, Producer: Name + "/" + telemetry.Version, Log: o.Log,
			// A flight ends before the deadline of its commands, so that most callers get its outcome.
			RetryFor: o.Config.ProduceDeadline * 4 / 5,
			OnState:  publisherState(s.Ready),
		})
		if err != nil {
			return err
		}
		s.Stack.Add("publisher", func(context.Context) error { return publisher.Close() })

		metrics, faults := door.NewMetrics(s.Registry), kafka.NewFaults(s.Registry)
		reader := kafka.NewReader(o.Config.Kafka, Name)
		s.Stack.Add("log reader", func(context.Context) error { return reader.Close() })
		asker := logid.NewAsker(o.Config.Kafka, Name)
		s.Stack.Add("asker of ids", func(context.Context) error { return asker.Close() })
		known := logid.NewBook(logid.Options{
			Reader: reader, Asker: asker, Topic: noted, Accepted: accepted, Publish: publisher.Publish,
		})
		// doorTo makes the door to a topic and the guard that opens it.
		doorTo := func(t topic.Spec, part string) (*door.Door, error) {
			var guard *kafka.Guard // before the door opens
			d, err := door.New(door.Options{
				Topic: t.Name, Partitions: int32(t.Partitions), Log: publisher,
				Deadline: o.Config.ProduceDeadline, Metrics: metrics, Tracer: s.Tracer,
				OnFailure: func() { guard.CheckNow() },
			})
			if err != nil {
				return nil, err
			}
			s.Stack.Add("door of "+t.Name, d.Close)
			guard = newGuard(o, reader, known, t, part, d, s.Ready, faults)
			s.Stack.Go(ctx, "guard of "+t.Name, func(ctx context.Context) { guardDoor(ctx, guard, s.Fail) })
			return d, nil
		}
		var doors httpapi.Doors
		if doors.Timestamps, err = doorTo(stamps, partLog); err != nil {
			return err
		}
		if doors.Endpoints, err = doorTo(endpoints, partEndpoints); err != nil {
			return err
		}
		decisions, err := doorTo(decided, partDecisions)
		if err != nil {
			return err
		}
		letters := deadletter.New(deadletter.Options{
			Topics:    append([]deadletter.Topic{deadletter.Timestamps(stamps, doors.Timestamps), deadletter.Endpoints(endpoints, doors.Endpoints)}, foreign(o.Config.Kafka)...),
			Decisions: decisions, DecisionTopic: decided, Log: reader, Deadline: o.Config.ProduceDeadline,
		})
		httpapi.Mount(ctx, s.Engine.Engine, doors, letters, strings.TrimSuffix(o.Config.QueryURL, "/"), o.Log)
		return s.Listen(ctx, longestDeadline+15*time.Second)
	})
}

// foreign are the topics that other services write: their dead letters can only be discarded.
func foreign(k config.Kafka) (all []deadletter.Topic) {
	for _, t := range topic.All() {
		if !t.Redrivable() {
			all = append(all, deadletter.Foreign(t.Sized(k)))
		}
	}
	return all
}

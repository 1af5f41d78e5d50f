// Package app wires the consumer-service: migrations, the guards of the log, the book of decisions on dead
// letters, one member of the consumer group and the projector behind it, the rebuilds at its side, and the
// publisher of receipts. It reads no environment and keeps nothing global, so that several
// can run in one process.
package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/jmoiron/sqlx"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/tidemark/tidemark/consumer-service/internal/decision"
	routes "github.com/tidemark/tidemark/consumer-service/internal/httpapi"
	"github.com/tidemark/tidemark/consumer-service/internal/projection"
	"github.com/tidemark/tidemark/consumer-service/internal/rebuild"
	"github.com/tidemark/tidemark/consumer-service/internal/receipt"
	"github.com/tidemark/tidemark/consumer-service/migrations"
	api "github.com/tidemark/tidemark/shared/api/consumer"
	"github.com/tidemark/tidemark/shared/httpapi"
	"github.com/tidemark/tidemark/shared/kafka"
	"github.com/tidemark/tidemark/shared/lifecycle"
	"github.com/tidemark/tidemark/shared/postgres"
	"github.com/tidemark/tidemark/shared/telemetry"
	"github.com/tidemark/tidemark/shared/topic"
)

// Name of the service, in logs and towards Kafka and the database.
const Name = "consumer-service"

// Parts of the readiness that the guards of the log speak for.
const (
	partLog       = "log"
	partDecisions = "dead letters log"
)

// answerLimit bounds a whole answer; an audit counts every row.
const answerLimit = 5 * time.Minute

// Options of one run.
type Options struct {
	Config    Config
	Log       *slog.Logger
	Listening func(address string) // told once the port is open; may be nil
}

// Run projects until ctx ends or something is found that waiting cannot mend: a *kafka.GuardError, a
// *projection.Refusal, postgres.ErrNewerSchema, a port that is taken. A broker or a database that is
// away is waited for, unready.
func Run(ctx context.Context, o Options) (err error) {
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

	db, err := postgres.Open(o.Config.Postgres, Name, postgres.WriterLimits)
	if err != nil {
		return err
	}
	stack.Add("database", func(context.Context) error { return postgres.Close(db) })
	// Proofs and indexes take longer than any write, and a drop may wait for one.
	long, err := postgres.Open(o.Config.Postgres, Name+" rebuild", postgres.Limits{IdleInTransaction: postgres.WriterLimits.IdleInTransaction})
	if err != nil {
		return err
	}
	stack.Add("database for rebuilds", func(context.Context) error { return postgres.Close(long) })

	registry := prometheus.NewRegistry()
	export, err := telemetry.NewExporter(ctx, telemetry.ExportOptions{Config: o.Config.Telemetry, Service: Name, Registry: registry, Log: o.Log})
	if err != nil {
		return err
	}
	stack.Add("telemetry", export.Stop)
	ready := httpapi.NewReadiness(projection.PartDatabase, partLog, partDecisions, projection.PartClaims)
	engine, err := httpapi.NewEngine(httpapi.Options{Log: o.Log, Registry: registry, Tracer: export.Tracer(), Spec: api.Spec, HTTP: o.Config.HTTP})
	if err != nil {
		return err
	}
	stack.Go(ctx, "keys and certificate", engine.Watch)
	httpapi.Mount(engine, Name, ready)
	engine.GET("/api/v1/timestamp/:id", func(c *gin.Context) {
		c.Redirect(http.StatusPermanentRedirect, o.Config.QueryURL+"/api/v1/timestamp/"+url.PathEscape(c.Param("id")))
	})
	routes, err := routes.Mount(ctx, engine.Engine, o.Log)
	if err != nil {
		return err
	}
	server, err := httpapi.Listen(ctx, engine, answerLimit, fail)
	if err != nil {
		return err
	}
	stack.Add("server", server.Stop)
	if o.Listening != nil {
		o.Listening(server.Address())
	}

	reader := kafka.NewReader(o.Config.Kafka, Name)
	stack.Add("log reader", func(context.Context) error { return reader.Close() })
	accepted, err := o.Config.acceptedStarts(topic.TimestampCommand.Name)
	if err != nil {
		return err
	}
	book := decision.New(decision.Options{
		Log: reader, Store: &decision.Postgres{DB: db}, Topic: topic.DeadLetterCommand.Name, Partitions: o.Config.Partitions, Logger: o.Log,
		Refuse: func(reason string) { fail(&projection.Refusal{Reason: reason}) },
	})
	receipts, err := publisher(o, stack, registry, db, reader)
	if err != nil {
		return err
	}
	rebuilds := rebuild.New(rebuild.Options{
		DB: db, Long: long, Log: reader, Decisions: book, Written: receipts.Kick, Topic: topic.TimestampCommand.Name, Group: o.Config.GroupID, Partitions: o.Config.Partitions, AcceptLogStart: accepted,
		Lane: rebuild.LaneOptions{Kafka: o.Config.Kafka, ClientID: Name, BatchSize: o.Config.BatchSize}, Metrics: rebuild.NewMetrics(registry), Logger: o.Log,
	})
	routes.Rebuilds(rebuilds) // from here on: a migration may wait for a generation to be dropped
	if err := migrate(ctx, o, rebuilds, ready); err != nil {
		return unless(told, err)
	}

	commands := topic.TimestampCommand.Sized(o.Config.Kafka)
	if err := guard(ctx, reader, commands, partLog, ready, o.Log); err != nil {
		return unless(told, err)
	}
	decided := topic.DeadLetterCommand.Sized(o.Config.Kafka)
	if err := guard(ctx, reader, decided, partDecisions, ready, o.Log); err != nil {
		return unless(told, err)
	}
	stack.Go(ctx, "decisions", book.Run)

	projector := projection.New(projection.Options{
		DB: db, Log: reader, Decisions: book, Written: receipts.Kick, Topic: commands.Name, Group: o.Config.GroupID, Partitions: commands.Partitions, AcceptLogStart: accepted,
		AuditInterval: o.Config.AuditInterval, Ready: ready, Tracer: export.Tracer(), Metrics: projection.NewMetrics(registry), Logger: o.Log, Stop: fail,
	})
	stack.Go(ctx, "receipts", func(ctx context.Context) { receipts.Run(ctx, projector.Serving) })
	subscriber, err := kafka.NewSubscriber(kafka.SubscriberOptions{
		Kafka: o.Config.Kafka, ClientID: Name, Group: o.Config.GroupID, InstanceID: o.Config.InstanceID, BatchSize: o.Config.BatchSize,
		Log: o.Log, SetUp: projector.SetUp, CleanUp: projector.CleanUp,
		Fenced: func(id string) {
			fail(fmt.Errorf("another process has joined group %s as KAFKA_GROUP_INSTANCE_ID %q: give each its own", o.Config.GroupID, id))
		},
	})
	if err != nil {
		return err
	}
	batches, err := subscribe(ctx, subscriber, commands.Name, ready, o.Log)
	if err != nil {
		return unless(told, err)
	}
	var inHand sync.WaitGroup
	inHand.Go(func() {
		for b := range batches {
			inHand.Go(func() { projector.Project(b) })
		}
	})
	stack.Add("subscriber", func(context.Context) error {
		err := subscriber.Close()
		inHand.Wait()
		return err
	})
	routes.Audits(projector)
	stack.Go(ctx, "watermark", projector.Watch)
	stack.Go(ctx, "lanes", rebuilds.Lanes)
	stack.Go(ctx, "rebuild driver", rebuilds.Drive)
	stack.Go(ctx, "audit", projector.Audit)
	stack.Go(ctx, "guard", func(ctx context.Context) { keepGuard(ctx, reader, commands, partLog, ready, o.Log) })
	stack.Go(ctx, "guard of decisions", func(ctx context.Context) { keepGuard(ctx, reader, decided, partDecisions, ready, o.Log) })
	stack.Add("readiness", func(context.Context) error {
		ready.Unready("process", "the service is being stopped")
		return nil
	})
	<-ctx.Done()
	return nil
}

// publisher brings receipts to the log. It does not run yet; when it does, it stops after the subscriber.
func publisher(o Options, stack *lifecycle.Stack, registry *prometheus.Registry, db *sqlx.DB, reader *kafka.Reader) (*receipt.Publisher, error) {
	log, err := kafka.NewPublisher(kafka.PublisherOptions{
		Kafka: o.Config.Kafka, ClientID: Name, Producer: Name + "/" + telemetry.Version, Log: o.Log,
		RetryFor: 3 * time.Second, // less than the server lets the publishers' lock sit idle
	})
	if err != nil {
		return nil, err
	}
	stack.Add("publisher", func(context.Context) error { return log.Close() })
	receipts := topic.ProjectionReceipt.Sized(o.Config.Kafka)
	return receipt.New(receipt.Options{
		Store: &receipt.Postgres{DB: db}, Log: log, Topic: receipts.Name, Registry: registry, Logger: o.Log,
		Ensure: func(ctx context.Context) error { return reader.Ensure(ctx, receipts) },
	}), nil
}

// unless drops an error that only says that the service was told to stop.
func unless(told context.Context, err error) error {
	if told.Err() != nil {
		return nil
	}
	return err
}

// every repeats try until it succeeds, fails for good, or ctx ends. It waits a second between tries,
// which is short against what it waits for: a broker or a database that starts.
func every(ctx context.Context, try func(context.Context) (final bool, err error)) error {
	for {
		final, err := try(ctx)
		if final || err == nil {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(time.Second):
		}
	}
}

// migrate brings the database to this release's schema. Migrations may take longer than any write, so
// they have a connection without the writers' limits.
// While a migration waits for a generation to be dropped, drops that are asked for are done.
func migrate(ctx context.Context, o Options, rebuilds *rebuild.Service, ready *httpapi.Readiness) error {
	c := o.Config.Postgres
	db, err := postgres.Open(c, Name+" migrations", postgres.Limits{})
	if err != nil {
		return err
	}
	defer func() { _ = db.Close() }() // nothing of it is needed any more
	err = every(ctx, func(ctx context.Context) (bool, error) {
		err := migrations.Apply(ctx, db)
		if err != nil && !errors.Is(err, postgres.ErrNewerSchema) {
			o.Log.Warn("cannot migrate yet", "err", err)
			var second *migrations.SecondGenerationError
			if errors.As(err, &second) {
				ready.Unready(projection.PartDatabase, err.Error())
				if err := rebuilds.DropMarked(ctx); err != nil {
					o.Log.Warn("cannot drop a generation yet", "err", err)
				}
			} else {
				ready.Unready(projection.PartDatabase, "waiting for the database: "+err.Error())
			}
		}
		return errors.Is(err, postgres.ErrNewerSchema), err
	})
	if err == nil {
		ready.Ready(projection.PartDatabase)
	}
	return err
}

// guard makes the topic where it is not there yet and refuses one that could lose what it holds.
func guard(ctx context.Context, reader *kafka.Reader, topic topic.Spec, part string, ready *httpapi.Readiness, log *slog.Logger) error {
	return every(ctx, func(ctx context.Context) (bool, error) {
		err := reader.Ensure(ctx, topic)
		if err == nil {
			err = reader.Check(ctx, topic)
		}
		var unsafe *kafka.GuardError
		switch {
		case err == nil:
			ready.Ready(part)
		case errors.As(err, &unsafe):
			return true, err
		default:
			log.Warn("cannot check the log yet", "err", err)
			ready.Unready(part, "waiting for Kafka: "+err.Error())
		}
		return false, err
	})
}

// keepGuard looks again each minute. A setting that goes wrong later makes the service unready and is
// logged, and reading goes on: to stop would make the loss certain.
func keepGuard(ctx context.Context, reader *kafka.Reader, topic topic.Spec, part string, ready *httpapi.Readiness, log *slog.Logger) {
	tick := time.NewTicker(time.Minute)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		err := reader.Check(ctx, topic)
		var unsafe *kafka.GuardError
		switch {
		case err == nil:
			ready.Ready(part)
		case errors.As(err, &unsafe):
			log.Error("the log is no longer safe", "topic", topic.Name, "err", err)
			ready.Unready(part, err.Error())
		default:
			log.Warn("cannot check the log", "topic", topic.Name, "err", err) // says nothing about the topic
		}
	}
}

func subscribe(ctx context.Context, s *kafka.Subscriber, topic string, ready *httpapi.Readiness, log *slog.Logger) (batches <-chan *kafka.Batch, err error) {
	err = every(ctx, func(ctx context.Context) (bool, error) {
		// The subscription ends with Close, after the batches in hand, and not with ctx.
		batches, err = s.Subscribe(context.WithoutCancel(ctx), topic)
		if err != nil {
			log.Warn("cannot subscribe yet", "err", err)
			ready.Unready(projection.PartClaims, "waiting for Kafka: "+err.Error())
		}
		return false, err
	})
	return batches, err
}

// Package app wires the consumer-service: migrations, the book of decisions on dead letters, and for each projection that
// the process runs the guard of its log, one member of its consumer group with the projector behind it, its rebuilds and
// the publisher of its receipts. It reads no environment and keeps nothing global, so that several can run in one process.
package app

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/jmoiron/sqlx"

	"github.com/tidemark/tidemark/consumer-service/internal/decision"
	"github.com/tidemark/tidemark/consumer-service/internal/endpoints"
	"github.com/tidemark/tidemark/consumer-service/internal/generation"
	"github.com/tidemark/tidemark/consumer-service/internal/httpapi"
	"github.com/tidemark/tidemark/consumer-service/internal/projection"
	"github.com/tidemark/tidemark/consumer-service/internal/receipt"
	"github.com/tidemark/tidemark/consumer-service/internal/timestamps"
	api "github.com/tidemark/tidemark/shared/api/consumer"
	"github.com/tidemark/tidemark/shared/config"
	sharedhttp "github.com/tidemark/tidemark/shared/httpapi"
	"github.com/tidemark/tidemark/shared/kafka"
	"github.com/tidemark/tidemark/shared/logid"
	"github.com/tidemark/tidemark/shared/loop"
	"github.com/tidemark/tidemark/shared/postgres"
	"github.com/tidemark/tidemark/shared/schema"
	"github.com/tidemark/tidemark/shared/service"
	"github.com/tidemark/tidemark/shared/telemetry"
	"github.com/tidemark/tidemark/shared/topic"
)

// Name of the service, in logs and towards Kafka and the database.
var Name = service.Consumer.Name

// Parts of the readiness that are of no single projection.
const (
	partSchema    = "schema"
	partDecisions = "dead letters log"
)

// answerLimit bounds a whole answer; an audit counts every row.
const answerLimit = 5 * time.Minute

// definitions are the projections of this release, one line each.
func definitions(k config.Kafka) []*projection.Definition {
	return []*projection.Definition{
		timestamps.Definition(topic.TimestampCommand.Sized(k)),
		endpoints.Definition(topic.EndpointCommand.Sized(k)),
	}
}

// Options of one run.
type Options struct {
	Config    Config
	Log       *slog.Logger
	Listening func(address string) // told once the port is open; may be nil

	definitions         []*projection.Definition // of this release unless given
	decisions, receipts topic.Spec               // of this release unless given
	identity            topic.Spec               // of this release unless given
}

// wiring is what the projections of a process share.
type wiring struct {
	Options
	*service.Service
	db       *sqlx.DB
	long     *sqlx.DB // without limits of time
	reader   *kafka.Reader
	book     *decision.Book
	log      *kafka.Publisher // of receipts
	asker    *logid.Asker
	notes    *logid.Book // what command-service has noted of topics
	accepted map[string]map[int32]int64
	newLogs  logid.Acceptance

	projected *projection.AllMetrics
	rebuilt   *generation.Metrics
	published *receipt.Metrics
	faults    *kafka.Faults
}

// Run projects until ctx ends or something is found that waiting cannot mend: a *kafka.GuardError, a
// *projection.Refusal that is final, schema.ErrNewer, a port that is taken. A broker or a database that is
// down is waited for, unready.
func Run(ctx context.Context, o Options) error {
	if o.definitions == nil {
		o.definitions = definitions(o.Config.Kafka)
		o.decisions, o.receipts = topic.DeadLetterCommand.Sized(o.Config.Kafka), topic.ProjectionReceipt.Sized(o.Config.Kafka)
	}
	if o.identity.Name == "" {
		o.identity = topic.LogIdentity.Sized(o.Config.Kafka)
	}
	if err := projection.CheckAll(o.definitions); err != nil {
		return err
	}
	run, err := o.Config.chosen(o.definitions)
	if err != nil {
		return err
	}
	parts := []string{partSchema, partDecisions}
	for _, name := range run {
		parts = append(parts, projection.Part(name, projection.PartLog), projection.Part(name, projection.PartAssignment))
	}
	return service.Run(ctx, service.Options{
		Name: Name, Log: o.Log, Telemetry: o.Config.Telemetry, Listening: o.Listening, Parts: parts,
		API: sharedhttp.Options{HTTP: o.Config.HTTP, Spec: api.Spec},
	}, func(ctx context.Context, s *service.Service) error { return wire(ctx, o, s, run) })
}

func wire(ctx context.Context, o Options, s *service.Service, run []string) error {
	w, err := open(o, s)
	if err != nil {
		return err
	}
	all, runners := generation.NewAll(w.db, w.services()...), []*runner{}
	for _, name := range run {
		i := slices.IndexFunc(o.definitions, func(d *projection.Definition) bool { return d.Name == name })
		rebuilds, err := all.Of(name)
		if err != nil {
			return err
		}
		runners = append(runners, newRunner(w, o.definitions[i], rebuilds))
	}
	s.Engine.GET("/api/v1/timestamp/:id", func(c *gin.Context) {
		to := o.Config.QueryURL + "/api/v1/timestamp/" + url.PathEscape(c.Param("id"))
		if query := c.Request.URL.RawQuery; query != "" { // what it may have is what the route there reads
			to += "?" + query
		}
		c.Redirect(http.StatusPermanentRedirect, to)
	})
	httpapi.Mount(s.Engine.Engine, all, o.Log)
	if err := s.Listen(ctx, answerLimit); err != nil {
		return err
	}
	if err := w.migrate(ctx); err != nil {
		return err
	}
	decided, err := w.awaitTopic(ctx, o.decisions, partDecisions, nil, run...)
	if err != nil {
		return err
	}
	s.Stack.Go(ctx, "guard of decisions", decided.Keep)
	s.Stack.Go(ctx, "decisions", w.book.Run)
	s.Stack.Go(ctx, "generations", all.Poll)
	for _, r := range runners {
		s.Stack.Go(ctx, "projection "+r.def.Name, r.run)
	}
	return nil
}

// open makes what the projections share. Nothing of it has connected yet.
func open(o Options, s *service.Service) (*wiring, error) {
	w := &wiring{
		Options: o, Service: s, projected: projection.NewMetrics(s.Registry), rebuilt: generation.NewMetrics(s.Registry), published: receipt.NewMetrics(s.Registry),
		faults: kafka.NewFaults(s.Registry),
	}
	var err error
	if w.accepted, err = o.Config.acceptedStarts(o.definitions); err != nil {
		return nil, err
	}
	if w.newLogs, err = o.Config.acceptedLogs(o.definitions); err != nil {
		return nil, err
	}
	if w.db, err = postgres.Open(o.Config.Postgres, Name, postgres.WriterLimits); err != nil {
		return nil, err
	}
	s.Stack.Add("database", func(context.Context) error { return postgres.Close(w.db) })
	// Proofs and indexes take longer than any write, and a drop may wait for one.
	if w.long, err = postgres.Open(o.Config.Postgres, Name+" rebuild", postgres.Limits{IdleInTransaction: postgres.WriterLimits.IdleInTransaction}); err != nil {
		return nil, err
	}
	s.Stack.Add("database for rebuilds", func(context.Context) error { return postgres.Close(w.long) })
	w.reader = kafka.NewReader(o.Config.Kafka, Name)
	s.Stack.Add("log reader", func(context.Context) error { return w.reader.Close() })
	w.asker = logid.NewAsker(o.Config.Kafka, Name)
	s.Stack.Add("asker for the ids of topics", func(context.Context) error { return w.asker.Close() })
	w.notes = logid.NewBook(logid.Options{Reader: w.reader, Asker: w.asker, Topic: o.identity, Accepted: w.newLogs})
	if w.log, err = kafka.NewPublisher(kafka.PublisherOptions{
		Kafka: o.Config.Kafka, ClientID: Name, Producer: Name + "/" + telemetry.Version, Log: o.Log,
		RetryFor: 3 * time.Second, // less than the server lets the publishers' lock sit idle
	}); err != nil {
		return nil, err
	}
	s.Stack.Add("publisher", func(context.Context) error { return w.log.Close() })
	w.book = decision.New(decision.Options{
		Log: w.reader, Store: &decision.Postgres{DB: w.db}, Topic: o.decisions.Name, Partitions: o.decisions.Partitions, Logger: o.Log,
		TopicID: w.asker.TopicID, Accepts: func(id string) bool { return w.acceptsNewLog(o.decisions.Name, id) },
		Since:  func(topic string) time.Time { return w.notes.Notes().Since(topic) },
		Refuse: func(reason string) { s.Fail(&projection.Refusal{Reason: reason, Final: true}) },
	})
	return w, nil
}

// acceptsNewLog reports whether the operator accepts that a topic has this id.
func (w *wiring) acceptsNewLog(topic, id string) bool {
	parsed, err := logid.ParseID(id)
	return err == nil && w.newLogs.Accepts(topic, parsed)
}

// services are the generations of every projection of this release, those that other processes run included: requests
// about them are taken by any process.
func (w *wiring) services() []*generation.Service {
	all := make([]*generation.Service, len(w.definitions))
	for i, d := range w.definitions {
		all[i] = generation.New(generation.Options{
			DB: w.db, Long: w.long, Log: w.reader, Decisions: w.book, Definition: d, Group: d.GroupOf(w.Config.GroupID),
			AcceptLogStart: w.accepted[d.Topic.Name], Identity: w.asker, Worker: generation.WorkerOptions{Kafka: w.Config.Kafka, ClientID: Name, BatchSize: w.Config.BatchSize},
			Metrics: w.rebuilt, Logger: w.Log,
		})
	}
	return all
}

// migrate brings the database to this release's schema and writes the definitions into it. Migrations may take longer than
// any write, so they have a connection without the writers' limits.
func (w *wiring) migrate(ctx context.Context) error {
	db, err := postgres.Open(w.Config.Postgres, Name+" migrations", postgres.Limits{})
	if err != nil {
		return err
	}
	defer func() { _ = db.Close() }() // nothing of it is needed any more
	err = loop.Retry(ctx, loop.Backoff{First: time.Second, Most: time.Second}, func(ctx context.Context) (bool, error) {
		err := postgres.CheckFit(ctx, db, true)
		if err == nil {
			err = schema.Apply(ctx, db)
		}
		if err == nil {
			err = projection.Register(ctx, db, w.definitions)
		}
		if err != nil && !errors.Is(err, schema.ErrNewer) {
			w.Log.Warn("cannot migrate yet", "err", err)
			cause, _ := postgres.CauseIn(db, err) // nothing else is asked here
			w.Ready.Unready(partSchema, cause.Found)
		}
		return errors.Is(err, schema.ErrNewer), err
	})
	if err == nil {
		w.Ready.Ready(partSchema)
	}
	return err
}

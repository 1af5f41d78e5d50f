// Package app wires the query-service: a pool of readers, one watch that waits for positions, the JSON
// API with its event streams, the client of the other services and the web pages. It reads no environment
// and keeps nothing global, so that several can run in one process.
package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/jmoiron/sqlx"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/tidemark/tidemark/query-service/internal/httpapi"
	"github.com/tidemark/tidemark/query-service/internal/journey"
	"github.com/tidemark/tidemark/query-service/internal/peer"
	"github.com/tidemark/tidemark/query-service/internal/projection"
	"github.com/tidemark/tidemark/query-service/internal/web"
	api "github.com/tidemark/tidemark/shared/api/query"
	"github.com/tidemark/tidemark/shared/certs"
	"github.com/tidemark/tidemark/shared/config"
	manners "github.com/tidemark/tidemark/shared/httpapi"
	"github.com/tidemark/tidemark/shared/lifecycle"
	"github.com/tidemark/tidemark/shared/loop"
	"github.com/tidemark/tidemark/shared/postgres"
	"github.com/tidemark/tidemark/shared/problem"
	"github.com/tidemark/tidemark/shared/telemetry"
)

// Name of the service, in logs and towards the database.
const Name = "query-service"

// mostForm is what a form may have: a thousand positions of dead letters, or the payloads of a page of them.
const mostForm = 1 << 20

// Config is everything that can be set.
type Config struct {
	config.HTTP
	config.Log
	config.Postgres
	config.Telemetry
	CommandURL  string `env:"COMMAND_URL" desc:"base URL of command-service, for what the pages change through it, and its health"`
	ConsumerURL string `env:"CONSUMER_URL" desc:"base URL of consumer-service, for rebuilds and audits on the pages, and its health"`
	CAFile      string `env:"SERVICES_CA_FILE" desc:"authorities that sign the other services' certificates, PEM; the system's unless given"`
}

// DefaultConfig is a service on port 7082 of this host. Its pool keeps all its connections: readers come
// in bursts, and opening one costs more than ten reads.
func DefaultConfig() Config {
	db := config.DefaultPostgres()
	db.MaxIdleConns = db.MaxOpenConns
	return Config{
		HTTP: config.DefaultHTTP(7082), Log: config.Log{Level: "info"}, Postgres: db, Telemetry: config.DefaultTelemetry(),
		CommandURL: "http://127.0.0.1:7080", ConsumerURL: "http://127.0.0.1:7081",
	}
}

// Validate checks the other services' URLs and the CA file.
func (c Config) Validate() error {
	var authorities error
	if c.CAFile != "" {
		_, authorities = certs.Authorities("SERVICES_CA_FILE", c.CAFile)
	}
	return errors.Join(authorities, config.ServiceURL("COMMAND_URL", c.CommandURL), config.ServiceURL("CONSUMER_URL", c.ConsumerURL))
}

// Options of one run.
type Options struct {
	Config    Config
	Log       *slog.Logger
	Listening func(address string) // told once the port is open; may be nil
}

// Run serves until ctx ends or something that cannot be mended by waiting is found: a port that is
// taken, a database whose schema is newer than this release (postgres.ErrNewerSchema). A database that
// is away is waited for, unready.
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

	db, err := postgres.Open(o.Config.Postgres, Name, postgres.ReaderLimits)
	if err != nil {
		return err
	}
	stack.Add("database", func(context.Context) error { return postgres.Close(db) })

	registry := prometheus.NewRegistry()
	export, err := telemetry.NewExporter(ctx, telemetry.ExportOptions{Config: o.Config.Telemetry, Service: Name, Registry: registry, Log: o.Log})
	if err != nil {
		return err
	}
	stack.Add("telemetry", export.Stop)
	ready := manners.NewReadiness("database")
	watch := projection.NewWatch(projection.NextOffsets(db), registry, o.Log)
	reader := projection.NewReader(db, watch)
	pacer := projection.NewPacer(db)
	stack.Go(ctx, "watch", watch.Run)
	stack.Go(ctx, "database watch", func(ctx context.Context) { keep(ctx, db, pacer, ready, fail, o.Log) })

	peers, err := peer.NewClient(peer.Options{CommandURL: o.Config.CommandURL, ConsumerURL: o.Config.ConsumerURL, CAFile: o.Config.CAFile, Log: o.Log})
	if err != nil {
		return err
	}
	stack.Add("connections to other services", func(context.Context) error { peers.Close(); return nil })
	stack.Go(ctx, "health of other services", peers.WatchHealth)
	journeys := journey.NewBook(watch.Await)
	stack.Add("followed tickets", func(context.Context) error { journeys.Close(); return nil })

	var pages *web.Pages // mounted before anything is served
	engine, err := manners.NewEngine(manners.Options{
		Log: o.Log, Registry: registry, Tracer: export.Tracer(), Spec: api.Spec, HTTP: o.Config.HTTP, MaxBody: mostForm,
		Key:    web.Key,
		Refuse: func(c *gin.Context, p problem.Problem) { pages.Refuse(c, p) },
	})
	if err != nil {
		return err
	}
	stack.Go(ctx, "keys and certificate", engine.Watch)
	manners.Mount(engine, Name, ready)
	failures := httpapi.NewFailures(o.Log)
	streams := httpapi.NewStreams(registry)
	if err := httpapi.Mount(ctx, engine.Engine, httpapi.Options{Reader: reader, Pacer: pacer, Failures: failures, Registry: registry, Streams: streams, Peers: peers}); err != nil {
		return err
	}
	pages, err = web.Mount(web.Options{
		Reader: reader, Pacer: pacer, Peers: peers, Journeys: journeys, Ready: ready, Engine: engine, Log: o.Log,
		Problem: func(ctx context.Context, err error) problem.Problem { return failures.Of(ctx, err).Problem },
	})
	if err != nil {
		return err
	}
	server, err := manners.Listen(ctx, engine, projection.LongestWait+15*time.Second, fail)
	if err != nil {
		return err
	}
	stack.Add("server", server.Stop)
	stack.Add("waiting reads", func(context.Context) error {
		ready.Unready("process", "the service is being stopped")
		watch.Release() // a wait of up to 30 s would hold the stop
		streams.Stop()  // and so would a stream
		return nil
	})
	if o.Listening != nil {
		o.Listening(server.Address())
	}
	<-ctx.Done()
	return nil
}

// keep looks at the database each second: whether it answers and has the schema of this release, which
// is what ready says, and how far the projection is, which gives the pace. A schema that is newer at the
// first look ends the run. One that becomes newer later belongs to a release that is being rolled out:
// this process goes out of rotation and answers what it still can.
func keep(ctx context.Context, db *sqlx.DB, pacer *projection.Pacer, ready *manners.Readiness, fail func(error), log *slog.Logger) {
	const every, patience = time.Second, 5 * time.Second
	served, last := false, "starting"
	loop.Every(ctx, every, func(ctx context.Context) {
		reason, err := look(ctx, db, pacer, patience)
		switch {
		case ctx.Err() != nil:
			return
		case errors.Is(err, postgres.ErrNewerSchema) && !served:
			fail(err) // and ctx ends
			return
		case reason == "":
			served = true
			ready.Ready("database")
		default:
			ready.Unready("database", reason)
		}
		if reason != last {
			if reason == "" {
				log.Info("database ready")
			} else {
				log.Warn("database not ready", "reason", reason, "err", err)
			}
			last = reason
		}
	})
}

// look returns why the database cannot be read, or "".
func look(ctx context.Context, db *sqlx.DB, pacer *projection.Pacer, patience time.Duration) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	current, err := postgres.CheckSchema(ctx, db)
	switch {
	case errors.Is(err, postgres.ErrNewerSchema):
		return "the database's schema is newer than this release: run the release that migrated it", err
	case err != nil:
		return "the database does not answer", err
	case !current:
		return fmt.Sprintf("the database has not got schema version %d yet: consumer-service brings it there", postgres.SchemaVersionWanted), nil
	}
	if err := pacer.Sample(ctx); err != nil {
		return "the database does not answer", err
	}
	return "", nil
}

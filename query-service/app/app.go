// Package app wires query-service: a pool of readers, one watch that waits for positions, the JSON
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

	"github.com/tidemark/tidemark/query-service/internal/httpapi"
	"github.com/tidemark/tidemark/query-service/internal/journey"
	"github.com/tidemark/tidemark/query-service/internal/peer"
	"github.com/tidemark/tidemark/query-service/internal/projection"
	"github.com/tidemark/tidemark/query-service/internal/record"
	"github.com/tidemark/tidemark/query-service/internal/ticket"
	"github.com/tidemark/tidemark/query-service/internal/web"
	api "github.com/tidemark/tidemark/shared/api/query"
	"github.com/tidemark/tidemark/shared/certs"
	"github.com/tidemark/tidemark/shared/config"
	sharedhttp "github.com/tidemark/tidemark/shared/httpapi"
	"github.com/tidemark/tidemark/shared/limits"
	"github.com/tidemark/tidemark/shared/loop"
	"github.com/tidemark/tidemark/shared/postgres"
	"github.com/tidemark/tidemark/shared/problem"
	"github.com/tidemark/tidemark/shared/schema"
	"github.com/tidemark/tidemark/shared/service"
)

// Name of the service, in logs and towards the database.
var Name = service.Query.Name

// partDatabase is the one part of its readiness: the database answers and has this release's schema.
const partDatabase = "database"

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

// DefaultConfig is a service on its usual port of this host. Its pool keeps all its connections: readers come
// in bursts, and opening one costs more than ten reads.
func DefaultConfig() Config {
	db := config.DefaultPostgres()
	db.MaxIdleConns = db.MaxOpenConns
	return Config{
		HTTP: config.DefaultHTTP(service.Query.Port), Log: config.Log{Level: "info"}, Postgres: db, Telemetry: config.DefaultTelemetry(),
		CommandURL: service.Command.DefaultURL(), ConsumerURL: service.Consumer.DefaultURL(),
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
	Config    Config               // everything that an operator can set; required
	Log       *slog.Logger         // where the service logs; required
	Listening func(address string) // called once the port is open, with the address that was bound; optional
}

// Run serves until ctx ends, or until it finds something that waiting cannot mend: a port that is taken, or a
// database whose schema is newer than this release (schema.ErrNewer). It waits for a database that is down,
// unready.
func Run(ctx context.Context, o Options) error {
	var pages *web.Pages // mounted before anything is served
	return service.Run(ctx, service.Options{
		Name: Name, Log: o.Log, Telemetry: o.Config.Telemetry, Listening: o.Listening,
		API: sharedhttp.Options{
			HTTP: o.Config.HTTP, Spec: api.Spec, MaxBody: limits.FormBody, MaxBodies: limits.Forms, Key: web.Key,
			Refuse: func(c *gin.Context, p problem.Problem) { pages.Refuse(c, p) },
		},
		Parts: []string{partDatabase},
	}, func(ctx context.Context, s *service.Service) error {
		db, err := postgres.Open(o.Config.Postgres, Name, postgres.ReaderLimits)
		if err != nil {
			return err
		}
		s.Stack.Add("database", func(context.Context) error { return postgres.Close(db) })
		catalog := projection.NewCatalog(db)
		watch := projection.NewWatch(projection.NextOffsets(db, catalog), catalog.Label, s.Registry, o.Log)
		reader := projection.NewReader(db, catalog, watch, s.Registry)
		pacer := projection.NewPacer(db, catalog, s.Registry)
		s.Registry.MustRegister(projection.NewLetterMetrics(reader))
		s.Stack.Go(ctx, "watch", watch.Run)
		s.Stack.Go(ctx, "database watch", func(ctx context.Context) { watchDatabase(ctx, db, pacer, s.Ready, s.Fail, o.Log) })

		peers, err := peer.NewClient(peer.Options{CommandURL: o.Config.CommandURL, ConsumerURL: o.Config.ConsumerURL, CAFile: o.Config.CAFile, Log: o.Log})
		if err != nil {
			return err
		}
		s.Stack.Add("connections to other services", func(context.Context) error { peers.Close(); return nil })
		s.Stack.Go(ctx, "health of other services", peers.WatchHealth)
		journeys := journey.NewBook(watch.Await)
		s.Stack.Add("followed tickets", func(context.Context) error { journeys.Close(); return nil })

		tickets := ticket.NewFinder(reader)
		failures := httpapi.NewFailures(o.Log)
		streams := httpapi.NewStreams(s.Registry)
		httpapi.Mount(s.Engine.Engine, httpapi.Options{Catalog: catalog, Reader: reader, Records: record.NewFinder(reader), Tickets: tickets, Pacer: pacer, Failures: failures, Registry: s.Registry, Streams: streams})
		pages, err = web.Mount(web.Options{
			Catalog: catalog, Reader: reader, Tickets: tickets, Pacer: pacer, Peers: peers, Journeys: journeys, Ready: s.Ready, Engine: s.Engine, Log: o.Log,
			Problem: func(ctx context.Context, err error) problem.Problem { return failures.Of(ctx, err).Problem },
		})
		if err != nil {
			return err
		}
		if err := s.Listen(ctx, projection.LongestWait+15*time.Second); err != nil {
			return err
		}
		s.Stack.Add("waiting reads", func(context.Context) error {
			watch.Release() // a wait of up to 30 s would hold the stop
			streams.Stop()  // and so would a stream
			return nil
		})
		return nil
	})
}

// watchDatabase checks each second whether the database answers and has the schema of this release, and reports that
// to ready. It also samples how far the projections are, which gives their pace. A schema that is newer at the first
// check ends the run. One that becomes newer later belongs to a release that is being rolled out: this process then
// goes out of rotation and answers what it still can.
func watchDatabase(ctx context.Context, db *sqlx.DB, pacer *projection.Pacer, ready *sharedhttp.Readiness, fail func(error), log *slog.Logger) {
	const every, patience = time.Second, 5 * time.Second
	served, last := false, "starting"
	loop.Every(ctx, every, func(ctx context.Context) {
		reason, err := checkDatabase(ctx, db, pacer, patience, served)
		switch {
		case ctx.Err() != nil:
			return
		case errors.Is(err, schema.ErrNewer) && !served:
			fail(err)
			return
		case reason == "":
			served = true
			ready.Ready(partDatabase)
		default:
			ready.Unready(partDatabase, reason)
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

// checkDatabase returns why the database cannot be read, or "". What does not change is looked at until it has been served.
func checkDatabase(ctx context.Context, db *sqlx.DB, pacer *projection.Pacer, patience time.Duration, served bool) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if !served {
		if err := postgres.CheckFit(ctx, db, false); err != nil {
			return causeOf(db, err), err
		}
	}
	current, err := schema.Check(ctx, db)
	switch {
	case errors.Is(err, schema.ErrNewer):
		return "the database's schema is newer than this release: run the release that migrated it", err
	case err != nil:
		return causeOf(db, err), err
	case !current:
		return fmt.Sprintf("the database has not got schema version %d yet: consumer-service brings it there", schema.Wanted), nil
	}
	if err := pacer.Sample(ctx); err != nil {
		return causeOf(db, err), err
	}
	return "", nil
}

func causeOf(db *sqlx.DB, err error) string {
	cause, _ := postgres.CauseIn(db, err) // whatever was asked here was asked of the database
	return cause.Found
}

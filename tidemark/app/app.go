// Package app runs the whole of Tidemark in one process: an embedded broker and a private PostgreSQL, unless the
// configuration names servers of its own, and every service on them.
//
// It promises that a data directory has one run at a time, that what stands in it survives a stop and a kill, that Run
// returns only when everything it started has ended (or the time for that is over), and that the end of any part is the
// end of all. It reads no environment: the caller passes it in.
package app

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/tidemark/tidemark/shared/config"
	"github.com/tidemark/tidemark/shared/lifecycle"
	"github.com/tidemark/tidemark/shared/loop"
	pg "github.com/tidemark/tidemark/shared/postgres"
	"github.com/tidemark/tidemark/shared/schema"
	"github.com/tidemark/tidemark/shared/service"
	"github.com/tidemark/tidemark/shared/telemetry"
	"github.com/tidemark/tidemark/tidemark/embedded/broker"
	"github.com/tidemark/tidemark/tidemark/embedded/postgres"
	"github.com/tidemark/tidemark/tidemark/internal/client"
	"github.com/tidemark/tidemark/tidemark/internal/datadir"
)

// stopWithin is the time for everything to end; a part that outlives it is left to the end of the process.
const stopWithin = 45 * time.Second

// Options of one run.
type Options struct {
	// DataDir holds all that is kept; it is made where it is missing. Required.
	DataDir string
	// Ports to listen on; each has its usual one unless given.
	Ports Ports
	// Environ is what the services are configured by; the defaults unless given. KAFKA_BROKERS and DB_URL name servers
	// that are used instead of the embedded ones.
	Environ map[string]string
	// LogTo gets the logs, LOG_LEVEL and above, or warnings and above where Environ names no level. Required.
	LogTo io.Writer
	// Waiting is called with what a start waits for, where it takes longer; optional.
	Waiting func(reasons []string)
	// Ready is called once every service is ready; optional.
	Ready func(Running)
}

// Ports to listen on. The servers' ports may be zero: then they keep the port of the last start.
type Ports struct {
	Services        map[string]int // by name; one that is not named has its usual port
	Kafka, Postgres int
}

// DefaultPorts lie together, and none of them is the usual one of a Kafka or PostgreSQL that may be there already.
func DefaultPorts() Ports { return Ports{Kafka: 7092, Postgres: 7432} }

func (p Ports) portOf(s service.Spec) int {
	if port, ok := p.Services[s.Name]; ok {
		return port
	}
	return s.Port
}

// Running is where everything is. The URL of the database holds its password.
type Running struct {
	KafkaBrokers      string            `json:"kafka_brokers"`
	ClaimedPartitions int               `json:"claimed_partitions"`
	DBURL             string            `json:"db_url"`
	Services          map[string]string `json:"services"` // base URLs by name
}

// Environ are the variables by which another process joins what runs: a service that is started by hand, or a client.
func (r Running) Environ() map[string]string {
	environ := map[string]string{
		"KAFKA_BROKERS": r.KafkaBrokers, "KAFKA_CLAIMED_PARTITIONS": strconv.Itoa(r.ClaimedPartitions), "DB_URL": r.DBURL,
	}
	for _, s := range service.All() {
		if url := r.Services[s.Name]; url != "" {
			environ[s.URLVariable()] = url
		}
	}
	return environ
}

// runningFile says to other processes what Running says.
const runningFile = "running.json"

// run is one run being wired.
type run struct {
	Options
	log     *slog.Logger
	stack   *lifecycle.Stack
	fail    context.CancelCauseFunc
	running Running

	authorities string // CA file of the services' certificates, where they speak HTTPS
}

// Run starts everything and serves until ctx ends, which is no error, or until any part of it ends, which is one.
func Run(ctx context.Context, o Options) (err error) {
	if err := o.Validate(); err != nil {
		return err
	}
	outer := ctx
	ctx, fail := context.WithCancelCause(outer)
	defer fail(nil)
	r := &run{Options: o, fail: fail}
	if r.log, err = r.logger("tidemark"); err != nil {
		return err
	}
	r.stack = &lifecycle.Stack{Log: r.log}
	defer func() {
		cause := context.Cause(ctx)
		switch {
		case outer.Err() != nil:
			err = nil // it was asked to stop, and what that cut short is no error
		case cause != nil:
			err = cause
		}
		err = errors.Join(err, r.stack.Stop(stopWithin))
	}()

	lock, err := datadir.Acquire(o.DataDir)
	if errors.Is(err, datadir.ErrLocked) {
		return fmt.Errorf("another tidemark up runs here: %w: end that one, or give this one another --data", err)
	}
	if err != nil {
		return err
	}
	r.stack.Add("data directory", func(context.Context) error { return lock.Release() })
	if err := r.refuseLeftovers(ctx); err != nil {
		return err
	}
	if err := o.portsFree(ctx); err != nil {
		return err
	}
	if err := r.servers(ctx); err != nil {
		return err
	}
	if err := r.services(ctx); err != nil {
		return err
	}
	if err := r.awaitReady(ctx); err != nil {
		return err
	}
	if err := r.publish(); err != nil {
		return err
	}
	if o.Ready != nil {
		o.Ready(r.running)
	}
	<-ctx.Done()
	return nil
}

// servers starts the broker and PostgreSQL at the same time, unless the environment names servers.
func (r *run) servers(ctx context.Context) error {
	var log *broker.Broker
	var logErr error
	started := make(chan struct{})
	go func() {
		defer close(started)
		if r.ownKafka() {
			log, logErr = broker.Start(ctx, broker.Options{DataDir: filepath.Join(r.DataDir, "kafka"), Port: r.Ports.Kafka, Log: r.log})
		}
	}()
	var db *postgres.Server
	var dbErr error
	if r.ownPostgres() {
		db, dbErr = postgres.Start(ctx, postgres.Options{
			DataDir: filepath.Join(r.DataDir, "postgres"), Port: r.Ports.Postgres, Log: r.log,
			Fetching: func() { r.waiting("PostgreSQL 18 is being fetched (15 MB), once for this machine") },
		})
	}
	<-started
	if wanted := strings.TrimSpace(r.Environ["KAFKA_CLUSTER_ID"]); log != nil && wanted != "" && wanted != log.ClusterID() {
		logErr = fmt.Errorf("KAFKA_CLUSTER_ID is %s and the log in this data directory is of cluster %s: unset it, or name the brokers of that cluster with KAFKA_BROKERS", wanted, log.ClusterID())
	}
	if log != nil {
		r.running.KafkaBrokers = log.Addresses()[0]
		r.stack.Add("broker", func(context.Context) error { return log.Close() })
	}
	if db != nil {
		r.running.DBURL = db.URL()
		r.stack.Add("PostgreSQL", func(context.Context) error { return db.Close() })
		r.stack.Go(ctx, "watch of PostgreSQL", func(ctx context.Context) {
			select {
			case <-ctx.Done():
			case <-db.Done():
				r.fail(errors.New("the private PostgreSQL has ended by itself: its last lines are in the log above"))
			}
		})
	}
	if errors.Is(dbErr, syscall.EADDRINUSE) {
		dbErr = fmt.Errorf("%w: end what holds the port, or choose another with --postgres-port", dbErr)
	}
	if err := errors.Join(logErr, dbErr); err != nil {
		return err
	}
	return r.keepOwnServers()
}

func (o Options) ownKafka() bool { return o.Environ["KAFKA_BROKERS"] == "" }
func (o Options) ownPostgres() bool {
	return o.Environ["DB_URL"] == "" && o.Environ["DB_URL_FILE"] == ""
}

// services starts each service as soon as what it needs is there: those that wait for the schema after the one that
// makes it.
func (r *run) services(ctx context.Context) error {
	services, c, err := r.configured(r.running)
	if err != nil {
		return err
	}
	r.running.KafkaBrokers = strings.Join(c.Brokers, ",")
	r.running.ClaimedPartitions = c.ClaimedPartitions
	r.running.DBURL = c.URL
	r.running.Services = map[string]string{}
	for _, s := range services {
		r.running.Services[s.Name] = baseURL(c.HTTP, r.Ports.portOf(s.Spec))
	}
	r.authorities = c.CAFile
	waits := func(s Service) bool { return s.Database && !s.Migrates }
	for _, s := range services {
		if waits(s) {
			continue
		}
		if err := r.start(ctx, s.Name, s.Run); err != nil {
			return err
		}
	}
	// They would wait by themselves, and warn of a schema that is moments away.
	r.awaitSchema(ctx, c.Postgres)
	for _, s := range services {
		if !waits(s) {
			continue
		}
		if err := r.start(ctx, s.Name, s.Run); err != nil {
			return err
		}
	}
	return nil
}

// start runs a service until the stack stops it. A service that ends earlier ends everything.
func (r *run) start(ctx context.Context, name string, serve func(context.Context, *slog.Logger) error) error {
	log, err := r.logger(name)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx)) // ends in its turn
	done := make(chan error, 1)
	go func() {
		err := serve(ctx, log)
		if ctx.Err() == nil {
			if err == nil {
				err = errors.New("ended by itself")
			}
			r.fail(fmt.Errorf("%s: %w", name, err))
			err = nil // reported once
		}
		done <- err
	}()
	r.stack.Add(name, func(stopping context.Context) error {
		cancel()
		select {
		case err := <-done:
			return err
		case <-stopping.Done():
			return stopping.Err()
		}
	})
	return nil
}

// awaitSchema returns once the database has been migrated, or when waiting for that is no use or is the services' turn.
func (r *run) awaitSchema(ctx context.Context, c config.Postgres) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	db, err := pg.Open(c, "tidemark", pg.ReaderLimits)
	if err != nil {
		return
	}
	defer func() { _ = db.Close() }()
	for ctx.Err() == nil {
		if current, err := schema.Check(ctx, db); current || errors.Is(err, schema.ErrNewer) {
			return
		}
		_ = loop.Sleep(ctx, 20*time.Millisecond) // the loop looks at ctx
	}
}

// awaitReady returns once all services are ready.
func (r *run) awaitReady(ctx context.Context) error {
	c := client.New(client.Services{URLs: r.running.Services, CAFile: r.authorities})
	defer c.Close()
	tell := time.Now().Add(time.Second)
	for {
		var reasons []string
		for _, s := range c.Ready(ctx) {
			if !s.Ready {
				reasons = append(reasons, s.Reasons()...)
			}
		}
		if len(reasons) == 0 {
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if time.Now().After(tell) {
			r.waiting(reasons...)
			tell = time.Now().Add(time.Second)
		}
		_ = loop.Sleep(ctx, 25*time.Millisecond) // ctx is looked at above
	}
}

func (r *run) waiting(reasons ...string) {
	if r.Waiting != nil {
		r.Waiting(reasons)
	}
}

// publish writes down where everything is, for `tidemark env`.
func (r *run) publish() error {
	if err := datadir.WriteFact(r.DataDir, runningFile, r.running); err != nil {
		return fmt.Errorf("say where everything is: %w", err)
	}
	r.stack.Add("account of what runs", func(context.Context) error { return datadir.RemoveFact(r.DataDir, runningFile) })
	return nil
}

// ErrNotRunning says that nothing runs on a data directory, or that it is not ready yet.
var ErrNotRunning = errors.New("no tidemark up runs")

// errNoDataDir says that none is named. The working directory does not stand in for it.
var errNoDataDir = errors.New("no data directory is named, and HOME, which holds the usual one, is no absolute path: set HOME, or name one with --data")

// Find says where the run on dataDir has everything, or returns ErrNotRunning.
func Find(dataDir string) (Running, error) {
	if dataDir == "" {
		return Running{}, errNoDataDir
	}
	holder, err := datadir.Held(dataDir)
	if err != nil {
		return Running{}, err
	}
	if holder == "" {
		return Running{}, fmt.Errorf("%w on %s", ErrNotRunning, dataDir)
	}
	var running Running
	if err := datadir.ReadFact(dataDir, runningFile, &running); err != nil {
		return Running{}, err
	}
	if running.KafkaBrokers == "" {
		return Running{}, fmt.Errorf("%w on %s: process %s is not ready yet", ErrNotRunning, dataDir, holder)
	}
	return running, nil
}

func (r *run) logger(name string) (*slog.Logger, error) {
	level := r.Environ["LOG_LEVEL"]
	if level == "" {
		level = "warn" // what goes well is said on the page
	}
	var secrets []string
	if services, _, err := r.configured(anywhere); err == nil { // else nothing will be run by it
		for _, s := range services {
			secrets = append(secrets, config.Secrets(s.Config)...)
		}
	}
	return telemetry.NewLogger(r.LogTo, name, level, secrets...)
}

// baseURL is how this host reaches a service at port.
func baseURL(h config.HTTP, port int) string {
	host := h.BindAddress
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	return h.Scheme() + "://" + net.JoinHostPort(host, strconv.Itoa(port))
}

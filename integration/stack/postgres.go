package stack

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/lib/pq"

	"github.com/tidemark/tidemark/shared/freeport"
	"github.com/tidemark/tidemark/shared/loop"
	"github.com/tidemark/tidemark/tidemark/embedded/postgres"
)

// Postgres is a private server in a temporary folder. Signal, Restart and Done are the server's own.
type Postgres struct {
	*postgres.Server
	dir   string
	waits *lockWaits
}

// StartPostgres starts one. It survives kills of its processes but not a power cut: nothing is synced, for speed.
// The context bounds the start only.
func StartPostgres(ctx context.Context) (*Postgres, error) {
	dir, err := os.MkdirTemp("", "tidemark-postgres-")
	if err != nil {
		return nil, fmt.Errorf("start Postgres: %w", err)
	}
	port, err := freeport.Find(ctx)
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	waits := newLockWaits()
	server, err := startServer(ctx, dir, port, waits, nil)
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	return &Postgres{Server: server, dir: dir, waits: waits}, nil
}

// ReadsHeldUp are the lines of the server's log, since its start, about readers of a database that waited longer than a second
// for a table.
func (p *Postgres) ReadsHeldUp(database string) []string {
	p.waits.mu.Lock()
	defer p.waits.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(p.waits.lines), func(line string) bool {
		return !strings.HasPrefix(line, database+" ") || !strings.Contains(line, " still waiting for AccessShareLock ")
	})
}

// lockWaits keeps what the server logs about waits for locks.
type lockWaits struct {
	slog.Handler
	mu    sync.Mutex
	lines []string
}

func newLockWaits() *lockWaits { return &lockWaits{Handler: slog.DiscardHandler} }

func (w *lockWaits) Enabled(context.Context, slog.Level) bool { return true }

func (w *lockWaits) Handle(_ context.Context, r slog.Record) error {
	r.Attrs(func(a slog.Attr) bool {
		if line := a.Value.String(); strings.Contains(line, " still waiting for ") {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.lines = append(w.lines, line)
		}
		return true
	})
	return nil
}

func startServer(ctx context.Context, dir string, port int, waits *lockWaits, more map[string]string) (*postgres.Server, error) {
	settings := map[string]string{
		"fsync": "off", "max_connections": "300", "wal_keep_size": "512MB",
		// Long waits for a lock are logged, those of a second (deadlock_timeout), under the database's name.
		"log_lock_waits": "on", "log_line_prefix": "%d %a: ",
	}
	maps.Copy(settings, more)
	return postgres.Start(ctx, postgres.Options{DataDir: dir, Port: port, Log: slog.New(waits), ExtraSettings: settings})
}

// EnableTLS makes the server show a certificate to whoever asks for TLS, from now on and over restarts.
func (p *Postgres) EnableTLS(ctx context.Context, certFile, keyFile string) error {
	for name, from := range map[string]string{"server.crt": certFile, "server.key": keyFile} { // Postgres' own names
		content, err := os.ReadFile(from)
		if err == nil {
			err = writeClusterFile(p.dir, name, content)
		}
		if err != nil {
			return fmt.Errorf("enable TLS: %w", err)
		}
	}
	for _, statement := range []string{"ALTER SYSTEM SET ssl = on", "SELECT pg_reload_conf()"} {
		if err := execute(ctx, p.URL(), statement); err != nil {
			return fmt.Errorf("enable TLS: %w", err)
		}
	}
	u, err := url.Parse(p.URL())
	if err != nil {
		return fmt.Errorf("enable TLS: %w", err)
	}
	u.RawQuery = "sslmode=require"
	for { // the server reads its files in its own time
		err := execute(ctx, u.String(), "SELECT 1")
		if err == nil {
			return nil
		}
		if loop.Sleep(ctx, 20*time.Millisecond) != nil {
			return fmt.Errorf("enable TLS: %w", err)
		}
	}
}

// writeClusterFile writes a file that the server reads, for the account that it runs under.
func writeClusterFile(dir, name string, content []byte) error {
	cluster := filepath.Join(dir, "cluster")
	owner, err := os.Stat(cluster)
	if err != nil {
		return err
	}
	to := filepath.Join(cluster, name)
	if err := os.WriteFile(to, content, 0o600); err != nil {
		return err
	}
	if as, ok := owner.Sys().(*syscall.Stat_t); ok && int(as.Uid) != os.Geteuid() {
		return os.Chown(to, int(as.Uid), int(as.Gid))
	}
	return nil
}

// Address returns the server's host:port, to put a Proxy before it.
func (p *Postgres) Address() string { return freeport.Address(p.Port()) }

// CreateDatabase makes an empty database and returns its URL.
func (p *Postgres) CreateDatabase(ctx context.Context, name string) (string, error) {
	return CreateDatabase(ctx, p.URL(), name)
}

// Close stops the server and removes its data.
func (p *Postgres) Close() error { return errors.Join(p.Server.Close(), os.RemoveAll(p.dir)) }

// CreateDatabase makes an empty database on the server of that URL and returns the new one's URL.
func CreateDatabase(ctx context.Context, server, name string) (string, error) {
	if err := execute(ctx, server, "CREATE DATABASE "+pq.QuoteIdentifier(name)); err != nil {
		return "", fmt.Errorf("create database %s: %w", name, err)
	}
	u, err := url.Parse(server)
	if err != nil {
		return "", fmt.Errorf("create database %s: %w", name, err)
	}
	u.Path = "/" + name
	return u.String(), nil
}

// DropDatabase throws away the database of that URL, whoever is connected to it, through the server's URL.
func DropDatabase(ctx context.Context, server, database string) error {
	u, err := url.Parse(database)
	if err != nil {
		return fmt.Errorf("drop database: %w", err)
	}
	name := strings.TrimPrefix(u.Path, "/")
	if err := execute(ctx, server, "DROP DATABASE "+pq.QuoteIdentifier(name)+" WITH (FORCE)"); err != nil {
		return fmt.Errorf("drop database %s: %w", name, err)
	}
	return nil
}

// Through returns the database's URL by way of a proxy.
func Through(p *Proxy, database string) (string, error) {
	u, err := url.Parse(database)
	if err != nil {
		return "", fmt.Errorf("database through a proxy: %w", err)
	}
	u.Host = p.Address()
	return u.String(), nil
}

func execute(ctx context.Context, url, statement string) (err error) {
	db, err := sql.Open("postgres", url)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	_, err = db.ExecContext(ctx, statement)
	return err
}

func value(ctx context.Context, url, query string) (v string, err error) {
	db, err := sql.Open("postgres", url)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	return v, db.QueryRowContext(ctx, query).Scan(&v)
}

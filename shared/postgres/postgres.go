// Package postgres opens the database for Tidemark's services and sorts its errors by what to do
// about them. It leaves the tables to the consumer-service's migrations and the queries to the nouns.
package postgres

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
	"time"

	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"

	"github.com/tidemark/tidemark/shared/certs"
	"github.com/tidemark/tidemark/shared/config"
)

// Limits end what a stopped or stuck client would hold for ever: a process stopped inside an open
// transaction keeps its locks, and so blocks its successor, until the server's patience ends.
type Limits struct {
	IdleInTransaction time.Duration
	Lock              time.Duration
	Statement         time.Duration
}

// WriterLimits are those of every writer of the projection.
var WriterLimits = Limits{IdleInTransaction: 5 * time.Second, Lock: 10 * time.Second, Statement: 60 * time.Second}

// ReaderLimits are those of whoever only reads: a list or a status is bounded, so what takes longer is
// stuck, and a lock that is not given soon is better answered with "try again".
var ReaderLimits = Limits{IdleInTransaction: 5 * time.Second, Lock: 3 * time.Second, Statement: 10 * time.Second}

// Open returns a pool for c. It does not connect: a database that is away at start is waited for by
// whoever uses the pool. Arguments travel in binary, []byte as they are, so an array goes over as one
// parameter without being printed and parsed.
func Open(c config.Postgres, application string, limits Limits) (*sqlx.DB, error) {
	dsn, err := dsn(c.URL, application, limits)
	if err != nil {
		return nil, err
	}
	inner, err := pq.NewConnector(dsn)
	if err != nil {
		return nil, errors.New("DB_URL: lib/pq cannot read it") // its own words may hold the password
	}
	db := sqlx.NewDb(sql.OpenDB(connector{inner, rootOf(c.URL)}), "postgres")
	db.SetMaxOpenConns(c.MaxOpenConns)
	db.SetMaxIdleConns(c.MaxIdleConns)
	db.SetConnMaxLifetime(c.ConnMaxLifetime)
	return db, nil
}

// Close closes the pool. That a connection was lost before, over which TLS would have said goodbye, is no
// error: it is closed all the same.
func Close(db *sqlx.DB) error {
	err := db.Close()
	var lost *net.OpError
	if errors.As(err, &lost) {
		return nil
	}
	return err
}

// Beginner is a pool or a connection.
type Beginner interface {
	BeginTxx(ctx context.Context, o *sql.TxOptions) (*sqlx.Tx, error)
}

// Tx runs do in a transaction, which is rolled back where do fails; its error comes back as it is.
func Tx(ctx context.Context, db Beginner, do func(*sqlx.Tx) error) error {
	tx, err := db.BeginTxx(ctx, nil)
	if err != nil {
		return fmt.Errorf("begin: %w", err)
	}
	if err := do(tx); err != nil {
		_ = tx.Rollback() // err says more
		return err
	}
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	return nil
}

// connector says which setting a connection that fails over its certificate points at.
type connector struct {
	driver.Connector
	root string // sslrootcert of DB_URL
}

func (c connector) Connect(ctx context.Context) (driver.Conn, error) {
	conn, err := c.Connector.Connect(ctx)
	switch {
	case err == nil:
		return conn, nil
	case errors.Is(err, pq.ErrSSLNotSupported):
		return nil, fmt.Errorf("the database does not speak TLS, which sslmode of DB_URL asks for: %w", err)
	}
	return nil, certs.Untrusted(err, "sslrootcert of DB_URL", c.root)
}

func rootOf(raw string) string {
	u, err := url.Parse(raw)
	if err != nil { // it was read before
		return ""
	}
	return u.Query().Get("sslrootcert")
}

func dsn(raw, application string, l Limits) (string, error) {
	u, err := url.Parse(raw)
	if err != nil {
		return "", errors.New("DB_URL is no URL")
	}
	q := u.Query()
	set := func(name, value string) {
		if !q.Has(name) { // what the operator says in the URL wins
			q.Set(name, value)
		}
	}
	q.Set("binary_parameters", "yes")
	set("application_name", application)
	set("connect_timeout", "5")
	q.Set("timezone", "UTC")
	for name, d := range map[string]time.Duration{
		"idle_in_transaction_session_timeout": l.IdleInTransaction, "lock_timeout": l.Lock, "statement_timeout": l.Statement,
	} {
		if d > 0 {
			set(name, fmt.Sprint(d.Milliseconds()))
		}
	}
	u.RawQuery = q.Encode()
	return u.String(), nil
}

// State returns the SQLSTATE of err, or "" where the server said none.
func State(err error) string {
	var e *pq.Error
	if errors.As(err, &e) {
		return string(e.Code)
	}
	return ""
}

// Constraint returns the name of the constraint that err is about, or "".
func Constraint(err error) string {
	var e *pq.Error
	if errors.As(err, &e) {
		return e.Constraint
	}
	return ""
}

// Qualified names tables with their schema, quoted and separated by commas, as LOCK TABLE wants them.
func Qualified(schema string, tables ...string) string {
	names := make([]string, len(tables))
	for i, t := range tables {
		names[i] = Quoted(schema) + "." + Quoted(t)
	}
	return strings.Join(names, ", ")
}

// Quoted prints a name as it stands in a statement.
func Quoted(name string) string { return pq.QuoteIdentifier(name) }

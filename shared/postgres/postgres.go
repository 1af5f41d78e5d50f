// Package postgres opens the database for Tidemark's services, bounds how long they may hold its locks, and reads
// the codes of its errors. The tables are left to shared/schema, and the queries to the packages that make them.
package postgres

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"

	"github.com/tidemark/tidemark/shared/config"
)

// Limits say what a session may do, and end what a stopped or stuck client would hold for ever: a process that is stopped
// inside an open transaction keeps its locks, and so blocks its successor, until the server closes its connection. A
// limit of 0 is none, whatever is set for the server, the database or the role.
type Limits struct {
	IdleInTransaction time.Duration // how long a transaction may wait for its client's next statement
	Lock              time.Duration // how long a statement may wait for a lock
	Statement         time.Duration // how long a statement may run
	ReadOnly          bool          // whether the sessions only read, so that a server that takes no writes will do
}

// WriterLimits are those of every process that writes projections.
var WriterLimits = Limits{IdleInTransaction: 5 * time.Second, Lock: 10 * time.Second, Statement: 60 * time.Second}

// ReaderLimits are those of a process that only reads. Its lists are bounded, so a statement that takes longer is
// stuck, and where a lock is not given soon the answer "try again" is better than the wait.
var ReaderLimits = Limits{IdleInTransaction: 5 * time.Second, Lock: 3 * time.Second, Statement: 10 * time.Second, ReadOnly: true}

// Open returns a pool for c. It does not connect, so it succeeds while the database is down, and whoever uses
// the pool waits. Arguments travel in binary, []byte as they are. So an array is one parameter, which is
// neither printed nor parsed.
func Open(c config.Postgres, application string, limits Limits) (*sqlx.DB, error) {
	d, err := c.Database()
	if err != nil {
		return nil, err
	}
	connector, err := newConnector(d, application, limits)
	if err != nil {
		return nil, err
	}
	db := sqlx.NewDb(sql.OpenDB(connector), "postgres")
	db.SetMaxOpenConns(c.MaxOpenConns)
	db.SetMaxIdleConns(c.MaxIdleConns)
	db.SetConnMaxLifetime(c.ConnMaxLifetime)
	return db, nil
}

// Close closes the pool. TLS cannot end a connection properly that was lost before. That is no error: the
// connection is closed all the same.
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

package postgres

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/lib/pq"

	"github.com/tidemark/tidemark/shared/certs"
	"github.com/tidemark/tidemark/shared/config"
)

// connector opens the sessions of one pool, and discards all of them once one turns out to be on a server that cannot do
// its work.
//
// A session that was good when it was opened may not stay so: its server becomes read-only, or a proxy leads it
// to another one after a failover. The server then refuses statements and keeps the session, and so would the pool, for as
// long as DB_CONN_MAX_LIFETIME. So the sessions of a pool are of one generation. An error that says "wrong server" ends the
// generation: each session of it is closed when it comes back to the pool or is about to be used again, and what is opened
// from then on chooses its server anew. Sessions that their server ends are lib/pq's to notice.
type connector struct {
	driver.Connector
	setUp      string // the statements that every session begins with
	root       string // sslrootcert of DB_URL
	generation atomic.Int64
}

func newConnector(d config.Database, application string, limits Limits) (*connector, error) {
	inner, err := pq.NewConnectorConfig(driverConfig(d, application, limits))
	if err != nil {
		return nil, errors.New("DB_URL: the driver cannot use it") // its own words may hold the password
	}
	return &connector{Connector: inner, setUp: setUpOf(d, limits), root: d.Connection["sslrootcert"]}, nil
}

// driverConfig is made here and not by pq.NewConfig, which lets PG* variables of the environment stand in for what the URL
// does not say, and refuses to start over one that it does not support. Files in the home directory are kept out too.
func driverConfig(d config.Database, application string, limits Limits) pq.Config {
	c := pq.Config{
		User: d.User, Password: d.Password, Database: d.Name, Host: d.Hosts[0].Name, Port: d.Hosts[0].Port,
		Passfile:        nowhere,
		Options:         d.Connection["options"],
		ApplicationName: application,
		SSLMode:         pq.SSLMode(d.Connection["sslmode"]), SSLNegotiation: pq.SSLNegotiation(d.Connection["sslnegotiation"]),
		SSLRootCert: "system", SSLCert: nowhere, SSLKey: d.Connection["sslkey"], SSLSNI: true,
		ConnectTimeout:     5 * time.Second,
		BinaryParameters:   true,
		ClientEncoding:     "UTF8",
		Datestyle:          "ISO, MDY",
		TargetSessionAttrs: targetOf(d, limits),
		LoadBalanceHosts:   pq.LoadBalanceHosts(d.Connection["load_balance_hosts"]),
		MinProtocolVersion: pq.ProtocolVersion30, MaxProtocolVersion: pq.ProtocolVersion30,
	}
	for _, h := range d.Hosts[1:] {
		c.Multi = append(c.Multi, pq.ConfigMultihost{Host: h.Name, Port: h.Port})
	}
	if strings.HasPrefix(c.Host, "/") {
		c.SSLMode = pq.SSLModeDisable // as libpq has it: there is no TLS on a Unix socket
	}
	if name := d.Connection["application_name"]; name != "" {
		c.ApplicationName = name
	}
	if root := d.Connection["sslrootcert"]; root != "" {
		c.SSLRootCert = root
	}
	if cert := d.Connection["sslcert"]; cert != "" {
		c.SSLCert = cert
	}
	if n, err := time.ParseDuration(d.Connection["connect_timeout"] + "s"); err == nil { // else it is not given
		c.ConnectTimeout = n
	}
	return c
}

// nowhere is a file that is never there: lib/pq looks in the home directory for one that is not named.
const nowhere = "/dev/null/none"

// targetOf says which of the hosts will do. Whoever writes needs one that takes writes. A reader is content with the one
// host there is, which may be a standby; of several it takes the primary, since one of the others may have fallen behind,
// unless the URL says which.
func targetOf(d config.Database, limits Limits) pq.TargetSessionAttrs {
	switch target := d.Connection["target_session_attrs"]; {
	case !limits.ReadOnly:
		return pq.TargetSessionAttrsReadWrite
	case target != "":
		return pq.TargetSessionAttrs(target)
	case len(d.Hosts) > 1:
		return pq.TargetSessionAttrsPrimary
	}
	return pq.TargetSessionAttrsAny
}

// setUpOf returns the statements that make a session what Tidemark expects, whatever was set for the server, the database
// or the role. They are sent after connecting: a pooler refuses to connect with settings that it does not know.
func setUpOf(d config.Database, limits Limits) string {
	settings := map[string]string{
		"timezone":                            "UTC",
		"search_path":                         "public", // the first migrations name no schema
		"default_transaction_isolation":       "read committed",
		"idle_in_transaction_session_timeout": milliseconds(limits.IdleInTransaction),
		"lock_timeout":                        milliseconds(limits.Lock),
		"statement_timeout":                   milliseconds(limits.Statement),
	}
	maps.Copy(settings, d.Session) // what the operator says in the URL wins
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		fmt.Fprintf(&b, "SET %s TO %s;", name, pq.QuoteLiteral(settings[name]))
	}
	return b.String()
}

func milliseconds(d time.Duration) string { return fmt.Sprint(d.Milliseconds()) }

// Connect opens a session on a server that will do, and sets it up.
func (c *connector) Connect(ctx context.Context) (driver.Conn, error) {
	generation := c.generation.Load()
	conn, err := c.Connector.Connect(ctx)
	if err != nil {
		return nil, failureOf(certs.Untrusted(err, "sslrootcert of DB_URL", c.root))
	}
	inner, ok := conn.(session)
	if !ok {
		return nil, errors.Join(fmt.Errorf("the driver's connection, a %T, lacks a method that is needed", conn), conn.Close())
	}
	if _, err := inner.ExecContext(ctx, c.setUp, nil); err != nil {
		return nil, failureOf(errors.Join(fmt.Errorf("set up the session: %w", err), conn.Close()))
	}
	return &watched{inner, c, generation}, nil
}

// session is what a connection of lib/pq can do.
type session interface {
	driver.Conn
	driver.ConnBeginTx
	driver.ConnPrepareContext
	driver.ExecerContext
	driver.NamedValueChecker
	driver.Pinger
	driver.QueryerContext
	driver.SessionResetter
	driver.Validator
}

// failure is an error that the database gave, or the way to it. A type of its own tells it from an error of the broker, which
// may be the same one of the network.
type failure struct{ error }

func (f *failure) Unwrap() error { return f.error }

func failureOf(err error) error {
	if err == nil || errors.Is(err, driver.ErrSkip) { // which is no error, and compared by database/sql
		return err
	}
	return &failure{err}
}

// watched is a session whose errors are looked at for a sign that it is on the wrong server.
type watched struct {
	session
	pool       *connector
	generation int64
}

// look returns err, and ends the generation of sessions where it says that they are on the wrong server.
func (w *watched) look(err error) error {
	if State(err) == "25006" { // read_only_sql_transaction: a statement that writes
		w.pool.generation.CompareAndSwap(w.generation, w.generation+1)
	}
	return failureOf(err)
}

// BeginTx begins a transaction. A server that cannot even do that, such as a standby for a transaction that may write,
// is the wrong one, whatever the error.
func (w *watched) BeginTx(ctx context.Context, o driver.TxOptions) (driver.Tx, error) {
	tx, err := w.session.BeginTx(ctx, o)
	if State(err) != "" {
		w.pool.generation.CompareAndSwap(w.generation, w.generation+1)
	}
	return tx, failureOf(err)
}

// ExecContext runs a statement.
func (w *watched) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	result, err := w.session.ExecContext(ctx, query, args)
	return result, w.look(err)
}

// QueryContext runs a query. lib/pq returns the error of a statement that is refused here, and not with its rows.
func (w *watched) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	rows, err := w.session.QueryContext(ctx, query, args)
	return rows, w.look(err)
}

// PrepareContext prepares a statement, whose errors are looked at too.
func (w *watched) PrepareContext(ctx context.Context, query string) (driver.Stmt, error) {
	stmt, err := w.session.PrepareContext(ctx, query)
	if err != nil {
		return nil, w.look(err)
	}
	if s, ok := stmt.(preparedStatement); ok {
		return &watchedStatement{s, w}, nil
	}
	return stmt, nil // a COPY
}

// ResetSession is asked before the session is used again.
func (w *watched) ResetSession(ctx context.Context) error {
	if !w.current() {
		return driver.ErrBadConn
	}
	return w.session.ResetSession(ctx)
}

// IsValid is asked before the session is put back into the pool.
func (w *watched) IsValid() bool { return w.current() && w.session.IsValid() }

func (w *watched) current() bool { return w.generation == w.pool.generation.Load() }

type preparedStatement interface {
	driver.Stmt
	driver.StmtExecContext
	driver.StmtQueryContext
}

type watchedStatement struct {
	preparedStatement
	session *watched
}

// ExecContext runs the statement.
func (s *watchedStatement) ExecContext(ctx context.Context, args []driver.NamedValue) (driver.Result, error) {
	result, err := s.preparedStatement.ExecContext(ctx, args)
	return result, s.session.look(err)
}

// QueryContext runs the query.
func (s *watchedStatement) QueryContext(ctx context.Context, args []driver.NamedValue) (driver.Rows, error) {
	rows, err := s.preparedStatement.QueryContext(ctx, args)
	return rows, s.session.look(err)
}

package postgres

import (
	"context"
	"crypto/x509"
	"database/sql/driver"
	"errors"
	"io"
	"net"
	"strings"
	"syscall"

	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"
)

// Cause is why the database could not do what was asked of it.
type Cause struct {
	Found string // in words for everybody: it names no user, no host and no address
	Do    string // what an operator does about it
}

func (c Cause) String() string { return c.Found }

// CauseIn is CauseOf for what a use of the pool returned. It may have been given no connection to begin with. The second
// result is whether err came from the database or the way to it, and not from something else that was asked beside it.
func CauseIn(pool *sqlx.DB, err error) (Cause, bool) {
	var f *failure
	var u *UnfitError
	if errors.As(err, &f) || errors.As(err, &u) || State(err) != "" || errors.Is(err, driver.ErrBadConn) {
		return CauseOf(err), true
	}
	if s := pool.Stats(); errors.Is(err, context.DeadlineExceeded) && s.MaxOpenConnections > 0 && s.InUse >= s.MaxOpenConnections {
		return Cause{
			"no connection to the database is free: the service uses all of its DB_MAX_OPEN_CONNS",
			"look at pg_stat_activity for what they wait for; where the database has room, raise DB_MAX_OPEN_CONNS",
		}, true
	}
	return CauseOf(err), false
}

// CauseOf says why err happened. It is the one table of these words: /ready, doctor and the pages show them, and the log
// has err beside them.
func CauseOf(err error) Cause {
	if err == nil {
		return Cause{}
	}
	var u *UnfitError
	if errors.As(err, &u) {
		return u.Cause
	}
	for _, row := range causes {
		if row.is(err) {
			return row.Cause
		}
	}
	return Cause{"the database does not do as it should; the service's log says more", "look into the log of the service and of PostgreSQL"}
}

const startIt = `start PostgreSQL, or set DB_URL to where it is (eval "$(tidemark env)" names that of a running tidemark up)`

var readOnlyCause = Cause{
	"the database is read-only: it is a standby, or default_transaction_read_only is on",
	"promote a standby, name the primary in DB_URL, or switch default_transaction_read_only off; the services go on by themselves then",
}

// causes are looked through in this order. Where DB_URL names several hosts, an error holds one for each of them; the
// first row that fits any of them counts. So what an operator must mend stands before what passes by itself.
var causes = []struct {
	is func(error) bool
	Cause
}{
	{states("28P01"), Cause{"the database refuses the user or the password of DB_URL", "correct them in DB_URL (or in the file of DB_URL_FILE)"}},
	{states("28"), Cause{"the database does not let this user in from here (pg_hba.conf)", "add a line to pg_hba.conf for the user, the database and this host, or correct DB_URL; where only TLS is let in, set sslmode=require or stricter"}},
	{states("3D000"), Cause{"the database that DB_URL names does not exist", "create it, or correct its name in DB_URL"}},
	{states("42704", "22023"), Cause{"the database does not know a setting of DB_URL, or the value that it has there", "correct what follows the question mark of DB_URL"}},
	{states("08P01"), Cause{"what answers at the address of DB_URL refuses the connection's settings: it is a pooler, or no PostgreSQL", "see docs/runbook.md for what a pooler must be"}},
	{states("42501"), Cause{"the user of DB_URL lacks a right in the database", "grant it: tidemark doctor names it"}},
	{states("42P01"), Cause{"the database has not got Tidemark's tables, or not those of this release", "start consumer-service, which makes them"}},
	{states("3F000"), Cause{"the database has no schema public", "CREATE SCHEMA public, and let the user of DB_URL create in it"}},
	{func(err error) bool { return errors.Is(err, pq.ErrSSLNotSupported) }, Cause{"the database does not speak TLS, which sslmode of DB_URL asks for", "switch TLS on in PostgreSQL (ssl = on), or choose another sslmode"}},
	{untrusted, Cause{"the certificate of the database is not trusted", "name the authority that signed it in sslrootcert of DB_URL, and the host that it was made for in DB_URL"}},
	{func(err error) bool { var e *net.DNSError; return errors.As(err, &e) && e.IsNotFound }, Cause{"the host that DB_URL names is unknown", "correct the host in DB_URL, or the resolver of this machine"}},
	{func(err error) bool { var e *net.DNSError; return errors.As(err, &e) }, Cause{"the host that DB_URL names cannot be looked up: the resolver does not answer", "mend the resolver of this machine"}},
	{states("53300"), Cause{"the database has too many connections", "raise max_connections of PostgreSQL, or lower DB_MAX_OPEN_CONNS of the services"}},
	{states("53"), Cause{"the database is out of memory or disk", "give PostgreSQL more of what its log names"}},
	{readOnly, readOnlyCause},
	{states("57P03"), Cause{"the database is starting up, shutting down or recovering", "wait; its log says how far it is"}},
	{states("57P01", "57P02", "57P04", "57P05"), Cause{"the database has ended the connection", "wait; look into PostgreSQL's log for who ended it"}},
	{func(err error) bool { return errors.Is(err, syscall.ECONNREFUSED) }, Cause{"nothing listens at the address that DB_URL names", startIt}},
	{func(err error) bool {
		return errors.Is(err, syscall.EHOSTUNREACH) || errors.Is(err, syscall.ENETUNREACH)
	}, Cause{"there is no way to the host that DB_URL names", "mend the network, or correct the host in DB_URL"}},
	{states("57014", "55P03"), Cause{"the database is too busy: a statement took longer than it may", "look at pg_stat_activity for what holds it up"}},
	{timedOut, Cause{"the database does not answer in time", "look whether it is overloaded, or whether a firewall drops the packets"}},
	{func(err error) bool {
		var e *net.OpError
		return errors.Is(err, driver.ErrBadConn) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.As(err, &e)
	}, Cause{"the connection to the database was lost, or what answers there is no PostgreSQL", startIt}},
}

// states recognises an error by its SQLSTATE, or by the class of it (two characters).
func states(which ...string) func(error) bool {
	return func(err error) bool {
		state := State(err)
		for _, s := range which {
			if state != "" && strings.HasPrefix(state, s) {
				return true
			}
		}
		return false
	}
}

func untrusted(err error) bool {
	var authority x509.UnknownAuthorityError
	var host x509.HostnameError
	var invalid x509.CertificateInvalidError
	return errors.As(err, &authority) || errors.As(err, &host) || errors.As(err, &invalid)
}

// readOnly recognises a server that takes no writes: by the state of a statement that it refused, or by what lib/pq says of a
// session that is not what target_session_attrs asks for. That error has no type, so its words must do; a test on
// a real server holds them.
func readOnly(err error) bool {
	return State(err) == "25006" || strings.Contains(err.Error(), "session is read-only") || strings.Contains(err.Error(), "server is in hot standby mode")
}

func timedOut(err error) bool {
	var e net.Error
	return errors.Is(err, context.DeadlineExceeded) || errors.As(err, &e) && e.Timeout()
}

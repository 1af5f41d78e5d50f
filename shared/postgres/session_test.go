package postgres

import (
	"database/sql"
	"net/url"
	"testing"

	"github.com/jmoiron/sqlx"
	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/shared/await"
	"github.com/tidemark/tidemark/shared/config"
	"github.com/tidemark/tidemark/shared/postgres/postgrestest"
)

func open(t *testing.T, c config.Postgres, limits Limits) *sqlx.DB {
	t.Helper()
	db, err := Open(c, "test", limits)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, db.Close()) })
	return db
}

// fill opens n sessions of the pool, runs statement on each of them, and gives them back idle.
func fill(t *testing.T, db *sqlx.DB, n int, statement string) {
	t.Helper()
	var all []*sql.Conn
	for range n {
		conn, err := db.Conn(t.Context())
		require.NoError(t, err)
		all = append(all, conn)
		_, err = conn.ExecContext(t.Context(), statement)
		require.NoError(t, err)
	}
	for _, conn := range all {
		require.NoError(t, conn.Close())
	}
	require.Equal(t, n, db.Stats().OpenConnections)
}

// A server that becomes read-only keeps its sessions, and so would the pool, for as long as DB_CONN_MAX_LIFETIME. Here
// each session is told so by hand, which looks the same to its client.
func TestOneErrorOfAReadOnlyServerDiscardsEverySession(t *testing.T) {
	t.Parallel()
	const sessions = 6
	insert := func(db *sqlx.DB) error {
		_, err := db.ExecContext(t.Context(), `INSERT INTO written VALUES (1)`)
		return err
	}
	for name, find := range map[string]func(*sqlx.DB) error{
		"a statement": insert,
		"a query": func(db *sqlx.DB) error {
			var n int
			return db.GetContext(t.Context(), &n, `INSERT INTO written VALUES ($1) RETURNING n`, 1)
		},
		"a prepared statement": func(db *sqlx.DB) error {
			statement, err := db.PreparexContext(t.Context(), `INSERT INTO written VALUES ($1)`)
			if err != nil {
				return err
			}
			defer func() { require.NoError(t, statement.Close()) }()
			_, err = statement.ExecContext(t.Context(), 1)
			return err
		},
		"a transaction": func(db *sqlx.DB) error {
			return Tx(t.Context(), db, func(tx *sqlx.Tx) error {
				if _, err := tx.ExecContext(t.Context(), `SET TRANSACTION READ ONLY`); err != nil {
					return err
				}
				_, err := tx.ExecContext(t.Context(), `INSERT INTO written VALUES (1)`)
				return err
			})
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := fresh(t)
			c.MaxIdleConns = sessions
			db := open(t, c, WriterLimits)
			_, err := db.ExecContext(t.Context(), `CREATE TABLE written (n int)`)
			require.NoError(t, err)
			fill(t, db, sessions, `SET default_transaction_read_only = on`)
			err = find(db)
			require.Equal(t, "25006", State(err), "%v", err)
			for range 3 * sessions {
				require.NoError(t, insert(db))
			}
		})
	}
}

func TestWritersGoOnOnceTheDatabaseTakesWritesAgain(t *testing.T) {
	t.Parallel()
	c := fresh(t)
	c.MaxIdleConns = 6
	writer := open(t, c, WriterLimits)
	_, err := writer.ExecContext(t.Context(), `CREATE TABLE written (n int)`)
	require.NoError(t, err)
	fill(t, writer, 6, `SELECT 1`)
	insert := func() error {
		_, err := writer.ExecContext(t.Context(), `INSERT INTO written VALUES (1)`)
		return err
	}
	postgrestest.SetReadOnly(t, c.URL, true)
	await.Until(t, func() bool { err = insert(); return CauseOf(err).Found == readOnlyCause.Found }, "%v", err)
	require.NoError(t, open(t, c, ReaderLimits).PingContext(t.Context()), "who only reads needs no server that takes writes")
	postgrestest.SetReadOnly(t, c.URL, false)
	for range 12 {
		require.NoError(t, insert(), "no session of the time before is left")
	}
}

// PG* variables stand in for what a URL does not say, for libpq and for lib/pq's own connectors. Whoever runs a service
// has set them for psql, or not at all.
func TestTheDriverSeesNoVariablesOfTheEnvironment(t *testing.T) {
	c := fresh(t)
	for name, value := range map[string]string{
		"PGGSSENCMODE":  "disable", // lib/pq refuses to start over those that it does not support
		"PGREQUIREPEER": "me", "PGSERVICE": "nobody", "PGSERVICEFILE": "/none", "PGSYSCONFDIR": "/none", "PGREALM": "X",
		"PGHOST": "192.0.2.1", "PGHOSTADDR": "192.0.2.1", "PGPORT": "1", "PGUSER": "nobody", "PGPASSWORD": "wrong", "PGDATABASE": "none", "PGPASSFILE": "/none",
		"PGSSLMODE": "verify-full", "PGSSLROOTCERT": "/none", "PGSSLCERT": "/none", "PGSSLKEY": "/none", "PGTARGETSESSIONATTRS": "standby",
		"PGOPTIONS": "-c default_transaction_read_only=on", "PGTZ": "Asia/Tokyo", "PGDATESTYLE": "German", "PGCLIENTENCODING": "LATIN1", "PGAPPNAME": "stranger", "PGCONNECT_TIMEOUT": "soon",
	} {
		t.Setenv(name, value)
	}
	u, err := url.Parse(c.URL)
	require.NoError(t, err)
	db := open(t, c, WriterLimits)
	var got struct {
		User, Database, Application, Zone, Only string
	}
	require.NoError(t, db.GetContext(t.Context(), &got, `SELECT current_user AS user, current_database() AS database, current_setting('application_name') AS application,
		current_setting('TimeZone') AS zone, current_setting('default_transaction_read_only') AS only`))
	require.Equal(t, []string{u.User.Username(), u.Path[1:], "test", "UTC", "off"}, []string{got.User, got.Database, got.Application, got.Zone, got.Only})
}

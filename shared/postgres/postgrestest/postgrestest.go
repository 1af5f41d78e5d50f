// Package postgrestest gives each test a database of its own on the server that TEST_DB_URL names, empty or with this
// release's schema, so that tests run side by side. Without a server the test fails; it never skips.
package postgrestest

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
	_ "github.com/lib/pq" // the driver
	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/shared/schema"
)

// New makes an empty database and returns its URL. It is dropped when the test ends, whoever is still
// connected to it.
func New(t testing.TB) string {
	t.Helper()
	return create(t, connect(t), "")
}

// Migrated makes a database that has this release's schema and returns its URL. It is a copy of a template that the
// server keeps for the tests that follow, which is a few times faster than migrating it; its identity is its own.
func Migrated(t testing.TB) string {
	t.Helper()
	admin := connect(t)
	address := create(t, admin, ensureTemplate(t, admin))
	db, err := sqlx.Connect("postgres", address)
	require.NoError(t, err)
	_, err = db.ExecContext(t.Context(), `UPDATE public.database_identity SET database_id = gen_random_uuid()`)
	require.NoError(t, err)
	require.NoError(t, db.Close())
	return address
}

// SetReadOnly makes a test's database refuse writes, or take them again, and ends its sessions, as an operator does it.
func SetReadOnly(t testing.TB, address string, on bool) {
	t.Helper()
	u, err := url.Parse(address)
	require.NoError(t, err)
	name := strings.TrimPrefix(u.Path, "/")
	admin := connect(t)
	_, err = admin.ExecContext(t.Context(), fmt.Sprintf("ALTER DATABASE %s SET default_transaction_read_only = %t", name, on))
	require.NoError(t, err)
	_, err = admin.ExecContext(t.Context(), `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1`, name)
	require.NoError(t, err)
}

// server is the URL that tests are given.
func server(t testing.TB) string {
	t.Helper()
	address := os.Getenv("TEST_DB_URL") //nolint:forbidigo // where tests find their server
	require.NotEmpty(t, address, "TEST_DB_URL must name a Postgres server on which databases may be made, such as postgres://postgres@127.0.0.1:5432/postgres?sslmode=disable; make test sets it")
	return address
}

// connect opens the server's own database until the test ends.
func connect(t testing.TB) *sqlx.DB {
	t.Helper()
	admin, err := sqlx.Connect("postgres", server(t))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, admin.Close()) })
	return admin
}

// create makes a database for the time of the test, a copy of template where one is named.
func create(t testing.TB, admin *sqlx.DB, template string) string {
	t.Helper()
	name := "test_" + strings.ReplaceAll(uuid.NewString(), "-", "")
	statement := "CREATE DATABASE " + name
	if template != "" {
		statement += " TEMPLATE " + template
	}
	_, err := admin.ExecContext(t.Context(), statement)
	require.NoError(t, err)
	t.Cleanup(func() {
		_, err := admin.ExecContext(context.Background(), "DROP DATABASE "+name+" WITH (FORCE)") // the test's context has ended
		require.NoError(t, err)
	})
	return addressOf(t, name)
}

// addressOf is the URL of another database of the server.
func addressOf(t testing.TB, name string) string {
	t.Helper()
	u, err := url.Parse(server(t))
	require.NoError(t, err)
	u.Path = "/" + name
	return u.String()
}

// templateLock is the advisory lock under which the template is made; several processes test at once.
const templateLock = 7081_7432

// ensureTemplate returns the name of a migrated database, which it makes where it is missing. The name is that of the
// migrations' content, so a change of one makes another template. What a killed test left half made bears another name.
func ensureTemplate(t testing.TB, admin *sqlx.DB) string {
	t.Helper()
	name := "template_" + contentHash(t)
	conn, err := admin.Connx(t.Context())
	require.NoError(t, err)
	defer func() { require.NoError(t, conn.Close()) }()
	_, err = conn.ExecContext(t.Context(), `SELECT pg_advisory_lock($1)`, templateLock)
	require.NoError(t, err)
	defer func() {
		_, err := conn.ExecContext(context.WithoutCancel(t.Context()), `SELECT pg_advisory_unlock($1)`, templateLock)
		require.NoError(t, err)
	}()
	var there bool
	require.NoError(t, conn.GetContext(t.Context(), &there, `SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)`, name))
	if there {
		return name
	}
	unfinished := name + "_unfinished"
	_, err = conn.ExecContext(t.Context(), "DROP DATABASE IF EXISTS "+unfinished+" WITH (FORCE)")
	require.NoError(t, err)
	_, err = conn.ExecContext(t.Context(), "CREATE DATABASE "+unfinished)
	require.NoError(t, err)
	db, err := sqlx.Connect("postgres", addressOf(t, unfinished))
	require.NoError(t, err)
	require.NoError(t, schema.Apply(t.Context(), db))
	require.NoError(t, db.Close())
	_, err = conn.ExecContext(t.Context(), "ALTER DATABASE "+unfinished+" RENAME TO "+name)
	require.NoError(t, err)
	return name
}

// contentHash is of the names and the texts of the migrations.
func contentHash(t testing.TB) string {
	t.Helper()
	all := schema.Migrations()
	names, err := fs.Glob(all, "*.sql")
	require.NoError(t, err)
	h := sha256.New()
	for _, name := range names {
		text, err := fs.ReadFile(all, name)
		require.NoError(t, err)
		_, _ = fmt.Fprintf(h, "%s %d\n%s", name, len(text), text)
	}
	return hex.EncodeToString(h.Sum(nil)[:8])
}

// Package postgrestest gives each test an empty database of its own on the server that TEST_DB_URL
// names, so that tests run side by side. Without a server the test fails; it never skips.
package postgrestest

import (
	"context"
	"net/url"
	"os"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
	_ "github.com/lib/pq" // the driver
	"github.com/stretchr/testify/require"
)

// New makes an empty database and returns its URL. It is dropped when the test ends, whoever is still
// connected to it.
func New(t testing.TB) string {
	t.Helper()
	server := os.Getenv("TEST_DB_URL") //nolint:forbidigo // where tests find their server
	require.NotEmpty(t, server, "TEST_DB_URL must name a Postgres server on which databases may be made, such as postgres://postgres@127.0.0.1:5432/postgres?sslmode=disable; make test sets it")
	admin, err := sqlx.Connect("postgres", server)
	require.NoError(t, err)
	name := "test_" + strings.ReplaceAll(uuid.NewString(), "-", "")
	_, err = admin.ExecContext(t.Context(), "CREATE DATABASE "+name)
	require.NoError(t, err)
	t.Cleanup(func() {
		_, err := admin.ExecContext(context.Background(), "DROP DATABASE "+name+" WITH (FORCE)") // the test's context has ended
		require.NoError(t, err)
		require.NoError(t, admin.Close())
	})
	u, err := url.Parse(server)
	require.NoError(t, err)
	u.Path = "/" + name
	return u.String()
}

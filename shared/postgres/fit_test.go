package postgres

import (
	"context"
	"net/url"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/shared/config"
	"github.com/tidemark/tidemark/shared/schema"
)

// role makes a user who may do nothing in the database of c, and returns how it connects and the owner's pool.
func role(t *testing.T, c config.Postgres) (config.Postgres, string, *sqlx.DB) {
	t.Helper()
	owner := open(t, c, Limits{})
	name := "r" + strings.ReplaceAll(uuid.NewString(), "-", "")
	exec := func(statement string) {
		_, err := owner.ExecContext(context.Background(), statement) // in clean-ups too
		require.NoError(t, err)
	}
	exec("CREATE ROLE " + name + " LOGIN PASSWORD 'hunter2'")
	t.Cleanup(func() { exec("DROP OWNED BY " + name + " CASCADE"); exec("DROP ROLE " + name) })
	u, err := url.Parse(c.URL)
	require.NoError(t, err)
	u.User = url.UserPassword(name, "hunter2")
	c.URL = u.String()
	return c, name, owner
}

func database(t *testing.T, c config.Postgres) string {
	t.Helper()
	d, err := c.Database()
	require.NoError(t, err)
	return d.Name
}

// A role with a schema of its own name is usual on shared servers. Without a word it would be given the tables there.
func TestTablesStandInPublicWhateverTheUserIsNamed(t *testing.T) {
	t.Parallel()
	c := fresh(t)
	limited, name, owner := role(t, c)
	db := open(t, limited, WriterLimits)
	fit := func(statement, want string) {
		t.Helper()
		err := CheckFit(t.Context(), db, true)
		require.ErrorContains(t, err, want)
		require.Equal(t, err.Error(), CauseOf(err).Found)
		_, err = owner.ExecContext(t.Context(), statement)
		require.NoError(t, err)
	}
	fit("GRANT CREATE ON SCHEMA public TO "+name, "may not make or use tables in the schema public")
	require.NoError(t, CheckFit(t.Context(), db, false), "a reader makes none")
	fit("GRANT CREATE ON DATABASE "+database(t, c)+" TO "+name, "may not make schemas")
	_, err := owner.ExecContext(t.Context(), "CREATE SCHEMA AUTHORIZATION "+name)
	require.NoError(t, err)
	require.NoError(t, CheckFit(t.Context(), db, true))
	require.NoError(t, schema.Apply(t.Context(), db))
	var elsewhere int
	require.NoError(t, owner.GetContext(t.Context(), &elsewhere, `SELECT count(*) FROM pg_class WHERE relnamespace = $1::regnamespace`, name))
	require.Zero(t, elsewhere)
	ready, err := schema.Check(t.Context(), db)
	require.NoError(t, err)
	require.True(t, ready)

	_, err = owner.ExecContext(t.Context(), "ALTER TABLE goose_db_version SET SCHEMA "+name)
	require.NoError(t, err)
	fit("SELECT 1", "in the schema of the user's name")
}

func TestADatabaseOfAnotherEncodingIsRefused(t *testing.T) {
	t.Parallel()
	c := fresh(t)
	admin, name := open(t, c, Limits{}), "test_latin_"+strings.ReplaceAll(uuid.NewString(), "-", "")
	_, err := admin.ExecContext(t.Context(), "CREATE DATABASE "+name+" ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
	require.NoError(t, err)
	t.Cleanup(func() {
		_, err := admin.ExecContext(context.Background(), "DROP DATABASE "+name+" WITH (FORCE)") // the test's context has ended
		require.NoError(t, err)
	})
	u, err := url.Parse(c.URL)
	require.NoError(t, err)
	u.Path = "/" + name
	c.URL = u.String()
	require.ErrorContains(t, CheckFit(t.Context(), open(t, c, WriterLimits), true), "encoding is LATIN1")
}

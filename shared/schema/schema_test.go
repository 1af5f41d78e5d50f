package schema_test

import (
	"testing"

	"github.com/jmoiron/sqlx"
	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/shared/config"
	"github.com/tidemark/tidemark/shared/postgres"
	"github.com/tidemark/tidemark/shared/postgres/postgrestest"
	"github.com/tidemark/tidemark/shared/schema"
)

// empty is a database of its own without anything in it.
func empty(t *testing.T) *sqlx.DB {
	t.Helper()
	c := config.DefaultPostgres()
	c.URL = postgrestest.New(t)
	db, err := postgres.Open(c, "test", postgres.Limits{})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, db.Close()) })
	return db
}

func TestVersions(t *testing.T) {
	t.Parallel()
	db := empty(t)
	ready, err := schema.Check(t.Context(), db)
	require.NoError(t, err)
	require.False(t, ready)
	require.NoError(t, schema.Apply(t.Context(), db))
	ready, err = schema.Check(t.Context(), db)
	require.NoError(t, err)
	require.True(t, ready)
	_, err = db.Exec(`INSERT INTO goose_db_version (version_id, is_applied) VALUES ($1, true)`, schema.Wanted+1)
	require.NoError(t, err)
	_, err = schema.Check(t.Context(), db)
	require.ErrorIs(t, err, schema.ErrNewer)
	require.ErrorIs(t, schema.Apply(t.Context(), db), schema.ErrNewer)
}

func TestEpochsNeverComeTwice(t *testing.T) {
	t.Parallel()
	db := empty(t)
	require.NoError(t, schema.Apply(t.Context(), db))
	draw := func() (n int64) {
		require.NoError(t, db.Get(&n, `SELECT next_projection_epoch()`))
		return n
	}
	first := draw()
	require.Greater(t, draw(), first)
	var clock int64
	require.NoError(t, db.Get(&clock, `SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint`))
	require.InDelta(t, clock, draw(), 60e6, "the clock, in microseconds")

	_, err := db.Exec(`SELECT setval('projection_epochs', 3)`) // as a restored backup has it
	require.NoError(t, err)
	require.Greater(t, draw(), first)
	_, err = db.Exec(`SELECT setval('projection_epochs', $1)`, clock+3_600_000_000) // the clock was set back since
	require.NoError(t, err)
	require.Equal(t, clock+3_600_000_001, draw())
}

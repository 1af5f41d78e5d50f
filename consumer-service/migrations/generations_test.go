package migrations

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/shared/config"
	"github.com/tidemark/tidemark/shared/postgres"
	"github.com/tidemark/tidemark/shared/postgres/postgrestest"
)

// A migration knows the tables in public only, so it waits while there are others that have to stay the same.
func TestMigrationsWaitForASecondGeneration(t *testing.T) {
	t.Parallel()
	c := config.DefaultPostgres()
	c.URL = postgrestest.New(t)
	db, err := postgres.Open(c, "test", postgres.Limits{})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, db.Close()) })
	require.NoError(t, Apply(t.Context(), db))
	_, err = db.Exec(`INSERT INTO generations (generation, schema_name, state) VALUES (7, 'tidemark_g7', 'standby')`)
	require.NoError(t, err)
	require.NoError(t, Apply(t.Context(), db), "nothing is pending")

	_, err = db.Exec(`DELETE FROM goose_db_version WHERE version_id = $1`, postgres.SchemaVersionWanted)
	require.NoError(t, err)
	var second *SecondGenerationError
	require.ErrorAs(t, Apply(t.Context(), db), &second)
	require.Contains(t, second.Error(), "drop generation 7 (standby)")
	v, err := postgres.SchemaVersion(t.Context(), db)
	require.NoError(t, err)
	require.EqualValues(t, postgres.SchemaVersionWanted-1, v, "nothing was migrated")
}

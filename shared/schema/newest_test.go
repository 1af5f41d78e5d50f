package schema_test

import (
	"testing"

	"github.com/pressly/goose/v3"
	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/shared/await"
	"github.com/tidemark/tidemark/shared/schema"
)

// A transaction that is open holds the build up; whoever writes meanwhile is not held up by the build.
func TestWritersGoOnWhileTheIndexOnLogTimesIsBuilt(t *testing.T) {
	t.Parallel()
	db := empty(t)
	files, err := goose.NewProvider(goose.DialectPostgres, db.DB, schema.Migrations())
	require.NoError(t, err)
	_, err = files.UpTo(t.Context(), 9)
	require.NoError(t, err)
	exec := func(statement string) {
		t.Helper()
		_, err := db.ExecContext(t.Context(), statement)
		require.NoError(t, err)
	}
	exec(`CREATE SCHEMA timestamps_g1`)
	for _, table := range []string{"timestamp_records", "projection_progress"} {
		exec(`CREATE TABLE timestamps_g1.` + table + ` (LIKE public.` + table + ` INCLUDING ALL)`)
	}
	exec(`INSERT INTO projection_generations (projection, generation, schema_name, state) VALUES ('timestamps', 1, 'timestamps_g1', 'standby')`)

	const write = `SET LOCAL lock_timeout = '60s'; INSERT INTO timestamp_records VALUES (gen_random_uuid(), now(), now(), 0, 1)`
	writing, err := db.Beginx()
	require.NoError(t, err)
	_, err = writing.ExecContext(t.Context(), write)
	require.NoError(t, err)
	migrated := make(chan error, 1)
	go func() { migrated <- schema.Apply(t.Context(), db) }()
	await.Until(t, func() (waits bool) {
		require.NoError(t, db.GetContext(t.Context(), &waits, `
SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE '%CREATE INDEX%timestamp_records_created_at_idx%')`))
		return waits
	}, "the build waits for the writer")

	another, err := db.Beginx()
	require.NoError(t, err)
	_, err = another.ExecContext(t.Context(), write)
	require.NoError(t, err, "it waits for the build")
	require.NoError(t, another.Commit())
	require.NoError(t, writing.Commit())
	require.NoError(t, <-migrated)
	valid := func() (tables []string) {
		require.NoError(t, db.SelectContext(t.Context(), &tables, `
SELECT indrelid::regclass::text FROM pg_index WHERE indexrelid::regclass::text LIKE '%timestamp_records_created_at_idx' AND indisvalid ORDER BY 1`))
		return tables
	}
	require.Equal(t, []string{"timestamp_records", "timestamps_g1.timestamp_records"}, valid())

	// A try that was killed has left an index that is not good, and no version.
	exec(`UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'timestamp_records_created_at_idx'::regclass`)
	exec(`DELETE FROM goose_db_version WHERE version_id = 10`)
	_, err = files.ApplyVersion(t.Context(), 10, true)
	require.NoError(t, err)
	require.Equal(t, []string{"timestamp_records", "timestamps_g1.timestamp_records"}, valid())
}

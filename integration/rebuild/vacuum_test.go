package rebuild_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/integration/story"
	"github.com/tidemark/tidemark/shared/await"
)

// The server vacuums what a rebuild has just filled, and that may take an hour: a swap does not wait for its end, and no
// writer is fenced in vain meanwhile.
func TestAVacuumDoesNotHoldUpASwap(t *testing.T) {
	s := story.New(t)
	op, g := readyToSwap(t, s, 100_000)

	// A page takes it a tenth of a second, and there are more than a thousand.
	exec := func(statement string) {
		_, err := s.DB.ExecContext(context.WithoutCancel(t.Context()), statement) // once more after the test
		require.NoError(t, err)
	}
	t.Cleanup(func() {
		exec(`ALTER SYSTEM RESET autovacuum_naptime`)
		exec(`SELECT pg_reload_conf()`)
	})
	exec(`ALTER SYSTEM SET autovacuum_naptime = 1`)
	exec(`SELECT pg_reload_conf()`)
	exec(fmt.Sprintf(`ALTER TABLE %s.timestamp_records SET (autovacuum_vacuum_cost_delay = 100, autovacuum_vacuum_cost_limit = 1,
		autovacuum_vacuum_insert_threshold = 1, autovacuum_vacuum_insert_scale_factor = 0, autovacuum_analyze_threshold = 1000000000)`, g.Schema))
	fill(t, s.Log, 1_000) // it has something to do
	await.Until(t, func() bool {
		var n int
		err := s.DB.QueryRowContext(t.Context(), `SELECT count(*) FROM pg_stat_progress_vacuum WHERE relid = $1::regclass`, g.Schema+".timestamp_records").Scan(&n)
		return err == nil && n == 1
	})
	op.swap(g.Generation)
	op.untilServes(g.Generation)
	var came int
	require.NoError(t, s.DB.QueryRowContext(t.Context(), `SELECT autovacuum_count FROM pg_stat_user_tables WHERE relid = 'public.timestamp_records'::regclass`).Scan(&came))
	require.Zero(t, came, "vacuums that came to their end")
	s.RequireProjected(s.DB)
}

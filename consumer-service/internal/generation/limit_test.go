package generation

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// An index on this function can be made only by a session without parallel workers.
const alone = `
CREATE FUNCTION public.alone(of timestamptz) RETURNS timestamptz IMMUTABLE LANGUAGE plpgsql AS $$
BEGIN
	IF current_setting('max_parallel_maintenance_workers') <> '0' OR current_setting('max_parallel_workers_per_gather') <> '0' THEN
		RAISE EXCEPTION 'helpers are allowed';
	END IF;
	RETURN of;
END $$`

func TestARateLimitKeepsHelpersFromIndexesAndProofs(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.exec(t, alone)
	conn, err := b.DB.Connx(t.Context())
	require.NoError(t, err)
	_, err = conn.ExecContext(t.Context(), `SET max_parallel_maintenance_workers = 0; SET max_parallel_workers_per_gather = 0;
		CREATE INDEX by_instant ON public.timestamp_records (public.alone(event_timestamp));
		RESET max_parallel_maintenance_workers; RESET max_parallel_workers_per_gather`)
	require.NoError(t, err)
	require.NoError(t, conn.Close())

	limit := 1_000
	g, err := b.Start(t.Context(), Request{RateLimit: &limit})
	require.NoError(t, err)
	b.copied(t, g)
	unlimited := g
	unlimited.RateLimit = nil
	require.ErrorContains(t, b.index(t.Context(), unlimited), "helpers are allowed", "without a limit nothing is held back")
	require.NoError(t, b.index(t.Context(), g))

	var own string // the server's
	b.one(t, &own, `SHOW max_parallel_workers_per_gather`)
	for of, want := range map[*Generation]string{&g: "0", &unlimited: own} {
		held, release, err := b.session(t.Context(), *of)
		require.NoError(t, err)
		var workers string
		require.NoError(t, held.GetContext(t.Context(), &workers, `SHOW max_parallel_workers_per_gather`))
		require.Equal(t, want, workers)
		release()
	}
	p, err := b.prove(t.Context(), g)
	require.NoError(t, err)
	require.True(t, p.OK, p.Finding)
}

package record_test

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/query-service/internal/projection"
	"github.com/tidemark/tidemark/query-service/internal/record"
	"github.com/tidemark/tidemark/query-service/internal/testdb"
	"github.com/tidemark/tidemark/shared/config"
	"github.com/tidemark/tidemark/shared/postgres"
)

// open is a reader with the service's own limits.
func open(t *testing.T, db *testdb.DB) *projection.Reader {
	t.Helper()
	c := config.DefaultPostgres()
	c.URL = db.URL
	own, err := postgres.Open(c, "test", postgres.ReaderLimits)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, own.Close()) })
	catalog, registry := projection.NewCatalog(own), prometheus.NewRegistry()
	return projection.NewReader(own, catalog, projection.NewWatch(projection.NextOffsets(own, catalog), catalog.Label, registry, slog.New(slog.DiscardHandler)), registry)
}

// inSnapshot runs fn in a snapshot of timestamps.
func inSnapshot(t *testing.T, r *projection.Reader, fn func(context.Context, *projection.Snapshot) error) {
	t.Helper()
	require.NoError(t, r.Read(t.Context(), projection.Want{}, projection.Of(record.Projection), fn))
}

// Random tables, against a plain sort of all that is there.
func TestTheNewestAreThoseThatASortByLogTimeGives(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	r := open(t, db)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	for n := range 60 {
		db.Must(t, `TRUNCATE timestamp_records`)
		// Log times lie around a moment, spread over milliseconds, days or centuries; many are equal.
		around, spread := time.Now().Add(-time.Duration(random.Int64N(int64(1000*24*time.Hour)))).Truncate(time.Millisecond), []int64{1, 40, 30_000, 86_400_000, 8_000_000_000, 900_000_000_000}[random.IntN(6)]
		rows := []int{0, 1, 2, 30, 300}[random.IntN(5)]
		for o := range rows {
			id := uuid.New()
			if random.IntN(2) == 0 {
				id = uuid.Must(uuid.NewV7())
			}
			at := around.Add(time.Duration(random.Int64N(2*spread)-spread) * time.Millisecond)
			db.Must(t, `INSERT INTO timestamp_records VALUES ($1, now(), $2, $3, $4)`, id, at, random.IntN(testdb.Partitions), o)
		}
		// The last log time may be any: that of the newest row, of a dead letter, of a clock that was set back; or none is known.
		caughtUp, last := random.IntN(3) > 0, any(nil)
		if random.IntN(5) > 0 {
			last = around.Add(time.Duration(random.Int64N(2*spread)-spread) * time.Millisecond)
		}
		db.Must(t, `UPDATE projection_progress SET last_created_at = $1::timestamptz - partition * interval '1 minute', caught_up_at = CASE WHEN $2 OR partition < 2 THEN now() END`, last, caughtUp)
		limit := 1 + random.IntN(40)

		var want []uuid.UUID
		require.NoError(t, db.Select(&want, `
SELECT id FROM timestamp_records WHERE $1 OR $2::timestamptz IS NULL OR created_at <= $2
ORDER BY created_at DESC, partition DESC, "offset" DESC LIMIT $3`, caughtUp, last, limit))
		inSnapshot(t, r, func(ctx context.Context, s *projection.Snapshot) error {
			newest, err := record.Newest(ctx, s, limit)
			var got []uuid.UUID
			for _, r := range newest {
				got = append(got, r.ID)
			}
			require.Equal(t, want, got, "table %d: %d rows within %d ms, %d of them wanted, caught up %t, last log time %v", n, rows, spread, limit, caughtUp, last)
			return err
		})
	}
}

func TestTheNewestOfALargeTableAreFoundWithoutReadingIt(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	db.Must(t, `INSERT INTO timestamp_records SELECT gen_random_uuid(), now(), now() - (200000 - n) * interval '10 ms', n % 4, n / 4 FROM generate_series(1, 200000) n`)
	db.Must(t, `UPDATE projection_progress SET last_created_at = (SELECT max(created_at) FROM timestamp_records), caught_up_at = now()`)
	db.Must(t, `SELECT brin_summarize_new_values('timestamp_records_created_at_idx')`) // as vacuum does by itself within a minute
	db.Must(t, `ANALYZE timestamp_records`)
	inSnapshot(t, open(t, db), func(ctx context.Context, s *projection.Snapshot) error {
		var pages, read int
		if err := s.Get(ctx, &pages, `SELECT pg_relation_size('timestamp_records') / current_setting('block_size')::int FROM set_config('max_parallel_workers_per_gather', '0', true)`); err != nil {
			return err // a helper's pages would not be counted
		}
		newest, err := record.Newest(ctx, s, 500)
		if err != nil {
			return err
		}
		require.Len(t, newest, 500)
		if err := s.Get(ctx, &read, `SELECT pg_stat_get_xact_blocks_fetched('timestamp_records'::regclass)`); err != nil {
			return err
		}
		require.Greater(t, pages, 1500)
		require.NotZero(t, read)
		require.Less(t, read, pages/2, fmt.Sprintf("of %d pages", pages))
		return nil
	})
}

package projection

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/tidemark/tidemark/query-service/internal/testdb"
	"github.com/tidemark/tidemark/shared/await"
	"github.com/tidemark/tidemark/shared/config"
	"github.com/tidemark/tidemark/shared/postgres"
)

// timestamps is what most of these tests read.
var timestamps = Of("timestamps")

func TestMain(m *testing.M) {
	await.SideBySide()
	goleak.VerifyTestMain(m)
}

// pool opens the database as the service does.
func pool(t *testing.T, db *testdb.DB) *sqlx.DB {
	t.Helper()
	c := config.DefaultPostgres()
	c.URL = db.URL
	own, err := postgres.Open(c, "test", postgres.ReaderLimits)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, own.Close()) })
	return own
}

func newReader(t *testing.T, db *testdb.DB) *Reader {
	t.Helper()
	own := pool(t, db)
	catalog := NewCatalog(own)
	w := NewWatch(NextOffsets(own, catalog), catalog.Label, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); w.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	return NewReader(own, catalog, w, prometheus.NewRegistry())
}

func TestReadWaitsForItsPosition(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	r := newReader(t, db)
	id := uuid.New()
	count := func(ctx context.Context, s *Snapshot, n *int) error {
		return s.Get(ctx, n, `SELECT count(*) FROM public.timestamp_records WHERE id = $1`, id)
	}

	var n int
	read := func(ctx context.Context, s *Snapshot) error { return count(ctx, s, &n) }
	require.NoError(t, r.Read(t.Context(), Want{}, timestamps, read))
	require.Zero(t, n)

	var behind *NotReachedError
	start := time.Now()
	require.ErrorAs(t, r.Read(t.Context(), Want{testdb.At(1, 0), 60 * time.Millisecond}, timestamps, read), &behind)
	require.GreaterOrEqual(t, time.Since(start), 60*time.Millisecond)
	require.Nil(t, behind.Reached)
	require.Equal(t, "none", behind.ReachedWord())

	time.AfterFunc(80*time.Millisecond, func() {
		if err := db.Project(context.WithoutCancel(t.Context()), 1, testdb.Row{ID: id, Stamp: time.Now()}); err != nil {
			t.Error(err)
		}
	})
	require.NoError(t, r.Read(t.Context(), Want{testdb.At(1, 0), 5 * time.Second}, timestamps, read))
	require.Equal(t, 1, n)

	require.ErrorAs(t, r.Read(t.Context(), Want{testdb.At(1, 1), 0}, timestamps, read), &behind)
	require.Equal(t, testdb.At(1, 0), *behind.Reached)
	require.ErrorAs(t, r.Read(t.Context(), Want{testdb.At(99, 0), 10 * time.Millisecond}, timestamps, read), &behind, "a partition without progress is not reached")

	stop := errors.New("the caller's own")
	require.ErrorIs(t, r.Read(t.Context(), Want{}, timestamps, func(context.Context, *Snapshot) error { return stop }), stop)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, r.Read(ctx, Want{testdb.At(1, 1), 5 * time.Second}, timestamps, read), context.DeadlineExceeded)
}

func TestNoTransactionIsOpenWhileWaiting(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	r := newReader(t, db)
	done := make(chan error, 20)
	for range 20 {
		go func() {
			done <- r.Read(t.Context(), Want{testdb.At(0, 0), 5 * time.Second}, timestamps, func(context.Context, *Snapshot) error { return nil })
		}()
	}
	var open int
	for range 50 {
		var now int
		require.NoError(t, db.Get(&now, `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'test' AND state LIKE 'idle in transaction%'`))
		open += now
		time.Sleep(5 * time.Millisecond) // fifty looks over a quarter of a second
	}
	require.Zero(t, open)
	require.NoError(t, db.Project(t.Context(), 0, testdb.Row{ID: uuid.New(), Stamp: time.Now()}))
	for range 20 {
		require.NoError(t, <-done)
	}
}

// A swap of generations moves tables between schemas under readers. Each read must see one generation whole:
// the generation's epoch, the progress and the row.
func TestASwapIsSeenWhole(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	r := newReader(t, db)
	id := uuid.New()
	require.NoError(t, db.Project(t.Context(), 0, testdb.Row{ID: id, Stamp: time.Now()}))
	db.Must(t, `CREATE SCHEMA other`)
	db.Must(t, `CREATE SCHEMA aside`)
	for _, table := range []string{"projection_progress", "timestamp_records", "dead_letters", "projection_audits"} {
		db.Must(t, `CREATE TABLE other.`+table+` (LIKE public.`+table+` INCLUDING ALL)`)
		db.Must(t, `INSERT INTO other.`+table+` SELECT * FROM public.`+table)
	}
	// The two generations differ in epoch, progress and row, all by 1000.
	db.Must(t, `UPDATE projection_generations SET epoch = 1 WHERE projection = 'timestamps'`)
	db.Must(t, `UPDATE public.projection_progress SET epoch = 1`)
	db.Must(t, `UPDATE other.projection_progress SET epoch = 1001, next_offset = next_offset + 1000, skipped = skipped + 1000`)
	db.Must(t, `UPDATE other.timestamp_records SET "offset" = "offset" + 1000`)

	stop := make(chan struct{})
	var wg sync.WaitGroup
	var swaps atomic.Int64
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(time.Millisecond):
			}
			tx := db.MustBegin()
			tx.MustExec(`LOCK TABLE public.projection_progress, public.timestamp_records, public.dead_letters, public.projection_audits IN ACCESS EXCLUSIVE MODE`)
			for _, table := range []string{"projection_progress", "timestamp_records", "dead_letters", "projection_audits"} {
				tx.MustExec(`ALTER TABLE public.` + table + ` SET SCHEMA aside`)
				tx.MustExec(`ALTER TABLE other.` + table + ` SET SCHEMA public`)
				tx.MustExec(`ALTER TABLE aside.` + table + ` SET SCHEMA other`)
			}
			tx.MustExec(`UPDATE projection_generations SET epoch = 1002 - epoch WHERE projection = 'timestamps'`)
			if err := tx.Commit(); err != nil {
				t.Error(err)
				return
			}
			swaps.Add(1)
		}
	})
	seen := map[int64]int{}
	for begin := time.Now(); (seen[1] <= 20 || seen[1001] <= 20 || swaps.Load() <= 2) && time.Since(begin) < time.Minute; {
		err := r.Read(t.Context(), Want{Position: testdb.At(0, 0)}, timestamps, func(ctx context.Context, s *Snapshot) error {
			var at int64
			if err := s.Get(ctx, &at, `SELECT "offset" FROM public.timestamp_records WHERE id = $1`, id); err != nil {
				return err
			}
			p := s.Progress(testdb.At(0, 0))
			epoch := s.Of("timestamps").Epoch
			if p.Epoch != epoch || p.NextOffset != epoch || at != epoch-1 {
				t.Errorf("mixed: generation's epoch %d, progress %+v, row at %d", epoch, p, at)
			}
			seen[epoch]++
			return nil
		})
		require.NoError(t, err)
	}
	close(stop)
	wg.Wait()
	require.Greater(t, swaps.Load(), int64(2))
	require.Greater(t, seen[1], 20, "reads of the one generation")
	require.Greater(t, seen[1001], 20, "reads that met the other")
}

func TestALockThatIsNotGivenIsAnErrorSoon(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	r := newReader(t, db)
	tx := db.MustBegin()
	defer func() { _ = tx.Rollback() }()
	tx.MustExec(`TRUNCATE timestamp_records`)
	start := time.Now()
	err := r.Read(t.Context(), Want{}, timestamps, func(context.Context, *Snapshot) error { return nil })
	require.Equal(t, "55P03", postgres.State(err))
	var busy *BusyError
	require.ErrorAs(t, err, &busy, "the database is not down")
	require.Equal(t, shortOfLocks, busy.ShortOf)
	require.Less(t, time.Since(start), 20*time.Second)
}

func TestConnectionsThatARestartBrokeAreNoticed(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	r := newReader(t, db)
	nothing := func(context.Context, *Snapshot) error { return nil }
	fill := func() {
		var inside, done sync.WaitGroup
		inside.Add(8)
		for range 8 { // all inside at once, so that the pool holds that many
			done.Go(func() {
				if err := r.Read(t.Context(), Want{}, timestamps, func(context.Context, *Snapshot) error {
					inside.Done()
					inside.Wait()
					return nil
				}); err != nil {
					t.Error(err)
				}
			})
		}
		done.Wait()
	}
	fill()
	var ended int
	require.NoError(t, db.Get(&ended, `SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'test'`))
	require.GreaterOrEqual(t, ended, 8)
	require.NoError(t, r.Read(t.Context(), Want{}, timestamps, nothing))
}

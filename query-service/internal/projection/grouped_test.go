package projection

import (
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/query-service/internal/testdb"
	"github.com/tidemark/tidemark/shared/await"
)

// counting reads how many rows bear a key, after the test's own hook.
func counting(r *Reader, hook func(keys []uuid.UUID) error) *Grouped[uuid.UUID, int] {
	return NewGrouped(r, func(ctx context.Context, s *Snapshot, keys []uuid.UUID) ([]int, error) {
		if err := hook(keys); err != nil {
			return nil, err
		}
		out := make([]int, len(keys))
		for i, key := range keys {
			if err := s.Get(ctx, &out[i], `SELECT count(*) FROM public.timestamp_records WHERE id = $1`, key); err != nil {
				return nil, err
			}
		}
		return out, nil
	})
}

// gathered waits until so many reads wait for a transaction.
func gathered(t *testing.T, g *Grouped[uuid.UUID, int], n int) {
	t.Helper()
	await.Until(t, func() bool {
		g.mu.Lock()
		defer g.mu.Unlock()
		waiting := 0
		for _, q := range g.queues {
			q.mu.Lock()
			waiting += len(q.gathered)
			q.mu.Unlock()
		}
		return waiting == n
	})
}

type result struct {
	n   int
	err error
}

func ask(ctx context.Context, g *Grouped[uuid.UUID, int], want Want, key uuid.UUID) <-chan result {
	out := make(chan result, 1)
	go func() {
		n, err := g.Read(ctx, want, timestamps, key)
		out <- result{n, err}
	}()
	return out
}

func TestReadsThatGatherShareATransactionThatBeganAfterTheyCame(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	id := uuid.New()
	release := make(chan struct{})
	var stuck sync.WaitGroup
	stuck.Add(mostFlights)
	var groups, largest atomic.Int64
	g := counting(newReader(t, db), func(keys []uuid.UUID) error {
		largest.Store(max(largest.Load(), int64(len(keys))))
		if groups.Add(1) <= mostFlights {
			stuck.Done()
			<-release
		}
		return nil
	})
	var early []<-chan result
	for i := range mostFlights { // one after the other, since those that come together are one group
		early = append(early, ask(t.Context(), g, Want{}, id))
		await.Until(t, func() bool { return groups.Load() == int64(i+1) }, "a stuck transaction does not hold the next read")
	}
	stuck.Wait()
	require.NoError(t, db.Project(t.Context(), 0, testdb.Row{ID: id, Stamp: time.Now()}))
	var late []<-chan result
	for range 40 {
		late = append(late, ask(t.Context(), g, Want{Position: testdb.At(0, 0)}, id))
	}
	gathered(t, g, 40)
	time.Sleep(2 * stuckAfter) // nothing tells that no fifth transaction begins
	require.EqualValues(t, mostFlights, groups.Load())
	close(release)
	for _, r := range early {
		require.Equal(t, result{0, nil}, <-r, "its snapshot is older than the row")
	}
	for _, r := range late {
		require.Equal(t, result{1, nil}, <-r)
	}
	require.LessOrEqual(t, groups.Load(), int64(mostFlights+2))
	require.GreaterOrEqual(t, largest.Load(), int64(20))
}

// A read whose position a group's snapshot has not passed waits on; the others of its group are answered.
func TestEachMemberOfAGroupHasItsOwnPosition(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	id := uuid.New()
	require.NoError(t, db.Project(t.Context(), 0, testdb.Row{ID: id, Stamp: time.Now()}))
	g := counting(newReader(t, db), func([]uuid.UUID) error { return nil })
	ahead := ask(t.Context(), g, Want{testdb.At(1, 0), 10 * time.Second}, id)
	never := ask(t.Context(), g, Want{testdb.At(2, 7), 0}, id)
	decision := ask(t.Context(), g, Want{testdb.At(0, 0), time.Second}, id)
	require.Equal(t, result{1, nil}, <-decision)
	var behind *NotReachedError
	require.ErrorAs(t, (<-never).err, &behind)
	require.Equal(t, testdb.At(2, 7), behind.Want.Position)
	require.Nil(t, behind.Reached)
	require.Empty(t, ahead)
	require.NoError(t, db.Project(t.Context(), 1, testdb.Row{ID: uuid.New(), Stamp: time.Now()}))
	require.Equal(t, result{1, nil}, <-ahead)
}

func TestAMemberThatGivesUpLeavesTheGroupRunning(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	release := make(chan struct{})
	var groups atomic.Int64
	g := counting(newReader(t, db), func([]uuid.UUID) error { groups.Add(1); <-release; return nil })
	ctx, cancel := context.WithCancel(t.Context())
	gone := ask(ctx, g, Want{}, uuid.New())
	await.Until(t, func() bool { return groups.Load() == 1 })
	cancel()
	require.ErrorIs(t, (<-gone).err, context.Canceled)
	stays := ask(t.Context(), g, Want{}, uuid.New())
	close(release)
	require.NoError(t, (<-stays).err)
}

func TestAFailedGroupFailsEachMemberOnce(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	own := errors.New("the query failed")
	var tried atomic.Int64
	g := counting(newReader(t, db), func(keys []uuid.UUID) error { tried.Add(int64(len(keys))); return own })
	var all []<-chan result
	for range 30 {
		all = append(all, ask(t.Context(), g, Want{}, uuid.New()))
	}
	for _, r := range all {
		require.ErrorIs(t, (<-r).err, own)
	}
	require.EqualValues(t, 30, tried.Load())
}

// Reads that wait for a connection while others are answered find the service busy. Down is a database that answers
// nobody.
func TestAPoolThatIsExhaustedIsBusyAndADatabaseThatIsGoneIsDown(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	r := newReader(t, db)
	r.db.SetMaxOpenConns(1)
	done := make(chan error, 8)
	for range 8 {
		go func() {
			done <- r.Read(t.Context(), Want{}, timestamps, func(ctx context.Context, s *Snapshot) error {
				var slept string
				return s.Get(ctx, &slept, `SELECT pg_sleep(1)::text`)
			})
		}()
	}
	refused := 0
	for range 8 {
		err := <-done
		var busy *BusyError
		if errors.As(err, &busy) {
			refused++
			continue
		}
		require.NoError(t, err)
	}
	require.Positive(t, refused)
	require.InDelta(t, refused, testutil.ToFloat64(r.busy.WithLabelValues(shortOfConnections))+testutil.ToFloat64(r.busy.WithLabelValues(shortOfTime)), 0)

	// Nobody was answered since this read began.
	var busy *BusyError
	require.NotErrorAs(t, r.busyOrDown(time.Now(), context.DeadlineExceeded), &busy)
	require.NotErrorAs(t, r.busyOrDown(time.Time{}, &net.OpError{Op: "dial", Err: errors.New("refused")}), &busy)
}

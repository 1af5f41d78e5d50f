package receipt

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jmoiron/sqlx"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/tidemark/tidemark/shared/await"
	"github.com/tidemark/tidemark/shared/config"
	"github.com/tidemark/tidemark/shared/event"
	"github.com/tidemark/tidemark/shared/kafka"
	"github.com/tidemark/tidemark/shared/kafka/kafkatest"
	"github.com/tidemark/tidemark/shared/postgres"
	"github.com/tidemark/tidemark/shared/postgres/postgrestest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// valuesIn returns what was published, in its order: the log has one partition.
func valuesIn(l *kafkatest.Log) (values []string) {
	for _, r := range l.Written(0) {
		values = append(values, string(r.Value))
	}
	return values
}

// heldStore is one outbox in memory.
type heldStore struct {
	inside sync.Mutex
	mu     sync.Mutex
	rows   []Row
	away   error
}

func (s *heldStore) Alone(ctx context.Context, do func(context.Context) error) (bool, error) {
	if !s.inside.TryLock() {
		return false, nil
	}
	defer s.inside.Unlock()
	return true, do(ctx)
}

func (s *heldStore) Oldest(_ context.Context, limit int) ([]Row, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.rows[:min(limit, len(s.rows))]), s.away
}

func (s *heldStore) Delete(_ context.Context, numbers []int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.away == nil {
		s.rows = slices.DeleteFunc(s.rows, func(r Row) bool { return slices.Contains(numbers, r.Number) })
	}
	return s.away
}

func (s *heldStore) add(from, next int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rows = append(s.rows, Row{int64(len(s.rows)) + from, event.Receipt{
		Group: "g", Epoch: 1, Topic: "t", Partition: 3, From: from, Next: next, Outcomes: []event.Run{{Outcome: event.Applied, Count: next - from}}, DecidedAt: time.Now().UTC(),
	}})
}

func (s *heldStore) left() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.rows)
}

func start(t *testing.T, store Store, log Log) *Publisher {
	t.Helper()
	return startWhile(t, store, log, func() bool { return true })
}

func startWhile(t *testing.T, store Store, log Log, same func() bool) *Publisher {
	t.Helper()
	p := New(Options{
		Projection: "timestamps", Store: store, Log: log, Topic: "receipts", Ensure: func(context.Context) error { return nil },
		Metrics: NewMetrics(prometheus.NewRegistry()), Logger: slog.New(slog.DiscardHandler),
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); p.Run(ctx, same) }()
	t.Cleanup(func() { cancel(); <-done })
	return p
}

func TestAKickBringsReceiptsToTheLogInTheirOrder(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store, log := &heldStore{}, kafkatest.NewLog(1)
		p := start(t, store, log)
		synctest.Wait()
		const n = 2500 // more than two pages
		for i := range int64(n) {
			store.add(i, i+1)
		}
		p.Kick()
		p.Kick()
		time.Sleep(gather)
		synctest.Wait()
		require.Zero(t, store.left())
		for i, record := range log.Written(0) {
			r, err := event.DecodeReceipt(record.Value)
			require.NoError(t, err)
			require.EqualValues(t, i, r.From)
			require.Equal(t, "t/3", string(record.Key))
		}
		require.Len(t, valuesIn(log), n)
		store.add(n, n+1) // by another process
		time.Sleep(p.options.Every)
		synctest.Wait()
		require.Len(t, valuesIn(log), n+1)
	})
}

// The receipts of one log have no place in another.
func TestAnotherLogGetsNoReceipts(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store, log := &heldStore{}, kafkatest.NewLog(1)
		var same atomic.Bool
		p := startWhile(t, store, log, same.Load)
		store.add(0, 1)
		p.Kick()
		time.Sleep(time.Minute)
		synctest.Wait()
		require.Equal(t, 1, store.left())
		require.Empty(t, valuesIn(log))

		same.Store(true)
		time.Sleep(2 * time.Second)
		synctest.Wait()
		require.Zero(t, store.left())
	})
}

// What is not acknowledged stays, what is repeated is the same, and nothing is missing.
func TestWhatIsNotAcknowledgedComesAgainTheSame(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := &heldStore{}
		log, n := kafkatest.NewLog(1), 0
		log.Fault = func(*message.Message) (written bool, err error) {
			n++
			switch {
			case n < 40 && n%3 == 0:
				return false, kafka.ErrNotSent
			case n < 80 && n%7 == 0:
				return true, errors.New("no answer") // it is in the log all the same
			}
			return true, nil
		}
		for i := range int64(50) {
			store.add(i, i+1)
		}
		start(t, store, log)
		time.Sleep(time.Minute)
		synctest.Wait()
		require.Zero(t, store.left())
		times := map[string]int{}
		for _, v := range valuesIn(log) {
			times[v]++
		}
		require.Len(t, times, 50)
		require.Greater(t, len(valuesIn(log)), 50)
	})
}

func TestAReceiptThatIsTooLongForARecordIsCutAtTheSamePlaces(t *testing.T) {
	t.Parallel()
	r := event.Receipt{Group: "g", Topic: "t", From: 100, DecidedAt: time.Unix(0, 0).UTC()}
	r.Next = r.From
	for i := range 2*mostRuns + 1 {
		run := event.Run{Outcome: []event.Outcome{event.Applied, event.Duplicate}[i%2], Count: int64(i%3 + 1)}
		r.Outcomes = append(r.Outcomes, run)
		r.Next += run.Count
	}
	parts := split(r)
	require.Len(t, parts, 3)
	at := r.From
	var runs []event.Run
	for _, part := range parts {
		require.Equal(t, at, part.From)
		at = part.Next
		runs = append(runs, part.Outcomes...)
		value := event.AppendReceipt(nil, part)
		require.Less(t, len(value), 512<<10)
		_, err := event.DecodeReceipt(value)
		require.NoError(t, err)
	}
	require.Equal(t, r.Next, at)
	require.Equal(t, r.Outcomes, runs)
	require.Equal(t, parts, split(r))
}

func database(t *testing.T) *sqlx.DB {
	t.Helper()
	c := config.DefaultPostgres()
	c.URL = postgrestest.Migrated(t)
	db, err := postgres.Open(c, "test", postgres.WriterLimits)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, db.Close()) })
	return db
}

// filled writes ten receipts of a projection's generation into the outbox.
func filled(t *testing.T, db *sqlx.DB, projection string, generation int) {
	t.Helper()
	_, err := db.ExecContext(t.Context(), `
INSERT INTO projection_receipt_outbox (projection, group_name, generation, epoch, served, topic, partition, from_offset, next_offset, outcomes, decided_at)
SELECT $1, 'g', $2, 1, $2 = 0, $1, 0, n, n + 1, '[{"outcome":"applied","count":1}]', '2026-01-02T03:04:05.000006Z' FROM generate_series(0, 9) n`, projection, generation)
	require.NoError(t, err)
}

func left(t *testing.T, db *sqlx.DB, projection string) (n int) {
	t.Helper()
	require.NoError(t, db.GetContext(t.Context(), &n, `SELECT count(*) FROM projection_receipt_outbox WHERE projection = $1`, projection))
	return n
}

// Several processes publish the receipts of one projection, of all of its generations, once while nothing fails. Those of
// another projection wait for a process that runs it.
func TestOneProcessAtATimeEmptiesTheOutboxOfItsProjection(t *testing.T) {
	t.Parallel()
	db := database(t)
	log := kafkatest.NewLog(1)
	var all []*Publisher
	for range 3 {
		all = append(all, start(t, &Postgres{db, "timestamps"}, log))
	}
	for range 5 {
		filled(t, db, "timestamps", 0)
		filled(t, db, "timestamps", 7)
		filled(t, db, "endpoints", 0)
		for _, p := range all {
			p.Kick()
		}
	}
	await.Until(t, func() bool { return left(t, db, "timestamps") == 0 })
	require.Len(t, valuesIn(log), 100)
	candidate := 0
	for _, v := range valuesIn(log) {
		require.Contains(t, v, `"topic":"timestamps"`)
		require.Contains(t, v, `"decided_at":"2026-01-02T03:04:05.000006Z"`)
		if strings.Contains(v, `"generation":7`) {
			candidate++
			require.Contains(t, v, `"served":false`)
		} else {
			require.Contains(t, v, `"served":true`)
		}
	}
	require.Equal(t, 50, candidate)
	require.Equal(t, 50, left(t, db, "endpoints"))
}

// The publishers of two projections do not wait for each other: the lock is each projection's own.
func TestPublishersOfTwoProjectionsDoNotShareALock(t *testing.T) {
	t.Parallel()
	db := database(t)
	called, err := (&Postgres{db, "timestamps"}).Alone(t.Context(), func(ctx context.Context) error {
		for projection, want := range map[string]bool{"timestamps": false, "endpoints": true} {
			called, err := (&Postgres{db, projection}).Alone(ctx, func(context.Context) error { return nil })
			require.NoError(t, err)
			require.Equal(t, want, called, projection)
		}
		return nil
	})
	require.NoError(t, err)
	require.True(t, called)
}

// A receipt without offsets says that a partition is caught up and idle; it goes out like any other.
func TestAReceiptOfAnIdlePartitionIsPublished(t *testing.T) {
	t.Parallel()
	db := database(t)
	_, err := db.ExecContext(t.Context(), `
INSERT INTO projection_receipt_outbox (projection, group_name, generation, epoch, served, topic, partition, from_offset, next_offset, outcomes, caught_up_at, decided_at)
VALUES ('timestamps', 'g', 0, 1, true, 't', 3, 17, 17, '[]', '2026-01-02T03:04:05Z', '2026-01-02T03:04:06Z')`)
	require.NoError(t, err)
	log := kafkatest.NewLog(1)
	start(t, &Postgres{db, "timestamps"}, log)
	await.Until(t, func() bool { return left(t, db, "timestamps") == 0 })
	require.Len(t, valuesIn(log), 1)
	r, err := event.DecodeReceipt([]byte(valuesIn(log)[0]))
	require.NoError(t, err)
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	require.Equal(t, event.Receipt{Group: "g", Epoch: 1, Served: true, Topic: "t", Partition: 3, From: 17, Next: 17, CaughtUpAt: &at, DecidedAt: at.Add(time.Second)}, r)
}

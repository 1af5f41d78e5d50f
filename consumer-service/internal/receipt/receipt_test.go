package receipt

import (
	"context"
	"errors"
	"fmt"
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

	"github.com/tidemark/tidemark/consumer-service/migrations"
	"github.com/tidemark/tidemark/shared/config"
	"github.com/tidemark/tidemark/shared/event"
	"github.com/tidemark/tidemark/shared/kafka"
	"github.com/tidemark/tidemark/shared/postgres"
	"github.com/tidemark/tidemark/shared/postgres/postgrestest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// heldLog remembers what came in; refuse says what it answers, whether it took the record or not.
type heldLog struct {
	mu     sync.Mutex
	values []string
	keys   []string
	refuse func(n int) (took bool, err error)
	n      int
}

func (l *heldLog) PublishAll(_ string, msgs ...*message.Message) []kafka.Result {
	l.mu.Lock()
	defer l.mu.Unlock()
	results := make([]kafka.Result, len(msgs))
	for i, m := range msgs {
		took := true
		if l.refuse != nil {
			took, results[i].Err = l.refuse(l.n)
		}
		l.n++
		if took {
			l.values, l.keys = append(l.values, string(m.Payload)), append(l.keys, m.UUID)
		}
	}
	return results
}

func (l *heldLog) got() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.values)
}

// heldStore is one outbox in memory.
type heldStore struct {
	mu   sync.Mutex
	rows []Row
	away error
}

func (s *heldStore) Alone(ctx context.Context, do func(context.Context) error) (bool, error) {
	return true, do(ctx)
}

func (s *heldStore) Outboxes(context.Context) ([]string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return []string{"public"}, s.away
}

func (s *heldStore) Oldest(_ context.Context, _ string, limit int) ([]Row, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.rows[:min(limit, len(s.rows))]), s.away
}

func (s *heldStore) Delete(_ context.Context, _ string, numbers []int64) error {
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
		Store: store, Log: log, Topic: "receipts", Ensure: func(context.Context) error { return nil },
		Registry: prometheus.NewRegistry(), Logger: slog.New(slog.DiscardHandler),
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
		store, log := &heldStore{}, &heldLog{}
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
		for i, v := range log.got() {
			r, err := event.DecodeReceipt([]byte(v))
			require.NoError(t, err)
			require.EqualValues(t, i, r.From)
			require.Equal(t, "t/3", log.keys[i])
		}
		require.Len(t, log.got(), n)
		store.add(n, n+1) // by another process
		time.Sleep(p.options.Every)
		synctest.Wait()
		require.Len(t, log.got(), n+1)
	})
}

// The receipts of one log have no place in another.
func TestAnotherLogGetsNoReceipts(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store, log := &heldStore{}, &heldLog{}
		var same atomic.Bool
		p := startWhile(t, store, log, same.Load)
		store.add(0, 1)
		p.Kick()
		time.Sleep(time.Minute)
		synctest.Wait()
		require.Equal(t, 1, store.left())
		require.Empty(t, log.got())

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
		log := &heldLog{refuse: func(n int) (bool, error) {
			switch {
			case n < 40 && n%3 == 0:
				return false, kafka.ErrNotSent
			case n < 80 && n%7 == 0:
				return true, errors.New("no answer") // it is in the log all the same
			}
			return true, nil
		}}
		for i := range int64(50) {
			store.add(i, i+1)
		}
		start(t, store, log)
		time.Sleep(time.Minute)
		synctest.Wait()
		require.Zero(t, store.left())
		times := map[string]int{}
		for _, v := range log.got() {
			times[v]++
		}
		require.Len(t, times, 50)
		require.Greater(t, len(log.got()), 50)
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
	c.URL = postgrestest.New(t)
	db, err := postgres.Open(c, "test", postgres.WriterLimits)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, db.Close()) })
	require.NoError(t, migrations.Apply(t.Context(), db))
	return db
}

const row = ` (group_name, generation, epoch, topic, partition, from_offset, next_offset, outcomes, decided_at)
	SELECT 'g', %d, 1, 't', 0, n, n + 1, '[{"outcome":"applied","count":1}]', '2026-01-02T03:04:05.000006Z' FROM generate_series(0, 9) n`

// Several processes publish one database's receipts, of all of its generations, once while nothing fails.
func TestOneProcessAtATimeEmptiesTheOutboxesOfAllGenerations(t *testing.T) {
	t.Parallel()
	db := database(t)
	for _, s := range []string{`CREATE SCHEMA tidemark_g7`, `CREATE TABLE tidemark_g7.receipt_outbox (LIKE public.receipt_outbox INCLUDING ALL)`, `CREATE SCHEMA other`, `CREATE TABLE other.receipt_outbox ()`} {
		_, err := db.Exec(s)
		require.NoError(t, err)
	}
	log := &heldLog{}
	var all []*Publisher
	for range 3 {
		all = append(all, start(t, &Postgres{db}, log))
	}
	for range 5 {
		_, err := db.Exec(fmt.Sprintf(`INSERT INTO public.receipt_outbox`+row, 0))
		require.NoError(t, err)
		_, err = db.Exec(fmt.Sprintf(`INSERT INTO tidemark_g7.receipt_outbox`+row, 7))
		require.NoError(t, err)
		for _, p := range all {
			p.Kick()
		}
	}
	left := func() (n int) {
		require.NoError(t, db.Get(&n, `SELECT (SELECT count(*) FROM public.receipt_outbox) + (SELECT count(*) FROM tidemark_g7.receipt_outbox)`))
		return n
	}
	require.Eventually(t, func() bool { return left() == 0 }, 20*time.Second, 5*time.Millisecond)
	require.Len(t, log.got(), 100)
	side := 0
	for _, v := range log.got() {
		side += strings.Count(v, `"generation":7`)
		require.Contains(t, v, `"decided_at":"2026-01-02T03:04:05.000006Z"`)
	}
	require.Equal(t, 50, side)

	_, err := db.Exec(`DROP SCHEMA tidemark_g7 CASCADE`) // a generation that is dropped takes nobody along
	require.NoError(t, err)
	rows, err := (&Postgres{db}).Oldest(t.Context(), "tidemark_g7", 10)
	require.NoError(t, err)
	require.Empty(t, rows)
	require.NoError(t, (&Postgres{db}).Delete(t.Context(), "tidemark_g7", []int64{1}))
}

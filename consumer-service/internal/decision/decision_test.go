package decision

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/tidemark/tidemark/shared/config"
	"github.com/tidemark/tidemark/shared/event"
	"github.com/tidemark/tidemark/shared/kafka"
	"github.com/tidemark/tidemark/shared/kafka/kafkatest"
	"github.com/tidemark/tidemark/shared/position"
	"github.com/tidemark/tidemark/shared/postgres"
	"github.com/tidemark/tidemark/shared/postgres/postgrestest"
	"github.com/tidemark/tidemark/shared/topic"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// heldStore remembers how far it was saved.
type heldStore struct {
	mu    sync.Mutex
	next  map[int32]int64
	saved int
	away  error
}

func (s *heldStore) Save(_ context.Context, partition int32, next int64, decisions []Decision) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.away != nil {
		return s.away
	}
	if s.next == nil {
		s.next = map[int32]int64{}
	}
	s.next[partition] = max(s.next[partition], next)
	s.saved += len(decisions)
	return nil
}

func (s *heldStore) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.away = err
}

func (s *heldStore) Progress(context.Context) (map[int32]int64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.next), s.away
}

func (s *heldStore) Topic(context.Context) (string, error)                      { return "", nil }
func (s *heldStore) Renew(context.Context, string) error                        { return nil }
func (s *heldStore) Forget(context.Context, func(topic string) time.Time) error { return nil }

func (s *heldStore) WithoutLetter(context.Context, []Decision) ([]position.Position, error) {
	return nil, nil
}

var day = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func about(partition int32, offset int64) position.Position {
	return position.Position{Topic: topic.TimestampCommand.Name, Partition: partition, Offset: offset}
}

func discard(partition int32, offset int64) []byte {
	return event.AppendDeadLetterCommand(nil, event.DeadLetterCommand{Position: about(partition, offset), Decision: event.Discard})
}

func redrive(partition int32, offset int64, id uuid.UUID, note string) []byte {
	return event.AppendDeadLetterCommand(nil, event.DeadLetterCommand{Position: about(partition, offset), Decision: event.Redrive, CommandID: id, Note: note})
}

// run starts a book that somebody has asked; its refusal, if any, is sent.
func run(t *testing.T, log Log, store Store) (*Book, chan string) {
	t.Helper()
	refused := make(chan string, 1)
	b := New(Options{
		Log: log, Store: store, Topic: topic.DeadLetterCommand.Name, Partitions: 3, Logger: slog.New(slog.DiscardHandler),
		Refuse: func(reason string) { refused <- reason },
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	b.begin.Do(func() { close(b.begun) })
	go func() { defer close(done); b.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	return b, refused
}

// Before somebody has made sure whose log this is, nothing of it is written to the tables.
func TestNothingIsSavedBeforeSomebodyAsks(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		log, store := kafkatest.NewLog(3), &heldStore{}
		log.Add(1, day, string(discard(0, 5)))
		b := New(Options{Log: log, Store: store, Topic: topic.DeadLetterCommand.Name, Partitions: 3, Logger: slog.New(slog.DiscardHandler)})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); b.Run(ctx) }()
		defer func() { cancel(); <-done }()
		time.Sleep(time.Minute)
		synctest.Wait()
		next, err := store.Progress(t.Context())
		require.NoError(t, err)
		require.Empty(t, next)

		require.NoError(t, b.CatchUp(t.Context()))
		require.NotEmpty(t, b.Of(topic.TimestampCommand.Name, 0, 0, 10))
	})
}

func TestWhoCatchesUpKnowsEverythingThatWasThere(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		log, store := kafkatest.NewLog(3), &heldStore{}
		for i := range int64(101) {
			log.Add(int32(i%3), day, string(discard(7, i)))
		}
		log.Add(1, day, string([]byte("no decision")))
		for p := range int32(3) {
			log.Pass(p, kafka.Gap{Markers: 1})
		}
		b, _ := run(t, log, store)
		require.NoError(t, b.CatchUp(t.Context()))
		require.Len(t, b.Of(topic.TimestampCommand.Name, 7, 0, 1000), 101)
		require.Len(t, b.Of(topic.TimestampCommand.Name, 7, 10, 20), 10)
		require.Equal(t, map[int64]event.Decision{99: event.Discard, 100: event.Discard}, b.Of(topic.TimestampCommand.Name, 7, 99, 1_000_000))
		require.Nil(t, b.Of(topic.TimestampCommand.Name, 7, 101, 200))
		require.Nil(t, b.Of(topic.TimestampCommand.Name, 6, 0, 1000))
		require.Nil(t, b.Of("another", 7, 0, 1000))
		require.Equal(t, 101, store.saved)

		for i := range int64(10) {
			log.Add(2, day, string(discard(8, i)))
		}
		require.NoError(t, b.CatchUp(t.Context()), "not only what was there at the start")
		require.Len(t, b.Of(topic.TimestampCommand.Name, 8, 0, 1000), 10)
		log.Add(0, day, string(discard(9, 0)))
		time.Sleep(time.Second) // it follows the log, though nobody asks
		synctest.Wait()
		require.Len(t, b.Of(topic.TimestampCommand.Name, 9, 0, 1), 1)
	})
}

func TestNobodyIsCaughtUpWhileSomethingIsAway(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		log, store := kafkatest.NewLog(3), &heldStore{}
		log.Add(0, day, string(discard(7, 0)))
		store.fail(errors.New("no database"))
		b, _ := run(t, log, store)
		behind := func() error {
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			return b.CatchUp(ctx)
		}
		require.ErrorIs(t, behind(), context.DeadlineExceeded)
		store.fail(nil)
		log.Fail(errors.New("no broker"))
		require.ErrorContains(t, behind(), "no broker")
		before := log.Asked()
		time.Sleep(20 * time.Second)
		require.Less(t, log.Asked()-before, 15, "it waits longer and longer")
		log.Fail(nil)
		require.NoError(t, behind())
		require.Len(t, b.Of(topic.TimestampCommand.Name, 7, 0, 1), 1)
	})
}

func TestTheFirstDecisionHoldsInWhateverOrderTheyAreRead(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		log := kafkatest.NewLog(3)
		id := uuid.New()
		log.Add(0, day.Add(2), string(redrive(7, 0, id, "")))
		log.Add(1, day.Add(1), string(discard(7, 0))) // the first by time
		log.Add(2, day.Add(3), string(redrive(7, 0, id, "")))
		log.Add(2, day, string(discard(7, 1))) // the same time: the partition decides
		log.Add(0, day, string(redrive(7, 1, id, "")))
		log.Add(0, day, string(discard(7, 1))) // the same partition: the offset does
		b, _ := run(t, log, &heldStore{})
		require.NoError(t, b.CatchUp(t.Context()))
		require.Equal(t, map[int64]event.Decision{0: event.Discard, 1: event.Redrive}, b.Of(topic.TimestampCommand.Name, 7, 0, 10))
	})
}

func TestAnotherLogIsRefused(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		start, saved int64
		words        string
	}{
		"shorter than what was read": {0, 3, "ends at offset 2 and this database has read up to 3"},
		"without its beginning":      {1, 0, "starts at offset 1, not at 0"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				log, store := kafkatest.NewLog(3), &heldStore{next: map[int32]int64{0: tc.saved}}
				log.Start = tc.start
				log.Add(0, day, string(discard(7, 0)))
				log.Add(0, day, string(discard(7, 1)))
				b, refused := run(t, log, store)
				require.Contains(t, <-refused, tc.words)
				require.Zero(t, store.saved)
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				require.Error(t, b.CatchUp(ctx))
			})
		})
	}
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

// What is saved in memory, for tests in which time is not real, goes on as it does in the tables.
func TestProgressNeverGoesBack(t *testing.T) {
	t.Parallel()
	for name, store := range map[string]Store{"in memory": &heldStore{}, "Postgres": &Postgres{database(t)}} {
		for _, next := range []int64{3, 7, 5} {
			require.NoError(t, store.Save(t.Context(), 1, next, nil), name)
		}
		require.NoError(t, store.Save(t.Context(), 0, 2, nil), name)
		next, err := store.Progress(t.Context())
		require.NoError(t, err)
		require.Equal(t, map[int32]int64{0: 2, 1: 7}, next, name)
	}
}

// Whatever the order and however often they are saved, by however many, the tables have the first decision.
func TestTheTablesHaveTheFirstDecision(t *testing.T) {
	t.Parallel()
	db := database(t)
	id := uuid.New()
	decision := func(value []byte, at time.Time, partition int32, offset int64) Decision {
		c, err := event.DecodeDeadLetterCommand(value)
		require.NoError(t, err)
		return Decision{DeadLetterCommand: c, At: at, Partition: partition, Offset: offset}
	}
	all := []Decision{
		decision(redrive(7, 0, id, "first\x00"), day, 1, 5),
		decision(discard(7, 0), day.Add(time.Millisecond), 0, 0),
		decision(discard(7, 0), day, 1, 6),
		decision(discard(7, 0), day, 2, 0),
		decision(discard(8, 9), day, 2, 1),
	}
	dump := func() (lines []string) {
		require.NoError(t, db.SelectContext(t.Context(), &lines, `SELECT concat_ws('|', d.*::text) FROM dead_letter_decisions d ORDER BY topic, partition, "offset"`))
		return lines
	}
	want := []string{
		`(timestamp.command.v1,7,0,redrive,` + id.String() + `,first,"","2026-01-02 03:04:05+00",1,5)`,
		`(timestamp.command.v1,8,9,discard,,"","","2026-01-02 03:04:05+00",2,1)`,
	}
	for i := range all {
		_, err := db.Exec(`TRUNCATE dead_letter_decisions, decision_progress`)
		require.NoError(t, err)
		var savers sync.WaitGroup
		for n := range 2 {
			savers.Go(func() { // another process, from another place on
				s := &Postgres{db}
				for k := range all {
					d := all[(i+n+k)%len(all)]
					if err := s.Save(t.Context(), d.Partition, d.Offset+1, []Decision{d}); err != nil {
						t.Error(err)
					}
				}
				if err := s.Save(t.Context(), 0, 1, all); err != nil {
					t.Error(err)
				}
			})
		}
		savers.Wait()
		require.Equal(t, want, dump())
	}
	require.NoError(t, (&Postgres{db}).Save(t.Context(), 1, 3, nil)) // by a process that has only begun to read
	next, err := (&Postgres{db}).Progress(t.Context())
	require.NoError(t, err)
	require.Equal(t, map[int32]int64{0: 1, 1: 7, 2: 2}, next, "it never goes back")

	// What a hand changed is healed by the next process that reads everything.
	_, err = db.Exec(`UPDATE dead_letter_decisions SET note = 'changed'; DELETE FROM dead_letter_decisions WHERE partition = 8`)
	require.NoError(t, err)
	require.NoError(t, (&Postgres{db}).Save(t.Context(), 0, 1, all))
	require.Equal(t, want, dump())
}

func TestADecisionOnWhatIsNoDeadLetterIsTold(t *testing.T) {
	t.Parallel()
	db := database(t)
	_, err := db.Exec(`
INSERT INTO projection_progress (topic, partition, epoch, first_offset, next_offset, applied, rejected) VALUES ('timestamp.command.v1', 7, 1, 0, 10, 9, 1);
INSERT INTO dead_letters (topic, partition, "offset", headers, reason_code, reason, first_seen_at) VALUES ('timestamp.command.v1', 7, 3, '[]', 'decode', '', now());
INSERT INTO endpoints.projection_progress (topic, partition, epoch, first_offset, next_offset, applied, rejected) VALUES ('endpoint.command.v1', 7, 1, 2, 5, 2, 1);
INSERT INTO endpoints.dead_letters (topic, partition, "offset", headers, reason_code, reason, first_seen_at) VALUES ('endpoint.command.v1', 7, 4, '[]', 'decode', '', now())`)
	require.NoError(t, err)
	endpoint := func(offset int64) position.Position {
		return position.Position{Topic: topic.EndpointCommand.Name, Partition: 7, Offset: offset}
	}
	var some []Decision
	for _, at := range []position.Position{
		about(7, 3), about(7, 4), about(7, 10), about(8, 0), // a letter, a row, not read yet, no such partition
		endpoint(1), endpoint(3), endpoint(4), endpoint(5), // before the log's start, a row, a letter, not read yet
		{Topic: "other.v1", Partition: 7, Offset: 3}, // of no projection
	} {
		some = append(some, Decision{DeadLetterCommand: event.DeadLetterCommand{Position: at, Decision: event.Discard}})
	}
	found, err := (&Postgres{db}).WithoutLetter(t.Context(), some)
	require.NoError(t, err)
	require.Equal(t, []position.Position{endpoint(3), about(7, 4)}, found)
}

package projection

import (
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/shared/httpapi"
	"github.com/tidemark/tidemark/shared/kafka"
)

// moved are the tables that a swap moves, as far as these tests need them.
var moved = []string{"projection_progress", "timestamp_records", "dead_letters", "projection_audits", "receipt_outbox"}

// side adds generation 1 with empty tables, and a projector for it.
func (b *bundle) side(t *testing.T, s *Side) *bundle {
	t.Helper()
	s.Generation = 1
	schema := SideSchema(1)
	b.exec(t, `INSERT INTO generations (generation, schema_name, state) VALUES (1, $1, 'filling')`, schema)
	b.exec(t, `CREATE SCHEMA `+schema)
	for _, table := range moved {
		b.exec(t, `CREATE TABLE `+schema+`.`+table+` (LIKE public.`+table+` INCLUDING ALL)`)
	}
	b.exec(t, `INSERT INTO `+schema+`.projection_progress (topic, partition, epoch, first_offset, next_offset)
		SELECT topic, partition, (SELECT epoch FROM generations WHERE generation = 1), 0, 0 FROM public.projection_progress`)
	at := &bundle{decided: b.decided, log: b.log, ready: httpapi.NewReadiness(), stopped: make(chan error, 8), url: b.url}
	at.Projector = New(Options{
		DB: b.DB, Log: b.log, Decisions: b.decided, Topic: topic, Group: "group-1.g1", Partitions: b.Partitions, AuditInterval: time.Second, Ready: at.ready, Side: s,
		Metrics: NewMetrics(prometheus.NewRegistry()), Logger: slog.New(slog.NewTextHandler(t.Output(), nil)), Stop: func(err error) { at.stopped <- err },
	})
	return at
}

func (b *bundle) exec(t *testing.T, query string, args ...any) {
	t.Helper()
	_, err := b.DB.ExecContext(t.Context(), query, args...)
	require.NoError(t, err)
}

// fence is the first part of a swap, move the last.
func (b *bundle) fence(t *testing.T) {
	t.Helper()
	b.exec(t, `UPDATE generations SET state = 'swapping', swapping_since = clock_timestamp(), epoch = nextval('projection_epochs') WHERE state = 'serving'`)
	b.exec(t, `UPDATE public.projection_progress SET epoch = (SELECT epoch FROM generations WHERE state = 'swapping')`)
}

func (b *bundle) move(t *testing.T) {
	t.Helper()
	tx, err := b.DB.Beginx()
	require.NoError(t, err)
	for _, s := range []struct{ from, to string }{{"public", "aside"}, {"tidemark_g1", "public"}, {"aside", "tidemark_g0"}} {
		tx.MustExec(`CREATE SCHEMA IF NOT EXISTS ` + s.to)
		for _, table := range moved {
			tx.MustExec(fmt.Sprintf(`ALTER TABLE %s.%s SET SCHEMA %s`, s.from, table, s.to))
		}
	}
	tx.MustExec(`UPDATE generations SET state = 'standby', schema_name = 'tidemark_g0', epoch = nextval('projection_epochs') WHERE generation = 0`)
	tx.MustExec(`UPDATE generations SET state = 'serving', schema_name = 'public', epoch = nextval('projection_epochs'),
		group_name = (SELECT group_name FROM generations WHERE generation = 0) WHERE generation = 1`)
	for _, schema := range []string{"public", "tidemark_g0"} {
		tx.MustExec(`UPDATE ` + schema + `.projection_progress SET epoch = (SELECT epoch FROM generations WHERE schema_name = '` + schema + `')`)
	}
	require.NoError(t, tx.Commit())
}

// A swap does not end the session of the serving writers: those that write wait while it is under way, and then
// go on in the tables that are in public now; those that are idle follow a second later.
func TestWritersGoOnInTheTablesThatWereSwappedIn(t *testing.T) {
	t.Parallel()
	for name, repeat := range map[string]bool{"the fast way": false, "the slow way": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t, 3)
			require.NoError(t, b.join(t))
			for p := range int32(3) {
				for range 10 {
					b.log.add(p, day, value(uuid.New(), day))
				}
				b.log.add(p, day, `poison`)
			}
			b.readAll(t)
			side := b.side(t, &Side{})
			require.NoError(t, side.join(t))
			side.readAll(t)
			before := b.claimed(0).epoch
			if id := uuid.New(); repeat {
				b.log.add(0, day, value(id, day))
				b.log.add(0, day, value(id, day.Add(time.Second)))
			}
			b.log.add(0, day, value(uuid.New(), day))

			b.fence(t)
			done := make(chan error, 1)
			go func() { done <- b.read(t.Context(), 0, b.log.records[0][11:]) }()
			select {
			case err := <-done:
				require.Fail(t, "a writer did not wait for the swap", "%v", err)
			case <-time.After(300 * time.Millisecond):
			}
			side.readAll(t) // it has read on meanwhile
			b.log.add(1, day, value(uuid.New(), day))
			require.NoError(t, side.read(t.Context(), 1, b.log.records[1]))
			b.move(t)
			require.NoError(t, <-done)
			require.NoError(t, b.watch(t.Context(), map[int32]int64{}))
			require.False(t, b.session.ended)
			for p := range int32(3) {
				c := b.claimed(p)
				require.Greater(t, c.epoch, before)
				require.Contains(t, c.mark, fmt.Sprint(c.epoch))
				require.EqualValues(t, len(b.log.records[p]), c.next, "what the side had read is not read again")
			}
			b.matches(t, expect(b.log))
			b.clean(t)

			// The side's writers find that they write nothing any more.
			b.log.add(2, day, value(uuid.New(), day))
			require.ErrorContains(t, side.read(t.Context(), 2, b.log.records[2]), "generation 1 is not fed any more: it is serving")
			require.NoError(t, side.watch(t.Context(), map[int32]int64{}))
			require.True(t, side.session.ended)
			require.NoError(t, b.read(t.Context(), 2, b.log.records[2]))
			b.matches(t, expect(b.log))
			require.Empty(t, b.ready.Reasons())
		})
	}
}

// A swap that is given up takes nothing from anybody.
func TestWritersGoOnAfterASwapThatWasGivenUp(t *testing.T) {
	t.Parallel()
	b := setup(t, 1)
	require.NoError(t, b.join(t))
	b.log.add(0, day, value(uuid.New(), day))
	b.readAll(t)
	b.fence(t)
	b.log.add(0, day, value(uuid.New(), day))
	done := make(chan error, 1)
	go func() { done <- b.read(t.Context(), 0, b.log.records[0]) }()
	time.Sleep(50 * time.Millisecond)
	b.exec(t, `UPDATE generations SET state = 'serving', swapping_since = NULL`)
	require.NoError(t, <-done)
	b.matches(t, expect(b.log))

	// A mark that nobody takes back is anybody's after a while: a writer's, that of who looks each second, and
	// that of who begins a session.
	for name, who := range map[string]func() error{
		"a writer": func() error {
			b.log.add(0, day, value(uuid.New(), day))
			return b.read(t.Context(), 0, b.log.records[0])
		},
		"the watch": func() error { return b.watch(t.Context(), map[int32]int64{}) },
		"a session": func() error { return b.SetUp(b.session) },
	} {
		b.fence(t)
		b.exec(t, `UPDATE generations SET swapping_since = swapping_since - interval '1 minute'`)
		require.NoError(t, who(), name)
		var state string
		require.NoError(t, b.DB.Get(&state, `SELECT state FROM generations`))
		require.Equal(t, "serving", state, name)
	}
	b.matches(t, expect(b.log))
}

// What lies behind a claim was started over, not swapped: its session ends.
func TestAWriterDoesNotGoOnBehindItself(t *testing.T) {
	t.Parallel()
	b := setup(t, 1)
	require.NoError(t, b.join(t))
	for range 5 {
		b.log.add(0, day, value(uuid.New(), day))
	}
	b.readAll(t)
	b.exec(t, `UPDATE generations SET epoch = nextval('projection_epochs')`)
	b.exec(t, `UPDATE projection_progress SET epoch = (SELECT epoch FROM generations), next_offset = 4, applied = 4`)
	b.log.add(0, day, value(uuid.New(), day))
	require.ErrorContains(t, b.read(t.Context(), 0, b.log.records[0]), "was started over")
	require.NoError(t, b.watch(t.Context(), map[int32]int64{}))
	require.True(t, b.session.ended)
}

// A generation at the side is filled to its point and no further, whatever stands right before it.
func TestASideEndsAtItsPoint(t *testing.T) {
	t.Parallel()
	b := setup(t, 2)
	require.NoError(t, b.join(t))
	for p := range int32(2) {
		for range 10 {
			b.log.add(p, day, value(uuid.New(), day))
		}
	}
	b.log.markers[1] = 3
	side := b.side(t, &Side{Stops: map[int32]int64{0: 4, 1: 12}})
	require.NoError(t, side.join(t))
	for p := range int32(2) {
		require.NoError(t, side.take(t.Context(), p, side.claimed(p), b.log.records[p]))
	}
	tails := map[int32]int64{}
	for range 3 {
		require.NoError(t, side.watch(t.Context(), tails))
	}
	var next []int64
	require.NoError(t, b.DB.Select(&next, `SELECT next_offset FROM tidemark_g1.projection_progress ORDER BY partition`))
	require.Equal(t, []int64{4, 12}, next, "two markers stand before the point, and one behind it")
	require.Equal(t, 14, b.count(t, "tidemark_g1.timestamp_records"))
	require.Zero(t, b.count(t, "public.timestamp_records"), "what serves was not touched")
}

// A limit lets so many records a second through and no more, by small pieces.
func TestALimitIsKept(t *testing.T) {
	t.Parallel()
	b := setup(t, 1)
	require.NoError(t, b.join(t))
	for range 300 {
		b.log.add(0, day, value(uuid.New(), day))
	}
	s := &Side{Limit: 200}
	side := b.side(t, s)
	require.NoError(t, side.join(t))
	start := time.Now()
	require.NoError(t, side.take(t.Context(), 0, side.claimed(0), b.log.records[0]))
	require.GreaterOrEqual(t, time.Since(start), 1400*time.Millisecond, "300 records at 200 a second")
	require.Equal(t, 300, b.count(t, "tidemark_g1.timestamp_records"))
	times := s.Times()
	require.Greater(t, times.Throttle, times.Postgres+times.Consumer)
}

// A generation at the side judges the log as the serving one does, and neither starts over nor stops the process.
func TestASideHasNoNameToJudge(t *testing.T) {
	t.Parallel()
	b := setup(t, 1)
	require.NoError(t, b.join(t))
	b.log.add(0, day, value(uuid.New(), day))
	side := b.side(t, &Side{})
	require.NoError(t, side.join(t))
	side.readAll(t)
	b.log.committed[0] = kafka.Committed{Offset: 0} // an operator's reset means the serving group
	require.NoError(t, side.join(t))
	require.EqualValues(t, 1, side.session.seeks[0].Offset)
	b.exec(t, `UPDATE generations SET group_name = 'another' WHERE generation = 0`)
	require.NoError(t, side.watch(t.Context(), map[int32]int64{}))
	require.Empty(t, side.stopped)

	b.log.committed[0] = kafka.Committed{Offset: 1, Metadata: "tidemark " + uuid.NewString() + " 3"}
	require.ErrorContains(t, side.join(t), "another database")
	b.log.committed[0] = kafka.Committed{Offset: -1}
	b.log.records[0][0].Value = []byte("another record")
	require.ErrorContains(t, side.join(t), "is another than the one that was projected")
	b.exec(t, `UPDATE generations SET state = 'dropping' WHERE generation = 1`)
	b.log.records[0] = nil
	b.exec(t, `UPDATE tidemark_g1.projection_progress SET next_offset = 0, applied = 0, last_offset = NULL`)
	require.ErrorContains(t, side.join(t), "it is dropping")
}

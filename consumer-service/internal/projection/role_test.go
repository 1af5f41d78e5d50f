package projection

import (
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/shared/await"
	"github.com/tidemark/tidemark/shared/httpapi"
	"github.com/tidemark/tidemark/shared/kafka"
)

// moved are the tables that a swap moves, as far as these tests need them.
var moved = []string{"projection_progress", "timestamp_records", "dead_letters", "projection_audits"}

// candidate adds generation 1 with empty tables, and a projector for it.
func (b *bundle) candidate(t *testing.T, pace *Pace) *bundle {
	t.Helper()
	const schema = "timestamps_g1"
	b.exec(t, `INSERT INTO projection_generations (projection, generation, schema_name, state) VALUES ('timestamps', 1, $1, 'filling')`, schema)
	b.exec(t, `CREATE SCHEMA `+schema)
	for _, table := range moved {
		b.exec(t, `CREATE TABLE `+schema+`.`+table+` (LIKE public.`+table+` INCLUDING ALL)`)
	}
	b.exec(t, `INSERT INTO `+schema+`.projection_progress (topic, partition, epoch, first_offset, next_offset)
		SELECT topic, partition, (SELECT epoch FROM projection_generations WHERE projection = 'timestamps' AND generation = 1), 0, 0 FROM public.projection_progress`)
	at := &bundle{decided: b.decided, log: b.log, ready: httpapi.NewReadiness(), stopped: make(chan *Refusal, 8), url: b.url}
	at.Projector = New(Options{
		DB: b.DB, Log: b.log, Identity: b.log, Decisions: b.decided, Definition: b.Definition, Group: "group-1.g1", Role: Candidate(1), Pace: pace, AuditInterval: time.Second, Ready: at.ready,
		Metrics: NewMetrics(prometheus.NewRegistry()).Of("timestamps"), Logger: slog.New(slog.NewTextHandler(t.Output(), nil)), Stop: func(r *Refusal) { at.stopped <- r },
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
	b.exec(t, `UPDATE projection_generations SET state = 'swapping', swapping_since = clock_timestamp(), epoch = next_projection_epoch() WHERE projection = 'timestamps' AND state = 'serving'`)
	b.exec(t, `UPDATE public.projection_progress SET epoch = (SELECT epoch FROM projection_generations WHERE projection = 'timestamps' AND state = 'swapping')`)
}

func (b *bundle) move(t *testing.T) {
	t.Helper()
	tx, err := b.DB.Beginx()
	require.NoError(t, err)
	for _, s := range []struct{ from, to string }{{"public", "aside"}, {"timestamps_g1", "public"}, {"aside", "timestamps_g0"}} {
		tx.MustExec(`CREATE SCHEMA IF NOT EXISTS ` + s.to)
		for _, table := range moved {
			tx.MustExec(fmt.Sprintf(`ALTER TABLE %s.%s SET SCHEMA %s`, s.from, table, s.to))
		}
	}
	tx.MustExec(`UPDATE projection_generations SET state = 'standby', schema_name = 'timestamps_g0', epoch = next_projection_epoch() WHERE projection = 'timestamps' AND generation = 0`)
	tx.MustExec(`UPDATE projection_generations SET state = 'serving', schema_name = 'public', epoch = next_projection_epoch(),
		group_name = (SELECT group_name FROM projection_generations WHERE projection = 'timestamps' AND generation = 0) WHERE generation = 1`)
	for _, schema := range []string{"public", "timestamps_g0"} {
		tx.MustExec(`UPDATE ` + schema + `.projection_progress SET epoch = (SELECT epoch FROM projection_generations WHERE projection = 'timestamps' AND schema_name = '` + schema + `')`)
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
					b.log.Add(p, day, value(uuid.New(), day))
				}
				b.log.Add(p, day, `poison`)
			}
			b.readAll(t)
			candidate := b.candidate(t, &Pace{})
			require.NoError(t, candidate.join(t))
			candidate.readAll(t)
			before := b.of(0).epoch
			if id := uuid.New(); repeat {
				b.log.Add(0, day, value(id, day))
				b.log.Add(0, day, value(id, day.Add(time.Second)))
			}
			b.log.Add(0, day, value(uuid.New(), day))

			b.fence(t)
			done := make(chan error, 1)
			go func() { done <- b.read(t.Context(), 0, b.log.Records[0][11:]) }()
			select {
			case err := <-done:
				require.Fail(t, "a writer did not wait for the swap", "%v", err)
			case <-time.After(300 * time.Millisecond):
			}
			candidate.readAll(t) // it has read on meanwhile
			b.log.Add(1, day, value(uuid.New(), day))
			require.NoError(t, candidate.read(t.Context(), 1, b.log.Records[1]))
			b.move(t)
			require.NoError(t, <-done)
			require.NoError(t, b.look(t.Context(), &watch{tails: map[int32]int64{}}))
			require.False(t, b.session.ended)
			for p := range int32(3) {
				c := b.of(p)
				require.Greater(t, c.epoch, before)
				require.Contains(t, c.metadata, fmt.Sprint(c.epoch))
				require.EqualValues(t, len(b.log.Records[p]), c.next, "what the candidate had read is not read again")
			}
			b.matches(t, expect(b.log))
			b.clean(t)

			// The candidate's writers find that they write nothing any more.
			b.log.Add(2, day, value(uuid.New(), day))
			require.ErrorContains(t, candidate.read(t.Context(), 2, b.log.Records[2]), "not written any more: generation 1 is serving")
			require.NoError(t, candidate.look(t.Context(), &watch{tails: map[int32]int64{}}))
			require.True(t, candidate.session.ended)
			require.NoError(t, b.read(t.Context(), 2, b.log.Records[2]))
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
	b.log.Add(0, day, value(uuid.New(), day))
	b.readAll(t)
	b.fence(t)
	b.log.Add(0, day, value(uuid.New(), day))
	done := make(chan error, 1)
	go func() { done <- b.read(t.Context(), 0, b.log.Records[0]) }()
	await.Until(t, func() bool { return testutil.ToFloat64(b.Metrics.fenced) > 0 })
	b.exec(t, `UPDATE projection_generations SET state = 'serving', swapping_since = NULL WHERE projection = 'timestamps'`)
	require.NoError(t, <-done)
	b.matches(t, expect(b.log))

	// A mark that nobody takes back is anybody's after a while: a writer's, that of who looks each second, and
	// that of who begins a session.
	for name, who := range map[string]func() error{
		"a writer": func() error {
			b.log.Add(0, day, value(uuid.New(), day))
			return b.read(t.Context(), 0, b.log.Records[0])
		},
		"the watch": func() error { return b.look(t.Context(), &watch{tails: map[int32]int64{}}) },
		"a session": func() error { return b.SetUp(b.session) },
	} {
		b.fence(t)
		b.exec(t, `UPDATE projection_generations SET swapping_since = swapping_since - interval '1 minute' WHERE projection = 'timestamps'`)
		require.NoError(t, who(), name)
		var state string
		require.NoError(t, b.DB.Get(&state, `SELECT state FROM projection_generations WHERE projection = 'timestamps'`))
		require.Equal(t, "serving", state, name)
	}
	b.matches(t, expect(b.log))
}

// What lies behind an assignment was started over, not swapped: its session ends.
func TestAWriterDoesNotGoOnBehindItself(t *testing.T) {
	t.Parallel()
	b := setup(t, 1)
	require.NoError(t, b.join(t))
	for range 5 {
		b.log.Add(0, day, value(uuid.New(), day))
	}
	b.readAll(t)
	b.exec(t, `UPDATE projection_generations SET epoch = next_projection_epoch() WHERE projection = 'timestamps'`)
	b.exec(t, `UPDATE projection_progress SET epoch = (SELECT epoch FROM projection_generations WHERE projection = 'timestamps'), next_offset = 4, applied = 4`)
	b.log.Add(0, day, value(uuid.New(), day))
	require.ErrorContains(t, b.read(t.Context(), 0, b.log.Records[0]), "was started over")
	require.NoError(t, b.look(t.Context(), &watch{tails: map[int32]int64{}}))
	require.True(t, b.session.ended)
}

// A candidate is filled to its point and no further, whatever stands right before it.
func TestACandidateEndsAtItsPoint(t *testing.T) {
	t.Parallel()
	b := setup(t, 2)
	require.NoError(t, b.join(t))
	for p := range int32(2) {
		for range 10 {
			b.log.Add(p, day, value(uuid.New(), day))
		}
	}
	b.log.Pass(1, kafka.Gap{Markers: 3})
	candidate := b.candidate(t, &Pace{Stops: map[int32]int64{0: 4, 1: 12}})
	require.NoError(t, candidate.join(t))
	for p := range int32(2) {
		require.NoError(t, candidate.take(t.Context(), p, candidate.of(p), b.log.Records[p]))
	}
	looks := &watch{tails: map[int32]int64{}}
	for range 3 {
		require.NoError(t, candidate.look(t.Context(), looks))
	}
	var next []int64
	require.NoError(t, b.DB.Select(&next, `SELECT next_offset FROM timestamps_g1.projection_progress ORDER BY partition`))
	require.Equal(t, []int64{4, 12}, next, "two markers stand before the point, and one behind it")
	require.Equal(t, 14, b.count(t, "timestamps_g1.timestamp_records"))
	require.Zero(t, b.count(t, "public.timestamp_records"), "what serves was not touched")
}

// A limit lets so many records a second through and no more, by small pieces.
func TestALimitIsKept(t *testing.T) {
	t.Parallel()
	b := setup(t, 1)
	require.NoError(t, b.join(t))
	for range 300 {
		b.log.Add(0, day, value(uuid.New(), day))
	}
	pace := &Pace{Limit: 200}
	candidate := b.candidate(t, pace)
	require.NoError(t, candidate.join(t))
	start := time.Now()
	require.NoError(t, candidate.take(t.Context(), 0, candidate.of(0), b.log.Records[0]))
	require.GreaterOrEqual(t, time.Since(start), 1400*time.Millisecond, "300 records at 200 a second")
	require.Equal(t, 300, b.count(t, "timestamps_g1.timestamp_records"))
	times := pace.Times()
	require.Greater(t, times.Throttle, times.Postgres+times.Consumer)
}

// A candidate judges the log as the serving one does, and neither starts over nor stops the process.
func TestACandidateHasNoNameToJudge(t *testing.T) {
	t.Parallel()
	b := setup(t, 1)
	require.NoError(t, b.join(t))
	b.log.Add(0, day, value(uuid.New(), day))
	candidate := b.candidate(t, &Pace{})
	require.NoError(t, candidate.join(t))
	candidate.readAll(t)
	b.log.Commits[0] = kafka.Committed{Offset: 0} // an operator's reset means the serving group
	require.NoError(t, candidate.join(t))
	require.EqualValues(t, 1, candidate.session.seeks[0].Offset)
	b.exec(t, `UPDATE projection_generations SET group_name = 'another' WHERE projection = 'timestamps' AND generation = 0`)
	require.NoError(t, candidate.look(t.Context(), &watch{tails: map[int32]int64{}}))
	require.Empty(t, candidate.stopped)

	b.log.Commits[0] = kafka.Committed{Offset: 1, Metadata: "tidemark " + uuid.NewString() + " 3"}
	require.ErrorContains(t, candidate.join(t), "another database")
	b.log.Commits[0] = kafka.Committed{Offset: -1}
	b.log.Records[0][0].Value = []byte("another record")
	require.ErrorContains(t, candidate.join(t), "is another than the one that was projected")
	b.exec(t, `UPDATE projection_generations SET state = 'dropping' WHERE projection = 'timestamps' AND generation = 1`)
	b.log.Records[0] = nil
	b.exec(t, `UPDATE timestamps_g1.projection_progress SET next_offset = 0, applied = 0, last_offset = NULL`)
	require.ErrorContains(t, candidate.join(t), "generation 1 is dropping")
}

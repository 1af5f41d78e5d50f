package generation

import (
	"database/sql"
	"fmt"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
)

// A blue/green rebuild, a rollback, and back again: each time the tables in public are the other ones, and
// both sides have epochs that no writer has seen.
func TestASwapMovesTheTablesBothWays(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.exec(t, `CREATE INDEX by_event ON public.timestamp_records (event_timestamp)`)
	g := b.ready(t, Request{Swap: true})
	require.True(t, g.SwapWanted && g.ProofWanted)
	require.Positive(t, *g.FillMs)
	require.Positive(t, *g.IndexMs)
	fillMs, indexMs := *g.FillMs, *g.IndexMs
	var indexes int
	b.one(t, &indexes, `SELECT count(*) FROM pg_indexes WHERE schemaname = $1 AND indexname IN ('by_event', 'timestamp_records_created_at_idx')`, g.Schema)
	require.Equal(t, 2, indexes, "each index is made anew, an operator's too")

	oid := func(schema string) (n uint32) {
		b.one(t, &n, `SELECT ($1 || '.timestamp_records')::regclass::oid`, schema)
		return n
	}
	epochs := map[int64]bool{}
	serving, side := 0, g.Number
	for range 3 {
		public, aside := oid("public"), oid(b.schemaOf(side))
		b.drive(t)
		require.Equal(t, Serving, b.get(t, side).State)
		require.Equal(t, Standby, b.get(t, serving).State)
		require.Equal(t, aside, oid("public"))
		require.Equal(t, public, oid(b.schemaOf(serving)))
		for _, number := range []int{serving, side} {
			now := b.get(t, number)
			require.False(t, epochs[now.Epoch], "an epoch is never used twice")
			epochs[now.Epoch] = true
			var other int
			b.one(t, &other, `SELECT count(*) FROM `+now.Schema+`.projection_progress WHERE epoch <> $1`, now.Epoch)
			require.Zero(t, other)
			require.False(t, now.SwapWanted || now.ProofWanted)
		}
		require.Equal(t, "group-1", b.get(t, side).Group)
		require.Equal(t, CandidateGroup("group-1", serving), b.get(t, serving).Group)
		serving, side = side, serving
		_, err := b.Swap(t.Context(), side)
		require.NoError(t, err)
	}
	now := b.get(t, g.Number)
	require.Equal(t, []float64{fillMs, indexMs}, []float64{*now.FillMs, *now.IndexMs}, "no swap changes how long they took")
	var left []string
	require.NoError(t, b.DB.SelectContext(t.Context(), &left, `SELECT nspname FROM pg_namespace WHERE nspname LIKE 'timestamps\_g%'`))
	require.Equal(t, []string{b.schemaOf(side)}, left, "the schema of the one that serves is gone")
}

// One row that is changed, dropped or added, on either side, in either table: the proof fails and names it, and
// nothing is swapped.
func TestTheProofIsReal(t *testing.T) {
	t.Parallel()
	id := uuid.NewSHA1(uuid.Nil, fmt.Append(nil, int32(1), 7)).String()
	added := uuid.NewString()
	letter := topic + "/1@47"
	for name, tc := range map[string]struct{ hand, key string }{
		"changed":                  {`UPDATE %s.timestamp_records SET event_timestamp = event_timestamp + interval '1 microsecond' WHERE id = '` + id + `'`, id},
		"dropped":                  {`DELETE FROM %s.timestamp_records WHERE id = '` + id + `'`, id},
		"added":                    {`INSERT INTO %s.timestamp_records SELECT '` + added + `', event_timestamp, created_at, partition, "offset" FROM %[1]s.timestamp_records WHERE id = '` + id + `'`, added},
		"added far away":           {`INSERT INTO %s.timestamp_records SELECT '` + added + `', event_timestamp, created_at, partition, 1000000 FROM %[1]s.timestamp_records WHERE id = '` + id + `'`, added},
		"added to no partition":    {`INSERT INTO %s.timestamp_records SELECT '` + added + `', event_timestamp, created_at, 99, 0 FROM %[1]s.timestamp_records WHERE id = '` + id + `'`, added},
		"moved":                    {`UPDATE %s.timestamp_records SET "offset" = 1000000 WHERE id = '` + id + `'`, id},
		"dead letter changed":      {`UPDATE %s.dead_letters SET payload = 'y' WHERE partition = 1 AND "offset" = 47`, letter},
		"dead letter dropped":      {`DELETE FROM %s.dead_letters WHERE partition = 1 AND "offset" = 47`, letter},
		"dead letter added":        {`INSERT INTO %s.dead_letters SELECT topic, partition, 3, payload, headers, reason_code, reason, first_seen_at FROM %[1]s.dead_letters WHERE partition = 1 AND "offset" = 47`, topic + "/1@3"},
		"dead letter's other part": {`UPDATE %s.dead_letters SET headers = '[{}]' WHERE partition = 1 AND "offset" = 47`, letter},
	} {
		for _, where := range []string{"serving", "side"} {
			t.Run(name+" "+where, func(t *testing.T) {
				t.Parallel()
				b := setup(t)
				g := b.ready(t, Request{Swap: true})
				schema := g.Schema
				if where == "serving" {
					schema = "public"
				}
				b.exec(t, fmt.Sprintf(tc.hand, schema))
				b.drive(t)
				g = b.get(t, g.Number)
				require.Equal(t, Ready, g.State)
				require.False(t, g.SwapWanted, "a proof that fails ends the request")
				require.NotNil(t, g.Proof)
				require.False(t, g.Proof.OK)
				require.NotEmpty(t, g.Proof.Finding)
				var keys []string
				for _, d := range g.Proof.Differences {
					keys = append(keys, d.Key)
					require.True(t, d.Serving != nil || d.Candidate != nil)
				}
				require.Contains(t, keys, tc.key, "%+v", g.Proof)
				require.Equal(t, Serving, b.get(t, 0).State)
			})
		}
	}
}

// The same change on both sides is no difference, and still not what was counted.
func TestAProofCountsEachSideByItself(t *testing.T) {
	t.Parallel()
	b := setup(t)
	g := b.ready(t, Request{})
	for _, schema := range []string{"public", g.Schema} {
		b.exec(t, `DELETE FROM `+schema+`.timestamp_records WHERE partition = 1 AND "offset" = 7`)
	}
	_, err := b.Prove(t.Context(), g.Number)
	require.NoError(t, err)
	b.drive(t)
	p := b.get(t, g.Number).Proof
	require.False(t, p.OK)
	require.Contains(t, p.Finding, "has 44 rows of partition 1 in timestamp_records and counted 45")
}

// A record that somebody has decided on is rejected for that, on the side that reads it after the decision; on the other
// one it bears the reason that it had. Its payload must be the same all the same.
func TestAProofKnowsDecisions(t *testing.T) {
	t.Parallel()
	b := setup(t)
	g := b.ready(t, Request{})
	b.exec(t, `UPDATE `+g.Schema+`.dead_letters SET reason_code = 'decided', reason = 'somebody has decided on it' WHERE partition = 1 AND "offset" = 47`)
	p, err := b.prove(t.Context(), g)
	require.NoError(t, err)
	require.False(t, p.OK, "nobody has decided on it")
	require.Equal(t, topic+"/1@47", p.Differences[0].Key)

	b.exec(t, `INSERT INTO dead_letter_decisions (topic, partition, "offset", decision, note, decided_by, decided_at, decision_partition, decision_offset)
		VALUES ($1, 1, 47, 'discard', '', '', now(), 0, 0)`, topic)
	p, err = b.prove(t.Context(), g)
	require.NoError(t, err)
	require.True(t, p.OK, p.Finding)

	b.exec(t, `UPDATE `+g.Schema+`.dead_letters SET payload = 'y' WHERE partition = 1 AND "offset" = 47`)
	p, err = b.prove(t.Context(), g)
	require.NoError(t, err)
	require.False(t, p.OK, "its payload is another")
}

// A proof compares what both have passed: the side may be behind, and so may the serving one.
func TestAProofComparesBelowTheVector(t *testing.T) {
	t.Parallel()
	for _, behind := range []string{"serving", "side"} {
		b := setup(t)
		g := b.ready(t, Request{})
		schema := g.Schema
		if behind == "serving" {
			schema = "public"
		}
		b.exec(t, `DELETE FROM `+schema+`.dead_letters WHERE partition = 1`)
		b.exec(t, `DELETE FROM `+schema+`.timestamp_records WHERE partition = 1 AND "offset" >= 40`)
		b.exec(t, `UPDATE `+schema+`.projection_progress SET next_offset = 40, applied = 40, rejected = 0 WHERE partition = 1`)
		p, err := b.prove(t.Context(), g)
		require.NoError(t, err)
		require.True(t, p.OK, p.Finding)
		require.Equal(t, map[string]int64{topic + "/0": perEach, topic + "/1": 40}, p.Vector)
		require.EqualValues(t, perEach-dead+40, p.Tables[0].RowsCandidate)

		// A side that starts over has rows that wait to be recognised: it is not the time to compare.
		b.exec(t, `UPDATE `+schema+`.projection_progress SET caught_up_at = NULL WHERE partition = 1`)
		_, err = b.prove(t.Context(), g)
		require.ErrorIs(t, err, errNotCaughtUp)
	}
}

// Of two records with one id the one side has read both, and the other one not yet the one that is the row: that is no
// difference, however long it lasts.
func TestAProofWaitsWhereARowIsAboveTheVector(t *testing.T) {
	t.Parallel()
	for _, behind := range []string{"serving", "side"} {
		b := setup(t)
		g := b.ready(t, Request{})
		late, early := g.Schema, "public"
		if behind == "serving" {
			late, early = early, late
		}
		b.exec(t, `DELETE FROM `+early+`.timestamp_records WHERE partition = 0 AND "offset" = 44`) // a duplicate of 1@42
		b.exec(t, `UPDATE `+early+`.projection_progress SET applied = applied - 1, duplicate = duplicate + 1 WHERE partition = 0`)
		b.exec(t, `DELETE FROM `+late+`.dead_letters WHERE partition = 1`)
		b.exec(t, `DELETE FROM `+late+`.timestamp_records WHERE partition = 1 AND "offset" >= 40`)
		b.exec(t, `UPDATE `+late+`.projection_progress SET next_offset = 40, applied = 40, rejected = 0 WHERE partition = 1`)
		b.exec(t, `UPDATE `+late+`.timestamp_records SET id = (SELECT id FROM `+early+`.timestamp_records WHERE partition = 1 AND "offset" = 42)
			WHERE partition = 0 AND "offset" = 44`)
		_, err := b.prove(t.Context(), g)
		require.ErrorIs(t, err, errNotCaughtUp, behind)

		b.exec(t, `UPDATE `+late+`.timestamp_records SET id = gen_random_uuid() WHERE partition = 0 AND "offset" = 44`)
		p, err := b.prove(t.Context(), g)
		require.NoError(t, err)
		require.False(t, p.OK, "no record above the vector explains it")
	}
}

// A reader that holds its transaction makes the swap give up and take the mark back; then it works.
func TestASwapGivesUpBehindAReader(t *testing.T) {
	t.Parallel()
	b := setup(t)
	g := b.ready(t, Request{Swap: true})
	for name, hold := range map[string]string{
		"of the serving table": `SELECT FROM public.timestamp_records`,
		"of the side's table":  `SELECT FROM ` + g.Schema + `.dead_letters`,
		"a writer's":           `SELECT FROM public.projection_progress WHERE partition = 1 FOR UPDATE`,
	} {
		tx, err := b.DB.BeginTx(t.Context(), &sql.TxOptions{})
		require.NoError(t, err)
		_, err = tx.ExecContext(t.Context(), hold)
		require.NoError(t, err)
		err = b.swap(t.Context(), b.get(t, g.Number))
		require.ErrorIs(t, err, errNotYet, name)
		require.Equal(t, Serving, b.get(t, 0).State, name)
		require.NoError(t, tx.Rollback())
	}
	// So does a side that is behind: nobody is made to wait for it.
	b.exec(t, `UPDATE `+g.Schema+`.projection_progress SET next_offset = 0, applied = 0, rejected = 0`)
	b.exec(t, `UPDATE public.projection_progress SET next_offset = 2000, skipped = 1950`)
	before := b.get(t, 0).Epoch
	require.ErrorIs(t, b.swap(t.Context(), b.get(t, g.Number)), errNotYet)
	require.Equal(t, before, b.get(t, 0).Epoch, "the writers were not even fenced")
	b.copied2(t, g)
	require.NoError(t, b.swap(t.Context(), b.get(t, g.Number)))
	require.Equal(t, Serving, b.get(t, g.Number).State)
}

func (b *bundle) copied2(t *testing.T, g Generation) {
	t.Helper()
	b.exec(t, `UPDATE `+g.Schema+`.projection_progress s SET next_offset = p.next_offset, applied = p.applied, rejected = p.rejected, skipped = p.skipped
		FROM public.projection_progress p WHERE p.partition = s.partition`)
}

// Whoever drives next takes back the mark of one that died, and a swap whose mark is gone moves nothing.
func TestAMarkThatIsGoneSwapsNothing(t *testing.T) {
	t.Parallel()
	b := setup(t)
	g := b.ready(t, Request{Swap: true})
	conn, err := b.Long.Connx(t.Context())
	require.NoError(t, err)
	w := &swapping{Service: b.Service, conn: conn, candidate: g}
	require.NoError(t, w.fence(t.Context()))
	require.Equal(t, Swapping, b.get(t, 0).State)

	_, err = b.stepGeneration(t.Context(), b.get(t, 0))
	require.NoError(t, err)
	require.Equal(t, Serving, b.get(t, 0).State)
	require.ErrorIs(t, w.move(t.Context()), errStatesChanged)
	_, err = conn.ExecContext(t.Context(), `ROLLBACK`)
	require.NoError(t, err)
	require.NoError(t, conn.Close())
	require.Equal(t, Serving, b.get(t, 0).State)

	// One that is cancelled in the middle moves nothing either.
	conn, err = b.Long.Connx(t.Context())
	require.NoError(t, err)
	w.conn = conn
	require.NoError(t, w.fence(t.Context()))
	_, err = b.Drop(t.Context(), g.Number)
	require.NoError(t, err)
	require.ErrorIs(t, w.move(t.Context()), errStatesChanged)
	require.NoError(t, w.unfence(t.Context()))
	require.NoError(t, conn.Close())
	require.Equal(t, Serving, b.get(t, 0).State)
}

// What the state does not allow is refused, in words that say what to do.
func TestOneRebuildAtATime(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ctx := t.Context()
	refused := func(words string, _ Generation, err error) {
		t.Helper()
		var c *ConflictError
		require.ErrorAs(t, err, &c)
		require.Contains(t, c.Reason, words)
	}
	start := func(r Request) (Generation, error) { return b.Start(ctx, r) }
	two := func(words string, g Generation, err error) { t.Helper(); refused(words, g, err) }

	_, err := b.Swap(ctx, 7)
	require.ErrorIs(t, err, ErrNotFound)
	_, err = b.Drop(ctx, 7)
	require.ErrorIs(t, err, ErrNotFound)
	g, err := b.Swap(ctx, 0)
	two("serves already", g, err)
	g, err = b.Drop(ctx, 0)
	two("swap another one in first", g, err)

	first, err := start(Request{})
	require.NoError(t, err)
	require.Equal(t, Filling, first.State)
	g, err = start(Request{})
	two("generation 1 is filling: one rebuild at a time, cancel it first", g, err)
	g, err = b.Swap(ctx, first.Number)
	two("cannot be verified yet: it is still filling", g, err)
	_, err = b.Drop(ctx, first.Number)
	require.NoError(t, err)
	_, err = b.Drop(ctx, first.Number)
	require.NoError(t, err, "twice is once")
	g, err = b.Prove(ctx, first.Number)
	two("generation 1 is dropping", g, err)
	b.drive(t)

	done := b.ready(t, Request{Swap: true})
	b.drive(t)
	require.Equal(t, Standby, b.get(t, 0).State)
	g, err = start(Request{})
	two("generation 0 is kept as standby: drop it first, or replace it (replace_standby; --replace-standby on the command line)", g, err)
	at := day
	held, err := start(Request{To: &Point{Time: &at}, Swap: true})
	require.NoError(t, err, "a point does not need its place")
	require.False(t, held.SwapWanted)
	b.exec(t, `UPDATE `+held.Schema+`.projection_progress SET next_offset = 1, applied = 1`)
	b.drive(t)
	require.Equal(t, Held, b.get(t, held.Number).State)
	require.Positive(t, *b.get(t, held.Number).FillMs)
	require.Nil(t, b.get(t, held.Number).IndexMs)
	g, err = b.Swap(ctx, held.Number)
	two("never serves", g, err)

	next, err := start(Request{ReplaceStandby: true})
	require.NoError(t, err)
	require.Equal(t, Dropping, b.get(t, 0).State)
	b.drive(t)
	_, err = b.Get(ctx, 0)
	require.ErrorIs(t, err, ErrNotFound)
	all, err := b.List(ctx)
	require.NoError(t, err)
	var numbers []int
	for _, g := range all {
		numbers = append(numbers, g.Number)
	}
	require.Equal(t, []int{done.Number, next.Number, held.Number}, numbers, "the serving one first, then the newest")

	b.exec(t, `CREATE VIEW public.of_today AS SELECT id FROM public.timestamp_records`)
	_, err = b.Drop(ctx, next.Number)
	require.NoError(t, err)
	b.drive(t)
	g, err = start(Request{})
	two("view of_today would stay with the old tables", g, err)
}

// Cancelling leaves nothing, however often it has to be tried.
func TestCancellingLeavesNoTrace(t *testing.T) {
	t.Parallel()
	b := setup(t)
	g := b.ready(t, Request{})
	require.NoError(t, b.note(t.Context(), g.Number, "some trouble"))
	require.Equal(t, "some trouble", b.get(t, g.Number).Progress.Note)
	b.log.Members[CandidateGroup("group-1", g.Number)] = true
	_, err := b.Drop(t.Context(), g.Number)
	require.NoError(t, err)
	b.drive(t)
	require.Equal(t, Dropping, b.get(t, g.Number).State, "its workers have not gone yet")
	b.log.Members = map[string]bool{}
	b.tries = map[int]*try{}
	b.drive(t)
	_, err = b.Get(t.Context(), g.Number)
	require.ErrorIs(t, err, ErrNotFound)
	require.Contains(t, b.log.Deleted, CandidateGroup("group-1", g.Number))
	for _, query := range []string{
		`SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'timestamps\_g%'`,
		`SELECT count(*) FROM generation_progress`, `SELECT count(*) FROM generation_workers`, `SELECT count(*) - 1 FROM public.projection_generations WHERE projection = 'timestamps'`,
	} {
		var n int
		b.one(t, &n, query)
		require.Zero(t, n, query)
	}
	again, err := b.Start(t.Context(), Request{})
	require.NoError(t, err)
	require.Greater(t, again.Number, g.Number, "a number is never used twice")
}

// A point is a time or a record that the log has.
func TestAPointIsInsideTheLog(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.log.Records[1][20].Timestamp = day.Add(20*time.Second + 500*time.Millisecond)
	at := func(d time.Duration) *Point {
		t := day.Add(d)
		return &Point{Time: &t}
	}
	for name, tc := range map[string]struct {
		to    *Point
		stops map[int32]int64
		words string
	}{
		"a time":                  {at(20 * time.Second), map[int32]int64{0: 21, 1: 20}, ""},
		"between two":             {at(20*time.Second + time.Nanosecond), map[int32]int64{0: 21, 1: 20}, ""},
		"after the last":          {at(time.Hour), map[int32]int64{0: perEach, 1: perEach}, ""},
		"a record":                {&Point{Position: topic + "/1@20"}, map[int32]int64{0: 21, 1: 21}, ""},
		"a record, the other way": {&Point{Position: topic + "/0@20"}, map[int32]int64{0: 21, 1: 20}, ""},
		"before all":              {at(-time.Second), nil, "holds nothing up to"},
		"in the future":           {&Point{Time: new(time.Now().Add(time.Hour))}, nil, "lies in the future"},
		"past the end":            {&Point{Position: topic + "/1@50"}, nil, "is outside the log: timestamp.command.v1/1 has the offsets from 0 up to, not including, 50"},
		"no such partition":       {&Point{Position: topic + "/2@0"}, nil, "is no partition of"},
		"another topic":           {&Point{Position: "other/1@0"}, nil, "is no partition of"},
		"no position":             {&Point{Position: "yesterday"}, nil, "is no position"},
		"nothing":                 {&Point{}, nil, "one of the two"},
		"both":                    {&Point{Time: new(day), Position: topic + "/1@20"}, nil, "one of the two"},
	} {
		stops, _, err := b.resolve(t.Context(), tc.to)
		if tc.words != "" {
			var p *PointError
			require.ErrorAs(t, err, &p, name)
			require.Contains(t, p.Reason, tc.words, name)
			continue
		}
		require.NoError(t, err, name)
		require.Equal(t, tc.stops, stops, name)
	}
}

// The rate is that of the last seconds, the time to go counts what comes in meanwhile, and what stands still is
// told after a while, once there is something to read.
func TestPaceIsHonest(t *testing.T) {
	t.Parallel()
	h := &history{}
	at := func(second int, done, lag int64) {
		h.add(day.Add(time.Duration(second)*time.Second), done, lag)
	}
	at(0, 0, 1000)
	rate, eta := h.pace()
	require.Zero(t, rate)
	require.Nil(t, eta)
	for s := 1; s <= 20; s++ {
		at(s, int64(s*100), int64(1000-s*10)) // 100 a second, and 90 come in
	}
	rate, eta = h.pace()
	require.InDelta(t, 100, rate, .01)
	require.InDelta(t, 80, *eta, .01)
	require.Nil(t, h.stalled())
	for s := 21; s <= 40; s++ {
		at(s, 2000, 900)
		require.Equal(t, s >= 35, h.stalled() != nil, "second %d", s)
	}
	require.Equal(t, day.Add(20*time.Second), *h.stalled())
	rate, eta = h.pace()
	require.Zero(t, rate)
	require.Nil(t, eta, "nobody knows")
	at(41, 2900, 0)
	require.Nil(t, h.stalled())
	_, eta = h.pace()
	require.Zero(t, *eta)
	for s := 42; s < 80; s++ {
		at(s, 2900, 0)
	}
	require.Nil(t, h.stalled(), "with nothing to read nothing stalls")
}

// What most of the time goes to is said, and the trouble of the workers with it.
func TestTheBottleneckIsNamed(t *testing.T) {
	t.Parallel()
	b := setup(t)
	g, err := b.Start(t.Context(), Request{})
	require.NoError(t, err)
	name, note, err := b.workers(t.Context(), g.Number)
	require.NoError(t, err)
	require.Equal(t, ByNothing, name)
	require.Empty(t, note)
	for i, want := range []Bottleneck{ByKafka, ByConsumer, ByPostgres, ByThrottle} {
		of := [4]float64{1, 1, 1, 1}
		of[i] = 3
		for _, worker := range []string{"one", "two"} {
			b.exec(t, `INSERT INTO generation_workers (projection, generation, worker, seen_at, kafka, consumer, postgres, throttle, note, noted_at)
				VALUES ('timestamps', $1, md5($2)::uuid, now(), $3, $4, $5, $6, 'database: away', now())
				ON CONFLICT (projection, generation, worker) DO UPDATE SET kafka = excluded.kafka, consumer = excluded.consumer, postgres = excluded.postgres, throttle = excluded.throttle`,
				g.Number, worker, of[0], of[1], of[2], of[3])
		}
		name, note, err = b.workers(t.Context(), g.Number)
		require.NoError(t, err)
		require.Equal(t, want, name)
		require.Equal(t, "database: away", note)
	}
}

func TestAStalledRebuildIsToldOfUntilItIsDropped(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.Metrics.begin("timestamps")
	registry := prometheus.NewRegistry()
	registry.MustRegister(b.Metrics.stalled)
	stalls := func() float64 {
		families, err := registry.Gather()
		require.NoError(t, err)
		require.Len(t, families, 1, "an alert needs it from the start")
		require.Len(t, families[0].Metric, 1)
		return families[0].Metric[0].GetGauge().GetValue()
	}
	require.Zero(t, stalls())
	g, err := b.Start(t.Context(), Request{})
	require.NoError(t, err)
	b.exec(t, `UPDATE `+g.Schema+`.projection_progress SET log_end = 100`)
	seen := map[int]*history{}
	require.NoError(t, b.sampleAll(t.Context(), seen))
	require.Zero(t, stalls())
	seen[g.Number].moved = time.Now().Add(-time.Minute)
	require.NoError(t, b.sampleAll(t.Context(), seen))
	require.InDelta(t, 1, stalls(), 0)
	b.exec(t, `UPDATE projection_generations SET state = 'dropping' WHERE generation = $1`, g.Number)
	require.NoError(t, b.sampleAll(t.Context(), seen))
	require.Zero(t, stalls())
}

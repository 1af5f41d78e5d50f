package projection

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/shared/await"
	"github.com/tidemark/tidemark/shared/kafka"
	"github.com/tidemark/tidemark/shared/kafka/kafkatest"
)

// No fence, no row: a writer whose epoch or offset is over writes nothing by any of its inserts.
func TestAFencedWriterWritesNothing(t *testing.T) {
	t.Parallel()
	b := setup(t, 2)
	require.NoError(t, b.join(t))
	for range 5 {
		b.log.Add(0, day, value(uuid.New(), day))
	}
	b.log.Add(0, day, `poison`)
	records := b.log.Records[0]
	require.NoError(t, b.read(t.Context(), 0, records[:2]))
	before := b.dump(t)

	for name, stale := range map[string]struct {
		epoch int64
		from  int64
	}{
		"another epoch":          {b.epoch() + 1, 2},
		"progress ahead of it":   {b.epoch(), 1},
		"progress behind it":     {b.epoch(), 3},
		"another epoch entirely": {b.epoch() - 1, 0},
	} {
		batch := b.Definition.prepare(0, stale.from, records[stale.from:])
		_, err := b.store.writeFast(t.Context(), stale.epoch, batch, nil)
		require.ErrorIs(t, err, errFenced, name)
		require.Equal(t, before, b.dump(t), name)
		_, err = b.store.writeSlow(t.Context(), stale.epoch, batch, false, &window{}, nil)
		require.ErrorIs(t, err, errFenced, name)
		require.Equal(t, before, b.dump(t), name)
		require.ErrorIs(t, b.store.skip(t.Context(), stale.epoch, 0, stale.from, stale.from+1), errFenced, name)
		require.Equal(t, before, b.dump(t), name)
	}
	require.NoError(t, b.read(t.Context(), 0, records), "what is below the progress is dropped, the rest is written")
	b.matches(t, expect(b.log))
	b.clean(t)
}

// A batch that was read before another writer committed a part of it.
func TestAFencedWriterDropsWhatIsThereAndWritesTheRest(t *testing.T) {
	t.Parallel()
	b := setup(t, 1)
	require.NoError(t, b.join(t))
	for range 10 {
		b.log.Add(0, day, value(uuid.New(), day))
	}
	other := consumer(t, b.url, b.DB, b.log, "group-1", 1)
	require.NoError(t, other.join(t))
	require.NoError(t, other.read(t.Context(), 0, b.log.Records[0][:4]))
	require.NoError(t, b.read(t.Context(), 0, b.log.Records[0]))
	b.matches(t, expect(b.log))

	// The other one's claim still stands at 4: its next batch is all there already.
	require.NoError(t, other.read(t.Context(), 0, b.log.Records[0][4:8]))
	b.matches(t, expect(b.log))

	// A database that was restored from a backup lies behind the claim: the session is over.
	_, err := b.DB.Exec(`UPDATE projection_progress SET next_offset = 5, applied = 5`)
	require.NoError(t, err)
	b.log.Add(0, day, value(uuid.New(), day))
	require.ErrorContains(t, b.read(t.Context(), 0, b.log.Records[0]), "behind 10")
}

// The rule for one id in two records gives the same rows and counts in whatever order and cuts the log is read.
func TestAnyOrderOfReadingGivesTheSameRowsAndOutcomes(t *testing.T) {
	t.Parallel()
	const partitions = 3
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 1))
	b := setup(t, partitions)
	ids := make([]uuid.UUID, 60)
	for i := range ids {
		ids[i] = uuid.New()
	}
	for range 400 {
		p := int32(random.IntN(partitions))
		created := day.Add(time.Duration(len(b.log.Records[p])/10) * time.Millisecond) // many equal times
		if random.IntN(5) == 0 {
			created = created.Add(-time.Duration(random.IntN(20)) * time.Millisecond) // the broker's clock stepped back
		}
		if random.IntN(20) == 0 {
			b.log.Add(p, created, `poison`)
			continue
		}
		b.log.Add(p, created, value(ids[random.IntN(len(ids))], day.Add(time.Duration(random.IntN(1000))*time.Second)))
	}
	want, first := expect(b.log), ""
	for round := range 12 {
		b = consumer(t, b.url, b.DB, b.log, fmt.Sprintf("round-%d", round), partitions)
		require.NoError(t, b.join(t))
		at := map[int32]int{}
		for len(at) < partitions || slices.ContainsFunc(slices.Collect(maps.Keys(at)), func(p int32) bool { return at[p] < len(b.log.Records[p]) }) {
			p := int32(random.IntN(partitions))
			rest := b.log.Records[p][at[p]:]
			n := min(len(rest), 1+random.IntN(40))
			if n > 0 {
				require.NoError(t, b.read(t.Context(), p, rest[:n]))
			}
			at[p] += n
		}
		b.matches(t, want)
		b.clean(t)
		if round == 0 {
			first = b.dump(t)
			continue
		}
		require.Equal(t, first, b.dump(t))
		if round%3 == 0 {
			_, err := b.DB.Exec(`TRUNCATE timestamp_records`)
			require.NoError(t, err)
		}
	}
}

// The broker's clock stepped back: a record's log time lies before that of an earlier record of its own partition with the
// same id. The later record takes the row, and the earlier one, which was counted as applied, becomes a duplicate.
func TestARecordTakesItsRowFromAnEarlierOneOfItsOwnPartition(t *testing.T) {
	t.Parallel()
	b := setup(t, 2)
	id := uuid.New()
	for i, back := range []time.Duration{0, time.Second, 3 * time.Second, 2 * time.Second} {
		b.log.Add(0, day.Add(-back), value(id, day.Add(time.Duration(i)*time.Minute)))
		b.log.Add(0, day, value(uuid.New(), day))
	}
	want, first := expect(b.log), ""
	require.Equal(t, int64(4), want.rows[id].Offset, "the third of them was logged at the earliest time")
	for n := 1; n <= len(b.log.Records[0]); n++ {
		b = consumer(t, b.url, b.DB, b.log, fmt.Sprint("in batches of ", n), 2)
		_, err := b.DB.Exec(`TRUNCATE timestamp_records`)
		require.NoError(t, err)
		require.NoError(t, b.join(t))
		for cut := range slices.Chunk(b.log.Records[0], n) {
			require.NoError(t, b.read(t.Context(), 0, cut))
		}
		b.matches(t, want)
		b.clean(t)
		if first == "" {
			first = b.dump(t)
		}
		require.Equal(t, first, b.dump(t), "in batches of %d", n)
	}
}

// Two partitions that hold the same ids are written at the same time, again and again.
func TestSideBySideWritersOfTheSameIDsAgree(t *testing.T) {
	t.Parallel()
	b := setup(t, 2)
	require.NoError(t, b.join(t))
	for i := range 2000 {
		id := uuid.New()
		b.log.Add(0, day.Add(time.Duration(i%7)*time.Millisecond), value(id, day))
		b.log.Add(1, day.Add(time.Duration(i%5)*time.Millisecond), value(id, day.Add(time.Second)))
	}
	errs := make(chan error, 2)
	for p := range int32(2) {
		go func() {
			for cut := range slices.Chunk(b.log.Records[p], 100) {
				if err := b.read(t.Context(), p, cut); err != nil {
					errs <- err
					return
				}
			}
			errs <- nil
		}()
	}
	require.NoError(t, <-errs)
	require.NoError(t, <-errs)
	b.matches(t, expect(b.log))
	b.clean(t)
}

func TestAReplayHealsWhatAHandChanged(t *testing.T) {
	t.Parallel()
	b := setup(t, 1)
	require.NoError(t, b.join(t))
	for range 20 {
		b.log.Add(0, day, value(uuid.New(), day))
	}
	b.readAll(t)
	before := b.dump(t)
	_, err := b.DB.Exec(`UPDATE timestamp_records SET event_timestamp = now() WHERE "offset" = 3; DELETE FROM timestamp_records WHERE "offset" = 5`)
	require.NoError(t, err)
	b = consumer(t, b.url, b.DB, b.log, "group-2", 1)
	require.NoError(t, b.join(t))
	b.readAll(t)
	require.Equal(t, before, b.dump(t))
}

func TestARecordThatPostgresRefusesIsADeadLetter(t *testing.T) {
	t.Parallel()
	b := setup(t, 1)
	require.NoError(t, b.join(t))
	_, err := b.DB.Exec(`ALTER TABLE timestamp_records ADD CONSTRAINT not_before_1900 CHECK (event_timestamp >= '1900-01-01')`)
	require.NoError(t, err)
	old := time.Date(1800, 1, 1, 0, 0, 0, 0, time.UTC)
	twice := uuid.New()
	for i := range 500 {
		switch {
		case i%50 == 7:
			b.log.Add(0, day, value(uuid.New(), old))
		case i%50 == 8:
			b.log.Add(0, day, `poison`)
		case i == 100:
			b.log.Add(0, day, value(twice, old)) // refused, so the next with this id is the row
		case i == 101 || i == 102:
			b.log.Add(0, day, value(twice, day))
		default:
			b.log.Add(0, day, value(uuid.New(), day))
		}
	}
	b.readAll(t)
	require.Equal(t, 21, b.count(t, "dead_letters"))
	var letters []struct {
		Code, Reason string
		N            int
	}
	require.NoError(t, b.DB.Select(&letters, `SELECT reason_code AS code, min(reason) AS reason, count(*) AS n FROM dead_letters GROUP BY 1 ORDER BY 1`))
	require.Equal(t, "decode", letters[0].Code)
	require.Equal(t, 10, letters[0].N)
	require.Equal(t, 11, letters[1].N)
	require.Equal(t, "Postgres refuses the row: SQLSTATE 23514, constraint not_before_1900", letters[1].Reason)
	var offset int64
	require.NoError(t, b.DB.Get(&offset, `SELECT "offset" FROM timestamp_records WHERE id = $1`, twice))
	require.Equal(t, int64(101), offset)
	b.clean(t)

	before := b.dump(t)
	b = consumer(t, b.url, b.DB, b.log, "group-2", 1)
	require.NoError(t, b.join(t))
	b.readAll(t)
	require.Equal(t, before, b.dump(t), "a replay refuses the same records for the same reasons")
}

func TestABrokenDeployMakesNoDeadLetter(t *testing.T) {
	t.Parallel()
	for name, deploy := range map[string]struct{ broken, mended string }{
		"a check that refuses all": {`ALTER TABLE timestamp_records ADD CONSTRAINT wrong CHECK (partition < 0)`, `ALTER TABLE timestamp_records DROP CONSTRAINT wrong`},
		"a table that is gone":     {`ALTER TABLE timestamp_records RENAME TO elsewhere`, `ALTER TABLE elsewhere RENAME TO timestamp_records`},
		"a column that is gone":    {`ALTER TABLE timestamp_records RENAME created_at TO made_at`, `ALTER TABLE timestamp_records RENAME made_at TO created_at`},
		"no right to write":        {`CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE read_only_sql_transaction; END'; CREATE TRIGGER no BEFORE INSERT ON timestamp_records EXECUTE FUNCTION no()`, `DROP TRIGGER no ON timestamp_records`},
		"a full disk":              {`CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE disk_full; END'; CREATE TRIGGER full_disk BEFORE INSERT ON timestamp_records EXECUTE FUNCTION full_disk()`, `DROP TRIGGER full_disk ON timestamp_records`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t, 1)
			require.NoError(t, b.join(t))
			for range 300 {
				b.log.Add(0, day, value(uuid.New(), day))
			}
			_, err := b.DB.Exec(deploy.broken)
			require.NoError(t, err)
			done := make(chan error, 1)
			go func() { done <- b.read(t.Context(), 0, b.log.Records[0]) }()
			await.Until(t, func() bool { return b.ready.Reasons()[Part("timestamps", PartPartitions)] != "" })
			require.Zero(t, b.count(t, "dead_letters"))
			_, err = b.DB.Exec(deploy.mended)
			require.NoError(t, err)
			require.NoError(t, <-done, "it goes on by itself")
			require.Empty(t, b.ready.Reasons()[Part("timestamps", PartPartitions)])
			require.Zero(t, b.count(t, "dead_letters"))
			b.matches(t, expect(b.log))
		})
	}
}

func TestANewNameStartsOverAndTheOldOneStopsForGood(t *testing.T) {
	t.Parallel()
	b := setup(t, 2)
	require.NoError(t, b.join(t))
	for p := range int32(2) {
		for range 10 {
			b.log.Add(p, day, value(uuid.New(), day))
		}
		b.log.Add(p, day, `poison`)
	}
	b.readAll(t)
	before := b.dump(t)
	epoch := b.epoch()

	next := consumer(t, b.url, b.DB, b.log, "group-2", 2)
	b.log.Commits = map[int32]kafka.Committed{0: {Offset: -1}, 1: {Offset: -1}} // another group
	require.NoError(t, next.join(t))
	require.Greater(t, next.epoch(), epoch)
	require.Equal(t, kafka.Committed{Offset: 0, Metadata: next.of(0).metadata}, next.session.seeks[0])
	require.Zero(t, b.count(t, "dead_letters"), "the code may have learned to read them")
	require.Equal(t, 20, b.count(t, "timestamp_records"), "rows stay")

	// The old process meets the fence with its next batch, or looks each second while it is idle.
	b.log.Add(0, day, value(uuid.New(), day))
	require.ErrorContains(t, b.read(t.Context(), 0, b.log.Records[0][11:]), `"group-1" was replaced by "group-2"`)
	require.ErrorContains(t, <-b.stopped, "stops for good")
	require.ErrorContains(t, b.look(t.Context(), &watch{tails: map[int32]int64{}}), "stops for good")
	b.log.Records[0] = b.log.Records[0][:11]

	next.readAll(t)
	require.Equal(t, before, next.dump(t))

	// Under its old name no process may come back.
	again := consumer(t, b.url, b.DB, b.log, "group-1", 2)
	require.ErrorContains(t, again.join(t), "use a fresh name")
	require.Equal(t, before, next.dump(t))
}

func TestKafkasOwnResetStartsOver(t *testing.T) {
	t.Parallel()
	b := setup(t, 2)
	require.NoError(t, b.join(t))
	for p := range int32(2) {
		for range 5 {
			b.log.Add(p, day, value(uuid.New(), day))
		}
	}
	b.readAll(t)
	before, epoch := b.dump(t), b.epoch()
	require.NoError(t, b.join(t))
	require.Equal(t, epoch, b.epoch(), "an ordinary rejoin goes on")
	require.Equal(t, int64(5), b.session.seeks[1].Offset)

	b.log.Commits[1] = kafka.Committed{Offset: 0}
	require.NoError(t, b.join(t))
	require.Greater(t, b.epoch(), epoch)
	require.Equal(t, int64(0), b.session.seeks[0].Offset, "all partitions start over")
	require.Equal(t, b.of(0).metadata, b.log.Commits[1].Metadata)
	b.readAll(t)
	require.Equal(t, before, b.dump(t))

	b.log.Commits[0] = kafka.Committed{Offset: 9}
	require.ErrorContains(t, b.join(t), "would skip 4 records")
	b.log.Commits[0] = kafka.Committed{Offset: 5, Metadata: "tidemark " + uuid.NewString() + " 3"}
	require.ErrorContains(t, b.join(t), "another database")
	require.Equal(t, before, b.dump(t), "nothing was written")
}

func TestAnotherLogIsRefusedAndNothingIsWritten(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		change func(*kafkatest.Log)
		words  string
	}{
		"another cluster":   {func(l *kafkatest.Log) { l.Cluster = "cluster-2" }, "projected from cluster cluster-1 and the brokers belong to cluster cluster-2"},
		"created anew":      {func(l *kafkatest.Log) { l.Records[0] = nil }, "ends at offset 0 and the projection has read up to 5"},
		"regrown past":      {func(l *kafkatest.Log) { l.Records[0] = nil; grow(l, 50) }, "is another than the one that was projected"},
		"record not there":  {func(l *kafkatest.Log) { l.Records[0][4].Offset = 7 }, "is not in the log"},
		"start was deleted": {func(l *kafkatest.Log) { l.Start = 2 }, "starts at offset 2, not at 0"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t, 1)
			require.NoError(t, b.join(t))
			grow(b.log, 5)
			b.readAll(t)
			before := b.dump(t)
			tc.change(b.log)
			done := make(chan error, 1)
			ctx, cancel := context.WithCancel(t.Context())
			go func() {
				done <- b.SetUp(&heldSession{ctx: ctx, log: b.log, own: []int32{0}, seeks: map[int32]kafka.Committed{}})
			}()
			var refusal *Refusal
			require.ErrorAs(t, <-b.stopped, &refusal)
			require.Contains(t, refusal.Reason, tc.words)
			cancel()
			require.ErrorAs(t, <-done, &refusal)
			b.CleanUp()
			require.Contains(t, b.ready.Reasons()[Part("timestamps", PartAssignment)], tc.words, "the reason stays when the group is left")
			require.Equal(t, before, b.dump(t))
		})
	}
}

func TestALogIsLookedAtBeforeAnythingStartsOver(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		change func(*kafkatest.Log)
		words  string
	}{
		"regrown past":      {func(l *kafkatest.Log) { l.Records[1] = nil; l.Add(1, day, value(uuid.New(), day)) }, "is another than the one that was projected"},
		"start was deleted": {func(l *kafkatest.Log) { l.Start = 2 }, "starts at offset 2, not at 0"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t, 2)
			require.NoError(t, b.join(t))
			grow(b.log, 5)
			b.log.Add(0, day, "poison")
			b.log.Add(1, day, value(uuid.New(), day))
			b.readAll(t)
			before := b.dump(t)

			tc.change(b.log)
			next := consumer(t, b.url, b.DB, b.log, "group-2", 2)
			b.log.Commits = map[int32]kafka.Committed{0: {Offset: -1}, 1: {Offset: -1}} // another group
			next.session = &heldSession{ctx: t.Context(), log: b.log, own: []int32{0}, seeks: map[int32]kafka.Committed{}}
			var refusal *Refusal
			require.ErrorAs(t, next.enter(t.Context(), next.session), &refusal)
			require.Contains(t, refusal.Reason, tc.words)
			require.Equal(t, before, next.dump(t))
			require.Equal(t, 1, b.count(t, "projection_groups"), "the name before is still the one that serves")
		})
	}
}

func grow(l *kafkatest.Log, n int) {
	for range n {
		l.Add(0, day, value(uuid.New(), day))
	}
}

func TestAnAcceptedStartOfTheLogIsTheFirstOffset(t *testing.T) {
	t.Parallel()
	b := setup(t, 1)
	grow(b.log, 5)
	b.log.Records[0], b.log.Start = b.log.Records[0][2:], 2
	require.ErrorContains(t, b.join(t), "ACCEPT_LOG_START=timestamp.command.v1/0@2")
	require.Zero(t, b.count(t, "projection_progress"))
	b.AcceptLogStart = map[int32]int64{0: 2}
	require.NoError(t, b.join(t))
	b.readAll(t)
	require.Equal(t, 3, b.count(t, "timestamp_records"))
	b.clean(t)
}

func TestSetUpWaitsWhileSomethingIsAwayAndSaysSo(t *testing.T) {
	t.Parallel()
	b := setup(t, 1)
	b.log.Fail(context.DeadlineExceeded)
	s := &heldSession{ctx: t.Context(), log: b.log, own: []int32{0}, seeks: map[int32]kafka.Committed{}}
	done := make(chan error, 1)
	go func() { done <- b.SetUp(s) }()
	await.Until(t, func() bool { return b.ready.Reasons()[Part("timestamps", PartAssignment)] != "" })
	b.log.Fail(nil)
	require.NoError(t, <-done)
	require.Empty(t, b.ready.Reasons())

	ended, end := context.WithCancel(t.Context())
	end()
	b.log.Fail(context.DeadlineExceeded)
	require.NoError(t, b.SetUp(&heldSession{ctx: ended, log: b.log, own: []int32{0}, seeks: map[int32]kafka.Committed{}}), "a session that is over is no error")
}

func TestWatermarkAndMarkersBeforeTheEnd(t *testing.T) {
	t.Parallel()
	b := setup(t, 2)
	require.NoError(t, b.join(t))
	grow(b.log, 5)
	require.NoError(t, b.read(t.Context(), 0, b.log.Records[0][:4]))
	looks := &watch{tails: map[int32]int64{}}
	caughtUp := func() (out []bool) {
		require.NoError(t, b.DB.Select(&out, `SELECT caught_up_at IS NOT NULL FROM projection_progress ORDER BY partition`))
		return out
	}
	require.NoError(t, b.look(t.Context(), looks))
	require.Equal(t, []bool{false, true}, caughtUp())
	require.NoError(t, b.look(t.Context(), looks))
	require.NoError(t, b.look(t.Context(), looks))
	require.Equal(t, []bool{false, true}, caughtUp(), "a record that is on its way is not passed over")
	require.NoError(t, b.read(t.Context(), 0, b.log.Records[0][4:]))
	b.log.Pass(0, kafka.Gap{Markers: 2})
	for range 3 {
		require.NoError(t, b.look(t.Context(), looks))
	}
	require.Equal(t, []bool{true, true}, caughtUp())
	var next, skipped int64
	require.NoError(t, b.DB.QueryRow(`SELECT next_offset, skipped FROM projection_progress WHERE partition = 0`).Scan(&next, &skipped))
	require.Equal(t, []int64{7, 2}, []int64{next, skipped})
	b.clean(t)

	// The record after the markers is written as if nothing had been.
	b.log.Add(0, day, value(uuid.New(), day))
	require.NoError(t, b.read(t.Context(), 0, b.log.Records[0][5:]))
	b.clean(t)
}

func TestAnEpochBegunElsewhereEndsAnIdleSession(t *testing.T) {
	t.Parallel()
	b := setup(t, 1)
	require.NoError(t, b.join(t))
	other := consumer(t, b.url, b.DB, b.log, "group-1", 1)
	grow(b.log, 1)
	b.readAll(t)
	b.log.Commits[0] = kafka.Committed{Offset: 0}
	require.NoError(t, other.join(t))
	require.NoError(t, b.look(t.Context(), &watch{tails: map[int32]int64{}}))
	require.True(t, b.session.ended)
}

func TestTheAuditSeesWhatAHandDid(t *testing.T) {
	t.Parallel()
	b := setup(t, 2)
	require.NoError(t, b.join(t))
	grow(b.log, 10)
	b.log.Add(0, day, `poison`)
	b.readAll(t)
	require.NoError(t, b.look(t.Context(), &watch{tails: map[int32]int64{}}))
	b.clean(t)
	for _, tc := range []struct {
		change, undo string
		findings     []string
	}{
		{
			`CREATE TABLE kept AS TABLE timestamp_records; TRUNCATE timestamp_records`,
			`INSERT INTO timestamp_records SELECT * FROM kept; DROP TABLE kept`,
			[]string{"10 rows are missing"},
		},
		{
			`INSERT INTO timestamp_records (id, event_timestamp, created_at, partition, "offset") VALUES (gen_random_uuid(), now(), now(), 1, 0)`,
			`DELETE FROM timestamp_records WHERE partition = 1`,
			[]string{"1 rows bear offsets that the log does not have"},
		},
		{
			`UPDATE timestamp_records SET partition = 1, "offset" = 77 WHERE "offset" = 3`,
			`UPDATE timestamp_records SET partition = 0, "offset" = 3 WHERE "offset" = 77`,
			[]string{"1 rows are missing", "1 rows bear offsets that the log does not have"},
		},
		{
			`UPDATE timestamp_records SET partition = 9 WHERE "offset" = 3`,
			`UPDATE timestamp_records SET partition = 0 WHERE "offset" = 3`,
			[]string{"1 rows are missing", "1 rows bear a partition that the topic does not have"},
		},
		{
			`CREATE TABLE kept AS TABLE dead_letters; DELETE FROM dead_letters`,
			`INSERT INTO dead_letters SELECT * FROM kept; DROP TABLE kept`,
			[]string{"1 dead letters are missing"},
		},
	} {
		_, err := b.DB.Exec(tc.change)
		require.NoError(t, err)
		_, ran, err := b.store.audit(t.Context())
		require.NoError(t, err)
		require.True(t, ran)
		var findings []string
		require.NoError(t, b.DB.Select(&findings, `SELECT finding FROM projection_audits WHERE NOT ok ORDER BY partition`))
		require.Equal(t, tc.findings, findings, tc.change)
		_, err = b.DB.Exec(tc.undo)
		require.NoError(t, err)
		_, err = b.DB.Exec(`DELETE FROM projection_audits`)
		require.NoError(t, err)
		b.clean(t)
	}
}

func TestOneProcessAuditsAtATime(t *testing.T) {
	t.Parallel()
	b := setup(t, 1)
	require.NoError(t, b.join(t))
	tx, err := b.DB.Begin()
	require.NoError(t, err)
	_, err = tx.Exec(`SELECT pg_advisory_xact_lock(hashtextextended($1, 0))`, AuditLock("timestamps"))
	require.NoError(t, err)
	_, ran, err := b.store.audit(t.Context())
	require.NoError(t, err)
	require.False(t, ran)
	require.NoError(t, tx.Rollback())
}

func TestNothingToProjectAndTheDatabaseAwayIsUnready(t *testing.T) {
	t.Parallel()
	b := setup(t, 1)
	require.NoError(t, b.join(t))
	go b.Watch(t.Context())
	await.Until(t, func() bool { // it has looked twice, and found the log's end
		var looks int
		require.NoError(t, b.DB.Get(&looks, `SELECT count(*) FROM projection_progress WHERE caught_up_at > updated_at`))
		return looks == 1
	})
	require.Empty(t, b.ready.Reasons())
	_, err := b.DB.ExecContext(t.Context(), `ALTER TABLE public.projection_generations RENAME TO gone`)
	require.NoError(t, err)
	await.Until(t, func() bool { return b.ready.Reasons()[Part("timestamps", PartWatermark)] != "" })
	_, err = b.DB.ExecContext(t.Context(), `ALTER TABLE public.gone RENAME TO projection_generations`)
	require.NoError(t, err)
	await.Until(t, func() bool { return len(b.ready.Reasons()) == 0 })
}

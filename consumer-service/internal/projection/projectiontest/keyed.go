package projectiontest

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/shared/await"
	"github.com/tidemark/tidemark/shared/event"
	"github.com/tidemark/tidemark/shared/postgres"
	"github.com/tidemark/tidemark/shared/schema"
)

// A record of a keyed projection stands in the partition of its key, and its key is its value's.
func misplacedRecords(t *testing.T, s *stage) {
	records := s.everywhere(2)
	var places []Record
	for range 6 {
		r := s.samples.Valid(s.random, time.Now())
		s.place(&r)
		r.Partition, r.Rejected = (r.Partition+1)%partitions, Misplaced
		places = append(places, r, s.samples.Stray(s.random, time.Now()))
		good := s.samples.Repeat(s.random, r) // its main key is free all the same
		good.Partition, good.Rejected = AnyPartition, ""
		records = append(records, good)
	}
	s.mustSend(t, places...)
	s.mustSend(t, records...)
	p := s.start(t, settings{})
	s.caughtUp(t)
	s.holds(t)
	p.stop()
	first := s.dump(t)
	s.anew(t, 1, 0)
	require.Equal(t, first, s.dump(t))
}

// What the derived tables hold depends on the records and their order in the log, not on how they were cut into batches,
// where some folds are refused because of what was folded before, too.
func foldsInAnyCuts(t *testing.T, s *stage) {
	for range 8 {
		records := s.mixed(25)
		if s.samples.Doubtful != nil {
			for range 5 {
				records = append(records, s.samples.Doubtful(s.random, time.Now()))
			}
		}
		s.mustSend(t, records...)
	}
	first := ""
	for round, batch := range []int{1, 50, 0, 0} {
		p := s.start(t, settings{group: fmt.Sprint(s.group, "-", round), batch: batch})
		s.inSession(t, p)
		s.caughtUp(t)
		p.stop()
		require.Empty(t, s.findings(t))
		s.receipts(t)
		if round == 0 {
			first = s.dump(t)
		}
		require.Equal(t, first, s.dump(t), "round %d", round)
		if round == 2 {
			s.exec(t, `TRUNCATE `+s.main())
		}
	}
	// Each derived row bears the place of the last record that was folded into it.
	for _, d := range s.def.Derived {
		var nowhere int
		s.get(t, &nowhere, fmt.Sprintf(`SELECT count(*) FROM %s d WHERE NOT EXISTS (SELECT FROM %s m WHERE m.partition = d.partition AND m."offset" = d."offset")`, s.table(d.Name), s.main()))
		require.Zero(t, nowhere, d.Name)
	}
}

// A record whose fold Postgres refuses is a dead letter, and has no row; the next record with its key takes its place,
// whether both are in one batch or not.
func refusedFolds(t *testing.T, s *stage) {
	var records []Record
	for range 6 {
		r := s.samples.Unfoldable(s.random, time.Now())
		records = append(records, append(s.valid(3), r, s.samples.Repeat(s.random, r))...)
	}
	s.mustSend(t, append(records, s.everywhere(2)...)...)
	first := ""
	for round, batch := range []int{1, 50, 0, 50} {
		if round == 2 {
			s.exec(t, `TRUNCATE `+s.main())
		}
		s.anew(t, round, batch)
		if round == 0 {
			first = s.dump(t)
		}
		require.Equal(t, first, s.dump(t), "round %d", round)
	}
	require.Contains(t, first, "Postgres refuses the row: SQLSTATE 23514, constraint ")
}

func textsTooLong(t *testing.T, s *stage) {
	var records []Record
	for range 4 {
		r := s.samples.TooLong(s.random, time.Now())
		records = append(records, append(s.valid(3), r)...)
	}
	s.mustSend(t, append(records, s.everywhere(2)...)...)
	p := s.start(t, settings{rebuilds: true})
	s.caughtUp(t)
	s.holds(t)
	require.Contains(t, s.dump(t), "Postgres refuses the row: SQLSTATE 54000")

	// A candidate refuses the same records, although all but its primary keys come after the bulk.
	g := s.rebuilt(t, p, true)
	require.True(t, g.Proof.OK)
	s.holds(t)
}

func timesFarAhead(t *testing.T, s *stage) {
	records := s.everywhere(1)
	for p := range int32(partitions) {
		for _, at := range []time.Time{time.Date(2099, 1, 1, 0, 0, 0, 0, time.UTC), time.Now().Add(25 * time.Hour), time.Now().Add(23 * time.Hour)} {
			r := s.at(p, at)
			if time.Until(at) > 24*time.Hour {
				r.Rejected = Time
			}
			records = append(records, r)
		}
	}
	s.mustSend(t, records...)
	p := s.start(t, settings{})
	s.caughtUp(t)
	s.holds(t)
	p.stop()
	var days []string
	require.NoError(t, s.db.SelectContext(t.Context(), &days, `SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhparent = $1::regclass`, s.main()))
	for _, d := range days {
		require.NotContains(t, d, "2099", "nobody makes a day of the far future")
	}
	first := s.dump(t)
	s.anew(t, 1, 0)
	require.Equal(t, first, s.dump(t))
}

// at makes a record of a partition whose main key has this time.
func (s *stage) at(partition int32, at time.Time) Record {
	for {
		r := s.samples.At(s.random, at)
		if s.place(&r); r.Partition == partition {
			return r
		}
	}
}

const timedContract = "a_day_is_dropped_once_no_partition_can_be_given_a_record_of_it"

// Records of long ago, in a topic whose log times the suite decides: their days are made, and dropped once every partition
// has passed them by the retention and one day more. What is older than the retention at its own log time is expired.
func retentionByDay(t *testing.T, s *stage) {
	keep := s.def.Retention
	begin := time.Now().Add(-keep - 20*24*time.Hour).Truncate(time.Hour)
	for at := begin; at.Before(time.Now()); at = at.Add(37 * time.Hour) {
		for p := range int32(partitions) {
			for _, age := range []time.Duration{time.Minute, keep - time.Hour, keep + time.Hour} {
				r := s.at(p, at.Add(-age))
				r.Logged, r.Expired = at, age > keep
				s.mustSend(t, r)
			}
		}
	}
	for _, r := range s.all() {
		if r.Expired { // it was a dead letter once, and somebody has decided on it: so it stays
			s.decided.add(r.Partition, r.offset, event.Discard)
			break
		}
	}
	day := func(t time.Time) string { return t.UTC().Format("20060102") }

	// One partition is not read yet, so nothing goes.
	for range 2 {
		p := s.start(t, settings{pace: s.stopped(2)})
		s.inSession(t, p)
		await.NoError(t, func() error {
			var behind int
			s.get(t, &behind, `SELECT count(*) FROM `+s.table(schema.Progress)+` WHERE partition <> 2 AND caught_up_at IS NULL`)
			return errWhere(behind > 0, "%d partitions are not read yet", behind)
		})
		p.stop()
	}
	require.Contains(t, s.days(t), day(begin.Add(-keep)))

	// Records keep coming while the days go.
	stop := s.keepSending(t, time.Millisecond)
	p := s.start(t, settings{rebuilds: true})
	s.inSession(t, p)
	await.NoError(t, func() error {
		first := s.days(t)[0]
		return errWhere(first < day(time.Now().Add(-keep-48*time.Hour)), "day %s is still there", first)
	})
	stop()
	require.GreaterOrEqual(t, s.days(t)[0], day(time.Now().Add(-keep-72*time.Hour)), "no day goes before its time")
	s.caughtUp(t)
	s.holds(t)
	var dropped int
	s.get(t, &dropped, `SELECT sum(dropped) FROM `+s.table(schema.Progress))
	require.Positive(t, dropped)
	served := s.dump(t)

	// A candidate has other days, and the same where both have some; it drops what the serving one has dropped.
	g := s.rebuilt(t, p, false)
	proof := s.proved(t, p, g)
	require.True(t, proof.OK, proof.Finding)

	// What the serving generation has dropped is compared by its counts.
	lost := `"offset" = (SELECT min("offset") FROM ` + postgres.Qualified(g.Schema, s.def.Main.Spec().Name) + ` WHERE partition = 0) AND partition = 0`
	progress := postgres.Qualified(g.Schema, schema.Progress)
	s.exec(t, `CREATE TABLE lost AS SELECT * FROM `+postgres.Qualified(g.Schema, s.def.Main.Spec().Name)+` WHERE `+lost)
	s.exec(t, `DELETE FROM `+postgres.Qualified(g.Schema, s.def.Main.Spec().Name)+` WHERE `+lost)
	s.exec(t, `UPDATE `+progress+` SET applied = applied - 1, expired = expired + 1 WHERE partition = 0`)
	proof = s.proved(t, p, g)
	require.False(t, proof.OK)
	require.Contains(t, proof.Finding, "/0 has ")
	s.exec(t, `INSERT INTO `+postgres.Qualified(g.Schema, s.def.Main.Spec().Name)+` SELECT * FROM lost`)
	s.exec(t, `UPDATE `+progress+` SET applied = applied + 1, expired = expired - 1 WHERE partition = 0`)

	// Whoever reads or vacuums a day holds no swap up: days stay where they are.
	tx, err := s.long.BeginTxx(t.Context(), nil)
	require.NoError(t, err)
	for _, in := range []string{s.def.Name + "_g0", g.Schema} {
		var some string
		require.NoError(t, tx.GetContext(t.Context(), &some, `SELECT max(relname) FROM pg_class WHERE relnamespace = $1::regnamespace AND relkind = 'r' AND relispartition`, in))
		_, err = tx.ExecContext(t.Context(), `LOCK TABLE `+postgres.Qualified(in, some)+` IN SHARE UPDATE EXCLUSIVE MODE`)
		require.NoError(t, err)
	}
	s.swapIn(t, p, g)
	require.NoError(t, tx.Rollback())
	s.caughtUp(t)
	p.stop()
	p = s.start(t, settings{})
	await.NoError(t, func() error {
		return errWhere(s.dump(t) != served, "the days of the generation that serves now are still there")
	})
	s.holds(t)
	p.stop()
}

func (s *stage) days(t *testing.T) (days []string) {
	t.Helper()
	main := s.def.Main.Spec().Name
	require.NoError(t, s.db.SelectContext(t.Context(), &days, `
SELECT substr(c.relname, length($2) + 2) FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhparent = $1::regclass ORDER BY 1`,
		postgres.Qualified(s.def.ServingSchema(), main), main))
	require.NotEmpty(t, days)
	return days
}

// A topic that is written in transactions has markers and aborted records in its log: a reader passes over them, and is
// caught up although the log ends with some.
func transactions(t *testing.T, s *stage) {
	s.mustSend(t, s.everywhere(30)...)
	require.NoError(t, s.transaction(s.everywhere(2), false)) // the log ends with aborted records and a marker
	p := s.start(t, settings{})
	s.caughtUp(t)
	s.holds(t)
	var skipped int
	s.get(t, &skipped, `SELECT min(skipped) FROM `+s.table(schema.Progress))
	require.Greater(t, skipped, 5)
	ends := s.mustEnd(t)
	for _, c := range p.asked.explained() {
		require.Equal(t, ends[c.partition], c.to, "only what stands at the log's end is looked at")
	}
	require.LessOrEqual(t, len(p.asked.explained()), 2*partitions)
	require.Positive(t, metric(t, p, "tidemark_projection_gap_offsets_total"))
	p.stop()
	first := s.dump(t)
	s.anew(t, 1, 1)
	require.Equal(t, first, s.dump(t))
}

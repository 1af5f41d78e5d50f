package projectiontest

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/shared/postgres"
	"github.com/tidemark/tidemark/shared/schema"
)

func anotherNameStartsOver(t *testing.T, s *stage) {
	s.mustSend(t, append(s.mixed(60), s.everywhere(2)...)...)
	old := s.start(t, settings{})
	s.caughtUp(t)
	before, rows, epoch := s.dump(t), s.count(t, s.main()), s.epoch(t)

	// The new one is held before it writes: what is there then is what a start-over leaves.
	next := s.startHeld(t, settings{group: s.group + "-2"}, everyPartition()...)
	next.gate.awaitHeld(t, everyPartition()...)
	s.startedOver(t, rows)
	require.Greater(t, s.epoch(t), epoch)
	refusal := <-old.refused
	require.True(t, refusal.Final)
	require.Contains(t, refusal.Reason, "stops for good")
	next.gate.open()
	s.caughtUp(t)
	require.Equal(t, before, s.dump(t))
	s.holds(t)

	// Under its old name no process may come back. Readers are told nothing of it: the tables are not in question.
	next.stop()
	back := s.start(t, settings{})
	refusal = <-back.refused
	require.True(t, refusal.Final)
	require.Contains(t, refusal.Reason, "use a fresh name")
	require.Zero(t, s.count(t, `public.projections WHERE refusal <> ''`))
	require.Equal(t, before, s.dump(t))
}

func kafkasResetStartsOver(t *testing.T, s *stage) {
	s.mustSend(t, append(s.mixed(60), s.everywhere(2)...)...)
	p := s.start(t, settings{})
	s.caughtUp(t)
	p.stop()
	before, rows, epoch := s.dump(t), s.count(t, s.main()), s.epoch(t)

	s.reset(t, s.group, map[int32]int64{1: 0}) // of one partition: all of them start over
	p = s.startHeld(t, settings{}, everyPartition()...)
	p.gate.awaitHeld(t, everyPartition()...)
	s.startedOver(t, rows)
	require.Greater(t, s.epoch(t), epoch)
	p.gate.open()
	s.caughtUp(t)
	require.Equal(t, before, s.dump(t))
	s.holds(t)
	p.stop()

	// A restart goes on; an offset that was set ahead would skip records, and is refused.
	epoch = s.epoch(t)
	p = s.start(t, settings{})
	s.inSession(t, p)
	require.Equal(t, epoch, s.epoch(t))
	p.stop()
	ends := s.mustEnd(t)
	s.reset(t, s.group, map[int32]int64{0: ends[0] + 4})
	p = s.start(t, settings{})
	refusal := <-p.refused
	require.Contains(t, refusal.Reason, "would skip 4 records")
	var noted string
	s.get(t, &noted, `SELECT refusal FROM public.projections WHERE projection = $1`, s.def.Name)
	require.Equal(t, refusal.Reason, noted, "readers are told")
	require.Equal(t, before, s.dump(t))
	p.stop()
}

// startedOver requires what a start-over leaves: progress at the log's start, no dead letter, derived tables empty, and the
// rows of the main table, which wait to be recognised.
func (s *stage) startedOver(t *testing.T, rows int) {
	t.Helper()
	require.Equal(t, rows, s.count(t, s.main()))
	require.Zero(t, s.count(t, s.table(schema.DeadLetters)))
	for _, d := range s.def.Derived {
		require.Zero(t, s.count(t, s.table(d.Name)), d.Name)
	}
	var beyond int
	s.get(t, &beyond, `SELECT count(*) FROM `+s.table(schema.Progress)+` WHERE next_offset > 0 OR caught_up_at IS NOT NULL`)
	require.Zero(t, beyond)
}

func (s *stage) epoch(t *testing.T) (epoch int64) {
	t.Helper()
	s.get(t, &epoch, `SELECT epoch FROM public.projection_generations WHERE projection = $1 AND state = 'serving'`, s.def.Name)
	return epoch
}

// An audit compares the tables with the counts that were kept when they were written.
func anAuditSees(t *testing.T, s *stage) {
	s.mustSend(t, append(s.mixed(60), s.everywhere(2)...)...)
	undecodable := s.samples.Undecodable(s.random)
	undecodable.Partition = 0
	s.mustSend(t, undecodable)
	p := s.start(t, settings{})
	s.caughtUp(t)
	p.stop()
	s.holds(t)
	letters := s.table(schema.DeadLetters)
	for name, tc := range map[string]struct{ table, statement, words string }{
		"a TRUNCATE":         {s.main(), `TRUNCATE ` + s.main(), "rows are missing"},
		"a lost row":         {s.main(), fmt.Sprintf(`DELETE FROM %[1]s WHERE (partition, "offset") = (SELECT partition, "offset" FROM %[1]s ORDER BY 1, 2 LIMIT 1)`, s.main()), "1 rows are missing"},
		"a row too many":     {s.main(), s.oneMore(t, ""), "1 rows are too many"},
		"a row ahead":        {s.main(), s.oneMore(t, `"offset" = 1000000`), "1 rows bear offsets that the log does not have"},
		"a row of nowhere":   {s.main(), s.oneMore(t, `partition = 99`), "1 rows bear a partition that the topic does not have"},
		"a lost dead letter": {letters, fmt.Sprintf(`DELETE FROM %[1]s WHERE (partition, "offset") = (SELECT partition, "offset" FROM %[1]s LIMIT 1)`, letters), "1 dead letters are missing"},
		"a dead letter too many": {letters, fmt.Sprintf(`INSERT INTO %[1]s (topic, partition, "offset", headers, reason_code, reason, first_seen_at)
			SELECT '%[2]s', partition, "offset", '[]', 'decode', '', now() FROM %[3]s LIMIT 1`, letters, s.topic, s.main()), "1 dead letters are too many"},
	} {
		s.exec(t, `DROP TABLE IF EXISTS kept; CREATE TABLE kept AS SELECT * FROM `+tc.table)
		s.exec(t, tc.statement)
		found := s.findings(t)
		require.NotEmpty(t, found, name)
		require.Contains(t, fmt.Sprint(found), tc.words, name)
		s.exec(t, `TRUNCATE `+tc.table+`; INSERT INTO `+tc.table+` SELECT * FROM kept`)
		require.Empty(t, s.findings(t), name)
	}
}

// oneMore is a statement that adds a row with another key, and what change says, to the main table.
func (s *stage) oneMore(t *testing.T, change string) string {
	t.Helper()
	key := s.def.Main.Spec().Columns[0]
	value := `md5(random()::text)`
	if key.Type == "uuid" {
		value = `gen_random_uuid()`
	}
	s.exec(t, `DROP TABLE IF EXISTS more; CREATE TABLE more AS SELECT * FROM `+s.main()+` LIMIT 1`)
	s.exec(t, `UPDATE more SET `+postgres.Quoted(key.Name)+` = `+value)
	name := "more_" + fmt.Sprint(s.random.Uint32())
	s.exec(t, `ALTER TABLE more RENAME TO `+name)
	if change != "" {
		s.exec(t, `UPDATE `+name+` SET `+change)
	}
	return `INSERT INTO ` + s.main() + ` SELECT * FROM ` + name
}

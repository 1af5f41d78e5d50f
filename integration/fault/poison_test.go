package fault_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/integration/stack"
	"github.com/tidemark/tidemark/integration/story"
	"github.com/tidemark/tidemark/shared/await"
)

// Records that nothing can read, and records that decode and that Postgres refuses, become dead letters with a reason
// each, and hold nobody up.
func TestPoison(t *testing.T) {
	const records, bad = 20_000, 1_000
	s := onKafka(t)
	s.Consumer("")
	_, err := s.DB.ExecContext(t.Context(), `ALTER TABLE public.timestamp_records ADD CONSTRAINT no_old_times CHECK (event_timestamp >= '1900-01-01')`)
	require.NoError(t, err)

	r := rand.New(rand.NewPCG(20, 1))
	var messages []story.Message
	refused := 0
	for i := range records {
		id := uuid.New().String()
		m := story.Message{Partition: story.AnyPartition, Key: id, Value: command(uuid.MustParse(id), someTime(r))}
		if i%(records/bad) == 7 {
			if i%3 == 0 {
				m.Value = command(uuid.MustParse(id), "1899-12-31T23:59:59Z")
				refused++
			} else {
				m.Value = poison(r, 0).Value
			}
		}
		messages = append(messages, m)
	}
	began := time.Now()
	_, err = s.Log.Write(messages...)
	require.NoError(t, err)
	log, upTo, err := s.Log.Read(t.Context(), nil)
	require.NoError(t, err)
	s.Passed(s.DB, upTo)
	t.Logf("%d records, %d of them bad, projected %s after the first was written", records, bad, time.Since(began).Round(time.Millisecond))

	oldest := time.Date(1900, 1, 1, 0, 0, 0, 0, time.UTC)
	expected := story.Expect(log, story.Rules{Refuses: func(_ uuid.UUID, at time.Time) bool { return at.Before(oldest) }})
	require.Equal(t, records-bad, expected.Count)
	require.Len(t, expected.DeadLetters, bad)
	expected.Require(t, upTo, s.Dump(s.DB))
	s.RequireCleanAudit(s.DB)

	require.Equal(t, map[string]int{"refused": refused, "decode": bad - refused}, letters(t, s.DB))
	values := map[string][]byte{}
	for _, l := range log {
		values[l.Position()] = l.Value
	}
	rows, err := s.DB.QueryContext(t.Context(), `SELECT topic || '/' || partition || '@' || "offset", payload, reason_code, reason FROM public.dead_letters`)
	require.NoError(t, err)
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var position, code, reason string
		var payload []byte
		require.NoError(t, rows.Scan(&position, &payload, &code, &reason))
		require.Equal(t, values[position], payload, position)
		require.NotEmpty(t, reason, position)
		if code == "refused" {
			require.Contains(t, reason, "23514", position)
			require.Contains(t, reason, "no_old_times", position)
		}
	}
	require.NoError(t, rows.Err())
}

// letters counts the dead letters by the code of their reason.
func letters(t *testing.T, db *sql.DB) map[string]int {
	t.Helper()
	rows, err := db.QueryContext(t.Context(), `SELECT reason_code, count(*) FROM public.dead_letters GROUP BY 1`)
	require.NoError(t, err)
	defer func() { _ = rows.Close() }()
	counts := map[string]int{}
	for rows.Next() {
		var code string
		var n int
		require.NoError(t, rows.Scan(&code, &n))
		counts[code] = n
	}
	require.NoError(t, rows.Err())
	return counts
}

// A database that takes nothing is no record's fault: nothing becomes a dead letter, the service says that it is not
// ready, and goes on by itself once the database is mended.
func TestBrokenDeploy(t *testing.T) {
	for _, test := range []struct {
		name string
		// break makes the database refuse and returns how it is mended.
		brk  func(*testing.T, *story.Story) (mend func())
		says string // in the log of the service
	}{
		{"the rows' table is dropped", drop("timestamp_records"), "42P01"},
		{"the dead letters' table is dropped", drop("dead_letters"), "42P01"},
		{"the progress table is dropped", drop("projection_progress"), "42P01"},
		{"the server is read-only", readOnly, "25006"},
		{"the disk is full", fullDisk, "53100"},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := onKafka(t)
			consumer := s.Consumer("")
			r := rand.New(rand.NewPCG(20, 2))
			_, err := s.Log.Write(anything(r, 1000)...)
			require.NoError(t, err)
			s.RequireProjected(s.DB)
			before := letters(t, s.DB)

			mend := test.brk(t, s)
			var plain []story.Message
			for range 24_000 { // more than fits on the small disk
				id := uuid.New()
				plain = append(plain, story.Message{Partition: r.Int32N(12), Key: id.String(), Value: command(id, someTime(r))})
			}
			_, err = s.Log.Write(append(plain, poison(r, 3), poison(r, 4))...)
			require.NoError(t, err)

			saysUnready(t, consumer, test.says)
			time.Sleep(2 * time.Second) // for several tries
			require.False(t, consumer.IsReady(t.Context()))
			if test.name != "the dead letters' table is dropped" { // else there is nothing to look at
				require.Equal(t, before, letters(t, s.DB), "what the database refuses has become dead letters")
			}

			mend()
			s.RequireProjected(s.DB)
			s.RequireCleanAudit(s.DB)
			s.Ready(consumer)
		})
	}
}

// saysUnready waits until a consumer is not ready and says why in its log.
func saysUnready(t *testing.T, consumer *stack.Service, why string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), story.Patience)
	defer cancel()
	require.NoError(t, story.Eventually(ctx, "wait until it says what is wrong", func(ctx context.Context) error {
		log, err := consumer.Log()
		switch {
		case err != nil:
			return story.Final(err)
		case !strings.Contains(log, why):
			return fmt.Errorf("nothing of %s in its log", why)
		case consumer.IsReady(ctx):
			return errors.New("it says that it is ready")
		}
		return nil
	}))
}

// A constraint that refuses more than a tenth of a partition's records is a broken deploy, too. The partition stops there, and
// goes on by itself; what was refused before that could be known are dead letters, no more than a tenth of a thousand. A healthy
// neighbour goes on all the while, and whatever it gets done makes the service no readier.
func TestTooManyRefusalsStopThePartition(t *testing.T) {
	const broken, healthy = 2, 2 // partitions 0 and 1, and partition 2
	s := onKafka(t)
	consumer := s.Consumer("")
	run(t, s.DB, `ALTER TABLE public.timestamp_records ADD CONSTRAINT nothing CHECK (partition >= 2)`)
	plain := func(partition int32) story.Message {
		id := uuid.New()
		return story.Message{Partition: partition, Key: id.String(), Value: command(id, "2001-01-01T00:00:00Z")}
	}
	var messages []story.Message
	for i := range 3000 {
		messages = append(messages, plain(int32(i%3)))
	}
	_, err := s.Log.Write(messages...)
	require.NoError(t, err)
	saysUnready(t, consumer, "this is a broken deploy, not poison (Postgres refuses the row: SQLSTATE 23514, constraint nothing)")
	s.Passed(s.DB, story.Vector{healthy: 1000})
	await.Until(t, func() bool { // each broken partition says so for itself
		a, err := s.Client.Get(t.Context(), consumer.URL()+"/ready")
		return err == nil && strings.Contains(string(a.Body), "0, 1: ")
	})

	stopped := func() (what []string) {
		rows, err := s.DB.QueryContext(t.Context(), `SELECT concat_ws(' ', partition, next_offset, applied, rejected) FROM public.projection_progress WHERE partition < $1 ORDER BY partition`, broken)
		require.NoError(t, err)
		defer func() { require.NoError(t, rows.Close()) }()
		for rows.Next() {
			var one string
			require.NoError(t, rows.Scan(&one))
			what = append(what, one)
		}
		require.NoError(t, rows.Err())
		return what
	}
	at, dead := stopped(), letters(t, s.DB)
	for round := range 30 {
		_, err := s.Log.Write(plain(healthy), plain(healthy))
		require.NoError(t, err)
		require.False(t, consumer.IsReady(t.Context()), "round %d", round)
		s.Passed(s.DB, story.Vector{healthy: 1000 + 2*int64(round+1)})
		require.False(t, consumer.IsReady(t.Context()), "round %d: the healthy partition's batch makes nothing ready", round)
	}
	require.Equal(t, at, stopped(), "nothing moves there")
	require.Equal(t, dead, letters(t, s.DB))
	require.LessOrEqual(t, dead["refused"], broken*100)

	run(t, s.DB, `ALTER TABLE public.timestamp_records DROP CONSTRAINT nothing`)
	log, upTo, err := s.Log.Read(t.Context(), nil)
	require.NoError(t, err)
	s.Passed(s.DB, upTo)
	require.Equal(t, dead, letters(t, s.DB), "none more once it was mended")
	require.Equal(t, len(log)-dead["refused"], strings.Count(s.Dump(s.DB).Rows, "\n"))
	s.RequireCleanAudit(s.DB)
	s.Ready(consumer)
}

// drop takes a table away, with a copy to mend it from.
func drop(table string) func(*testing.T, *story.Story) func() {
	return func(t *testing.T, s *story.Story) func() {
		run(t, s.DB, fmt.Sprintf(`BEGIN; LOCK TABLE public.%[1]s; CREATE TABLE public.saved (LIKE public.%[1]s INCLUDING ALL);
			INSERT INTO public.saved SELECT * FROM public.%[1]s; DROP TABLE public.%[1]s; COMMIT`, table))
		return func() { run(t, s.DB, `ALTER TABLE public.saved RENAME TO `+table) }
	}
}

// readOnly is what a server says that was promoted the wrong way round.
func readOnly(t *testing.T, s *story.Story) func() {
	set := func(value string) {
		run(t, s.DB, `SET default_transaction_read_only = off`)
		run(t, s.DB, `ALTER SYSTEM SET default_transaction_read_only = `+value)
		run(t, s.DB, `SELECT pg_reload_conf()`)
	}
	mend := func() { set("off") }
	t.Cleanup(mend) // it is the whole server's
	set("on")
	return mend
}

// fullDisk moves the rows to a disk of their own with next to no room. Only root may mount one; anybody else gets a
// trigger that fails as a full disk does, which tests all but Postgres.
func fullDisk(t *testing.T, s *story.Story) func() {
	dir := filepath.Join(t.TempDir(), "disk")
	if err := mountSmall(t, s, dir); err != nil {
		t.Logf("no small disk can be mounted, a trigger stands in for it: %v", err)
		run(t, s.DB, `CREATE FUNCTION public.full_disk() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
				RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = '53100';
			END $$;
			CREATE TRIGGER full_disk BEFORE INSERT ON public.timestamp_records FOR EACH ROW EXECUTE FUNCTION public.full_disk()`)
		return func() { run(t, s.DB, `DROP FUNCTION public.full_disk CASCADE`) }
	}
	run(t, s.DB, `CREATE TABLESPACE small LOCATION '`+dir+`'`)
	t.Cleanup(func() {
		run(t, s.DB, `ALTER TABLE public.timestamp_records SET TABLESPACE pg_default`)
		run(t, s.DB, `ALTER INDEX public.timestamp_records_pkey SET TABLESPACE pg_default`)
		run(t, s.DB, `DROP TABLESPACE small`)
	})
	run(t, s.DB, `VACUUM FULL public.timestamp_records`) // writers side by side leave it empty pages, as many as they happened to wait for each other
	run(t, s.DB, `ALTER TABLE public.timestamp_records SET TABLESPACE small`)
	run(t, s.DB, `ALTER INDEX public.timestamp_records_pkey SET TABLESPACE small`)
	return func() {
		output, err := exec.CommandContext(t.Context(), "mount", "-o", "remount,size=64m", dir).CombinedOutput()
		require.NoError(t, err, string(output))
	}
}

// mountSmall mounts half a megabyte that Postgres may use.
func mountSmall(t *testing.T, s *story.Story, dir string) error {
	var pid int
	require.NoError(t, s.DB.QueryRowContext(t.Context(), `SELECT pg_backend_pid()`).Scan(&pid))
	info, err := os.Stat(fmt.Sprintf("/proc/%d", pid))
	if err != nil {
		return err
	}
	owner := info.Sys().(*syscall.Stat_t)
	for d := dir; d != "/" && d != os.TempDir(); d = filepath.Dir(d) { // the server's user must be let in
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
		if err := os.Chmod(d, 0o755); err != nil {
			return err
		}
	}
	options := fmt.Sprintf("size=640k,mode=700,uid=%d,gid=%d", owner.Uid, owner.Gid)
	if output, err := exec.CommandContext(t.Context(), "mount", "-t", "tmpfs", "-o", options, "tmpfs", dir).CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, output)
	}
	t.Cleanup(func() {
		output, err := exec.Command("umount", "-l", dir).CombinedOutput()
		require.NoError(t, err, string(output))
	})
	return nil
}

// run executes a statement whose failure ends the test. It works after the test's own context has ended, too.
func run(t *testing.T, db *sql.DB, statement string) {
	t.Helper()
	_, err := db.ExecContext(context.WithoutCancel(t.Context()), statement)
	require.NoError(t, err, statement)
}

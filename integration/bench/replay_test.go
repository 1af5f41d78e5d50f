package bench

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/shared/await"
)

// replayed is a log of n records with the stage it stands on.
type replayed struct {
	*stage
	n    int
	runs int
	file string // the same rows as psql's \copy writes them
}

// newReplayed fills a log, projects it once and copies the rows out.
func newReplayed(b *testing.B, n int) *replayed {
	b.Helper()
	r := &replayed{stage: newStage(b), n: n, file: scratch(b, "rows")}
	first := r.service(b, "consumer-service", map[string]string{"KAFKA_GROUP_ID": "first"}) // makes topic and schema
	r.fill(b, n)
	r.wait(b)
	require.NoError(b, first.Stop(b.Context()))
	psql(b, r.url, `\copy public.timestamp_records TO '`+r.file+`'`)
	r.exec(b, `CREATE TABLE copied (LIKE timestamp_records INCLUDING ALL)`)
	return r
}

func (r *replayed) wait(b *testing.B) {
	b.Helper()
	await.UntilWithin(b, 20*time.Minute, func() bool {
		var next int
		err := r.db.QueryRowContext(b.Context(), `SELECT coalesce(sum(next_offset), 0) FROM projection_progress`).Scan(&next)
		return err == nil && next >= r.n
	})
}

// replay rebuilds the emptied table under a fresh group name and returns records a second, from the
// beginning of the session to the last commit, and the peak memory of the process.
func (r *replayed) replay(b *testing.B) (rate float64, peak int64) {
	b.Helper()
	r.exec(b, `TRUNCATE timestamp_records`)
	r.exec(b, `CHECKPOINT`)
	r.runs++
	c := r.service(b, "consumer-service", map[string]string{"KAFKA_GROUP_ID": fmt.Sprintf("replay-%d", r.runs), "AUDIT_INTERVAL": "1h"})
	r.wait(b)
	peak, err := c.PeakMemory()
	require.NoError(b, err)
	require.NoError(b, c.Stop(b.Context()))
	var seconds float64
	var rows int
	require.NoError(b, r.db.QueryRowContext(b.Context(), `
SELECT extract(epoch FROM max(p.updated_at) - min(g.started_at)), (SELECT count(*) FROM timestamp_records)
FROM projection_progress p CROSS JOIN projection_generations g WHERE g.projection = 'timestamps'`).Scan(&seconds, &rows))
	require.Equal(b, r.n, rows)
	return float64(r.n) / seconds, peak
}

// copied loads the same rows by one psql into a table of the same form.
func (r *replayed) copied(b *testing.B) float64 {
	b.Helper()
	r.exec(b, `TRUNCATE copied`)
	r.exec(b, `CHECKPOINT`)
	took := psql(b, r.url, `\copy copied FROM '`+r.file+`'`)
	r.exec(b, `TRUNCATE copied`)
	return float64(r.n) / took.Seconds()
}

// BenchmarkReplay compares the replay of a log into rows, keys, outcomes and progress with psql's \copy
// of the same rows into the same table, and a large log with one a tenth its size.
func BenchmarkReplay(b *testing.B) {
	small, large, times := 1_000_000, 10_000_000, 5
	if testing.Short() {
		small, large, times = 20_000, 60_000, 1
	}
	one := newReplayed(b, small)
	ten := newReplayed(b, large)
	one.replay(b) // warm
	for b.Loop() {
		copies, sizes := make([]run, times), make([]run, times)
		var memory []run
		for i := range times {
			copies[i].Reference = one.copied(b)
			rate, peak := one.replay(b)
			copies[i].Value, sizes[i].Reference = rate, rate
			memory = append(memory, run{Value: mebibytes(peak)})
			rate, peak = ten.replay(b)
			sizes[i].Value = rate
			memory = append(memory, run{Value: mebibytes(peak)})
		}
		report(b, "replay-vs-copy", "records/s", copies)
		report(b, "replay-10x-vs-1x", "records/s", sizes)
		report(b, "consumer-peak-memory", "MiB", memory)
	}
}

package bench

import (
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// BenchmarkPage measures, at 10 million rows, the time from asking for a page to holding all of its HTML, one request
// after the other: the first page, and the two others that show numbers of the whole or rows of the table. The goal is
// 50 ms for the first page. The other services are down, as on a bad night: no page may wait for them.
func BenchmarkPage(b *testing.B) {
	rows, times := 10_000_000, 500
	if testing.Short() {
		rows, times = 50_000, 20
	}
	s := newStage(b)
	consumer := s.service(b, "consumer-service", map[string]string{"AUDIT_INTERVAL": "1h"}) // makes the schema and its rows of progress
	require.NoError(b, consumer.Stop(b.Context()))
	s.exec(b, `INSERT INTO timestamp_records (id, event_timestamp, created_at, partition, "offset")
SELECT uuidv7(), now() - n * interval '1 s', now(), n % `+partitions+`, n / `+partitions+` FROM generate_series(0, `+number(float64(rows-1))+`) n`)
	s.exec(b, `UPDATE projection_progress p SET next_offset = c.n, applied = c.n, log_end = c.n, caught_up_at = now()
FROM (SELECT partition, count(*) AS n FROM timestamp_records GROUP BY partition) c WHERE c.partition = p.partition`)
	s.exec(b, `VACUUM ANALYZE timestamp_records`)
	s.exec(b, `CHECKPOINT`)
	query := s.service(b, "query-service", nil)
	client := newClient()
	b.Cleanup(client.CloseIdleConnections)
	for b.Loop() {
		for _, page := range []struct{ name, path string }{{"first-page", "/"}, {"records-page", "/records"}, {"projection-page", "/projections/timestamps"}} {
			took := make([]float64, times)
			for i := range took {
				start := time.Now()
				a, err := ask(b.Context(), client, http.MethodGet, query.URL()+page.path, "")
				took[i] = float64(time.Since(start).Microseconds()) / 1000
				require.NoError(b, err)
				require.Equal(b, http.StatusOK, a.status, a.body)
			}
			slices.Sort(took)
			report(b, page.name+"-p50", "ms", []run{{Value: took[times/2]}})
			report(b, page.name+"-p99", "ms", []run{{Value: took[times*99/100]}})
		}
	}
}

package bench

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/integration/stack"
	"github.com/tidemark/tidemark/shared/await"
)

// generation is what consumer-service says of one.
type generation struct {
	Generation  int
	State       string
	RequestedAt time.Time `json:"requested_at"`
	StateSince  time.Time `json:"state_since"`
	Proof       *struct {
		OK   bool
		Took float64 `json:"took_ms"`
	}
}

func generations(b *testing.B, service *stack.Service, method, path, body string, into any) int {
	b.Helper()
	req, err := http.NewRequestWithContext(b.Context(), method, service.URL()+"/api/v1/projections/timestamps/generations"+path, strings.NewReader(body))
	require.NoError(b, err)
	req.Header.Set("Content-Type", "application/json")
	res, err := http.DefaultClient.Do(req)
	require.NoError(b, err)
	content, err := io.ReadAll(res.Body)
	require.NoError(b, err)
	require.NoError(b, res.Body.Close())
	if into != nil {
		require.NoError(b, json.NewDecoder(bytes.NewReader(content)).Decode(into), string(content))
	}
	return res.StatusCode
}

// until waits until a generation is in that state.
func (s *stage) until(b *testing.B, service *stack.Service, number int, state string) generation {
	b.Helper()
	var g generation
	await.UntilWithin(b, 20*time.Minute, func() bool {
		g = generation{}
		generations(b, service, http.MethodGet, fmt.Sprint("/", number), "", &g)
		return g.State == state
	}, "%d %s", number, state)
	return g
}

// gone drops a generation and waits until nothing of it is left.
func (s *stage) gone(b *testing.B, service *stack.Service, number int) {
	b.Helper()
	generations(b, service, http.MethodDelete, fmt.Sprint("/", number), "", nil)
	await.Until(b, func() bool {
		return generations(b, service, http.MethodGet, fmt.Sprint("/", number), "", nil) == http.StatusNotFound
	})
}

// blueGreen rebuilds while another generation serves and returns records a second, from the request to the swap: with the
// joining of the group, the indexes and the proof. The old generation is dropped afterwards.
func (r *replayed) blueGreen(b *testing.B) (rate, proofMs float64) {
	b.Helper()
	r.exec(b, `VACUUM timestamp_records`) // what serves has served for a while
	r.exec(b, `CHECKPOINT`)
	var group string
	require.NoError(b, r.db.QueryRowContext(b.Context(), `SELECT group_name FROM projection_generations WHERE projection = 'timestamps' AND state = 'serving'`).Scan(&group))
	c := r.service(b, "consumer-service", map[string]string{"KAFKA_GROUP_ID": group, "AUDIT_INTERVAL": "1h"})
	var was struct{ Generations []generation }
	generations(b, c, http.MethodGet, "", "", &was)
	require.Len(b, was.Generations, 1)
	var g generation
	require.Equal(b, http.StatusAccepted, generations(b, c, http.MethodPost, "", "", &g))
	g = r.until(b, c, g.Generation, "serving")
	require.True(b, g.Proof.OK)
	var rows int
	require.NoError(b, r.db.QueryRowContext(b.Context(), `SELECT count(*) FROM timestamp_records`).Scan(&rows))
	require.Equal(b, r.n, rows)
	r.gone(b, c, was.Generations[0].Generation)
	require.NoError(b, c.Stop(b.Context()))
	return float64(r.n) / g.StateSince.Sub(g.RequestedAt).Seconds(), g.Proof.Took
}

// BenchmarkRebuild compares a blue/green rebuild, proof and swap included, with the plain replay of the
// same log; and reads while a rebuild goes on, held to half its rate, with reads while nothing does.
func BenchmarkRebuild(b *testing.B) {
	small, large, times, readFor := 1_000_000, 10_000_000, 3, 5*time.Second
	if testing.Short() {
		small, large, times, readFor = 20_000, 40_000, 1, time.Second
	}
	ten := newReplayed(b, large)
	one := newReplayed(b, small)
	one.replay(b) // warm
	for b.Loop() {
		rates, proofs, reads := make([]run, times), make([]run, times), make([]run, times)
		for i := range times {
			rates[i].Reference, _ = ten.replay(b)
			rates[i].Value, proofs[i].Value = ten.blueGreen(b)
		}
		report(b, "rebuild-vs-replay", "records/s", rates)
		report(b, "rebuild-proof", "ms", proofs)
		for i := range times {
			full, _ := one.blueGreen(b)
			reads[i] = one.throttled(b, int(full/2), readFor)
		}
		report(b, "reads-during-rebuild-p99", "ms", reads)
	}
}

// throttled measures single reads, first by themselves and then while a rebuild is held to a rate.
func (r *replayed) throttled(b *testing.B, limit int, during time.Duration) run {
	b.Helper()
	var group string
	require.NoError(b, r.db.QueryRowContext(b.Context(), `SELECT group_name FROM projection_generations WHERE projection = 'timestamps' AND state = 'serving'`).Scan(&group))
	c := r.service(b, "consumer-service", map[string]string{"KAFKA_GROUP_ID": group, "AUDIT_INTERVAL": "1h"})
	query := r.service(b, "query-service", nil)
	var some string
	require.NoError(b, r.db.QueryRowContext(b.Context(), `
SELECT string_agg(id::text, ' ') FROM (SELECT id FROM timestamp_records TABLESAMPLE SYSTEM (5) LIMIT 5000) t`).Scan(&some))
	ids := strings.Fields(some)
	require.NotEmpty(b, ids)
	client := newClient()
	defer client.CloseIdleConnections()
	r.reads(b, client, query, ids, during/2) // warm
	r.exec(b, `CHECKPOINT`)
	var out run
	out.Reference = r.reads(b, client, query, ids, during)
	var g generation
	require.Equal(b, http.StatusAccepted, generations(b, c, http.MethodPost, "", fmt.Sprintf(`{"swap":false,"rate_limit":%d}`, limit), &g))
	await.Until(b, func() bool {
		var done int64
		err := r.db.QueryRowContext(b.Context(), fmt.Sprintf(`SELECT sum(next_offset) FROM timestamps_g%d.projection_progress`, g.Generation)).Scan(&done)
		return err == nil && done > 0
	})
	out.Value = r.reads(b, client, query, ids, during)
	r.gone(b, c, g.Generation)
	require.NoError(b, query.Stop(b.Context()))
	require.NoError(b, c.Stop(b.Context()))
	return out
}

// reads asks for random records, two hundred a second, and returns the 99th percentile in milliseconds. A read
// starts on its tick whether the ones before have been answered or not.
func (r *replayed) reads(b *testing.B, client *http.Client, query *stack.Service, ids []string, during time.Duration) float64 {
	b.Helper()
	const rate = 200
	n := int(during.Seconds() * rate)
	took, errs := make([]float64, n), make([]error, n)
	var all sync.WaitGroup
	start := time.Now()
	for i := range n {
		due := start.Add(time.Duration(i) * time.Second / rate)
		time.Sleep(time.Until(due)) // a load of so many a second
		all.Go(func() {
			a, err := ask(b.Context(), client, http.MethodGet, query.URL()+"/api/v1/timestamp/"+ids[rand.IntN(len(ids))], "")
			if err == nil && a.status != http.StatusOK {
				err = fmt.Errorf("GET: %d %s", a.status, a.body)
			}
			errs[i], took[i] = err, float64(time.Since(due).Microseconds())/1000
		})
	}
	all.Wait()
	for _, err := range errs {
		require.NoError(b, err)
	}
	slices.Sort(took)
	return took[n*99/100]
}

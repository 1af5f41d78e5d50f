package bench

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// BenchmarkVisible measures, at a steady 1,000 POSTs a second, the time from sending a POST to holding the
// answer of a GET that shows its row. The GET is sent with the returned position, as soon as the POST is
// answered; an answer without the row fails the benchmark.
func BenchmarkVisible(b *testing.B) {
	rate, during, times := 1000, 5*time.Second, 5
	if testing.Short() {
		rate, during, times = 100, time.Second, 1
	}
	s := newStage(b)
	consumer := s.service(b, "consumer-service", nil)
	query := s.service(b, "query-service", nil)
	door := s.service(b, "command-service", nil)
	client := newClient()
	b.Cleanup(client.CloseIdleConnections)
	visible(b, client, door.URL(), query.URL(), rate, 2*during) // warm
	for b.Loop() {
		var half, most []run
		for range times {
			took := visible(b, client, door.URL(), query.URL(), rate, during)
			half = append(half, run{Value: took[len(took)/2]})
			most = append(most, run{Value: took[len(took)*99/100]})
		}
		report(b, "post-to-visible-p50", "ms", half)
		report(b, "post-to-visible-p99", "ms", most)
	}
	for _, service := range []interface {
		Name() string
		PeakMemory() (int64, error)
	}{door, consumer, query} {
		peak, err := service.PeakMemory()
		require.NoError(b, err)
		report(b, service.Name()+"-peak-memory", "MiB", []run{{Value: mebibytes(peak)}})
	}
}

func newClient() *http.Client {
	return &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{MaxIdleConns: 512, MaxIdleConnsPerHost: 256}}
}

// visible returns the sorted times in milliseconds. A request starts on its tick whether the ones before
// have been answered or not.
func visible(b *testing.B, client *http.Client, door, query string, rate int, during time.Duration) []float64 {
	b.Helper()
	n := int(during.Seconds() * float64(rate))
	took, errs := make([]float64, n), make([]error, n)
	var all sync.WaitGroup
	start := time.Now()
	for i := range n {
		due := start.Add(time.Duration(i) * time.Second / time.Duration(rate))
		time.Sleep(time.Until(due)) // a load of so many a second
		all.Go(func() {
			errs[i] = once(b.Context(), client, door, query)
			took[i] = float64(time.Since(due).Microseconds()) / 1000
		})
	}
	all.Wait()
	for _, err := range errs {
		require.NoError(b, err)
	}
	slices.Sort(took)
	return took
}

func once(ctx context.Context, client *http.Client, door, query string) error {
	posted, err := ask(ctx, client, http.MethodPost, door+"/api/v1/timestamp", "")
	if err != nil {
		return err
	}
	_, rest, _ := strings.Cut(posted.body, `"id":"`)
	id, _, ok := strings.Cut(rest, `"`)
	if posted.status != http.StatusAccepted || !ok {
		return fmt.Errorf("POST: %d %s", posted.status, posted.body)
	}
	read, err := ask(ctx, client, http.MethodGet, query+"/api/v1/timestamp/"+id, posted.header.Get("Tidemark-Position"))
	if err != nil {
		return err
	}
	if read.status != http.StatusOK {
		return fmt.Errorf("GET: %d %s", read.status, read.body)
	}
	return nil
}

// answer is a whole answer: its status, headers and body.
type answer struct {
	status int
	header http.Header
	body   string
}

func ask(ctx context.Context, client *http.Client, method, url, position string) (answer, error) {
	req, err := http.NewRequestWithContext(ctx, method, url, nil)
	if err != nil {
		return answer{}, err
	}
	if position != "" {
		req.Header.Set("Tidemark-Position", position)
	}
	res, err := client.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer func() { _ = res.Body.Close() }() // read to its end
	body, err := io.ReadAll(res.Body)
	return answer{res.StatusCode, res.Header, string(body)}, err
}

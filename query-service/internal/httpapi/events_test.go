package httpapi

import (
	"bufio"
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/tidemark/tidemark/query-service/internal/projection"
	"github.com/tidemark/tidemark/query-service/internal/testdb"
	api "github.com/tidemark/tidemark/shared/api/query"
	"github.com/tidemark/tidemark/shared/await"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// streaming is a server of event streams about the generations of a database. Its bounds on reading and
// writing are shorter than any stream here lasts.
type streaming struct {
	*Server
	url string
	db  *testdb.DB
}

func newStreaming(t *testing.T) *streaming {
	t.Helper()
	s := &streaming{db: testdb.New(t)}
	log, registry := slog.New(slog.DiscardHandler), prometheus.NewRegistry()
	catalog := projection.NewCatalog(s.db.DB)
	watch := projection.NewWatch(projection.NextOffsets(s.db.DB, catalog), catalog.Label, registry, log)
	s.Server = &Server{
		catalog: catalog, reader: projection.NewReader(s.db.DB, catalog, watch, registry), streams: NewStreams(registry), failures: NewFailures(log),
		reads: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "reads"}, []string{"read", "outcome"}),
	}
	s.generations = shared(s.readGenerations)
	s.streams.beat = 30 * time.Millisecond
	gin.SetMode(gin.ReleaseMode)
	e := gin.New()
	e.ContextWithFallback = true
	e.GET("/events", func(c *gin.Context) {
		watch := []api.StreamEventsParamsWatch{api.StreamEventsParamsWatchGenerations}
		of := "timestamps"
		s.StreamEvents(c, api.StreamEventsParams{Watch: &watch, Projection: &of})
	})
	server := httptest.NewUnstartedServer(e)
	server.Config.ReadTimeout, server.Config.WriteTimeout = 100*time.Millisecond, 100*time.Millisecond
	server.Start()
	t.Cleanup(server.Close)
	s.url = server.URL + "/events"
	return s
}

// opened is the answer to a stream's request; the body is read by lines and closed with the test.
type opened struct {
	status int
	header http.Header
	lines  *bufio.Reader
}

func (s *streaming) open(t *testing.T) opened {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url, nil)
	require.NoError(t, err)
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	res, err := transport.RoundTrip(req)
	require.NoError(t, err)
	t.Cleanup(func() { _ = res.Body.Close() })
	return opened{res.StatusCode, res.Header, bufio.NewReader(res.Body)}
}

// next reads lines until one begins with prefix, and returns it and how many heartbeats came before.
func next(t *testing.T, r *bufio.Reader, prefix string) (string, int) {
	t.Helper()
	for beats := 0; ; {
		line, err := r.ReadString('\n')
		require.NoError(t, err, "before %q", prefix)
		if strings.HasPrefix(line, prefix) {
			return strings.TrimSpace(line), beats
		}
		if strings.HasPrefix(line, ":") {
			beats++
		}
	}
}

func TestAStreamOutlivesTheServersBoundsAndBeats(t *testing.T) {
	t.Parallel()
	s := newStreaming(t)
	o := s.open(t)
	r := o.lines
	require.Equal(t, 200, o.status)
	require.Equal(t, "text/event-stream; charset=utf-8", o.header.Get("Content-Type"))
	require.Equal(t, "no", o.header.Get("X-Accel-Buffering"))
	require.Contains(t, o.header.Get("Cache-Control"), "no-transform")
	next(t, r, "retry: ")
	next(t, r, "event: generations")
	data, _ := next(t, r, "data: ")
	require.Contains(t, data, `"projection":"timestamps"`)
	require.Contains(t, data, `"state":"serving"`)

	s.db.Must(t, `INSERT INTO projection_generations (projection, generation, schema_name, state) VALUES ('timestamps', 1, 'timestamps_g1', 'filling')`)
	data, beats := next(t, r, "data: ")
	require.Contains(t, data, `"state":"filling"`)
	require.Greater(t, beats, 3, "nothing between takes a quiet connection for dead")

	s.db.Must(t, `ALTER TABLE projection_audits RENAME TO gone`)
	next(t, r, "event: trouble")
	data, _ = next(t, r, "data: ")
	require.Contains(t, data, "the database has not got Tidemark's tables")
	s.db.Must(t, `ALTER TABLE gone RENAME TO projection_audits`)
	next(t, r, "event: generations") // the end of the trouble is told, though nothing else has changed
}

func TestStreamsAreBoundedAndEndWithTheService(t *testing.T) {
	t.Parallel()
	s := newStreaming(t)
	s.streams.free = 1
	r := s.open(t).lines
	next(t, r, "data: ")
	refused := s.open(t)
	require.Equal(t, 503, refused.status)
	require.Equal(t, "5", refused.header.Get("Retry-After"))

	s.streams.Stop()
	_, err := io.Copy(io.Discard, r)
	require.NoError(t, err, "it ends in order, not cut")
	await.Until(t, func() bool { s.streams.mu.Lock(); defer s.streams.mu.Unlock(); return s.streams.free == 1 })
	require.Equal(t, 503, s.open(t).status)
}

package telemetry

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/trace"

	"github.com/tidemark/tidemark/shared/await"
	"github.com/tidemark/tidemark/shared/config"
)

// lines is a log that several write.
type lines struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func TestWithoutAnEndpointThereIsNothing(t *testing.T) {
	t.Parallel()
	out := &lines{}
	log, err := NewLogger(out, "test", "debug")
	require.NoError(t, err)
	e, err := NewExporter(t.Context(), ExportOptions{Config: config.DefaultTelemetry(), Service: "test", Registry: prometheus.NewRegistry(), Log: log})
	require.NoError(t, err)
	require.Nil(t, e.Tracer())
	require.NoError(t, e.Stop(t.Context()))
	require.Empty(t, out.String())
}

func TestAReceiverThatFailsIsToldOnceAndSoIsItsReturn(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	status := http.StatusBadRequest
	set := func(s int) {
		mu.Lock()
		defer mu.Unlock()
		status = s
	}
	asked := make(chan string, 1000)
	receiver := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		w.WriteHeader(status)
		asked <- r.URL.Path + " " + r.Header.Get("Dd-Api-Key")
	}))
	defer receiver.Close()
	out := &lines{}
	log, err := NewLogger(out, "test", "debug")
	require.NoError(t, err)
	c := config.DefaultTelemetry()
	c.Endpoint, c.Traces, c.MetricInterval, c.Headers = receiver.URL+"/", "none", 100, "dd-api-key=secret"
	e, err := NewExporter(t.Context(), ExportOptions{Config: c, Service: "test", Registry: prometheus.NewRegistry(), Log: log})
	require.NoError(t, err)
	require.Nil(t, e.Tracer(), "no traces are sent")
	for range 3 {
		require.Equal(t, "/v1/metrics secret", <-asked)
	}
	await.Until(t, func() bool { return strings.Contains(out.String(), "telemetry cannot be sent") })
	set(http.StatusOK)
	await.Until(t, func() bool { return strings.Contains(out.String(), "telemetry is sent again") })
	require.Equal(t, 1, strings.Count(out.String(), "telemetry cannot be sent"))
	require.NotContains(t, out.String(), "secret")
	require.NoError(t, e.Stop(t.Context()))
}

func TestTheTraceGoesOnToTheServerThatIsAsked(t *testing.T) {
	t.Parallel()
	got := make(chan string, 1)
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { got <- r.Header.Get("traceparent") }))
	defer server.Close()
	client := &http.Client{Transport: Transport(server.Client().Transport)}
	for traceparent, wanted := range map[string]string{
		"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
		"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00": "", // nobody samples it
		"": "",
	} {
		ctx := trace.ContextWithRemoteSpanContext(t.Context(), RemoteSpan(traceparent))
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, server.URL, nil)
		require.NoError(t, err)
		res, err := client.Do(req)
		require.NoError(t, err)
		require.NoError(t, res.Body.Close())
		require.Equal(t, wanted, <-got)
		require.Empty(t, req.Header, "the caller's request stays as it is")
	}
}

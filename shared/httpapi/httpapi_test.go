package httpapi

import (
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/tidemark/tidemark/shared/config"
	"github.com/tidemark/tidemark/shared/problem"
	"github.com/tidemark/tidemark/shared/telemetry"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const spec = `
openapi: 3.0.3
info: {title: t, version: "1"}
paths:
  /stream:
    post:
      x-scope: write
      requestBody: {content: {application/x-ndjson: {schema: {type: string}}}}
      responses: {"200": {description: ok}}
  /health: {get: {x-scope: none, responses: {"200": {description: ok}}}}
  /ready: {get: {x-scope: none, responses: {"200": {description: ok}}}}
  /metrics: {get: {x-scope: read, responses: {"200": {description: ok}}}}
  /openapi.yaml: {get: {x-scope: none, responses: {"200": {description: ok}}}}
  /docs: {get: {x-scope: none, responses: {"200": {description: ok}}}}
  /docs/{file}: {get: {x-scope: none, parameters: [{name: file, in: path, required: true, schema: {type: string}}], responses: {"200": {description: ok}}}}
  /panic: {get: {x-scope: admin, responses: {"200": {description: ok}}}}
  /echo/{name}:
    post:
      x-scope: write
      parameters: [{name: name, in: path, required: true, schema: {type: string, maxLength: 5}}]
      requestBody:
        content:
          application/json:
            schema: {type: object, required: [a], additionalProperties: false, properties: {a: {type: string}}}
      responses: {"200": {description: ok}}
`

func setup(t *testing.T) (*Engine, *Readiness) {
	t.Helper()
	return setupWith(t, config.HTTP{BindAddress: "127.0.0.1"})
}

func setupWith(t *testing.T, h config.HTTP) (*Engine, *Readiness) {
	t.Helper()
	e, err := NewEngine(t.Context(), Options{Log: slog.New(slog.DiscardHandler), Registry: prometheus.NewRegistry(), Spec: []byte(spec), HTTP: h, MaxBody: 32})
	require.NoError(t, err)
	ready := NewReadiness("kafka")
	Mount(e, "test-service", ready)
	echo := func(c *gin.Context) {
		body, err := io.ReadAll(c.Request.Body)
		if err != nil {
			FailBody(c, err)
			return
		}
		c.JSON(200, gin.H{"correlation": telemetry.CorrelationID(c.Request.Context()), "body": string(body)})
	}
	e.POST("/echo/:name", echo)
	e.POST("/echo/:name/", echo)
	e.POST("/stream", func(c *gin.Context) {
		n, err := io.Copy(io.Discard, c.Request.Body)
		if err != nil {
			FailBody(c, err)
			return
		}
		c.String(200, "%d", n)
	})
	e.GET("/panic", func(*gin.Context) { panic("secret text") })
	return e, ready
}

func call(e http.Handler, method, path, body string, header ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	r.Host = "localhost"
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	e.ServeHTTP(w, r)
	return w
}

func TestEveryErrorIsAProblem(t *testing.T) {
	t.Parallel()
	e, _ := setup(t)
	for _, tc := range []struct {
		method, path, body string
		status             int
		detail             string
	}{
		{"GET", "/nowhere", "", 404, "nothing at /nowhere"},
		{"GET", "/echo/x", "", 405, "it takes POST"},
		{"GET", "/panic", "", 500, "correlation id"},
		{"POST", "/echo/x", `{"a":"` + strings.Repeat("b", 40) + `"}`, 413, "32 bytes"},
		{"POST", "/echo/toolong", `{"a":"b"}`, 400, `path parameter "name": maximum string length is 5`},
		{"POST", "/echo/x", `{"b":1}`, 400, "the body"},
		{"POST", "/echo/x/", `{"a":1}`, 400, "the body at /a: value must be a string"},
		{"POST", "/echo/x", `{`, 400, "the body"},
	} {
		w := call(e, tc.method, tc.path, tc.body, "Content-Type", "application/json")
		require.Equal(t, tc.status, w.Code, tc.path)
		require.Equal(t, problem.ContentType, w.Header().Get("Content-Type"))
		var p map[string]any
		require.NoError(t, json.Unmarshal(w.Body.Bytes(), &p))
		require.Contains(t, p["detail"], tc.detail)
		require.Equal(t, "urn:correlation:"+w.Header().Get(CorrelationHeader), p["instance"])
		require.NotContains(t, w.Body.String(), "secret")
	}
}

func TestABodyOfUnknownLengthIsBounded(t *testing.T) {
	t.Parallel()
	e, _ := setup(t)
	r := httptest.NewRequest("POST", "/echo/x", io.MultiReader(strings.NewReader(`{"a":"`), strings.NewReader(strings.Repeat("b", 40)+`"}`)))
	r.Host = "localhost"
	r.ContentLength = -1
	r.Header.Set("Content-Type", "application/json")
	w := httptest.NewRecorder()
	e.ServeHTTP(w, r)
	require.Equal(t, 413, w.Code)
}

func TestAStreamIsNeitherBoundedNorReadByAnyoneButItsHandler(t *testing.T) {
	t.Parallel()
	e, _ := setup(t)
	w := call(e, "POST", "/stream", strings.Repeat("{}\n", 100), "Content-Type", StreamType)
	require.Equal(t, 200, w.Code)
	require.Equal(t, "300", w.Body.String())

	s := httptest.NewServer(e)
	defer s.Close()
	body, open := io.Pipe() // it stays open
	r, err := http.NewRequestWithContext(t.Context(), "POST", s.URL+"/stream", body)
	require.NoError(t, err)
	r.Header.Set("Content-Type", "text/plain")
	go func() { _, _ = io.WriteString(open, "some\n") }()
	res, err := s.Client().Do(r)
	require.NoError(t, err, "the answer does not wait for the body")
	require.Equal(t, 415, res.StatusCode)
	require.NoError(t, res.Body.Close())
	require.NoError(t, open.Close())
}

func TestCorrelationIDIsTheClientsOrMade(t *testing.T) {
	t.Parallel()
	e, _ := setup(t)
	w := call(e, "POST", "/echo/x", `{"a":"b"}`, "Content-Type", "application/json", "correlationId", "mine 1")
	require.Equal(t, 200, w.Code, w.Body)
	require.Equal(t, "mine 1", w.Header().Get(CorrelationHeader))
	require.JSONEq(t, `{"correlation":"mine 1","body":"{\"a\":\"b\"}"}`, w.Body.String())
	for _, bad := range []string{"", "tab\there", strings.Repeat("x", 129), "ü"} {
		w := call(e, "GET", "/health", "", CorrelationHeader, bad)
		require.Len(t, w.Header().Get(CorrelationHeader), 36)
	}
}

func TestHealthReadyMetricsAndDocs(t *testing.T) {
	t.Parallel()
	e, ready := setup(t)
	require.JSONEq(t, `{"status":"UP"}`, call(e, "GET", "/health", "").Body.String())
	w := call(e, "GET", "/ready", "")
	require.Equal(t, 503, w.Code)
	require.JSONEq(t, `{"status":"DOWN","missing":{"kafka":"starting"}}`, w.Body.String())
	ready.Ready("kafka")
	require.Equal(t, 200, call(e, "GET", "/ready", "").Code)
	ready.Unready("kafka", "no broker answers")
	require.Contains(t, call(e, "GET", "/ready", "").Body.String(), "no broker answers")
	require.Contains(t, call(e, "GET", "/metrics", "").Body.String(), `http_request_duration_seconds_count{method="GET",route="/health",status="200"} 1`)
	require.Equal(t, spec, call(e, "GET", "/openapi.yaml", "").Body.String())
	require.Contains(t, call(e, "GET", "/docs", "").Body.String(), "/openapi.yaml")
}

func TestServerListensAndStops(t *testing.T) {
	t.Parallel()
	e, _ := setup(t)
	s, err := Listen(t.Context(), e, time.Second, func(err error) { t.Error(err) })
	require.NoError(t, err)
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	res, err := client.Get("http://" + s.Address() + "/health")
	require.NoError(t, err)
	require.NoError(t, res.Body.Close())
	_, port, err := net.SplitHostPort(s.Address())
	require.NoError(t, err)
	e.options.HTTP.ServerPort, err = strconv.Atoi(port)
	require.NoError(t, err)
	_, err = Listen(t.Context(), e, time.Second, nil)
	require.ErrorContains(t, err, "SERVER_PORT")
	require.NoError(t, s.Stop(t.Context()))
}

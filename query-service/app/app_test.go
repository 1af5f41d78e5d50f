package app

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/tidemark/tidemark/query-service/internal/testdb"
	"github.com/tidemark/tidemark/shared/await"
	"github.com/tidemark/tidemark/shared/config"
	"github.com/tidemark/tidemark/shared/schema"
)

func TestMain(m *testing.M) {
	await.SideBySide()
	goleak.VerifyTestMain(m)
}

// running is one query-service that runs until the test ends.
type running struct {
	url    string
	client *http.Client
	stop   context.CancelFunc
	result chan error
}

// start runs the service on dbURL. The other services answer by handler.
func start(t *testing.T, dbURL string, handler http.HandlerFunc) *running {
	t.Helper()
	if handler == nil {
		handler = func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, `{"status":"UP"}`) }
	}
	d := httptest.NewServer(handler)
	t.Cleanup(d.Close)
	return startWithPeers(t, dbURL, d.URL)
}

// startWithPeers runs the service on dbURL with the other services at others.
func startWithPeers(t *testing.T, dbURL, others string) *running {
	t.Helper()
	return startWith(t, dbURL, others, nil)
}

// startWith is startWithPeers with an environment.
func startWith(t *testing.T, dbURL, others string, environ map[string]string) *running {
	t.Helper()
	c := DefaultConfig()
	c.ServerPort, c.URL, c.CommandURL, c.ConsumerURL = 0, dbURL, others, others
	require.NoError(t, config.Load(&c, environ))
	ctx, cancel := context.WithCancel(t.Context())
	s := &running{stop: cancel, result: make(chan error, 1), client: &http.Client{
		Transport:     &http.Transport{MaxIdleConnsPerHost: 64},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
	address := make(chan string, 1)
	go func() {
		s.result <- Run(ctx, Options{Config: c, Log: slog.New(slog.DiscardHandler), Listening: func(a string) { address <- a }})
	}()
	t.Cleanup(func() {
		cancel()
		s.client.CloseIdleConnections()
		select {
		case err := <-s.result:
			require.NoError(t, err)
		case <-time.After(time.Minute):
			t.Error("the service did not stop")
		}
	})
	select {
	case a := <-address:
		s.url = "http://" + a
	case err := <-s.result:
		s.result <- err // for the cleanup
		require.FailNow(t, "the service did not start", err)
	}
	return s
}

func (s *running) awaitReady(t *testing.T) {
	t.Helper()
	await.Until(t, func() bool { return s.get(t, "/ready").status == http.StatusOK })
}

type answer struct {
	status int
	header http.Header
	body   string
}

func (a answer) object(t *testing.T) map[string]any {
	t.Helper()
	var m map[string]any
	require.NoError(t, json.Unmarshal([]byte(a.body), &m), a.body)
	return m
}

func (s *running) get(t *testing.T, path string, header ...string) answer {
	t.Helper()
	a, err := s.do(t.Context(), http.MethodGet, path, "", header...)
	require.NoError(t, err)
	return a
}

// getWhile is get of what is not there yet: do brings it, on the test's goroutine, while the request is under way.
func (s *running) getWhile(t *testing.T, path string, do func(), header ...string) (a answer) {
	t.Helper()
	asked := make(chan error, 1)
	go func() {
		var err error
		a, err = s.do(t.Context(), http.MethodGet, path, "", header...)
		asked <- err
	}()
	time.Sleep(50 * time.Millisecond) // nobody tells that a request waits; the answer is the same where it comes later
	do()
	require.NoError(t, <-asked)
	return a
}

func (s *running) post(t *testing.T, path string, form url.Values, header ...string) answer {
	t.Helper()
	a, err := s.do(t.Context(), http.MethodPost, path, form.Encode(), append(header, "Content-Type", "application/x-www-form-urlencoded")...)
	require.NoError(t, err)
	return a
}

func (s *running) do(ctx context.Context, method, path, body string, header ...string) (answer, error) {
	req, err := http.NewRequestWithContext(ctx, method, s.url+path, strings.NewReader(body))
	if err != nil {
		return answer{}, err
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	res, err := s.client.Do(req)
	if err != nil {
		return answer{}, err
	}
	content, err := io.ReadAll(res.Body)
	return answer{res.StatusCode, res.Header, string(content)}, errors.Join(err, res.Body.Close())
}

// setup is a service on a database with the schema, ready.
func setup(t *testing.T) (*testdb.DB, *running) {
	t.Helper()
	db := testdb.New(t)
	s := start(t, db.URL, nil)
	s.awaitReady(t)
	return db, s
}

func TestASchemaThatIsNewerIsRefused(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	db.Must(t, `INSERT INTO goose_db_version (version_id, is_applied) VALUES ($1, true)`, schema.Wanted+1)
	c := DefaultConfig()
	c.ServerPort, c.URL = 0, db.URL
	err := Run(t.Context(), Options{Config: c, Log: slog.New(slog.DiscardHandler)})
	require.ErrorIs(t, err, schema.ErrNewer)
	require.ErrorContains(t, err, "run the release that migrated it")
}

func TestASchemaThatIsNotThereYetIsWaitedFor(t *testing.T) {
	t.Parallel()
	db := testdb.Empty(t)
	s := start(t, db.URL, nil)
	await.Until(t, func() bool {
		return strings.Contains(s.get(t, "/ready").body, "has not got schema version")
	})
	require.JSONEq(t, `{"status":"UP"}`, s.get(t, "/health").body)
	a := s.get(t, "/api/v1/timestamps")
	require.Equal(t, 503, a.status, a.body)
	require.NotEmpty(t, a.header.Get("Retry-After"))
	require.Equal(t, 200, s.get(t, "/").status, "the page says so instead")
	require.Contains(t, s.get(t, "/").body, "The projections cannot be read")

	db.Migrate(t)
	s.awaitReady(t)
	require.Equal(t, 200, s.get(t, "/api/v1/timestamps").status)
}

func TestASchemaThatBecomesNewerTakesTheServiceOutOfRotation(t *testing.T) {
	t.Parallel()
	db, s := setup(t)
	db.Must(t, `INSERT INTO goose_db_version (version_id, is_applied) VALUES ($1, true)`, schema.Wanted+1)
	await.Until(t, func() bool { return strings.Contains(s.get(t, "/ready").body, "newer than this release") })
	require.Equal(t, 200, s.get(t, "/api/v1/timestamps").status)
}

func TestAPortThatIsTakenIsAnError(t *testing.T) {
	t.Parallel()
	db, s := setup(t)
	c := DefaultConfig()
	c.URL = db.URL
	_, err := parsePort(s.url, &c)
	require.NoError(t, err)
	require.ErrorContains(t, Run(t.Context(), Options{Config: c, Log: slog.New(slog.DiscardHandler)}), "SERVER_PORT")
}

func TestAStopEndsTheWaits(t *testing.T) {
	t.Parallel()
	_, s := setup(t)
	done := make(chan answer, 1)
	go func() {
		a, err := s.do(context.WithoutCancel(t.Context()), http.MethodGet, "/api/v1/timestamps?position=timestamp.command.v1/0@0&wait=30s", "")
		if err != nil {
			t.Error(err)
		}
		done <- a
	}()
	await.Until(t, func() bool {
		return strings.Contains(s.get(t, "/metrics").body, "tidemark_query_waiters{projection=\"timestamps\"} 1")
	})
	begin := time.Now()
	s.stop()
	require.Equal(t, 503, (<-done).status)
	require.Less(t, time.Since(begin), 15*time.Second, "half of the time that it was to wait")
}

func TestConfigurationMistakesAreToldTogether(t *testing.T) {
	t.Parallel()
	c := DefaultConfig()
	err := config.Load(&c, map[string]string{"COMMAND_URL": "localhost:7080", "CONSUMER_URL": "http://x/api", "SERVER_PORT": "x"})
	for _, words := range []string{"COMMAND_URL", "CONSUMER_URL", "SERVER_PORT", "3 configuration errors"} {
		require.ErrorContains(t, err, words)
	}
}

func TestOperations(t *testing.T) {
	t.Parallel()
	_, s := setup(t)
	require.Contains(t, s.get(t, "/openapi.yaml").body, "Tidemark query-service")
	require.Equal(t, 200, s.get(t, "/docs").status)
	s.get(t, "/api/v1/timestamp/01920b5c-7d4e-7cc3-98c4-dc0c0c07398f")
	require.Contains(t, s.get(t, "/metrics").body, `tidemark_query_reads_total{outcome="absent",read="record"} 1`)
	for path, status := range map[string]int{"/nowhere": 404, "/api/v1/timestamp/": 404, "/api/v1/timestamps/x": 404} {
		a := s.get(t, path)
		require.Equal(t, status, a.status, path)
		require.Equal(t, "application/problem+json", a.header.Get("Content-Type"))
	}
	require.Equal(t, 405, s.post(t, "/api/v1/timestamps", nil).status)
}

func parsePort(address string, c *Config) (*url.URL, error) {
	u, err := url.Parse(address)
	if err == nil {
		err = config.Load(c, map[string]string{"SERVER_PORT": u.Port()})
	}
	return u, err
}

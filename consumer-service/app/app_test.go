package app

import (
	"context"
	"flag"
	"io"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/tidemark/tidemark/consumer-service/internal/projection"
	"github.com/tidemark/tidemark/shared/await"
	"github.com/tidemark/tidemark/shared/config"
)

// Tests wait for sessions and ticks most of the time, so more of them run at once than there are processors.
func TestMain(m *testing.M) {
	if spec := os.Getenv(benchChild); spec != "" {
		os.Exit(runChild(spec))
	}
	if err := flag.Set("test.parallel", "8"); err != nil {
		panic(err) // the flag is the testing package's own
	}
	goleak.VerifyTestMain(m)
}

func TestConfigurationTellsItsMistakes(t *testing.T) {
	t.Parallel()
	c := DefaultConfig()
	require.NoError(t, config.Load(&c, map[string]string{
		"ACCEPT_LOG_START": "timestamp.command.v1/3@42, timestamp.command.v1/4@7,endpoint.command.v1/47@1", "PROJECTIONS": " endpoints ,timestamps,,endpoints",
	}))
	all := definitions(c.Kafka)
	accepted, err := c.acceptedStarts(all)
	require.NoError(t, err)
	require.Equal(t, map[string]map[int32]int64{"timestamp.command.v1": {3: 42, 4: 7}, "endpoint.command.v1": {47: 1}}, accepted)
	chosen, err := c.chosen(all)
	require.NoError(t, err)
	require.Equal(t, []string{"endpoints", "timestamps"}, chosen)
	require.Equal(t, []string{"timestamps", "endpoints"}, DefaultConfig().Projections, "all of them unless set")

	for name, tc := range map[string]struct{ variable, value, words string }{
		"no position":          {"ACCEPT_LOG_START", "42", "is no position"},
		"another topic":        {"ACCEPT_LOG_START", "other/3@42", "no projection reads the topic of other/3@42"},
		"no such partition":    {"ACCEPT_LOG_START", "timestamp.command.v1/12@0", "is no partition of timestamp.command.v1, which has 12"},
		"nor of a claimed one": {"ACCEPT_LOG_START", "endpoint.command.v1/48@0", "is no partition of endpoint.command.v1, which has 48"},
		"batch of nothing":     {"BATCH_SIZE", "0", "BATCH_SIZE=0 is outside"},
		"audits without end":   {"AUDIT_INTERVAL", "1ms", "AUDIT_INTERVAL=1ms is below"},
		"no base URL":          {"QUERY_URL", "7082", "QUERY_URL="},
		"a name that is long":  {"KAFKA_GROUP_ID", string(make([]byte, 201)), "KAFKA_GROUP_ID must have 1 to 200 characters"},
		"no projection":        {"PROJECTIONS", " , ", "PROJECTIONS names no projection: name some of timestamps, endpoints"},
		"an unknown one":       {"PROJECTIONS", "timestamps,endpoint", `PROJECTIONS: there is no projection "endpoint": there are timestamps, endpoints`},
	} {
		c := DefaultConfig()
		require.ErrorContains(t, config.Load(&c, map[string]string{tc.variable: tc.value}), tc.words, name)
	}
}

// The pool grows with the projections that a process runs: each keeps a connection.
func TestAPoolThatIsTooSmallIsRefused(t *testing.T) {
	t.Parallel()
	c := DefaultConfig()
	c.Projections, c.MaxOpenConns = []string{"a", "b", "c"}, 4
	all := []*projection.Definition{{Name: "a"}, {Name: "b"}, {Name: "c"}}
	require.ErrorContains(t, c.validate(all), "DB_MAX_OPEN_CONNS=4 is too few for 3 projections: at least 5")
	c.MaxOpenConns = 5
	require.NoError(t, c.validate(all))
}

// Without a database and without a broker the service waits, says what for, and stops when told.
func TestItWaitsForWhatIsAwayAndStopsWhenTold(t *testing.T) {
	t.Parallel()
	c := DefaultConfig()
	c.ServerPort, c.Brokers, c.QueryURL = 0, []string{"127.0.0.1:1"}, "http://reads.example:7082"
	c.URL = "postgres://nobody@127.0.0.1:1/none?sslmode=disable"
	ctx, stop := context.WithCancel(t.Context())
	listening, ended := make(chan string, 1), make(chan error, 1)
	go func() {
		ended <- Run(ctx, Options{Config: c, Log: slog.New(slog.DiscardHandler), Listening: func(a string) { listening <- a }})
	}()
	base := "http://" + <-listening
	client := &http.Client{
		Transport:     &http.Transport{DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	get := func(path string) (int, string, http.Header) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, base+path, nil)
		require.NoError(t, err)
		res, err := client.Do(req)
		require.NoError(t, err)
		body, err := io.ReadAll(res.Body)
		require.NoError(t, err)
		require.NoError(t, res.Body.Close())
		return res.StatusCode, string(body), res.Header
	}
	status, _, _ := get("/health")
	require.Equal(t, http.StatusOK, status)
	await.Until(t, func() bool {
		status, body, _ := get("/ready")
		require.Equal(t, http.StatusServiceUnavailable, status)
		return strings.Contains(body, "nothing listens at the address that DB_URL names")
	})
	status, _, header := get("/api/v1/timestamp/01920b5c-7d4e-7cc3-98c4-dc0c0c07398f")
	require.Equal(t, http.StatusPermanentRedirect, status)
	require.Equal(t, "http://reads.example:7082/api/v1/timestamp/01920b5c-7d4e-7cc3-98c4-dc0c0c07398f", header.Get("Location"))
	status, body, _ := get("/openapi.yaml")
	require.Equal(t, http.StatusOK, status)
	require.Contains(t, body, "openapi: 3.0.3")
	stop()
	require.NoError(t, <-ended)
}

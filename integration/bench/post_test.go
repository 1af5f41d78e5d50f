package bench

import (
	"context"
	"log/slog"
	"net/http"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/command-service/app"
	api "github.com/tidemark/tidemark/shared/api/command"
	"github.com/tidemark/tidemark/shared/config"
	"github.com/tidemark/tidemark/shared/httpapi"
)

const (
	postConnections = 64
	postRuns        = 5
	postDuring      = 1 * time.Second
)

var postRequest = []string{"POST /api/v1/timestamp/2009-09-28T19:03:12Z HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"}

// BenchmarkPost compares a POST that is acknowledged by all replicas with the same gin stack answering a
// constant, both with Kafka, the service and the load on this machine.
func BenchmarkPost(b *testing.B) {
	brokers := os.Getenv("TEST_KAFKA_BROKERS")
	require.NotEmpty(b, brokers, "TEST_KAFKA_BROKERS must name a real Kafka")
	debug.SetGCPercent(400) // as the service's main does; here it serves both
	door := startDoor(b, strings.Split(brokers, ","))
	constant := startConstant(b)
	load(b, constant, postRequest, "202", postConnections, time.Second) // warm up
	if !testing.Short() {
		load(b, door, postRequest, "202", postConnections, 5*time.Second)
	}
	profiled(b, func() float64 { return load(b, door, postRequest, "202", postConnections, 5*time.Second) })
	times := postRuns
	if testing.Short() {
		times = 1
	}
	for b.Loop() {
		runs, sizes := make([]run, times), make([]run, times)
		for i := range runs {
			runs[i].Reference = load(b, constant, postRequest, "202", postConnections, postDuring)
			groups, commands := groupsOf(b, door)
			runs[i].Value = load(b, door, postRequest, "202", postConnections, postDuring)
			laterGroups, laterCommands := groupsOf(b, door)
			sizes[i].Value = (laterCommands - commands) / (laterGroups - groups)
		}
		report(b, "post", "posts/s", runs)
		report(b, "post-mean-group", "commands", sizes)
	}
}

// groupsOf reads from a door's metrics how many groups it has sent, and how many commands in them.
func groupsOf(b *testing.B, door string) (groups, commands float64) {
	b.Helper()
	shown, err := ask(b.Context(), http.DefaultClient, http.MethodGet, "http://"+door+"/metrics", "")
	require.NoError(b, err)
	for line := range strings.Lines(shown.body) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), "} ")
		of := &groups
		switch {
		case strings.HasPrefix(name, "tidemark_command_group_size_count"):
		case strings.HasPrefix(name, "tidemark_command_group_size_sum"):
			of = &commands
		default:
			continue
		}
		n, err := strconv.ParseFloat(value, 64)
		require.NoError(b, err)
		*of += n // the doors of other topics are idle
	}
	return groups, commands
}

// startDoor runs the command-service on a topic of its own and waits until it is ready.
func startDoor(b *testing.B, brokers []string) string {
	b.Helper()
	c := app.DefaultConfig()
	c.ServerPort, c.Brokers = 0, brokers
	return start(b, func(ctx context.Context, listening func(string)) error {
		return app.Run(ctx, app.Options{Config: c, Log: quiet(), Topic: "bench-" + uuid.NewString(), Listening: listening})
	})
}

// startConstant serves a constant answer behind the same engine, middleware and validation.
func startConstant(b *testing.B) string {
	b.Helper()
	e, err := httpapi.NewEngine(b.Context(), httpapi.Options{
		Log: quiet(), Registry: prometheus.NewRegistry(), Spec: api.Spec, HTTP: config.DefaultHTTP(0),
	})
	require.NoError(b, err)
	e.POST("/api/v1/timestamp/:instant", func(c *gin.Context) {
		h := c.Writer.Header()
		h["Location"] = []string{"http://127.0.0.1:7082/api/v1/tickets/01a1fd8c-e20d-7374-a8b4-42348340033c?position=timestamp.command.v1/6@0"}
		h["Tidemark-Position"] = []string{"timestamp.command.v1/6@0"}
		h["Cache-Control"] = []string{"no-store"}
		c.Data(http.StatusAccepted, "application/json; charset=utf-8", []byte(`{"id":"01a1fd8c-e20d-7374-a8b4-42348340033c"}`))
	})
	s, err := httpapi.Listen(b.Context(), e, time.Minute, func(err error) { b.Error(err) })
	require.NoError(b, err)
	b.Cleanup(func() { require.NoError(b, s.Stop(context.Background())) })
	return s.Address()
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

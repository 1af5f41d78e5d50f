package bench

import (
	"context"
	"database/sql"
	"fmt"
	"net/http"
	"net/http/httptest"
	"runtime/debug"
	"testing"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/query-service/app"
	"github.com/tidemark/tidemark/shared/await"
	"github.com/tidemark/tidemark/shared/position"
	"github.com/tidemark/tidemark/shared/topic"
)

const getConnections = 64

// BenchmarkGet compares a GET of a record by its id, with the position that its POST answered, with the least that could
// answer it: gin without any middleware and one prepared SELECT, on a pool of the same size. Each request is for another
// of many rows, so that nobody answers one row to many.
func BenchmarkGet(b *testing.B) {
	records, asked, times, during := 100_000, 10_000, 5, time.Second
	if testing.Short() {
		records, asked, times, during = 2_000, 1_000, 1, 300*time.Millisecond
	}
	debug.SetGCPercent(400) // as in BenchmarkPost
	s := newStage(b)
	consumer := s.service(b, "consumer-service", nil)
	s.fill(b, records)
	await.UntilWithin(b, 5*time.Minute, func() bool {
		var next int
		err := s.db.QueryRowContext(b.Context(), `SELECT coalesce(sum(next_offset), 0) FROM projection_progress`).Scan(&next)
		return err == nil && next >= records
	})
	require.NoError(b, consumer.Stop(b.Context())) // what it does in the background is no part of a read
	s.exec(b, `VACUUM ANALYZE timestamp_records`)
	requests := s.gets(b, asked)

	c := app.DefaultConfig()
	c.ServerPort, c.URL = 0, s.url
	query := start(b, func(ctx context.Context, listening func(string)) error {
		return app.Run(ctx, app.Options{Config: c, Log: quiet(), Listening: listening})
	})
	bare := s.startBare(b, c.MaxOpenConns)
	for range 2 { // warm up
		load(b, bare, requests, "200", getConnections, during)
		load(b, query, requests, "200", getConnections, during)
	}
	profiled(b, func() float64 { return load(b, query, requests, "200", getConnections, 5*time.Second) })
	for b.Loop() {
		runs := make([]run, times)
		for i := range runs {
			runs[i].Reference = load(b, bare, requests, "200", getConnections, during)
			runs[i].Value = load(b, query, requests, "200", getConnections, during)
		}
		report(b, "get-with-position", "gets/s", runs)
	}
}

// gets are requests for n rows at random, each with its row's position.
func (s *stage) gets(b *testing.B, n int) []string {
	b.Helper()
	rows, err := s.db.QueryContext(b.Context(), `SELECT id, partition, "offset" FROM timestamp_records ORDER BY random() LIMIT $1`, n)
	require.NoError(b, err)
	defer func() { require.NoError(b, rows.Close()) }()
	var requests []string
	for rows.Next() {
		var id string
		at := position.Position{Topic: topic.TimestampCommand.Name}
		require.NoError(b, rows.Scan(&id, &at.Partition, &at.Offset))
		requests = append(requests, fmt.Sprintf("GET /api/v1/timestamp/%s HTTP/1.1\r\nHost: localhost\r\n%s: %s\r\n\r\n", id, position.Header, at))
	}
	require.NoError(b, rows.Err())
	require.Len(b, requests, n)
	return requests
}

// startBare serves the same rows, without positions, limits, metrics or correlation.
func (s *stage) startBare(b *testing.B, pool int) string {
	b.Helper()
	db, err := sql.Open("postgres", s.url)
	require.NoError(b, err)
	b.Cleanup(func() { require.NoError(b, db.Close()) })
	db.SetMaxOpenConns(pool)
	db.SetMaxIdleConns(pool)
	one, err := db.PrepareContext(b.Context(), `SELECT id, event_timestamp, created_at FROM public.timestamp_records WHERE id = $1`)
	require.NoError(b, err)
	e := gin.New()
	e.GET("/api/v1/timestamp/:id", func(c *gin.Context) {
		id, err := uuid.Parse(c.Param("id"))
		if err != nil {
			c.Status(http.StatusBadRequest)
			return
		}
		var found struct {
			ID             uuid.UUID `json:"id"`
			EventTimestamp time.Time `json:"event_timestamp"`
			CreatedAt      time.Time `json:"created_at"`
		}
		if err := one.QueryRowContext(c.Request.Context(), id).Scan(&found.ID, &found.EventTimestamp, &found.CreatedAt); err != nil {
			_ = c.AbortWithError(http.StatusInternalServerError, err)
			return
		}
		c.PureJSON(http.StatusOK, found)
	})
	server := httptest.NewServer(e)
	b.Cleanup(server.Close)
	return server.Listener.Addr().String()
}

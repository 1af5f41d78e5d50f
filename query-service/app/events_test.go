package app

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/query-service/internal/testdb"
	"github.com/tidemark/tidemark/shared/await"
)

// events opens a stream and returns a function that reads the next event.
func (s *running) events(t *testing.T, query string) func() (name string, data map[string]any, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), time.Minute) // a stop is to end it, not the test
	t.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url+"/api/v1/events?"+query, nil)
	require.NoError(t, err)
	res, err := s.client.Do(req)
	require.NoError(t, err)
	t.Cleanup(func() { _ = res.Body.Close() })
	require.Equal(t, 200, res.StatusCode)
	lines := bufio.NewReader(res.Body)
	return func() (name string, data map[string]any, err error) {
		for {
			line, err := lines.ReadString('\n')
			if err != nil {
				return "", nil, err
			}
			if rest, ok := strings.CutPrefix(line, "event: "); ok {
				name = strings.TrimSpace(rest)
			}
			if rest, ok := strings.CutPrefix(line, "data: "); ok {
				return name, data, json.Unmarshal([]byte(rest), &data)
			}
		}
	}
}

func TestAStreamTellsOfTheProjection(t *testing.T) {
	t.Parallel()
	db, s := setup(t)
	next := s.events(t, "watch=projection")
	name, data, err := next()
	require.NoError(t, err)
	require.Equal(t, "projection", name)
	require.InDelta(t, 0, data["totals"].(map[string]any)["applied"], 0)
	require.NoError(t, db.Project(t.Context(), 1, testdb.Row{ID: uuid.New(), Stamp: stamp}))
	await.Until(t, func() bool {
		_, data, err = next()
		return err == nil && data["totals"].(map[string]any)["applied"] == 1.0
	})

	db.Must(t, `ALTER TABLE projection_progress RENAME TO gone`)
	for name == "projection" {
		name, data, err = next()
		require.NoError(t, err)
	}
	require.Equal(t, "trouble", name)
	require.Contains(t, data["detail"], "the database has not got Tidemark's tables")
	db.Must(t, `ALTER TABLE gone RENAME TO projection_progress`)
	name, _, err = next()
	require.NoError(t, err)
	require.Equal(t, "projection", name)
}

func TestAStreamFollowsATicket(t *testing.T) {
	t.Parallel()
	db, s := setup(t)
	id := uuid.New()
	next := s.events(t, "ticket="+id.String()+"&position=timestamp.command.v1/1@0")
	name, data, err := next()
	require.NoError(t, err)
	require.Equal(t, []any{"ticket", "pending"}, []any{name, data["state"]})
	time.AfterFunc(100*time.Millisecond, func() {
		if err := db.Project(context.WithoutCancel(t.Context()), 1, testdb.Row{ID: id, Stamp: stamp}); err != nil {
			t.Error(err)
		}
	})
	name, data, err = next()
	require.NoError(t, err)
	require.Equal(t, []any{"ticket", "applied"}, []any{name, data["state"]})
	name, _, err = next()
	require.NoError(t, err)
	require.Equal(t, "end", name)
	_, _, err = next()
	require.ErrorIs(t, err, io.EOF)

	next = s.events(t, "ticket="+uuid.NewString())
	_, data, err = next()
	require.NoError(t, err)
	require.Equal(t, "unknown", data["state"], "without a position it may still come")
	require.Equal(t, 400, s.get(t, "/api/v1/events").status)
	require.Equal(t, 400, s.get(t, "/api/v1/events?watch=everything").status)
	require.Equal(t, 400, s.get(t, "/api/v1/events?ticket=42").status)
	require.Equal(t, 400, s.get(t, "/api/v1/events?ticket="+id.String()+"&position=42").status)
}

func TestAStopEndsTheStreams(t *testing.T) {
	t.Parallel()
	_, s := setup(t)
	next := s.events(t, "watch=projection&ticket="+uuid.NewString()+"&position=timestamp.command.v1/1@99")
	_, _, err := next()
	require.NoError(t, err)
	require.Contains(t, s.get(t, "/metrics").body, "tidemark_query_streams 1")
	begin := time.Now()
	s.stop()
	for err == nil {
		_, _, err = next()
	}
	require.ErrorIs(t, err, io.EOF, "it ends in order, not cut")
	require.Less(t, time.Since(begin), 10*time.Second)
}

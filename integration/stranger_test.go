package integration_test

import (
	"context"
	"encoding/json"
	"net/http"
	"os"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/integration/story"
)

// strangerRecords is what the Stranger leaves in a stack that is already up: one by /app and a thousand in a row.
const strangerRecords = 1001

type addresses struct{ command, consumer, query string }

// A Stranger knows three ports and plain HTTP, sends no special header and has some patience. With COMMAND_URL,
// CONSUMER_URL and QUERY_URL set, it visits the stack that is up there.
func TestStranger(t *testing.T) {
	stack := addresses{os.Getenv("COMMAND_URL"), os.Getenv("CONSUMER_URL"), os.Getenv("QUERY_URL")}
	var s *story.Story
	if stack == (addresses{}) {
		s = story.New(t)
		stack = up(t, s)
	}
	client := story.NewClient(30 * time.Second)
	t.Cleanup(client.Close)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()

	t.Log("all three are alive")
	for _, url := range []string{stack.command, stack.consumer, stack.query} {
		a, err := client.Until(ctx, http.StatusOK, url+"/health")
		require.NoError(t, err)
		require.Equal(t, map[string]any{"status": "UP"}, a.JSON())
	}

	t.Log("an id that was never given is not there")
	a, err := client.Get(ctx, stack.query+"/api/v1/timestamp/"+uuid.NewString())
	require.NoError(t, err)
	require.Equal(t, http.StatusNotFound, a.Status, "%s", a)

	t.Log("the older alias answers 200 with an id, and the row comes")
	before := time.Now().Add(-time.Second)
	a, err = client.Send(ctx, http.MethodPost, stack.command+"/app", "")
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, a.Status, "%s", a)
	row := visible(ctx, t, client, stack.query, a.Text("id"))
	for _, name := range []string{"event_timestamp", "created_at"} {
		at, err := time.Parse(time.RFC3339, row[name])
		require.NoError(t, err)
		require.WithinRange(t, at, before, time.Now().Add(time.Second), name)
	}

	t.Logf("%d in a row", strangerRecords-1)
	ids := make(map[string]string, strangerRecords-1)
	instant := time.Date(2009, 9, 28, 19, 3, 12, 0, time.UTC)
	for range strangerRecords - 1 {
		instant = instant.Add(time.Hour)
		wanted := instant.Format(time.RFC3339)
		ticket, err := client.Stamp(ctx, stack.command, wanted)
		require.NoError(t, err)
		require.NotContains(t, ids, ticket.ID, "a ticket given twice")
		ids[ticket.ID] = wanted
	}
	for id, wanted := range ids {
		require.Equal(t, wanted, visible(ctx, t, client, stack.query, id)["event_timestamp"])
	}
	if s != nil {
		require.Equal(t, strangerRecords, lines(s.RequireProjected(s.DB).Rows))
	}
}

// visible waits as a patient client does, and returns the flat object of strings that it was promised.
func visible(ctx context.Context, t *testing.T, client *story.Client, queryURL, id string) map[string]string {
	t.Helper()
	require.NotEmpty(t, id)
	a, err := client.Until(ctx, http.StatusOK, queryURL+"/api/v1/timestamp/"+id)
	require.NoError(t, err)
	var row map[string]string
	require.NoError(t, json.Unmarshal(a.Body, &row), "a flat object of strings, not %s", a)
	require.Equal(t, id, row["id"])
	require.Equal(t, id, row["command_id"])
	require.NotEmpty(t, row["event_timestamp"])
	require.NotEmpty(t, row["created_at"])
	return row
}

// A stranger's Kafka client reads what the door wrote, and writes what the door would, without any header.
func TestStrangersKafkaClient(t *testing.T) {
	s := story.New(t)
	stack := up(t, s)
	ctx := t.Context()

	ticket, err := s.Client.Stamp(ctx, stack.command, "2009-09-28T21:03:12.5+02:00", "correlationId", "stranger-7")
	require.NoError(t, err)
	records, _, err := s.Log.Read(ctx, nil)
	require.NoError(t, err)
	require.Len(t, records, 1)
	require.JSONEq(t, `{"command_id":"`+ticket.ID+`","event_timestamp":"2009-09-28T19:03:12.5Z"}`, string(records[0].Value))
	require.Equal(t, "stranger-7", records[0].Headers["correlationId"])
	require.Equal(t, ticket.ID, string(records[0].Key))
	require.Equal(t, ticket.Position, records[0].Position())

	id := uuid.NewString()
	_, err = s.Log.Write(story.Message{
		Partition: story.AnyPartition,
		Value:     []byte(`{"command_id":"` + id + `","event_timestamp":"1969-07-20T20:17:40Z"}`),
	})
	require.NoError(t, err)
	require.Equal(t, "1969-07-20T20:17:40Z", visible(ctx, t, s.Client, stack.query, id)["event_timestamp"])
	s.RequireProjected(s.DB)
}

// up starts all three services on a story's own log and database.
func up(t *testing.T, s *story.Story) addresses {
	t.Helper()
	query := s.Service("query-service", nil)
	door := s.Service("command-service", map[string]string{"QUERY_URL": query.URL()})
	consumer := s.Service("consumer-service", map[string]string{"QUERY_URL": query.URL()})
	for _, service := range []interface {
		Ready(context.Context) error
	}{door, consumer, query} {
		ctx, cancel := context.WithTimeout(t.Context(), story.Patience)
		defer cancel()
		require.NoError(t, service.Ready(ctx))
	}
	return addresses{door.URL(), consumer.URL(), query.URL()}
}

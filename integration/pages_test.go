package integration_test

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/integration/stack"
	"github.com/tidemark/tidemark/integration/story"
)

// Somebody at a browser stamps a time and sees the row, rebuilds the projection, and puts a dead letter right: with
// script and without, at a desk and on a phone. Nothing of a page may be wider than its screen, and nothing may be
// written to the browser's console.
func TestPagesInABrowser(t *testing.T) {
	s := story.New(t)
	stack := beside(t, s)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	for _, tc := range []struct {
		name   string
		width  int64
		script bool
	}{
		{"with script at a desk", 1280, true},
		{"without script on a phone", 390, false},
		{"with script on a phone", 390, true},
		{"without script at a desk", 1280, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := newBrowser(t, stack.query, tc.width, tc.script)

			t.Log("stamps a time and sees the row")
			b.open("/")
			b.sees("Stamp a time", "command-service", "Newest records")
			b.fill("#at", "2009-09-28T21:03:12+02:00")
			b.click(".stamp button")
			b.sees("It is a row", "2009-09-28T19:03:12Z", "acknowledged after", "visible after")
			id := b.text("code.id")
			b.open("/records")
			b.sees(id)
			b.open("/tickets")
			b.fill("#id", id)
			b.click(".lookup button")
			b.sees("It is a row")

			t.Log("audits")
			b.open("/projection")
			b.sees("Partitions", "Records a second")
			b.click(`form[action="/projection/audit"] button`)
			b.sees("Audited just now", ">Whole<")

			t.Log("rebuilds and swaps, and drops what served before")
			b.open("/rebuild")
			b.sees("serves every read.")
			serving := b.text("h1")
			b.click("form.start button")
			b.sees("The rebuild has been asked for.")
			b.mark()
			b.sees("Swap back to it", "Proved: both hold the same", "serves every read.")
			b.stays()
			require.NotEqual(t, serving, b.text("h1"))
			b.click(`details[id^="drop-"] summary`)
			b.click(`details[id^="drop-"] button`)
			b.sees("It is being dropped.")
			b.seesNot("Swap back to it")

			t.Log("puts one dead letter right, discards another")
			ids := []string{uuid.NewString(), uuid.NewString()}
			var places []string
			for _, id := range ids {
				written, err := s.Log.Write(story.Message{Partition: story.AnyPartition, Value: []byte(`{"command_id":"` + id + `","event_timestamp":"2026-13-01T00:00:00Z"}`)})
				require.NoError(t, err)
				places = append(places, written[0].Position())
				_, err = s.Client.Until(ctx, http.StatusOK, stack.query+"/api/v1/deadletters/"+url.PathEscape(places[len(places)-1]))
				require.NoError(t, err)
			}
			b.open("/dead-letters?q=" + ids[0])
			b.sees(places[0], "2026-13-01T00:00:00Z")
			b.click(".letter footer a")
			b.sees("Put it right")
			b.fill("#payload", `{"command_id":"`+ids[0]+`","event_timestamp":"2026-12-01T00:00:00Z"}`)
			b.click(`form[action="/dead-letters/redrive"] button`)
			b.sees("It is a row", ids[0], "2026-12-01T00:00:00Z")
			b.finds("/dead-letters?state=redriven&q="+ids[0], "Re-issued as") // the decision is another record
			b.sees(places[0])
			b.open("/dead-letters?q=" + ids[1])
			b.click(`.letter input[type="checkbox"]`)
			b.fill("#note", "a test's own")
			b.click(`button[formaction="/dead-letters/discard"]`)
			b.sees("1 dead letter was discarded.")
			b.open("/dead-letters/" + places[1])
			b.sees("a test's own", "discarded")
			require.Empty(t, b.complaints())
		})
	}
}

// beside starts all three services, each knowing where the others are.
func beside(t *testing.T, s *story.Story) addresses {
	t.Helper()
	port, err := stack.FreePort(t.Context())
	require.NoError(t, err)
	at := fmt.Sprintf("http://127.0.0.1:%d", port)
	door := s.Service("command-service", map[string]string{"QUERY_URL": at})
	consumer := s.Service("consumer-service", map[string]string{"QUERY_URL": at})
	query := s.Service("query-service", map[string]string{"SERVER_PORT": strconv.Itoa(port), "COMMAND_URL": door.URL(), "CONSUMER_URL": consumer.URL()})
	for _, service := range []*stack.Service{door, consumer, query} {
		s.Ready(service)
	}
	return addresses{door.URL(), consumer.URL(), query.URL()}
}

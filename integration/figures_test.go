package integration_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/integration/story"
)

// What is shown is true now, or says that it is old: consumer-service is killed and commands go on being accepted, so nobody
// knows how many wait; then the server behind an open page is killed, and the page says so itself.
func TestWhatIsShownIsTrueOrSaysThatItIsOld(t *testing.T) {
	s := story.NewOnKafka(t, samePages)
	door, consumer := s.Door(), s.Consumer("")
	reader := s.Service("query-service", map[string]string{"COMMAND_URL": door.URL(), "CONSUMER_URL": consumer.URL()})
	s.Ready(reader)
	_, err := s.Client.Stamp(t.Context(), door.URL(), "")
	require.NoError(t, err)
	b := newBrowser(t, reader.URL(), 1280, true)
	b.open("/")
	b.sees("Every projection that runs keeps up with its log", "timestamps")
	b.mark()

	t.Log("kill consumer-service, and accept 21 commands")
	require.NoError(t, consumer.Kill())
	for range 21 {
		_, err := s.Client.Stamp(t.Context(), door.URL(), "")
		require.NoError(t, err)
	}
	b.sees("consumer-service is down; consumer lag unknown since <time")
	b.seesNot("keeps up with its log")
	b.stays()
	var state struct {
		State string
		Lag   *int64
		Since *string `json:"lag_unknown_since"`
	}
	answer := func(path string) string {
		got, err := s.Client.Get(t.Context(), reader.URL()+path)
		require.NoError(t, err)
		return string(got.Body)
	}
	for _, p := range []string{"timestamps", "endpoints"} {
		var list struct{ Projections []json.RawMessage }
		require.NoError(t, json.Unmarshal([]byte(answer("/api/v1/projections")), &list))
		for _, one := range list.Projections {
			require.NoError(t, json.Unmarshal(one, &state))
			require.Equal(t, "down", state.State, p)
			require.Nil(t, state.Lag, p)
			require.NotNil(t, state.Since, p)
		}
		require.NotContains(t, answer("/metrics"), fmt.Sprintf(`tidemark_query_projection_lag{projection=%q}`, p))
		require.Contains(t, answer("/metrics"), fmt.Sprintf(`tidemark_query_projection_log_end_age_seconds{projection=%q}`, p))
	}
	b.open("/projections/timestamps/rebuild")
	b.sees("consumer-service is down", "Generation 0 serves every read", "Consumer lag unknown")

	t.Log("kill query-service behind the open page")
	b.open("/projections/timestamps")
	b.sees("consumer lag unknown since")
	b.mark()
	require.NoError(t, reader.Kill())
	requireBody(b, `class="stale"`, true)
	require.Contains(t, b.text("#gone"), "The server does not answer. What is shown here is of ")
	b.stays()

	t.Log("both come back")
	require.NoError(t, reader.Start(t.Context(), nil))
	require.NoError(t, consumer.Start(t.Context(), nil))
	s.Ready(reader)
	requireBody(b, `class="stale"`, false)
	b.sees("timestamps: caught up", "Consumer lag: 0")
	b.stays()
}

// requireBody waits until the whole page has these words or has them no more.
func requireBody(b *browser, words string, there bool) {
	b.t.Helper()
	limit := time.Now().Add(seenWithin)
	for {
		source, err := chromedp.Run(b.tab, chromedp.OuterHTML(chromedp.CSS("body")))
		if err == nil && strings.Contains(source, words) == there {
			return
		}
		require.True(b.t, time.Now().Before(limit), "wanted %q (%v) in %s", words, there, source)
		time.Sleep(50 * time.Millisecond) // the page tells nobody of its updates
	}
}

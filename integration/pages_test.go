package integration_test

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/integration/stack"
	"github.com/tidemark/tidemark/integration/story"
	"github.com/tidemark/tidemark/shared/freeport"
)

// Somebody at a browser stamps a time and sees the row, rebuilds a projection, redrives a dead letter, and adds, edits
// and deletes an endpoint: with
// script and without, at a desk and on a phone. Nothing of a page may be wider than its screen, and nothing may be
// written to the browser's console.
func TestPagesInABrowser(t *testing.T) {
	s := story.NewOnKafka(t, samePages)
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
			b.sees("Submit a timestamp", "command-service", "Newest timestamps")
			b.fill("#at", "2009-09-28T21:03:12+02:00")
			b.click(".stamp button")
			b.sees("It is applied", "2009-09-28T19:03:12Z", "acknowledged after", "visible after")
			id := b.text("code.id")
			b.open("/records")
			b.sees(id)
			b.open("/tickets")
			b.fill("#id", id)
			b.click(".lookup button")
			b.sees("It is applied")

			t.Log("audits")
			b.open("/projections/timestamps")
			b.sees("Partitions", "Records a second")
			b.click(`form[action="/projections/timestamps/audit"] button`)
			b.sees("Audited just now", ">Passed<")

			t.Log("rebuilds and swaps, and drops what served before")
			b.open("/projections/timestamps/rebuild")
			b.sees("serves every read.")
			serving := b.text("h1")
			b.leave("form.start button")
			b.mark()
			b.sees("Roll back to generation", "Verified: both hold the same", "serves every read.")
			b.stays()
			require.NotEqual(t, serving, b.text("h1"))
			b.click(`details[id^="drop-"] summary`)
			b.click(`details[id^="drop-"] button`)
			b.seesNot("Roll back to generation")

			t.Log("redrives one dead letter, discards another")
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
			b.sees("Redrive it")
			b.fill("#payload", `{"command_id":"`+ids[0]+`","event_timestamp":"2026-12-01T00:00:00Z"}`)
			b.click(`form[action="/dead-letters/redrive"] button`)
			b.sees("It is applied", ids[0], "2026-12-01T00:00:00Z")
			b.finds("/dead-letters?state=redriven&q="+ids[0], "Redriven as") // the decision is another record
			b.sees(places[0])
			b.open("/dead-letters?q=" + ids[1])
			b.click(`.letter input[type="checkbox"]`)
			b.fill("#note", "a test's own")
			b.click(`button[formaction="/dead-letters/discard"]`)
			b.sees("Discard 1 dead letter?", "What is lost")
			b.click(`form[action="/dead-letters/discard"] button`)
			b.sees("1 dead letter was discarded.")
			b.open("/dead-letters/" + places[1])
			b.sees("a test's own", "discarded")

			t.Log("adds an endpoint, edits it, deletes it, and follows the ticket")
			b.open("/endpoints")
			b.sees("Add an endpoint")
			b.fill("#url", "https://example.org/"+id)
			b.fill("#interval", "30s")
			b.click("#add button")
			b.sees("The endpoint was added.", "https://example.org/"+id)
			b.fill("#interval", "5m")
			b.click("#edit form button")
			b.sees("The change was saved.", `interval: "30s" → "5m"`)
			b.click("#delete summary")
			b.click("#delete button")
			b.sees("Deleted endpoint")
			b.click("#history tbody a")
			b.sees("It is applied", "endpoint.command.v1/", "delete")
			require.Empty(t, b.complaints())

			t.Log("is told what is wrong with another, at its fields")
			b.open("/endpoints")
			b.fill("#url", "ftp://example.org/")
			b.fill("#interval", "1s")
			b.click("#add button")
			b.sees("wrong-url", "wrong-interval", `value="ftp://example.org/"`)
		})
	}
}

// Live updates leave alone what somebody is doing on a page: the focus, a selection and the answer to a form stay, and a screen
// reader hears of another state only.
func TestLiveUpdatesKeepFocusAndSelection(t *testing.T) {
	s := story.NewOnKafka(t, samePages)
	stack := beside(t, s)
	b := newBrowser(t, stack.query, 1280, true)
	write := func() string {
		id := uuid.NewString()
		_, err := s.Log.Write(story.Message{Partition: story.AnyPartition, Value: []byte(`{"command_id":"` + id + `","event_timestamp":"2026-11-03T00:00:00Z"}`)})
		require.NoError(t, err)
		return id
	}
	first := write()
	b.open("/")
	b.sees(first, `<p class="state good">Caught up</p>`) // every projection: until then the state may change
	ask := func(script string) string {
		t.Helper()
		answer, err := chromedp.Run(b.tab, chromedp.Evaluate[string](script))
		require.NoError(t, err)
		return answer
	}
	link := `a[href*="` + first + `"]`
	ask(`(() => { const a = document.querySelector('` + link + `'); a.focus(); a.mark = 1; getSelection().selectAllChildren(a);
		const refusal = document.createElement("div"); refusal.dataset.stays = ""; a.closest("[data-live]").prepend(refusal);
		window.spoken = 0; new MutationObserver(() => window.spoken++).observe(document.getElementById("said"), { childList: true, characterData: true, subtree: true }); return "" })()`)
	for range 3 {
		b.sees(write())
	}
	require.Equal(t, "1 "+first, ask(`document.activeElement.mark + " " + getSelection().toString().trim()`))
	require.Equal(t, "0", ask(`String(window.spoken)`), "no state has changed")
	require.Equal(t, "1", ask(`String(document.querySelectorAll("[data-live] [data-stays]").length)`), "the answer to a form stays")
	require.Empty(t, ask(`document.querySelector("[data-live] [aria-live], [data-live][aria-live]")?.outerHTML || ""`))

	reject := func(payload string) {
		_, err := s.Log.Write(story.Message{Partition: story.AnyPartition, Value: []byte(payload)})
		require.NoError(t, err)
	}
	reject("the first letter")
	b.open("/dead-letters")
	b.sees("the first letter")
	b.click(`.letter input[type="checkbox"]`)
	ask(`(() => { document.querySelector("#note").value = "why"; document.activeElement.blur(); return "" })()`)
	tabs := 0
	for ask(`document.activeElement.textContent`) != "Redrive…" {
		tabs++
		require.Less(t, tabs, 30, "the actions for many letters come before the letters")
		b.do(chromedp.KeyEvent(kb.Tab))
	}
	for _, more := range []string{"the second letter", "the third letter"} {
		reject(more)
		b.sees(more)
	}
	require.Equal(t, "1 why Redrive…", ask(`document.querySelectorAll(".letter input:checked").length + " " + document.querySelector("#note").value + " " + document.activeElement.textContent`))
	require.Equal(t, "the first letter", ask(`document.querySelector(".letter:has(input:checked) pre").textContent.trim()`), "another's box is not ticked for it")
}

// beside starts all three services, each knowing where the others are.
func beside(t *testing.T, s *story.Story) addresses {
	t.Helper()
	port, err := freeport.Find(t.Context())
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

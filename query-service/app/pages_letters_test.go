package app

import (
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/shared/await"
	"github.com/tidemark/tidemark/shared/limits"
)

const broken = `{"command_id":"01920b5c-7d4e-7cc3-98c4-dc0c0c07398f","event_timestamp":"2026-13-01"}`

func TestThePagesOfDeadLetters(t *testing.T) {
	t.Parallel()
	db, s, _ := withOthers(t)
	for i := range 60 {
		db.Reject(t, 1, fmt.Appendf(nil, "payload <%d>", i), `[{"key":"producer","value":"x"}]`, "no JSON") // 1@0 to 1@59
	}
	db.Reject(t, 2, []byte{0xff}, `[]`, "no text") // 2@0
	ticket := uuid.New()
	decide(t, db, "1@1", "redrive", ticket)
	decide(t, db, "1@2", "discard", nil)

	page := s.page(t, "/dead-letters")
	require.Equal(t, 50, strings.Count(page.body, "<article"))
	require.Contains(t, page.body, "payload &lt;59&gt;")
	require.Less(t, strings.Index(page.body, `value="timestamp.command.v1/1@59"`), strings.Index(page.body, `value="timestamp.command.v1/1@58"`), "newest first")
	require.Contains(t, page.body, `href="/dead-letters?after=timestamp.command.v1/1@11"`)
	page = s.page(t, "/dead-letters?after=timestamp.command.v1/1@11")
	require.NotContains(t, page.body, `value="timestamp.command.v1/1@1"`, "it is decided")
	require.Equal(t, 9, strings.Count(page.body, "<article"))
	for query, want := range map[string][]string{
		"state=redriven": {"1@1"}, "state=discarded": {"1@2"}, "state=all&q=payload+%3C1%3E": {"1@1"}, "partition=2": {"2@0"}, "q=%3C59%3E&partition=1": {"1@59"},
		"q=nowhere": nil, "partition=&reason_code=&state=&q=%3C59%3E": {"1@59"}, "reason_code=refused": nil, "q=%00%ff%3C59%3E": {"1@59"},
	} {
		page = s.page(t, "/dead-letters?"+query)
		require.Equal(t, 200, page.status)
		require.Equal(t, len(want), strings.Count(page.body, "<article"), query)
		for _, at := range want {
			require.Contains(t, page.body, `href="/dead-letters/timestamp.command.v1/`+at+`"`, query)
		}
	}
	require.Contains(t, s.page(t, "/dead-letters?q=nowhere").body, "This search finds none.")
	require.Contains(t, s.page(t, "/dead-letters?state=redriven").body, `href="/tickets/`+ticket.String()+`"`)
	require.NotContains(t, s.page(t, "/dead-letters?state=discarded").body, "Redrive…", "there is nothing left to decide")

	page = s.page(t, "/dead-letters/timestamp.command.v1/1@0")
	for _, words := range []string{"payload &lt;0&gt;</textarea>", "producer: x", "Redrive", "Discard", "no JSON"} {
		require.Contains(t, page.body, words)
	}
	page = s.page(t, "/dead-letters/timestamp.command.v1/2@0")
	require.Contains(t, page.body, "no text, so write a new one")
	require.Contains(t, page.body, "></textarea>", "what is no text is not there to be sent again")
	page = s.page(t, "/dead-letters/timestamp.command.v1/1@1")
	for _, words := range []string{"redriven as", ticket.String(), "by the key <code>ops-1</code>", "why", "deadletter.command.v1/5@0"} {
		require.Contains(t, page.body, words)
	}
	require.NotContains(t, page.body, "<textarea")
	require.Contains(t, s.page(t, "/dead-letters/timestamp.command.v1/1@2").body, "<dd>discarded</dd>")
	require.Equal(t, 404, s.page(t, "/dead-letters/timestamp.command.v1/1@60").status)
	require.Equal(t, 400, s.page(t, "/dead-letters/timestamp.command.v1/x").status)
	require.Contains(t, s.page(t, "/tickets/"+uuid.NewString()+"?position=timestamp.command.v1/1@1").body, "redriven as <a")
}

func TestADeadLetterIsRedrivenOrDiscarded(t *testing.T) {
	t.Parallel()
	db, s, o := withOthers(t)
	db.Reject(t, 1, []byte(broken), `[]`, "no instant")
	const at = "timestamp.command.v1/1@0"
	mended := strings.Replace(broken, "2026-13-01", "2026-12-01T00:00:00Z", 1)
	form := url.Values{"single": {"1"}, "position": {at}, "payload": {mended}, "note": {" a typo "}}

	o.will(422, `{"status":422,"detail":"1 of 1 payloads is still broken","errors":[{"position":"`+at+`","reason":"month <13>"}]}`)
	a := s.post(t, "/dead-letters/redrive", form)
	requireSound(t, "still broken", a)
	require.Equal(t, 422, a.status)
	for _, words := range []string{"still broken", "month &lt;13&gt;.", "2026-12-01T00:00:00Z", `value="a typo"`, "aria-invalid"} {
		require.Contains(t, a.body, words)
	}

	o.header.Set("Tidemark-Position", "deadletter.command.v1/5@0")
	o.will(200, `{"results":[{"position":"`+at+`","ticket":"01920b5c-7d4e-7cc3-98c4-dc0c0c07398f","command":"timestamp.command.v1/3@9","decision":"deadletter.command.v1/5@0"}]}`)
	a = s.post(t, "/dead-letters/redrive", form)
	require.Equal(t, 303, a.status, a.body)
	require.Equal(t, "/tickets/01920b5c-7d4e-7cc3-98c4-dc0c0c07398f?position=timestamp.command.v1/3@9", a.header.Get("Location"))
	o.was(t, `POST /api/v1/deadletters/redrive {"letters":[{"payload":"`+strings.ReplaceAll(mended, `"`, `\"`)+`","position":"`+at+`"}],"note":"a typo","readable":true}`)

	o.will(200, `{"results":[{"position":"`+at+`","decision":"deadletter.command.v1/5@0"}]}`)
	a = s.post(t, "/dead-letters/discard", url.Values{"single": {"1"}, "position": {at}, "note": {"old"}})
	require.Equal(t, 303, a.status, a.body)
	o.was(t, `POST /api/v1/deadletters/discard {"note":"old","positions":["`+at+`"],"readable":true}`)
	list := a.header.Get("Location")
	require.Equal(t, "/dead-letters?count=1&done=discarded&position=deadletter.command.v1/5@0", list)
	page := s.pageWhile(t, list, func() { decide(t, db, "1@0", "discard", nil) })
	require.Contains(t, page.body, "1 dead letter was discarded.")
	require.NotContains(t, page.body, "<article", "the list is of after the decision")

	o.will(409, `{"status":409,"detail":"it is decided already"}`)
	a = s.post(t, "/dead-letters/discard", url.Values{"single": {"1"}, "position": {at}})
	requireSound(t, "decided", a)
	require.Equal(t, 409, a.status)
	require.Contains(t, a.body, "it is decided already.")
}

func TestDeadLettersAreRedrivenInBulk(t *testing.T) {
	t.Parallel()
	db, s, o := withOthers(t)
	for range 30 {
		db.Reject(t, 1, []byte(broken), `[]`, "no instant")
	}
	db.Reject(t, 1, []byte("other"), `[]`, "no JSON") // 1@30
	two := `{"results":[{"position":"timestamp.command.v1/1@0","decision":"deadletter.command.v1/5@0"},{"position":"timestamp.command.v1/1@30","decision":"deadletter.command.v1/7@0"}]}`
	o.will(200, two)

	// Ticked in a list that has the newest first, they are decided on in the log's order.
	a := s.post(t, "/dead-letters/discard", url.Values{"sure": {"1"}, "position": {"timestamp.command.v1/1@30", "timestamp.command.v1/1@9"}})
	require.Equal(t, 303, a.status, a.body)
	o.was(t, `POST /api/v1/deadletters/discard {"note":"","positions":["timestamp.command.v1/1@9","timestamp.command.v1/1@30"],"readable":true}`)
	o.will(200, two)

	// Few: each can be edited.
	few := url.Values{"position": {"timestamp.command.v1/1@0", "timestamp.command.v1/1@30"}}
	a = s.post(t, "/dead-letters/review", few)
	requireSound(t, "few", a)
	require.Equal(t, 200, a.status)
	require.Equal(t, 2, strings.Count(a.body, "<textarea"))
	few["payload"] = []string{"first\r\nline", "second"}
	a = s.post(t, "/dead-letters/redrive", few)
	require.Equal(t, 303, a.status, a.body)
	require.Contains(t, a.header.Get("Location"), "/dead-letters?count=2&done=redriven&position=deadletter.command.v1/5@0,deadletter.command.v1/7@0", "the last decision of each partition")
	// The list that follows is of after every decision, in whichever partition it lies.
	db.Must(t, `INSERT INTO decision_progress VALUES (7, 1)`)
	page := s.pageWhile(t, a.header.Get("Location"), func() { decide(t, db, "1@0", "redrive", uuid.New()) })
	require.Equal(t, 200, page.status)
	require.Contains(t, page.body, "2 dead letters were redriven.")
	require.NotContains(t, page.body, `value="timestamp.command.v1/1@0"`, "it is decided")
	db.Must(t, `DELETE FROM dead_letter_decisions`)
	o.was(t, `POST /api/v1/deadletters/redrive {"letters":[{"payload":"first\nline","position":"timestamp.command.v1/1@0"},{"payload":"second","position":"timestamp.command.v1/1@30"}],"note":"","readable":true}`)
	o.will(422, `{"status":422,"detail":"1 of 2 payloads is still broken","errors":[{"position":"timestamp.command.v1/1@30","reason":"no JSON"}]}`)
	a = s.post(t, "/dead-letters/redrive", few)
	requireSound(t, "refused", a)
	require.Equal(t, 422, a.status)
	require.Contains(t, a.body, "Still broken: no JSON.")
	require.Contains(t, a.body, "second</textarea>", "what was written is kept")

	// Many, found by a search: a replacement is shown before it is done.
	o.will(200, `{"results":[]}`)
	many := url.Values{"all": {"1"}, "search_q": {"2026-13-01"}, "find": {"2026-13-01"}, "replace": {"2026-12-01T00:00:00Z"}}
	a = s.post(t, "/dead-letters/redrive", many)
	requireSound(t, "many", a)
	require.Equal(t, 200, a.status)
	o.was(t)
	require.Contains(t, a.body, "It changes 30 of 30. Nothing is redriven yet")
	require.Equal(t, 30, strings.Count(a.body, `name="position"`))
	require.Contains(t, a.body, "And 5 more, treated alike.")
	delete(many, "all")
	for i := range 30 {
		many.Add("position", fmt.Sprintf("timestamp.command.v1/1@%d", i))
	}
	many.Set("applied_find", many.Get("find"))
	many.Set("applied_replace", many.Get("replace"))
	a = s.post(t, "/dead-letters/redrive", many)
	require.Equal(t, 303, a.status, a.body)
	o.mu.Lock()
	require.Equal(t, 30, strings.Count(o.asked[0], "2026-12-01T00:00:00Z"))
	o.asked = nil
	o.mu.Unlock()

	// A discard is told before it is done.
	a = s.post(t, "/dead-letters/discard", url.Values{"all": {"1"}, "search_q": {"2026-13-01"}, "note": {"old"}})
	requireSound(t, "discard", a)
	require.Equal(t, 200, a.status)
	for _, words := range []string{"Discard 30 dead letters?", "the decision cannot be taken back", `30 letters of <a href="/projections/timestamps">timestamps</a>: <span class="tag">decode</span>`, `name="sure"`, `value="old"`, `href="/dead-letters?q=2026-13-01"`} {
		require.Contains(t, a.body, words)
	}
	require.Equal(t, 30, strings.Count(a.body, `name="position"`))
	o.was(t)
	sure := url.Values{"sure": {"1"}, "position": {"timestamp.command.v1/1@0", "timestamp.command.v1/1@1"}, "note": {"old"}, "search_q": {"2026-13-01"}}

	// Somebody was faster: what is decided is left out and named, the rest is asked about again.
	o.will(409, `{"status":409,"detail":"timestamp.command.v1/1@0 is decided on","errors":[{"position":"timestamp.command.v1/1@0","reason":"it was discarded at 2026-01-03T00:00:00Z","decided":{"decision":"discard","decided_at":"2026-01-03T00:00:00Z","position":"deadletter.command.v1/5@0"}}]}`)
	for _, path := range []string{"/dead-letters/discard", "/dead-letters/redrive"} {
		form := maps.Clone(sure)
		if path == "/dead-letters/redrive" {
			form.Del("sure")
		}
		a = s.post(t, path, form)
		requireSound(t, path, a)
		require.Equal(t, 409, a.status)
		require.Contains(t, a.body, "<code>timestamp.command.v1/1@0</code>: it was discarded at 2026-01-03T00:00:00Z")
		require.Contains(t, a.body, `name="position" value="timestamp.command.v1/1@1"`)
		require.NotContains(t, a.body, `name="position" value="timestamp.command.v1/1@0"`)
	}
	o.will(503, `{"status":503,"detail":"the outcome is unknown","retry_key":"01920b5c-7d4e-7cc3-98c4-dc0c0c07398f"}`)
	a = s.post(t, "/dead-letters/discard", sure)
	require.Contains(t, a.body, `name="key" value="01920b5c-7d4e-7cc3-98c4-dc0c0c07398f"`, "sent again from here it is a retry")
	o.will(200, two)
	a = s.post(t, "/dead-letters/discard", sure)
	require.Equal(t, 303, a.status)
	require.Contains(t, a.header.Get("Location"), "done=discarded")
	require.Contains(t, a.header.Get("Location"), "q=2026-13-01", "back to the search")
	for words, form := range map[string]url.Values{
		"no dead letter is chosen": {}, "is no position": {"position": {"x"}}, "there is no dead letter at": {"position": {"timestamp.command.v1/3@9"}},
	} {
		form.Set("note", "kept-note")
		a = s.post(t, "/dead-letters/review", form)
		requireSound(t, words, a)
		require.Equal(t, 400, a.status)
		require.Contains(t, a.body, words)
		require.Contains(t, a.body, `value="kept-note"`, "it is the list")
	}
	a = s.post(t, "/dead-letters/review", url.Values{"position": {strings.Repeat("x", limits.RedriveBody)}}, "Accept", browser)
	require.Equal(t, http.StatusRequestEntityTooLarge, a.status)
	a = s.post(t, "/dead-letters/discard", url.Values{"position": strings.Split(strings.Repeat("timestamp.command.v1/1@0 ", 1000)+"x", " ")})
	require.Equal(t, 400, a.status)
	require.Contains(t, a.body, "at most 1000 are taken at once")
}

// One step takes a thousand letters: that there are more is said before and after it.
func TestWhatALimitLeavesOverIsSaid(t *testing.T) {
	t.Parallel()
	db, s, o := withOthers(t)
	for range 1001 {
		db.Reject(t, 1, []byte(broken), `[]`, "no instant")
	}
	// A machine that is busy says so and is asked again, as a person would.
	post := func(path string, form url.Values) (a answer) {
		t.Helper()
		await.Until(t, func() bool {
			a = s.post(t, path, form)
			return a.status != http.StatusServiceUnavailable
		})
		return a
	}
	for _, path := range []string{"/dead-letters/discard", "/dead-letters/review"} {
		a := post(path, url.Values{"all": {"1"}, "search_q": {"2026-13-01"}})
		requireSound(t, path, a)
		require.Equal(t, 1000, strings.Count(a.body, `name="position"`), path)
		require.Contains(t, a.body, "The others stay open.", path)
		require.Contains(t, a.body, `name="limited"`, path)
		a = post(path, url.Values{"all": {"1"}, "search_q": {"2026-13-01"}, "search_partition": {"2"}})
		require.Contains(t, a.body, "no dead letter is chosen", path)
	}
	o.will(200, `{"results":[{"position":"timestamp.command.v1/1@0","decision":"deadletter.command.v1/5@0"}]}`)
	a := post("/dead-letters/discard", url.Values{"sure": {"1"}, "limited": {"1"}, "position": {"timestamp.command.v1/1@0"}})
	require.Equal(t, 303, a.status, a.body)
	page := s.pageWhile(t, a.header.Get("Location"), func() { decide(t, db, "1@0", "discard", nil) })
	require.Contains(t, page.body, "the others are still open")
}

// Whoever works with the keyboard comes to the bar before the letters, and it stays in sight.
func TestTheBarForManyLettersComesFirst(t *testing.T) {
	t.Parallel()
	db, s := setup(t)
	for range 50 {
		db.Reject(t, 1, []byte(broken), `[]`, "no instant")
	}
	page := s.page(t, "/dead-letters")
	bar, first := strings.Index(page.body, `class="acts bar"`), strings.Index(page.body, "<article")
	require.Positive(t, bar)
	require.Less(t, bar, first)
	require.Contains(t, s.get(t, "/assets/tidemark.css").body, ".acts.bar { position: sticky;")
	require.Contains(t, s.page(t, "/dead-letters?reason_code=decode").body, `<option value="decode" selected>decode (50)</option>`)
}

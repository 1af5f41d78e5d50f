package app

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/query-service/internal/testdb"
)

// theOthers answer as command-service and consumer-service do, and keep what changes they were asked for.
type theOthers struct {
	mu          sync.Mutex
	generations string // what a list holds
	status      int    // of the answer to a change
	answer      string
	asked       []string // method, path and body
	header      http.Header
}

func (o *theOthers) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	o.mu.Lock()
	defer o.mu.Unlock()
	switch {
	case r.URL.Path == "/ready":
		_, _ = io.WriteString(w, `{"status":"UP"}`)
	case r.Method == http.MethodGet && r.URL.Path == "/api/v1/generations":
		_, _ = io.WriteString(w, `{"generations":[`+o.generations+`]}`)
	default:
		o.asked = append(o.asked, strings.TrimSpace(r.Method+" "+r.URL.Path+" "+string(body)))
		for name, values := range o.header {
			w.Header()[name] = values
		}
		if o.status/100 != 2 {
			w.Header().Set("Content-Type", "application/problem+json")
		}
		w.WriteHeader(o.status)
		_, _ = io.WriteString(w, o.answer)
	}
}

// will sets the next answers.
func (o *theOthers) will(status int, answer string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.status, o.answer, o.asked = status, answer, nil
}

// list sets the generations, and waits until no page shares the list before.
func (o *theOthers) list(generations ...string) {
	o.mu.Lock()
	o.generations = strings.Join(generations, ",")
	o.mu.Unlock()
	time.Sleep(600 * time.Millisecond)
}

func (o *theOthers) was(t *testing.T, asked ...string) {
	t.Helper()
	o.mu.Lock()
	defer o.mu.Unlock()
	require.Equal(t, asked, o.asked)
}

func withOthers(t *testing.T) (*testdb.DB, *running, *theOthers) {
	t.Helper()
	o := &theOthers{status: http.StatusAccepted, answer: `{}`, header: http.Header{}}
	db := testdb.New(t)
	s := start(t, db.URL, o.ServeHTTP)
	s.awaitReady(t)
	return db, s, o
}

// aGeneration is one as consumer-service tells it, with these members changed.
func aGeneration(t *testing.T, number int, state string, changes map[string]any) string {
	t.Helper()
	g := map[string]any{
		"generation": number, "state": state, "epoch": 7 + number, "group": fmt.Sprintf("group.g%d", number), "schema": fmt.Sprintf("tidemark_g%d", number),
		"requested_at": time.Now(), "state_since": time.Now().Add(-42 * time.Second), "swap_wanted": false, "rate_limit": nil, "point": nil, "progress": nil, "proof": nil,
	}
	for name, value := range changes {
		g[name] = value
	}
	text, err := json.Marshal(g)
	require.NoError(t, err)
	return string(text)
}

func progress(changes map[string]any) map[string]any {
	p := map[string]any{"done": 4123456, "total": 10_000_000, "percent": 41.23, "lag": 5876544, "rate": 312_400.0, "eta_seconds": 18.8, "bottleneck": "postgres", "stalled_since": nil, "note": ""}
	for name, value := range changes {
		p[name] = value
	}
	return p
}

const refresh = `<noscript><meta http-equiv="refresh"`

func TestThePageOfARebuild(t *testing.T) {
	t.Parallel()
	_, s, o := withOthers(t)
	serving := aGeneration(t, 0, "serving", nil)

	o.list(serving)
	page := s.page(t, "/rebuild")
	require.Equal(t, 200, page.status)
	for _, words := range []string{"No rebuild is under way", "Generation 0 serves every read.", `<form method="post" action="/rebuild"`, "group.g0", `data-events="/api/v1/events?watch=generations"`} {
		require.Contains(t, page.body, words)
	}
	require.NotContains(t, page.body, refresh, "nothing changes by itself")

	o.list(serving, aGeneration(t, 1, "filling", map[string]any{"swap_wanted": true, "progress": progress(nil)}))
	page = s.page(t, "/rebuild")
	for _, words := range []string{
		"Reading the log into new tables.", "4,123,456 of 10,000,000 records, 41.2%; 312,400 a second; level in about 19 s.", "Postgres: it does not take rows any faster",
		`aria-valuenow="41.23"`, "Cancel this rebuild…", refresh, `name="generation" value="1"`,
	} {
		require.Contains(t, page.body, words)
	}
	require.NotContains(t, page.body, "Start a rebuild", "one at a time")
	require.NotContains(t, page.body, "Prove and swap", "it is still filling")

	o.list(serving, aGeneration(t, 1, "filling", map[string]any{
		"point": "2026-11-03T00:00:00Z", "progress": progress(map[string]any{"rate": 0, "eta_seconds": nil, "stalled_since": time.Now(), "note": "Postgres: disk <full>"}),
	}))
	page = s.page(t, "/rebuild")
	for _, words := range []string{"Generation 1, stalled", "Reading the log up to 2026-11-03T00:00:00Z.", "No record was taken since", "Postgres: disk &lt;full&gt;", "Hold<span"} {
		require.Contains(t, page.body, words)
	}
	require.NotContains(t, page.body, "level in about")

	proof := map[string]any{
		"ok": false, "at": time.Now(), "took_ms": 4213, "against": 0, "vector": map[string]int{"timestamp.command.v1/3": 1234567}, "finding": "1 row is missing",
		"tables":      []any{map[string]any{"table": "timestamp_records", "ok": false, "rows_serving": 1000, "rows_side": 999, "hash_serving": "aa", "hash_side": "bb"}, map[string]any{"table": "dead_letters", "ok": true, "rows_serving": 6, "rows_side": 6, "hash_serving": "cc", "hash_side": "cc"}},
		"differences": []any{map[string]any{"table": "timestamp_records", "key": "01920b5c-7d4e-7cc3-98c4-dc0c0c07398f", "serving": "2009-09-28", "side": nil}},
	}
	o.list(serving, aGeneration(t, 1, "ready", map[string]any{"proof": proof, "progress": progress(map[string]any{"lag": 0})}))
	page = s.page(t, "/rebuild")
	for _, words := range []string{"the proof found a difference.", "The proof failed", "1 row is missing", "differs", "1,000", "999", "01920b5c-7d4e-7cc3-98c4-dc0c0c07398f", "no row", "timestamp.command.v1/3@1,234,567", "Prove and swap", "Prove only"} {
		require.Contains(t, page.body, words)
	}
	require.NotContains(t, page.body, refresh)

	proof["ok"], proof["differences"] = true, []any{}
	o.list(aGeneration(t, 1, "serving", nil), aGeneration(t, 2, "held", map[string]any{"point": "timestamp.command.v1/3@42"}),
		aGeneration(t, 0, "standby", map[string]any{"proof": proof, "progress": progress(map[string]any{"lag": 3})}), aGeneration(t, 3, "dropping", nil))
	page = s.page(t, "/rebuild")
	for _, words := range []string{"Generation 1 serves every read.", "Swap back to it…", "the way back", "Proved: both hold the same", "3 records behind the log", "Holds the rows as they were", "timestamp.command.v1/3@42", "Drop generation 2", "Drop the standby first", refresh} {
		require.Contains(t, page.body, words)
	}
	require.NotContains(t, page.body, "Drop generation 1<", "what serves is not to be dropped")
	require.NotContains(t, page.body, "Drop generation 3<", "it is going already")
}

func TestTheFormsOfARebuild(t *testing.T) {
	t.Parallel()
	_, s, o := withOthers(t)
	for _, tc := range []struct {
		form  url.Values
		asked string
	}{
		{url.Values{"kind": {"swap"}}, `{"swap":true}`},
		{url.Values{"kind": {"ready"}, "rate_limit": {" 50,000 "}, "replace_standby": {"1"}}, `{"swap":false,"rate_limit":50000,"replace_standby":true}`},
		{url.Values{"kind": {"point"}, "point": {"2026-11-03T00:00:00Z"}}, `{"swap":false,"to":{"time":"2026-11-03T00:00:00Z"}}`},
		{url.Values{"kind": {"point"}, "point": {"timestamp.command.v1/3@42"}}, `{"swap":false,"to":{"position":"timestamp.command.v1/3@42"}}`},
	} {
		o.will(202, `{}`)
		a := s.post(t, "/rebuild", tc.form)
		require.Equal(t, 303, a.status, a.body)
		require.Equal(t, "/rebuild?done=started", a.header.Get("Location"))
		o.was(t, "POST /api/v1/generations "+tc.asked)
	}
	require.Contains(t, s.page(t, "/rebuild?done=started").body, "The rebuild has been asked for.")
	for path, asked := range map[string]string{
		"prove": "POST /api/v1/generations/1/proof", "swap": "POST /api/v1/generations/1/swap", "drop": "DELETE /api/v1/generations/1",
	} {
		o.will(202, `{}`)
		a := s.post(t, "/rebuild/"+path, url.Values{"generation": {"1"}})
		require.Equal(t, 303, a.status, a.body)
		require.Equal(t, "/rebuild?done="+path, a.header.Get("Location"))
		o.was(t, asked)
		require.Contains(t, s.page(t, "/rebuild?done="+path).body, `role="status"`)
	}

	o.will(202, `{}`)
	for words, form := range map[string]url.Values{
		"needs the point": {"kind": {"point"}}, "is no rate limit": {"kind": {"swap"}, "rate_limit": {"fast"}}, "choose one of the three": {},
	} {
		a := s.post(t, "/rebuild", form)
		requireSound(t, words, a)
		require.Equal(t, 400, a.status)
		require.Contains(t, a.body, words)
	}
	require.Equal(t, 400, s.post(t, "/rebuild/swap", url.Values{"generation": {"-1"}}).status)
	o.was(t)

	for status, words := range map[int]string{409: "generation 1 is still &lt;filling&gt;, cancel it first.", 422: "generation 1 is still", 401: "wants an API key", 403: "takes one with a wider scope", 500: "generation 1 is still"} {
		o.will(status, `{"status":409,"detail":"generation 1 is still <filling>, cancel it first"}`)
		for _, path := range []string{"/rebuild", "/rebuild/swap"} {
			a := s.post(t, path, url.Values{"kind": {"point"}, "point": {"2026-11-03T00:00:00Z"}, "generation": {"1"}})
			requireSound(t, path, a)
			require.Equal(t, status, a.status)
			require.Contains(t, a.body, words)
			require.Contains(t, a.body, `role="alert"`)
		}
	}
}

func TestAnAuditIsAskedForOnThePage(t *testing.T) {
	t.Parallel()
	db, s, o := withOthers(t)
	db.Must(t, `UPDATE projection_progress SET log_end = next_offset + 5 * partition, caught_up_at = now()`)
	page := s.page(t, "/projection")
	require.Contains(t, page.body, "Not run yet")
	require.Contains(t, page.body, "Partitions")
	o.will(200, `{"ok":true,"audited_at":"2026-11-03T00:00:00Z","partitions":[]}`)
	a := s.post(t, "/projection/audit", nil)
	require.Equal(t, 303, a.status, a.body)
	require.Equal(t, "/projection?audited=1#audit", a.header.Get("Location"))
	o.was(t, "POST /api/v1/audits")
	db.Must(t, `INSERT INTO projection_audits SELECT topic, partition, now(), 1.5, epoch, first_offset, next_offset, applied, duplicate, rejected, skipped, 2500, 3, 0, partition > 0, CASE partition WHEN 0 THEN '1 row is <missing>' ELSE '' END FROM projection_progress`)
	page = s.page(t, "/projection?audited=1")
	for _, words := range []string{"Audited just now", "1 hole", "Partition 0: 1 row is &lt;missing&gt;", "10,000 rows and 12 dead letters found", "1.5 ms", "2 min"} {
		require.Contains(t, page.body, words)
	}
	o.will(404, `404 page not found`)
	a = s.post(t, "/projection/audit", nil)
	requireSound(t, "refused audit", a)
	require.Equal(t, 404, a.status)
	require.Contains(t, a.body, "it is an older release of consumer-service, or CONSUMER_URL names something else")
}

func TestPagesSayWhatToDoWhereTheOthersAreAway(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	db.Reject(t, 0, []byte("{"), `[]`, "broken")
	s := startBeside(t, db.URL, "http://127.0.0.1:1")
	s.awaitReady(t)
	page := s.page(t, "/rebuild")
	require.Equal(t, 503, page.status)
	require.Contains(t, page.body, "consumer-service does not answer at http://127.0.0.1:1: start it, or set CONSUMER_URL to where it listens.")
	require.Contains(t, page.body, refresh)
	for path, words := range map[string]string{
		"/rebuild": "consumer-service does not answer", "/projection/audit": "consumer-service does not answer",
		"/dead-letters/discard": "command-service does not answer at http://127.0.0.1:1: start it, or set COMMAND_URL",
		"/dead-letters/redrive": "command-service does not answer",
	} {
		a := s.post(t, path, url.Values{"kind": {"swap"}, "position": {"timestamp.command.v1/0@0"}, "payload": {"{}"}})
		requireSound(t, path, a)
		require.Equal(t, 503, a.status, path)
		require.Contains(t, a.body, words)
	}
}

func TestThePagesOfNothing(t *testing.T) {
	t.Parallel()
	db, s, o := withOthers(t)
	o.list()
	for path, words := range map[string]string{
		"/": "The log is being read.", "/records": "There is no record yet.", "/dead-letters": "every record that came in could be projected",
		"/projection": "the log is being read", "/tickets": "A ticket is the id that came back", "/rebuild": "No generation serves yet.",
	} {
		a := s.page(t, path)
		require.Equal(t, 200, a.status)
		require.Contains(t, strings.ToLower(a.body), strings.ToLower(words), path)
	}
	db.Must(t, `DELETE FROM projection_progress`)
	require.Contains(t, s.page(t, "/projection").body, "Nothing is projected yet.")
	db.Must(t, `ALTER TABLE projection_progress RENAME TO gone`)
	for _, path := range []string{"/", "/projection"} {
		a := s.page(t, path)
		require.Contains(t, a.body, "The projection cannot be read.")
		require.Contains(t, a.body, refresh)
	}
	require.Equal(t, 503, s.page(t, "/records").status)
}

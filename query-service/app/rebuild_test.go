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
	"github.com/tidemark/tidemark/shared/await"
)

// theOthers answer as command-service and consumer-service do, and keep what changes they were asked for.
type theOthers struct {
	mu     sync.Mutex
	status int // of the answer to a change
	answer string
	asked  []string // method, path and body
	header http.Header
}

func (o *theOthers) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	o.mu.Lock()
	defer o.mu.Unlock()
	switch r.URL.Path {
	case "/ready":
		_, _ = io.WriteString(w, `{"status":"UP"}`)
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

// aGeneration is one of timestamps, as a test puts it into the database.
type aGeneration struct {
	number     int
	state      string
	swapWanted bool
	point      string
	proof      map[string]any
	done, end  int64 // of one partition; no progress where end is 0
	rate       float64
	eta        float64 // 0 where there is none
	stalled    bool
	note       string
}

// setGenerations makes these the generations of timestamps. The one that serves has the tables that are
// there.
func setGenerations(t *testing.T, db *testdb.DB, list ...aGeneration) {
	t.Helper()
	db.Must(t, `DELETE FROM projection_generations WHERE projection = 'timestamps'`)
	for _, g := range list {
		schema, group := fmt.Sprintf("timestamps_g%d", g.number), any(nil)
		if g.state == "serving" {
			schema, group = "public", fmt.Sprintf("group.g%d", g.number)
		}
		var proof any
		if g.proof != nil {
			text, err := json.Marshal(g.proof)
			require.NoError(t, err)
			proof = string(text)
		}
		db.Must(t, `INSERT INTO projection_generations (projection, generation, schema_name, state, group_name, state_since, swap_wanted, point, proof)
			VALUES ('timestamps', $1, $2, $3, $4, now() - interval '42 s', $5, nullif($6, ''), $7)`, g.number, schema, g.state, group, g.swapWanted, g.point, proof)
		if g.end == 0 {
			continue
		}
		db.Must(t, `DROP SCHEMA IF EXISTS `+schema+` CASCADE`)
		db.Must(t, `CREATE SCHEMA `+schema)
		db.Must(t, `CREATE TABLE `+schema+`.projection_progress (LIKE public.projection_progress INCLUDING ALL)`)
		db.Must(t, `INSERT INTO `+schema+`.projection_progress (topic, partition, epoch, first_offset, next_offset, applied, log_end, log_end_at)
			VALUES ('timestamp.command.v1', 0, 1, 0, $1, $1, $2, now())`, g.done, g.end)
		db.Must(t, `INSERT INTO generation_progress (projection, generation, sampled_at, rate, eta_seconds, bottleneck, stalled_since, note)
			VALUES ('timestamps', $1, now(), $2, nullif($3, 0.0::float8), 'postgres', CASE WHEN $4 THEN now() END, $5)`, g.number, g.rate, g.eta, g.stalled, g.note)
	}
}

const refresh = `<noscript><meta http-equiv="refresh"`

func TestThePageOfARebuild(t *testing.T) {
	t.Parallel()
	db, s, _ := withOthers(t)
	const at = "/projections/timestamps/rebuild"
	serving := aGeneration{number: 0, state: "serving"}

	setGenerations(t, db, serving)
	page := s.page(t, at)
	require.Equal(t, 200, page.status)
	for _, words := range []string{"no rebuild is under way", "Generation 0 serves every read.", `<form method="post" action="/projections/timestamps/rebuild"`, "group.g0", `data-events="/api/v1/events?watch=generations&amp;projection=timestamps"`} {
		require.Contains(t, page.body, words)
	}
	require.NotContains(t, page.body, refresh, "nothing changes by itself")

	setGenerations(t, db, serving, aGeneration{number: 1, state: "filling", swapWanted: true})
	require.Contains(t, s.page(t, at).body, "How many records there are is not known yet.")
	require.NotContains(t, s.page(t, at).body, "0 of 0")

	filling := aGeneration{number: 1, state: "filling", swapWanted: true, done: 4_123_456, end: 10_000_000, rate: 312_400, eta: 18.8}
	setGenerations(t, db, serving, filling)
	page = s.page(t, at)
	for _, words := range []string{
		"Reading the log into new tables.", "4,123,456 of 10,000,000 records, 41.2%; 312,400 a second; caught up in about 19 s.", "Postgres: it does not take rows any faster",
		`aria-valuenow="41.23"`, "Cancel this rebuild…", refresh, `name="generation" value="1"`,
	} {
		require.Contains(t, page.body, words)
	}
	require.Contains(t, s.page(t, at+"?done=started").body, "The rebuild has been asked for.")
	require.NotContains(t, s.page(t, at+"?done=drop").body, `role="status"`, "nothing of the kind is under way")
	db.Must(t, `UPDATE timestamps_g1.projection_progress SET log_end_at = now() - interval '11 s'`)
	db.Must(t, `UPDATE generation_progress SET sampled_at = now() - interval '11 s'`)
	old := s.page(t, at).body
	require.Contains(t, old, "4,123,456 of 10,000,000 records as of the last look, 41.2%; how fast it goes is not known now.")
	require.NotContains(t, old, "312,400", "a rate that nobody measures any more")
	kept := s.get(t, "/api/v1/projections/timestamps/generations").object(t)["generations"].([]any)
	require.Nil(t, kept[1].(map[string]any)["progress"].(map[string]any)["lag"])
	require.NotContains(t, page.body, "Start a rebuild", "one at a time")
	require.NotContains(t, page.body, "Verify and swap", "it is still filling")

	filling.point, filling.rate, filling.eta, filling.stalled, filling.note = "2026-11-03T00:00:00Z", 0, 0, true, "Postgres: disk <full>"
	setGenerations(t, db, serving, filling)
	page = s.page(t, at)
	for _, words := range []string{"generation 1, stalled", "Reading the log up to 2026-11-03T00:00:00Z.", "No record was taken since", "Postgres: disk &lt;full&gt;", "Hold<span"} {
		require.Contains(t, page.body, words)
	}
	require.NotContains(t, page.body, "caught up in about")

	setGenerations(t, db, serving, aGeneration{number: 1, state: "queued", swapWanted: true})
	require.Contains(t, s.page(t, at).body, "Waiting for the rebuild of another projection.")

	// Each phase has a progress of its own: what the fill measured says nothing of the indexes.
	setGenerations(t, db, serving, aGeneration{number: 1, state: "indexing", swapWanted: true, done: 7, end: 7, rate: 3, eta: 0.1})
	db.Must(t, `CREATE TABLE timestamps_g1.slow AS SELECT 1 AS n`)
	db.Must(t, `CREATE FUNCTION slowly(n int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(3); RETURN n; END $$`)
	built := make(chan error, 1)
	go func() {
		_, err := db.Exec(`CREATE INDEX ON timestamps_g1.slow (slowly(n))`)
		built <- err
	}()
	await.Until(t, func() bool {
		page = s.page(t, at)
		return strings.Contains(page.body, "An index of <code>slow</code>: building index")
	})
	require.Regexp(t, `This phase began (4[2-9]|5\d) s ago\.`, page.body) // the phase began 42 s before its row was written
	require.NotContains(t, page.body, "caught up in about")
	require.NoError(t, <-built)

	proof := map[string]any{
		"ok": false, "at": time.Now(), "took_ms": 4213, "against": 0, "vector": map[string]int{"timestamp.command.v1/3": 1234567}, "finding": "1 row is missing",
		"tables":      []any{map[string]any{"table": "timestamp_records", "ok": false, "rows_serving": 1000, "rows_candidate": 999, "hash_serving": "aa", "hash_candidate": "bb"}, map[string]any{"table": "dead_letters", "ok": true, "rows_serving": 6, "rows_candidate": 6, "hash_serving": "cc", "hash_candidate": "cc"}},
		"differences": []any{map[string]any{"table": "timestamp_records", "key": "01920b5c-7d4e-7cc3-98c4-dc0c0c07398f", "serving": "2009-09-28", "candidate": nil}},
	}
	setGenerations(t, db, serving, aGeneration{number: 1, state: "ready", proof: proof, done: 7, end: 7})
	page = s.page(t, at)
	for _, words := range []string{"the verification found a difference.", "The verification failed", "1 row is missing", "differs", "1,000", "999", "<code class=\"hash\">bb</code>", "01920b5c-7d4e-7cc3-98c4-dc0c0c07398f", "no row", "timestamp.command.v1/3@1,234,567", "Verify and swap", "Verify only"} {
		require.Contains(t, page.body, words)
	}
	require.NotContains(t, page.body, refresh)

	db.Must(t, `UPDATE projection_generations SET fill_ms = 18800, index_ms = 2100 WHERE generation = 1`)
	for _, words := range []string{`Fill<span class="sr">: done</span>, 18.8 s</span></li>`, `Index<span class="sr">: done</span>, 2.1 s</span></li>`} {
		require.Contains(t, s.page(t, at).body, words)
	}

	proof["ok"], proof["differences"] = true, []any{}
	setGenerations(t, db, aGeneration{number: 1, state: "serving"}, aGeneration{number: 2, state: "held", point: "timestamp.command.v1/3@42"},
		aGeneration{number: 0, state: "standby", proof: proof, done: 4, end: 7}, aGeneration{number: 3, state: "dropping"})
	page = s.page(t, at)
	for _, words := range []string{"Generation 1 serves every read.", "Roll back to generation 0…", "Verified: both hold the same", "Consumer lag: 3", "Holds the tables as they were", "timestamp.command.v1/3@42", "Drop generation 2", "drop the standby, generation 0, first", refresh} {
		require.Contains(t, page.body, words)
	}
	db.Must(t, `UPDATE projection_generations SET fill_ms = 400 WHERE state = 'held'`)
	db.Must(t, `UPDATE projection_generations SET fill_ms = 18800, index_ms = 2100 WHERE state = 'serving'`)
	phases := s.page(t, at).body
	for _, words := range []string{`Fill<span class="sr">: done</span>, 400 ms</span>`, `Fill<span class="sr">: done</span>, 18.8 s</span>`, `Index<span class="sr">: done</span>, 2.1 s</span>`} {
		require.Contains(t, phases, words)
	}
	require.NotContains(t, page.body, "Drop generation 1<", "what serves is not to be dropped")
	require.NotContains(t, page.body, "Drop generation 3<", "it is going already")

	// The same as JSON.
	list := s.get(t, "/api/v1/projections/timestamps/generations").object(t)
	require.Equal(t, "timestamps", list["projection"])
	var states []any
	for _, g := range list["generations"].([]any) {
		states = append(states, g.(map[string]any)["state"])
	}
	require.Equal(t, []any{"serving", "dropping", "held", "standby"}, states)
	serves := s.get(t, "/api/v1/projections/timestamps/generations/1").object(t)
	require.EqualValues(t, 18800, serves["fill_ms"])
	require.EqualValues(t, 2100, serves["index_ms"])
	g := s.get(t, "/api/v1/projections/timestamps/generations/0").object(t)
	require.Nil(t, g["fill_ms"], "it was never a candidate")
	require.Equal(t, "timestamps_g0", g["schema"])
	require.Equal(t, "group.g1.g0", g["group"])
	require.EqualValues(t, 3, g["progress"].(map[string]any)["lag"])
	require.EqualValues(t, 999, g["proof"].(map[string]any)["tables"].([]any)[0].(map[string]any)["rows_candidate"])
	require.Equal(t, 404, s.get(t, "/api/v1/projections/timestamps/generations/9").status)
	require.Equal(t, 404, s.get(t, "/api/v1/projections/nowhere/generations/0").status)
}

func TestTheFormsOfARebuild(t *testing.T) {
	t.Parallel()
	db, s, o := withOthers(t)
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
		a := s.post(t, "/projections/timestamps/rebuild", tc.form)
		require.Equal(t, 303, a.status, a.body)
		require.Equal(t, "/projections/timestamps/rebuild?done=started", a.header.Get("Location"))
		o.was(t, "POST /api/v1/projections/timestamps/generations "+tc.asked)
	}
	require.NotContains(t, s.page(t, "/projections/timestamps/rebuild?done=started").body, "has been asked for", "the notice goes when its matter has ended")
	for path, asked := range map[string]string{
		"verify": "POST /api/v1/projections/timestamps/generations/1/proof", "swap": "POST /api/v1/projections/timestamps/generations/1/swap", "drop": "DELETE /api/v1/projections/timestamps/generations/1",
	} {
		o.will(202, `{}`)
		a := s.post(t, "/projections/timestamps/rebuild/"+path, url.Values{"generation": {"1"}})
		require.Equal(t, 303, a.status, a.body)
		require.Equal(t, "/projections/timestamps/rebuild?done="+path, a.header.Get("Location"))
		o.was(t, asked)
	}

	o.will(202, `{}`)
	for words, form := range map[string]url.Values{
		"Where to stop is missing": {"kind": {"point"}}, "is no rate limit": {"kind": {"swap"}, "rate_limit": {"fast"}}, "Choose one of the three": {},
		"which is not chosen": {"kind": {"swap"}, "point": {"2026-11-03T00:00:00Z"}}, "drops no standby": {"kind": {"point"}, "point": {"2026-11-03T00:00:00Z"}, "replace_standby": {"1"}},
	} {
		a := s.post(t, "/projections/timestamps/rebuild", form)
		requireSound(t, words, a)
		require.Equal(t, 400, a.status)
		require.Contains(t, a.body, words)
		require.Contains(t, a.body, `class="why"`, "at its field")
		require.Contains(t, a.body, `name="point" value="`+form.Get("point")+`"`, "what was typed is kept")
		require.Contains(t, a.body, `name="rate_limit" value="`+form.Get("rate_limit")+`"`)
	}
	require.Equal(t, 400, s.post(t, "/projections/timestamps/rebuild/swap", url.Values{"generation": {"-1"}}).status)
	o.was(t)

	for status, words := range map[int]string{409: "generation 1 is still &lt;filling&gt;, cancel it first.", 422: "generation 1 is still", 401: "wants an API key", 403: "consumer-service: generation 1 is still", 500: "generation 1 is still"} {
		o.will(status, `{"status":409,"detail":"generation 1 is still <filling>, cancel it first"}`)
		for path, form := range map[string]url.Values{
			"/projections/timestamps/rebuild":      {"kind": {"point"}, "point": {"2026-11-03T00:00:00Z"}},
			"/projections/timestamps/rebuild/swap": {"generation": {"1"}},
		} {
			a := s.post(t, path, form)
			requireSound(t, path, a)
			require.Equal(t, status, a.status)
			require.Contains(t, a.body, words)
			require.Contains(t, a.body, `role="alert"`)
		}
	}

	// A refusal is shown at the generation that it is about.
	setGenerations(t, db, aGeneration{number: 1, state: "serving"}, aGeneration{number: 0, state: "standby"})
	o.will(409, `{"status":409,"detail":"generation 0 is being read"}`)
	a := s.post(t, "/projections/timestamps/rebuild/drop", url.Values{"generation": {"0"}})
	requireSound(t, "refused drop", a)
	_, card, _ := strings.Cut(a.body, "<h2>Generation 0</h2>")
	card, _, _ = strings.Cut(card, "</section>")
	require.Contains(t, card, "generation 0 is being read")
	require.Equal(t, 1, strings.Count(a.body, "generation 0 is being read"))
	require.Regexp(t, `<div data-stays>\s*<div class="note bad" role="alert">`, card, "the next live update would take it away unread")
}

// A rebuild that drops the standby takes the only rollback away: it says so first.
func TestAStandbyIsDroppedInASecondStep(t *testing.T) {
	t.Parallel()
	db, s, o := withOthers(t)
	setGenerations(t, db, aGeneration{number: 1, state: "serving"}, aGeneration{number: 0, state: "standby", done: 1234, end: 1234})
	const at = "/projections/timestamps/rebuild"
	o.will(202, `{}`)
	a := s.post(t, at, url.Values{"kind": {"swap"}})
	require.Equal(t, 400, a.status)
	require.Contains(t, a.body, "Only one standby is kept, and generation 0 is one")
	form := url.Values{"kind": {"ready"}, "replace_standby": {"1"}, "rate_limit": {"5000"}}
	a = s.post(t, at, form)
	require.Equal(t, 200, a.status)
	requireSound(t, "second step", a)
	for _, words := range []string{"This drops generation 0", "1,234 records go", "Nothing was started yet", `name="drop" value="0"`, `value="ready" checked`, `value="5000"`} {
		require.Contains(t, a.body, words)
	}
	form.Set("drop", "7")
	require.Contains(t, s.post(t, at, form).body, `name="drop" value="0"`, "another standby than the one that was shown")
	o.was(t)
	form.Set("drop", "0")
	require.Equal(t, 303, s.post(t, at, form).status)
	o.was(t, `POST /api/v1/projections/timestamps/generations {"swap":false,"rate_limit":5000,"replace_standby":true}`)
	for _, words := range []string{"Its 1,234 records go, and with them the only way to roll back", "which serves now, then becomes the standby"} {
		require.Contains(t, s.page(t, at).body, words)
	}
}

func TestAnAuditIsAskedForOnThePage(t *testing.T) {
	t.Parallel()
	db, s, o := withOthers(t)
	db.Must(t, `UPDATE projection_progress SET log_end = next_offset + 5 * partition, log_end_at = now() + interval '1 hour', caught_up_at = now()`)
	page := s.page(t, "/projections/timestamps")
	require.Contains(t, page.body, "Pending: not run yet")
	require.Contains(t, page.body, "Partitions")
	o.will(200, `{"ok":true,"audited_at":"2026-11-03T00:00:00Z","partitions":[]}`)
	a := s.post(t, "/projections/timestamps/audit", nil)
	require.Equal(t, 303, a.status, a.body)
	require.Equal(t, "/projections/timestamps?audited=1#audit", a.header.Get("Location"))
	o.was(t, "POST /api/v1/projections/timestamps/audit")
	db.Must(t, `INSERT INTO projection_audits (topic, partition, audited_at, took_ms, epoch, first_offset, next_offset, applied, duplicate, rejected, skipped, rows_found, dead_letters_found, rows_ahead, ok, finding) SELECT topic, partition, now(), 1.5, epoch, first_offset, next_offset, applied, duplicate, rejected, skipped, 2500, 3, 0, partition > 0, CASE partition WHEN 0 THEN '1 row is <missing>' ELSE '' END FROM projection_progress`)
	page = s.page(t, "/projections/timestamps?audited=1")
	for _, words := range []string{"Audited just now", "Failed in 1 partition", "timestamps, partition 0: 1 row is &lt;missing&gt;", "10,000 rows and 12 dead letters found", "1.5 ms", "2 min"} {
		require.Contains(t, page.body, words)
	}
	o.will(404, `404 page not found`)
	a = s.post(t, "/projections/timestamps/audit", nil)
	requireSound(t, "refused audit", a)
	require.Equal(t, 404, a.status)
	require.Contains(t, a.body, "it is an older release of consumer-service, or CONSUMER_URL names something else")
}

func TestThePagesOfNothing(t *testing.T) {
	t.Parallel()
	db, s, _ := withOthers(t)
	for path, words := range map[string]string{
		"/": "The log is being read.", "/records": "There is no record yet.", "/dead-letters": "no record was rejected",
		"/projections/timestamps": "the log is being read", "/projections": "off", "/projections/endpoints": "was never begun", "/tickets": "A ticket is the id that came back", "/projections/timestamps/rebuild": "Generation 0 serves every read.",
	} {
		a := s.page(t, path)
		require.Equal(t, 200, a.status)
		require.Contains(t, strings.ToLower(a.body), strings.ToLower(words), path)
	}
	db.Must(t, `DELETE FROM projection_progress`)
	require.Contains(t, s.page(t, "/projections/timestamps").body, "Nothing is projected yet.")
	db.Must(t, `ALTER TABLE projection_progress RENAME TO gone`)
	for _, path := range []string{"/", "/projections"} {
		a := s.page(t, path)
		require.Contains(t, a.body, "The projections cannot be read.")
		require.Contains(t, a.body, refresh)
	}
	require.Equal(t, 503, s.page(t, "/records").status)
	require.Equal(t, 503, s.page(t, "/projections/timestamps").status)
	require.Equal(t, 200, s.page(t, "/projections/endpoints").status, "another one is not concerned")
	for path, to := range map[string]string{"/projection": "/projections/timestamps", "/rebuild": "/projections/timestamps/rebuild"} {
		require.Equal(t, to, s.get(t, path).header.Get("Location"))
	}
}

package app

import (
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/query-service/internal/testdb"
	"github.com/tidemark/tidemark/shared/await"
)

// stateOf is what /api/v1/projections says of one.
func (s *running) stateOf(t *testing.T, name string) map[string]any {
	t.Helper()
	a := s.get(t, "/api/v1/projections")
	require.Equal(t, 200, a.status, a.body)
	for _, p := range a.object(t)["projections"].([]any) {
		if p := p.(map[string]any); p["projection"] == name {
			return p
		}
	}
	t.Fatalf("%s is not in %s", name, a.body)
	return nil
}

// Nothing in this service names widgets: whatever it shows of them comes from the row in projections.
func TestAProjectionThatOnlyTheDatabaseKnowsIsShownEverywhere(t *testing.T) {
	t.Parallel()
	db, s, o := withOthers(t)
	a := s.get(t, "/api/v1/projections/widgets")
	require.Equal(t, 404, a.status)
	require.Equal(t, `there is no projection "widgets": there are endpoints, timestamps`, a.object(t)["detail"])
	require.Equal(t, 404, s.page(t, "/projections/widgets").status)

	topic := db.Define(t, "widgets")
	a = s.get(t, "/api/v1/projections/widgets")
	require.Equal(t, 200, a.status, "an unknown name is looked for again")
	require.Equal(t, "off", a.object(t)["state"])
	ticket, at := uuid.New(), topic+"/1@0"
	require.Equal(t, "pending", s.get(t, "/api/v1/tickets/"+ticket.String()+"?position="+at).object(t)["state"])

	// A read waits for its position.
	db.Run(t, "widgets")
	go func() {
		time.Sleep(50 * time.Millisecond) // nobody tells that a read waits; the answer is the same where it comes later
		tx := db.MustBegin()
		tx.MustExec(`INSERT INTO widgets.all_widgets VALUES ($1, 'gr<ee>n', '2026-11-21T10:00:00.5Z', 1, 0)`, ticket)
		tx.MustExec(`INSERT INTO widgets.dead_letters VALUES ($1, 1, 1, 'not a widget', '[]', 'decode', 'no widget', '2026-01-02T03:04:05Z')`, topic)
		tx.MustExec(`UPDATE widgets.projection_progress SET next_offset = 2, applied = 1, rejected = 1, log_end = 7, log_end_at = now() + interval '1 hour' WHERE partition = 1`)
		tx.MustExec(`UPDATE widgets.projection_progress SET log_end = 0, log_end_at = now() + interval '1 hour', caught_up_at = now() WHERE partition = 0`)
		if err := tx.Commit(); err != nil {
			t.Error(err)
		}
	}()
	got := s.get(t, "/api/v1/tickets/"+ticket.String()+"?wait=10s&position="+at).object(t)
	require.Equal(t, []any{"applied", "widgets", at, "2026-11-21T10:00:00.5Z"}, []any{got["state"], got["projection"], got["position"], got["created_at"]})
	got = s.get(t, "/api/v1/tickets/"+ticket.String()).object(t)
	require.Equal(t, []any{"applied", "widgets", at}, []any{got["state"], got["projection"], got["position"]})
	got = s.get(t, "/api/v1/tickets/"+uuid.NewString()+"?position="+topic+"/1@1").object(t)
	require.Equal(t, []any{"rejected", "widgets", "no widget"}, []any{got["state"], got["projection"], got["reason"]})
	page := s.page(t, "/tickets/"+ticket.String()+"?position="+url.QueryEscape(at))
	require.Contains(t, page.body, "<dt>colour</dt><dd>gr&lt;ee&gt;n</dd>")

	// Status, lag and audit are its own.
	require.Equal(t, []any{"rebuilding", 5.0, 1.0, nil}, []any{s.stateOf(t, "widgets")["state"], s.stateOf(t, "widgets")["lag"], s.stateOf(t, "widgets")["dead_letters_open"], s.stateOf(t, "widgets")["caught_up_at"]})
	db.Must(t, `UPDATE widgets.projection_progress SET caught_up_at = now()`)
	require.Equal(t, "serving", s.stateOf(t, "widgets")["state"])
	require.EqualValues(t, 0, s.get(t, "/api/v1/projections/timestamps").object(t)["replay"].(map[string]any)["done"])
	require.EqualValues(t, 2, s.get(t, "/api/v1/projections/widgets").object(t)["replay"].(map[string]any)["done"])
	db.Must(t, `INSERT INTO widgets.projection_audits SELECT topic, partition, now(), 1.5, epoch, first_offset, next_offset, applied, duplicate, rejected, skipped, 0, 1, 0, partition = 0, CASE partition WHEN 1 THEN '1 widget is missing' ELSE '' END FROM widgets.projection_progress`)
	require.Equal(t, false, s.stateOf(t, "widgets")["audit_ok"])
	require.Nil(t, s.stateOf(t, "timestamps")["audit_ok"])

	for path, words := range map[string][]string{
		"/":                               {`<a href="/projections/widgets">widgets</a>`, "widgets, partition 1: 1 widget is missing", "failed in 1 partition"},
		"/projections":                    {topic, "Caught up"},
		"/projections/widgets":            {"widgets: caught up", "group.widgets", "Failed in 1 partition", `action="/projections/widgets/audit"`},
		"/projections/widgets/rebuild":    {"Generation 0 serves every read.", `action="/projections/widgets/rebuild"`},
		"/dead-letters":                   {"<code>" + topic + "/1@1</code>", "not a widget", `<option>widgets</option>`, ">Discard<"},
		"/dead-letters/" + topic + "/1@1": {"It cannot be redriven", "Discard it"},
	} {
		page := s.page(t, path)
		require.Equal(t, 200, page.status, path)
		for _, w := range words {
			require.Contains(t, page.body, w, path)
		}
	}
	require.NotContains(t, s.page(t, "/dead-letters").body, "Redrive…")
	a = s.post(t, "/dead-letters/review", url.Values{"position": {topic + "/1@1"}})
	requireSound(t, "review", a)
	require.Equal(t, 400, a.status)
	require.Contains(t, a.body, "can only be discarded")
	o.will(202, `{}`)
	require.Equal(t, "/projections/widgets/rebuild?done=started", s.post(t, "/projections/widgets/rebuild", url.Values{"kind": {"swap"}}).header.Get("Location"))
	o.was(t, `POST /api/v1/projections/widgets/generations {"swap":true}`)

	list := s.get(t, "/api/v1/projections/widgets/generations").object(t)["generations"].([]any)
	require.Len(t, list, 1)
	require.Equal(t, "widgets", list[0].(map[string]any)["projection"])
	next := s.events(t, "watch=projection,generations&projection=widgets")
	for _, want := range []string{"projection", "generations"} {
		name, data, err := next()
		require.NoError(t, err)
		require.Equal(t, []any{want, "widgets"}, []any{name, data["projection"]})
	}
	await.Until(t, func() bool {
		m := s.get(t, "/metrics").body
		return strings.Contains(m, `tidemark_query_projection_lag{projection="widgets"} 5`) && strings.Contains(m, `tidemark_query_projection_running{projection="widgets"} 1`) &&
			strings.Contains(m, `tidemark_query_projection_watermark_age_seconds{projection="widgets"} `) && strings.Contains(m, `tidemark_query_projection_running{projection="endpoints"} 0`)
	})
	require.Contains(t, s.get(t, "/metrics").body, `tidemark_query_wait_seconds_count{end="passed",projection="widgets"} 1`)
}

func TestStatesOfAProjection(t *testing.T) {
	t.Parallel()
	db, s := setup(t)
	db.Define(t, "widgets")
	s.get(t, "/api/v1/projections/widgets")
	is := func(state string) {
		t.Helper()
		require.Equal(t, state, s.stateOf(t, "widgets")["state"])
		require.Equal(t, "rebuilding", s.stateOf(t, "timestamps")["state"], "each has its own")
	}
	is("off")
	db.Run(t, "widgets")
	is("rebuilding")
	db.Must(t, `UPDATE widgets.projection_progress SET caught_up_at = now() - interval '1 minute', log_end = 0, log_end_at = now() + interval '1 hour'`)
	is("serving")
	db.Must(t, `UPDATE widgets.projection_progress SET log_end = 1`)
	is("catching_up")
	db.Must(t, `UPDATE widgets.projection_progress SET log_end_at = '2026-11-21T10:00:00Z'::timestamptz + partition * interval '1 s'`)
	is("down")
	require.Equal(t, []any{nil, "2026-11-21T10:00:00Z"}, []any{s.stateOf(t, "widgets")["lag"], s.stateOf(t, "widgets")["lag_unknown_since"]})
	for _, path := range []string{"/", "/projections", "/projections/widgets"} {
		require.Contains(t, s.page(t, path).body, `consumer lag unknown since <time datetime="2026-11-21T10:00:00Z">`, path)
	}
	await.Until(t, func() bool {
		m := s.get(t, "/metrics").body
		return strings.Contains(m, `tidemark_query_projection_log_end_age_seconds{projection="widgets"} `) && !strings.Contains(m, `tidemark_query_projection_lag{projection="widgets"}`)
	}, "no lag is shown that nobody knows")
	db.Must(t, `UPDATE projections SET refusal = 'the log is another one.', refused_at = now() WHERE projection = 'widgets'`)
	is("refused")
	page := s.page(t, "/projections/widgets")
	require.Contains(t, page.body, "widgets has stopped")
	require.Contains(t, page.body, "the log is another one.")
	require.Contains(t, s.page(t, "/").body, "widgets: stopped", "a headline names the worst")

	a := s.get(t, "/api/v1/projections/widgets?wait=0&position=widgets.event.v1/0@0")
	require.Equal(t, 503, a.status)
	require.Equal(t, "/problems/projection-refused", a.object(t)["type"])
	require.Contains(t, a.object(t)["detail"], "the log is another one")
	require.Equal(t, 200, s.get(t, "/api/v1/projections/widgets").status, "what is there can be read")
	db.Must(t, `UPDATE widgets.projection_progress SET caught_up_at = now() + interval '1 s'`)
	require.Equal(t, 504, s.get(t, "/api/v1/projections/widgets?wait=0&position=widgets.event.v1/0@0").status, "a watermark since then makes it obsolete")
}

// A rebuild in place says that it is one: what it has read so far is neither all of it nor passed.
func TestARebuildInPlaceCountsWhatWasReadSoFar(t *testing.T) {
	t.Parallel()
	db, s := setup(t)
	for range 24 {
		require.NoError(t, db.Project(t.Context(), 0, testdb.Row{ID: uuid.New(), Stamp: stamp}))
	}
	db.Must(t, `UPDATE projection_progress SET log_end = CASE partition WHEN 0 THEN 2000 ELSE 0 END, log_end_at = now() + interval '1 hour', caught_up_at = CASE WHEN partition > 0 THEN now() END`)
	db.Must(t, `INSERT INTO projection_audits (topic, partition, audited_at, took_ms, epoch, first_offset, next_offset, applied, duplicate, rejected, skipped, rows_found, dead_letters_found, rows_ahead, ok, finding) SELECT topic, partition, now(), 1.5, epoch, first_offset, next_offset, applied, duplicate, rejected, skipped, applied, 0, 0, true, '' FROM projection_progress`)
	require.Equal(t, []any{"rebuilding", nil}, []any{s.stateOf(t, "timestamps")["state"], s.stateOf(t, "timestamps")["audit_ok"]})
	page := s.page(t, "/projections/timestamps").body
	for _, words := range []string{"timestamps: rebuilding", "24 of 2,000 records", "every count here is of what was read so far", "Pending: being rebuilt, 1.2% of the log is read", "24 rows and 0 dead letters found of what was read so far", "None so far: the log is still being read."} {
		require.Contains(t, page, words)
	}
	require.NotContains(t, page, ">Passed<")
	overview := s.page(t, "/").body
	require.Contains(t, overview, "Rebuilding, 1.2%")
	require.NotContains(t, overview, ">passed<")

	db.Must(t, `UPDATE projection_progress SET next_offset = 2000, applied = 2000, caught_up_at = now()`)
	require.Equal(t, []any{"serving", true}, []any{s.stateOf(t, "timestamps")["state"], s.stateOf(t, "timestamps")["audit_ok"]})
}

// What is done to the tables of one projection holds up nobody who reads another.
func TestAReadLocksOnlyTheTablesOfItsProjection(t *testing.T) {
	t.Parallel()
	db, s := setup(t)
	db.Define(t, "widgets")
	require.NoError(t, db.Project(t.Context(), 0, testdb.Row{ID: uuid.New(), Stamp: stamp}))
	require.Equal(t, 200, s.get(t, "/api/v1/projections/widgets").status)
	tx := db.MustBegin()
	defer func() { _ = tx.Rollback() }()
	tx.MustExec(`LOCK TABLE widgets.all_widgets, widgets.dead_letters IN ACCESS EXCLUSIVE MODE`)
	begin := time.Now()
	for _, path := range []string{"/api/v1/timestamps", "/api/v1/projections/timestamps", "/api/v1/deadletters?projection=timestamps", "/api/v1/timestamps?position=timestamp.command.v1/0@0"} {
		require.Equal(t, 200, s.get(t, path).status, path)
	}
	require.Less(t, time.Since(begin), 20*time.Second, "nobody waits for the other projection's tables")
	require.Equal(t, 503, s.get(t, "/api/v1/projections/widgets").status)
}

// The order is that of topic, partition and offset, over all projections, in pages of any size.
func TestDeadLettersOfEveryProjectionAreOneList(t *testing.T) {
	t.Parallel()
	db, s := setup(t)
	topic := db.Define(t, "widgets")
	for i := range 4 {
		db.Reject(t, int32(i%2), []byte("{"), `[]`, "broken")
		db.Must(t, `INSERT INTO widgets.dead_letters VALUES ($1, $2, $3, 'x', '[]', 'decode', 'bad', now())`, topic, i%2, i)
		db.Must(t, `INSERT INTO endpoints.dead_letters VALUES ('endpoint.command.v1', $1, $2, 'x', '[]', 'misplaced', 'bad', now())`, i%2, i)
	}
	s.get(t, "/api/v1/projections/widgets")
	want := []string{
		"endpoint.command.v1/0@0", "endpoint.command.v1/0@2", "endpoint.command.v1/1@1", "endpoint.command.v1/1@3",
		"timestamp.command.v1/0@0", "timestamp.command.v1/0@1", "timestamp.command.v1/1@0", "timestamp.command.v1/1@1",
		topic + "/0@0", topic + "/0@2", topic + "/1@1", topic + "/1@3",
	}
	for limit := 1; limit <= 13; limit++ {
		var got []string
		for path := any(fmt.Sprintf("/api/v1/deadletters?order=position&limit=%d", limit)); path != nil; {
			require.Less(t, len(got), 2*len(want), "it goes round")
			o := s.get(t, path.(string)).object(t)
			for _, item := range o["items"].([]any) {
				got = append(got, item.(map[string]any)["position"].(string))
			}
			path = o["next"]
		}
		require.Equal(t, want, got, "in pages of %d", limit)
	}
	var latest []string
	for _, limit := range []int{13, 5, 1} {
		var got []string
		for path := any(fmt.Sprintf("/api/v1/deadletters?limit=%d", limit)); path != nil; {
			require.Less(t, len(got), 2*len(want), "it goes round")
			o := s.get(t, path.(string)).object(t)
			for _, item := range o["items"].([]any) {
				got = append(got, item.(map[string]any)["position"].(string))
			}
			path = o["next"]
		}
		require.ElementsMatch(t, want, got)
		if latest == nil {
			latest = got
			require.Equal(t, []string{"endpoint.command.v1/1@3", topic + "/1@3"}, got[:2], "the newest of all projections first")
		}
		require.Equal(t, latest, got, "in pages of %d", limit)
	}
	only := func(query string) (got []string) {
		t.Helper()
		a := s.get(t, "/api/v1/deadletters"+query+"&order=position")
		require.Equal(t, 200, a.status, a.body)
		for _, item := range a.object(t)["items"].([]any) {
			got = append(got, item.(map[string]any)["position"].(string))
		}
		return got
	}
	require.Equal(t, want[:4], only("?projection=endpoints"))
	require.Equal(t, []string{want[2], want[3], want[6], want[7], want[10], want[11]}, only("?partition=1"))
	require.Equal(t, want[:4], only("?reason_code=misplaced"))
	require.Equal(t, want[11:], only("?after="+url.QueryEscape(want[10])))
	item := s.get(t, "/api/v1/deadletters?order=position&projection=widgets").object(t)["items"].([]any)[0].(map[string]any)
	require.Equal(t, []any{"widgets", false}, []any{item["projection"], item["redrivable"]})
	item = s.get(t, "/api/v1/deadletters?order=position&projection=endpoints").object(t)["items"].([]any)[0].(map[string]any)
	require.Equal(t, []any{"endpoints", true}, []any{item["projection"], item["redrivable"]})
	a := s.get(t, "/api/v1/deadletters?projection=nowhere")
	require.Equal(t, 404, a.status)
	require.Contains(t, a.object(t)["detail"], "there are endpoints, timestamps, widgets")
	require.Equal(t, 404, s.page(t, "/dead-letters?projection=nowhere").status)

	page := s.page(t, "/dead-letters/endpoint.command.v1/0@0")
	warning, form := strings.Index(page.body, "A redriven command wins over later ones."), strings.Index(page.body, `action="/dead-letters/redrive"`)
	require.Positive(t, warning)
	require.Less(t, warning, form, "it is said first")
	a = s.post(t, "/dead-letters/review", url.Values{"position": {want[0], want[4], want[8]}})
	requireSound(t, "review", a)
	require.Contains(t, a.body, "A redriven command wins over later ones.")
	require.Contains(t, a.body, "1 letter that was chosen is left out")
	require.NotContains(t, a.body, want[8])
}

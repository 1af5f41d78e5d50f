package app

import (
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/query-service/internal/testdb"
	"github.com/tidemark/tidemark/shared/freeport"
	"github.com/tidemark/tidemark/shared/ticket"
)

// theDoor answers as command-service does. It keeps what it was asked.
type theDoor struct {
	requests chan *http.Request
	answer   http.HandlerFunc
}

func (d *theDoor) serve(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/ready" {
		w.WriteHeader(http.StatusServiceUnavailable)
		_, _ = io.WriteString(w, `{"status":"DOWN","missing":{"kafka":"no broker <answers>"}}`)
		return
	}
	d.requests <- r
	d.answer(w, r)
}

func withDoor(t *testing.T, answer http.HandlerFunc) (*testdb.DB, *running, *theDoor) {
	t.Helper()
	d := &theDoor{requests: make(chan *http.Request, 10), answer: answer}
	db := testdb.New(t)
	s := start(t, db.URL, d.serve)
	s.awaitReady(t)
	return db, s, d
}

func problemJSON(w http.ResponseWriter, status int, body string) {
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, body)
}

func TestTheFirstPageShowsWhatRuns(t *testing.T) {
	t.Parallel()
	db, s, _ := withDoor(t, nil)
	id := uuid.New()
	require.NoError(t, db.Project(t.Context(), 0, testdb.Row{ID: id, Stamp: stamp}))
	db.Must(t, `UPDATE projection_progress SET log_end = next_offset, log_end_at = now() + interval '1 hour', caught_up_at = now()`)

	page := s.get(t, "/")
	require.Equal(t, 200, page.status)
	require.Equal(t, "text/html; charset=utf-8", page.header.Get("Content-Type"))
	require.Contains(t, page.header.Get("Content-Security-Policy"), "default-src 'none'")
	for _, words := range []string{
		"Caught up", "Everything accepted up to", "command-service", "not ready", "kafka: no broker &lt;answers&gt;",
		id.String(), "timestamp.command.v1/0@0", "pending", "2009-09-28T19:03:12.123456Z", `<form method="post" action="/stamp">`,
	} {
		require.Contains(t, page.body, words)
	}
	require.NotContains(t, page.body, " style=", "the policy allows no inline style")
	for _, path := range []string{"/assets/tidemark.css", "/assets/live.js", "/assets/mark.svg"} {
		require.Contains(t, page.body, path)
		require.Equal(t, 200, s.get(t, path).status)
	}
	require.Equal(t, 404, s.get(t, "/assets/nothing").status)

	db.Must(t, `UPDATE projection_progress SET log_end = next_offset + 1233, log_end_at = now() + interval '1 hour', caught_up_at = NULL WHERE partition < 3`)
	page = s.get(t, "/")
	require.Contains(t, page.body, "timestamps: rebuilding", "some partition has never caught up")
	db.Must(t, `UPDATE projection_progress SET caught_up_at = now() - interval '1 minute'`)
	page = s.get(t, "/")
	require.Contains(t, page.body, "timestamps: catching up")
	require.Contains(t, page.body, "1 of 3,700 records")
	require.Contains(t, page.body, "0.0% of the log is projected")

	db.Must(t, `INSERT INTO projection_audits (topic, partition, audited_at, took_ms, epoch, first_offset, next_offset, applied, duplicate, rejected, skipped, rows_found, dead_letters_found, rows_ahead, ok, finding) SELECT topic, partition, now() - interval '12 s', 1.5, epoch, first_offset, next_offset, applied, duplicate, rejected, skipped, 0, rejected, 0, partition > 0, CASE partition WHEN 0 THEN '1 row is <missing>' ELSE '' END FROM projection_progress`)
	page = s.get(t, "/")
	require.Contains(t, page.body, "failed in 1 partition")
	require.Contains(t, page.body, "timestamps, partition 0: 1 row is &lt;missing&gt;")
	require.Regexp(t, `(1[2-9]|[2-5][0-9]) s ago`, page.body)
}

func TestAnEmptyProjectionHasAFirstPageToo(t *testing.T) {
	t.Parallel()
	db, s, _ := withDoor(t, nil)
	db.Must(t, `DELETE FROM projection_progress`)
	require.Contains(t, s.get(t, "/").body, "Nothing is projected yet")
}

func TestStampingLeadsToATicketThatBecomesARow(t *testing.T) {
	t.Parallel()
	db, s, d := withDoor(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Tidemark-Position", "timestamp.command.v1/1@0")
		w.WriteHeader(http.StatusAccepted)
		_, _ = io.WriteString(w, `{"id":"`+r.Header.Get("Idempotency-Key")+`"}`)
	})
	a := s.post(t, "/stamp", url.Values{"event_timestamp": {" 2009-09-28T19:03:12+02:00 "}}, "X-Correlation-ID", "mine", "Origin", s.url)
	require.Equal(t, 303, a.status, a.body)
	asked := <-d.requests
	require.Equal(t, "POST /api/v1/timestamp/2009-09-28T19:03:12+02:00", asked.Method+" "+asked.URL.Path)
	require.Equal(t, "mine", asked.Header.Get("X-Correlation-ID"))
	id, err := ticket.Parse(asked.Header.Get("Idempotency-Key"))
	require.NoError(t, err)
	_, isV7 := ticket.Time(id)
	require.True(t, isV7)
	path := a.header.Get("Location")
	require.Equal(t, "/tickets/"+id.String()+"?position=timestamp.command.v1/1@0", path)

	page := s.get(t, path)
	require.Equal(t, 200, page.status)
	require.Contains(t, page.body, "Accepted, and on its way.")
	require.Contains(t, page.body, `<noscript><meta http-equiv="refresh"`)
	require.Contains(t, page.body, "timestamp.command.v1/1@0")

	time.AfterFunc(50*time.Millisecond, func() {
		if err := db.Project(t.Context(), 1, testdb.Row{ID: id, Stamp: stamp}); err != nil {
			t.Error(err)
		}
	})
	page = s.get(t, path+"&wait=5s")
	require.Contains(t, page.body, "It is applied, ")
	require.Contains(t, page.body, "2009-09-28T19:03:12.123456Z")
	require.NotContains(t, page.body, "http-equiv")

	a = s.post(t, "/stamp", nil)
	require.Equal(t, 303, a.status)
	require.Equal(t, "/api/v1/timestamp", (<-d.requests).URL.Path, "an empty field stamps now")
	require.Equal(t, 303, s.get(t, "/stamp").status, "a reload of an answer to the form leads home")
}

func TestAStampThatIsRefusedSaysWhy(t *testing.T) {
	t.Parallel()
	_, s, _ := withDoor(t, func(w http.ResponseWriter, _ *http.Request) {
		problemJSON(w, 400, `{"status":400,"detail":"\"<yesterday>\" is not accepted"}`)
	})
	a := s.post(t, "/stamp", url.Values{"event_timestamp": {"<yesterday>/../x"}})
	require.Equal(t, 400, a.status)
	require.Contains(t, a.body, "&#34;&lt;yesterday&gt;&#34; is not accepted")
	require.Contains(t, a.body, `value="&lt;yesterday&gt;/../x"`)
	require.NotContains(t, a.body, `name="key"`)
	require.Equal(t, 400, s.post(t, "/stamp", url.Values{"key": {"no uuid"}}).status)
}

func TestAStampOfUnknownFateKeepsItsKey(t *testing.T) {
	t.Parallel()
	_, s, d := withDoor(t, func(w http.ResponseWriter, r *http.Request) {
		key := r.Header.Get("Idempotency-Key")
		problemJSON(w, 503, `{"status":503,"detail":"nobody knows","ticket":"`+key+`","retry_key":"`+key+`"}`)
	})
	a := s.post(t, "/stamp", url.Values{"event_timestamp": {"2009-09-28T19:03:12Z"}})
	require.Equal(t, 503, a.status)
	key := (<-d.requests).Header.Get("Idempotency-Key")
	require.Contains(t, a.body, "nobody knows")
	require.Contains(t, a.body, `<input type="hidden" name="key" value="`+key+`">`)
	require.Contains(t, a.body, `href="/tickets/`+key)
	s.post(t, "/stamp", url.Values{"event_timestamp": {"2009-09-28T19:03:12Z"}, "key": {key}})
	require.Equal(t, key, (<-d.requests).Header.Get("Idempotency-Key"))
}

func TestADoorThatBreaksOffLeavesAKeyToo(t *testing.T) {
	t.Parallel()
	_, s, d := withDoor(t, func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
	a := s.post(t, "/stamp", nil)
	require.Equal(t, 503, a.status)
	require.Contains(t, a.body, (<-d.requests).Header.Get("Idempotency-Key"))
	require.Contains(t, a.body, "nobody knows whether the command is in the log")
}

func TestAPostFromAnotherSiteIsRefused(t *testing.T) {
	t.Parallel()
	_, s, d := withDoor(t, nil)
	for _, header := range [][]string{{"Origin", "http://elsewhere.example"}, {"Sec-Fetch-Site", "cross-site"}} {
		a := s.post(t, "/stamp", nil, header...)
		require.Equal(t, 403, a.status)
		require.Contains(t, a.body, "another site")
	}
	require.Empty(t, d.requests, "the door was never asked")
}

func TestPagesOfTickets(t *testing.T) {
	t.Parallel()
	db, s := setup(t)
	id := uuid.New()
	require.NoError(t, db.Project(t.Context(), 0, testdb.Row{ID: id, Stamp: stamp}))
	db.Reject(t, 0, []byte(`<b>`), `{}`, "the value is <no> JSON")
	db.Duplicate(t, 0)
	for query, words := range map[string]string{
		id.String(): "It is applied.",
		id.String() + "?position=timestamp.command.v1/0@1": "the value is &lt;no&gt; JSON",
		id.String() + "?position=timestamp.command.v1/0@2": "the row of this ticket comes from <code>timestamp.command.v1/0@0</code>",
		id.String() + "?position=timestamp.command.v1/0@9": "7 records to go",
		id.String() + "?position=timestamp.command.v1/3@0": "has not begun with this partition",
		uuid.NewString(): "Nothing is known of it.",
		uuid.NewString() + "?position=timestamp.command.v1/0@2": "neither a row nor a dead letter",
	} {
		a := s.get(t, "/tickets/"+query)
		require.Equal(t, 200, a.status, query)
		require.Contains(t, a.body, words)
	}
	for _, path := range []string{"/tickets/42", "/tickets/" + id.String() + "?position=x", "/tickets?id=42", "/records?before=42", "/dead-letters?after=42"} {
		a := s.get(t, path)
		require.Equal(t, 400, a.status, path)
		require.Contains(t, a.header.Get("Content-Type"), "text/html")
	}
	a := s.get(t, "/tickets?id=+"+id.String()+"+")
	require.Equal(t, 303, a.status)
	require.Equal(t, "/tickets/"+id.String(), a.header.Get("Location"))
}

func TestPagesOfRecordsAndDeadLetters(t *testing.T) {
	t.Parallel()
	db, s := setup(t)
	require.Contains(t, s.get(t, "/records").body, "There is no record")
	require.Contains(t, s.get(t, "/dead-letters").body, "no record was rejected")
	rows := make([]testdb.Row, 60)
	for i := range rows {
		rows[i] = testdb.Row{ID: uuid.Must(uuid.NewV7()), Stamp: stamp}
	}
	require.NoError(t, db.Project(t.Context(), 0, rows...))
	page := s.get(t, "/records")
	require.Equal(t, 50, strings.Count(page.body, `<td><a href="/tickets/`))
	require.Contains(t, page.body, rows[59].ID.String())
	older := "/records?before=" + rows[10].ID.String()
	require.Contains(t, page.body, `href="`+older+`"`)
	page = s.get(t, older)
	require.Equal(t, 10, strings.Count(page.body, `<td><a href="/tickets/`))
	require.Contains(t, page.body, `href="/records?after=`+rows[9].ID.String()+`"`)

	db.Reject(t, 2, []byte("<script>"), `[{"key":"a","value":"<i>"},{"key_base64":"/w==","value":"x"}]`, "bad")
	for range 50 {
		db.Reject(t, 3, []byte{0xff}, `{}`, "worse")
	}
	page = s.get(t, "/dead-letters")
	require.Contains(t, page.body, "shown as base64")
	require.Contains(t, page.body, `href="/dead-letters?after=timestamp.command.v1/3@0"`)
	page = s.get(t, "/dead-letters?after=timestamp.command.v1/3@0")
	require.Equal(t, 1, strings.Count(page.body, "<article"))
	require.Contains(t, page.body, "&lt;script&gt;")
	require.Contains(t, page.body, "<code>a: &lt;i&gt;</code> · <code>base64:/w==: x</code>")
}

func TestAServiceThatDoesNotAnswerIsShownAsDown(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	port, err := freeport.Find(t.Context())
	require.NoError(t, err)
	nobody := "http://" + freeport.Address(port)
	s := startWithPeers(t, db.URL, nobody)
	s.awaitReady(t)
	require.Equal(t, 2, strings.Count(s.get(t, "/").body, "it does not answer at "+nobody))
	a := s.post(t, "/stamp", nil)
	require.Equal(t, 503, a.status)
	require.Contains(t, a.body, "command-service does not answer at "+nobody+": start it")
	require.NotContains(t, a.body, "nobody knows", "nothing was sent")

	s = start(t, db.URL, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTeapot) })
	s.awaitReady(t)
	require.Equal(t, 2, strings.Count(s.get(t, "/").body, "something else answers at"))
}

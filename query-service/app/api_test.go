package app

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/query-service/internal/testdb"
	"github.com/tidemark/tidemark/shared/await"
)

var stamp = time.Date(2009, 9, 28, 19, 3, 12, 123456000, time.UTC)

func TestOneRecordIsAFlatObjectOfStrings(t *testing.T) {
	t.Parallel()
	db, s := setup(t)
	id := uuid.New()
	path := "/api/v1/timestamp/" + id.String()
	a := s.get(t, path)
	require.Equal(t, 404, a.status)
	require.Contains(t, a.object(t)["detail"], "may still come")

	require.NoError(t, db.Project(t.Context(), 2, testdb.Row{ID: id, Stamp: stamp}))
	db.Must(t, `UPDATE timestamp_records SET created_at = '2026-11-21T10:00:00.5Z'`)
	for _, p := range []string{path, strings.ToUpper(path[len(path)-36:])} {
		a = s.get(t, "/api/v1/timestamp/"+p[len(p)-36:])
		require.Equal(t, 200, a.status)
		require.Equal(t, fmt.Sprintf(`{"id":"%s","command_id":"%s","event_timestamp":"2009-09-28T19:03:12.123456Z","created_at":"2026-11-21T10:00:00.5Z"}`, id, id), strings.TrimSpace(a.body))
		require.Equal(t, "no-store", a.header.Get("Cache-Control"))
	}
	db.Must(t, `UPDATE timestamp_records SET event_timestamp = '0001-01-01T00:00:00Z'`)
	require.Equal(t, "0001-01-01T00:00:00Z", s.get(t, path).object(t)["event_timestamp"])
	db.Must(t, `UPDATE timestamp_records SET event_timestamp = '9999-12-31T23:59:59.999999Z'`)
	require.Equal(t, "9999-12-31T23:59:59.999999Z", s.get(t, path).object(t)["event_timestamp"])
}

func TestBadRequestsAreProblemsThatSayWhatIsWrong(t *testing.T) {
	t.Parallel()
	_, s := setup(t)
	const id = "/api/v1/timestamp/01920b5c-7d4e-7cc3-98c4-dc0c0c07398f"
	for path, words := range map[string]string{
		"/api/v1/timestamp/42":                                 `"42" is no ticket`,
		"/api/v1/timestamp/{01920b5c-7d4e-7cc3-98c4-dc0c0c07}": "is no ticket",
		"/api/v1/timestamp/" + strings.Repeat("a", 65):         "maximum string length",
		"/api/v1/tickets/42":                                   `"42" is no ticket`,
		id + "?position=x":                                     "topic/partition@offset",
		id + "?position=timestamp.command.v1/-1@0":             "topic/partition@offset",
		id + "?position=elsewhere/0@0":                         "not projected",
		id + "?wait=never":                                     "wait=",
		id + "?wait=31s":                                       "from 0s to 30s",
		"/api/v1/timestamps?limit=0":                           `"limit"`,
		"/api/v1/timestamps?limit=501":                         `"limit"`,
		"/api/v1/timestamps?limit=many":                        `query parameter "limit": an invalid integer`,
		"/api/v1/timestamps?before=42":                         `"42" is no ticket`,
		"/api/v1/timestamps?before=" + uuid.NewString() + "&after=" + uuid.NewString(): "two pages",
		"/api/v1/deadletters?after=42":               "after: ",
		"/api/v1/projections/timestamps?position=42": "topic/partition@offset",
	} {
		a := s.get(t, path)
		require.Equal(t, 400, a.status, path+a.body)
		require.Equal(t, "application/problem+json", a.header.Get("Content-Type"))
		p := a.object(t)
		require.Contains(t, p["detail"], words, path)
		require.Equal(t, "urn:correlation:"+a.header.Get("X-Correlation-ID"), p["instance"])
	}
	a := s.get(t, id+"?position=timestamp.command.v1/0@1", "Tidemark-Position", "timestamp.command.v1/0@2")
	require.Equal(t, 400, a.status)
	require.Contains(t, a.body, "two places")
}

func TestEveryReadTakesAPosition(t *testing.T) {
	t.Parallel()
	db, s := setup(t)
	id := uuid.New()
	paths := []string{"/api/v1/timestamp/" + id.String(), "/api/v1/timestamps", "/api/v1/deadletters", "/api/v1/projections/timestamps"}
	for _, path := range paths {
		begin := time.Now()
		a := s.get(t, path+"?wait=60ms", "Tidemark-Position", "timestamp.command.v1/3@0")
		require.Equal(t, 504, a.status, path)
		require.GreaterOrEqual(t, time.Since(begin), 60*time.Millisecond)
		p := a.object(t)
		require.Equal(t, "timestamp.command.v1/3@0", p["position"])
		require.Equal(t, "none", p["reached"])
		require.NotEmpty(t, a.header.Get("Retry-After"))
	}
	require.NoError(t, db.Project(t.Context(), 3, testdb.Row{ID: id, Stamp: stamp}))
	for _, path := range paths {
		require.Equal(t, 200, s.get(t, path+"?wait=0&position=timestamp.command.v1/3@0").status, path)
		a := s.get(t, path+"?wait=0&position=timestamp.command.v1/3@1")
		require.Equal(t, 504, a.status, path)
		require.Equal(t, "timestamp.command.v1/3@0", a.object(t)["reached"])
	}
	require.Equal(t, 504, s.get(t, paths[0]+"?wait=10ms&position=timestamp.command.v1/77@0").status)
}

func TestTickets(t *testing.T) {
	t.Parallel()
	db, s := setup(t)
	applied, twice, rejected, lost := uuid.New(), uuid.New(), uuid.New(), uuid.New()
	require.NoError(t, db.Project(t.Context(), 1, testdb.Row{ID: applied, Stamp: stamp}, testdb.Row{ID: twice, Stamp: stamp})) // offsets 0, 1
	db.Duplicate(t, 1)                                                                                                         // 2
	db.Reject(t, 1, []byte("{"), `[]`, "the value is no JSON")                                                                 // 3
	db.Skip(t, 1)                                                                                                              // 4
	db.Must(t, `UPDATE projection_generations SET generation = 6, epoch = 77 WHERE projection = 'timestamps'`)

	ticket := func(id uuid.UUID, query string) map[string]any {
		t.Helper()
		a := s.get(t, "/api/v1/tickets/"+id.String()+query)
		require.Equal(t, 200, a.status, a.body)
		o := a.object(t)
		require.Equal(t, id.String(), o["id"])
		if query != "" || o["state"] != "unknown" { // else every projection was looked at
			require.Equal(t, "timestamps", o["projection"])
			require.EqualValues(t, 6, o["generation"])
			require.EqualValues(t, 77, o["epoch"])
		}
		require.Contains(t, o, "as_of")
		require.Contains(t, o, "reason")
		return o
	}
	const at = "?position=timestamp.command.v1/1@"

	o := ticket(applied, at+"0")
	require.Equal(t, "applied", o["state"])
	require.Equal(t, "timestamp.command.v1/1@0", o["position"])
	require.Equal(t, "2009-09-28T19:03:12.123456Z", o["event_timestamp"])
	o = ticket(applied, "")
	require.Equal(t, "applied", o["state"])
	require.Equal(t, "timestamp.command.v1/1@0", o["position"])

	o = ticket(twice, at+"2")
	require.Equal(t, "duplicate", o["state"])
	require.Equal(t, "timestamp.command.v1/1@1", o["row_position"])

	o = ticket(rejected, at+"3")
	require.Equal(t, "rejected", o["state"])
	require.Equal(t, "the value is no JSON", o["reason"])
	require.Equal(t, "decode", o["reason_code"])

	o = ticket(lost, at+"4")
	require.Equal(t, "unknown", o["state"])
	require.Contains(t, o["reason"], "neither a row nor a dead letter")

	begin := time.Now()
	o = ticket(lost, at+"5")
	require.Less(t, time.Since(begin), 4*time.Second, "without a wait it is answered at once")
	require.Equal(t, "pending", o["state"])
	require.Equal(t, "timestamp.command.v1/1@4", o["reached"])
	require.Equal(t, "pending", ticket(lost, "?position=timestamp.command.v1/77@0")["state"])

	begin = time.Now()
	require.Equal(t, "pending", ticket(lost, at+"5&wait=80ms")["state"])
	require.GreaterOrEqual(t, time.Since(begin), 80*time.Millisecond)
	time.AfterFunc(50*time.Millisecond, func() {
		if err := db.Project(t.Context(), 1, testdb.Row{ID: lost, Stamp: stamp}); err != nil {
			t.Error(err)
		}
	})
	require.Equal(t, "applied", ticket(lost, at+"5&wait=5s")["state"])

	// Without a position the answer is as old as the partition that is furthest behind.
	o = ticket(rejected, "")
	require.Equal(t, "unknown", o["state"])
	require.Nil(t, o["as_of"])
	require.Nil(t, o["position"])
	db.Must(t, `UPDATE projection_progress SET caught_up_at = '2026-11-21T10:00:00Z'::timestamptz + partition * interval '1 s'`)
	o = ticket(rejected, "")
	require.Equal(t, "2026-11-21T10:00:00Z", o["as_of"])
	require.Contains(t, o["reason"], "may still come")

	db.Must(t, `UPDATE projection_progress SET first_offset = 100, next_offset = 100 + next_offset WHERE partition = 2`)
	o = ticket(lost, "?position=timestamp.command.v1/2@99")
	require.Equal(t, "unknown", o["state"])
	require.Contains(t, o["reason"], "lies before offset 100")
}

func TestRecordsArePagedByKey(t *testing.T) {
	t.Parallel()
	db, s := setup(t)
	require.Equal(t, `{"items":[],"next":null,"previous":null}`, strings.TrimSpace(s.get(t, "/api/v1/timestamps").body))
	var ids []string
	var rows []testdb.Row
	for range 25 {
		id := uuid.Must(uuid.NewV7())
		ids = append(ids, id.String())
		rows = append(rows, testdb.Row{ID: id, Stamp: stamp})
	}
	require.NoError(t, db.Project(t.Context(), 0, rows...))
	slices.Reverse(ids) // newest first

	page := func(path string) (got []string, next, previous any) {
		t.Helper()
		a := s.get(t, path)
		require.Equal(t, 200, a.status, a.body)
		o := a.object(t)
		for _, item := range o["items"].([]any) {
			got = append(got, item.(map[string]any)["id"].(string))
		}
		return got, o["next"], o["previous"]
	}
	all, next, previous := page("/api/v1/timestamps")
	require.Equal(t, ids, all)
	require.Nil(t, next)
	require.Nil(t, previous)

	// Down to the oldest and up again, while newer records come in.
	var down []string
	var edges []any
	path := any("/api/v1/timestamps?limit=10")
	for path != nil {
		var got []string
		got, path, previous = page(path.(string))
		down = append(down, got...)
		edges = append(edges, previous)
		require.NoError(t, db.Project(t.Context(), 0, testdb.Row{ID: uuid.Must(uuid.NewV7()), Stamp: stamp}))
	}
	require.Equal(t, ids, down)
	require.Len(t, edges, 3)
	require.Nil(t, edges[0])
	up, next, previous := page(edges[2].(string))
	require.Equal(t, ids[10:20], up)
	require.NotNil(t, next)
	up, _, previous = page(previous.(string))
	require.Equal(t, ids[:10], up)
	up, next, previous = page(previous.(string))
	require.Len(t, up, 3, "those that came in meanwhile")
	require.Nil(t, previous)
	got, _, _ := page(next.(string))
	require.Equal(t, ids[:10], got)

	item := s.get(t, "/api/v1/timestamps?limit=1&before="+ids[23]).object(t)["items"].([]any)[0].(map[string]any)
	require.Equal(t, "timestamp.command.v1/0@0", item["position"])
	require.Equal(t, item["id"], item["command_id"])
}

func TestDeadLetters(t *testing.T) {
	t.Parallel()
	db, s := setup(t)
	require.Equal(t, `{"items":[],"next":null}`, strings.TrimSpace(s.get(t, "/api/v1/deadletters").body))
	long := strings.Repeat("é", 10_000) // 20,000 bytes; the bound of 16,384 falls between two characters only by luck
	db.Reject(t, 0, []byte("no JSON"), `[{"key":"correlationId","value":"back\\slash"}]`, "first")
	db.Reject(t, 0, []byte{0xff, 0x00}, `[]`, "second")
	db.Reject(t, 2, nil, `[]`, "third")
	db.Reject(t, 2, []byte("x"+long), `[{"key":"big","value":"`+strings.Repeat("h", 20_000)+`"}]`, "fourth")
	db.Reject(t, 3, []byte{}, `[]`, "fifth")

	var items []map[string]any
	for path := any("/api/v1/deadletters?order=position&limit=2"); path != nil; {
		a := s.get(t, path.(string))
		require.Equal(t, 200, a.status)
		for _, i := range a.object(t)["items"].([]any) {
			items = append(items, i.(map[string]any))
		}
		path = a.object(t)["next"]
	}
	require.Len(t, items, 5)
	require.Equal(t, "timestamp.command.v1/0@0", items[0]["position"])
	require.Equal(t, "no JSON", items[0]["payload"])
	require.Equal(t, []any{map[string]any{"key": "correlationId", "value": `back\slash`}}, items[0]["headers"])
	require.Equal(t, "2026-01-02T03:04:05Z", items[0]["first_seen_at"])
	require.Equal(t, "decode", items[0]["reason_code"])
	require.Equal(t, "/wA=", items[1]["payload"])
	require.Equal(t, "base64", items[1]["payload_encoding"])
	require.Nil(t, items[2]["payload"])
	require.Equal(t, "x"+long[:16382], items[3]["payload"])
	require.Equal(t, "utf-8", items[3]["payload_encoding"])
	require.EqualValues(t, 20_001, items[3]["payload_bytes"])
	require.Equal(t, true, items[3]["payload_truncated"])
	require.Nil(t, items[3]["headers"])
	require.Equal(t, "", items[4]["payload"], "an empty value is not a missing one")
}

func TestProjectionStatus(t *testing.T) {
	t.Parallel()
	db, s := setup(t)
	require.NoError(t, db.Project(t.Context(), 1, testdb.Row{ID: uuid.New(), Stamp: stamp}, testdb.Row{ID: uuid.New(), Stamp: stamp}))
	db.Reject(t, 1, nil, `[]`, "bad")
	db.Duplicate(t, 1)
	db.Must(t, `UPDATE projection_generations SET group_name = 'group-1', started_at = '2026-11-21T09:00:00Z', epoch = 5 WHERE projection = 'timestamps'`)
	db.Must(t, `UPDATE projection_progress SET epoch = 5, log_end = next_offset + partition, log_end_at = now() + interval '1 hour', caught_up_at = now() - interval '1 minute'`)
	db.Must(t, `INSERT INTO projection_audits (topic, partition, audited_at, took_ms, epoch, first_offset, next_offset, applied, duplicate, rejected, skipped, rows_found, dead_letters_found, rows_ahead, ok, finding) SELECT topic, partition, '2026-11-21T10:00:00Z', 1.5, epoch, first_offset, next_offset, applied, duplicate, rejected, skipped, applied, rejected, 0, true, '' FROM projection_progress`)

	a := s.get(t, "/api/v1/projections/timestamps")
	require.Equal(t, 200, a.status)
	o := a.object(t)
	require.Equal(t, "group-1", o["group"])
	require.EqualValues(t, 5, o["epoch"])
	require.Equal(t, true, o["catching_up"])
	require.Equal(t, map[string]any{"applied": 2.0, "duplicate": 1.0, "rejected": 1.0, "dead_letters_open": 1.0, "dead_letters_decided": 0.0, "expired": 0.0, "skipped": 0.0, "dropped": 0.0, "lag": 6.0, "lag_unknown_since": nil}, o["totals"])
	parts := o["partitions"].([]any)
	require.Len(t, parts, testdb.Partitions)
	p := parts[1].(map[string]any)
	require.EqualValues(t, 4, p["next_offset"])
	require.EqualValues(t, 5, p["log_end"])
	require.EqualValues(t, 1, p["lag"])
	replay := o["replay"].(map[string]any)
	require.EqualValues(t, 4, replay["done"])
	require.EqualValues(t, 10, replay["total"])
	require.InDelta(t, 40, replay["percent"], 0.001)
	audit := o["audit"].(map[string]any)
	require.Equal(t, true, audit["ok"])
	require.Equal(t, "2026-11-21T10:00:00Z", audit["last_run"])
	require.Len(t, audit["partitions"], testdb.Partitions)

	db.Must(t, `UPDATE projection_audits SET ok = false, finding = 'two rows are missing' WHERE partition = 1`)
	require.Equal(t, false, s.get(t, "/api/v1/projections/timestamps").object(t)["audit"].(map[string]any)["ok"])
	await.Until(t, func() bool {
		return s.get(t, "/api/v1/projections/timestamps").object(t)["replay"].(map[string]any)["rate"] != nil
	}, "the warm-up is over")
}

func TestAClientThatLeavesIsNoError(t *testing.T) {
	t.Parallel()
	_, s := setup(t)
	ctx, leave := context.WithCancel(t.Context())
	left := make(chan error, 1)
	go func() {
		_, err := s.do(ctx, http.MethodGet, "/api/v1/timestamps?position=timestamp.command.v1/0@0&wait=30s", "")
		left <- err
	}()
	await.Until(t, func() bool {
		return strings.Contains(s.get(t, "/metrics").body, `tidemark_query_waiters{projection="timestamps"} 1`)
	})
	leave()
	require.ErrorIs(t, <-left, context.Canceled)
	await.Until(t, func() bool {
		return strings.Contains(s.get(t, "/metrics").body, `tidemark_query_reads_total{outcome="client_gone",read="records"} 1`)
	})
}

func TestEveryReadOfOneRowIsGrouped(t *testing.T) {
	t.Parallel()
	_, s := setup(t)
	paths := []string{
		"/api/v1/timestamp/" + uuid.NewString(), "/api/v1/tickets/" + uuid.NewString(), "/api/v1/endpoints/" + uuid.NewString(),
		"/api/v1/deadletters/timestamp.command.v1%2F0@7",
	}
	for i, path := range paths {
		require.NotEqual(t, 400, s.get(t, path).status, path)
		require.Contains(t, s.get(t, "/metrics").body, fmt.Sprintf("tidemark_query_group_reads_sum %d\n", i+1), path)
	}
}

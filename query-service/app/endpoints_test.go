package app

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
)

// aDocument is one of an endpoint, complete, at a host that has the name's letters.
func aDocument(name, group, tags, interval string) string {
	host := strings.Map(func(r rune) rune {
		if r < 'a' || r > 'z' {
			return -1
		}
		return r
	}, name)
	return fmt.Sprintf(`{"url":"https://%s.example/","name":%q,"group":%q,"tags":[%s],"interval":%q,"enabled":true}`, host, name, group, tags, interval)
}

func TestEndpointsAreListedByNameInPages(t *testing.T) {
	t.Parallel()
	db, s := setup(t)
	db.BeginEndpoints(t)
	require.JSONEq(t, `{"items":[],"next":null}`, s.get(t, "/api/v1/endpoints").body)
	ids := map[string]uuid.UUID{}
	for i, name := range []string{"b", "a", "a", "d", "c"} {
		id := uuid.New()
		ids[fmt.Sprint(name, i)] = id
		db.PutEndpoint(t, id, aDocument(name, []string{"shop", "blog"}[i%2], []string{`"eu","prod"`, `"us"`}[i%2], "5m"), "ops")
	}
	gone := uuid.New()
	db.PutEndpoint(t, gone, aDocument("gone", "", "", "30s"), "ops")
	db.DeleteEndpoint(t, gone, "ops")

	names := func(path string) (names []string, next any) {
		t.Helper()
		a := s.get(t, path)
		require.Equal(t, 200, a.status, a.body)
		o := a.object(t)
		for _, item := range o["items"].([]any) {
			names = append(names, item.(map[string]any)["name"].(string))
		}
		return names, o["next"]
	}
	for limit := 1; limit <= 6; limit++ {
		var got []string
		for path := any(fmt.Sprintf("/api/v1/endpoints?limit=%d", limit)); path != nil; {
			var page []string
			page, path = names(path.(string))
			got = append(got, page...)
		}
		require.Equal(t, []string{"a", "a", "b", "c", "d"}, got, "in pages of %d", limit)
	}
	for query, want := range map[string][]string{
		"?group=blog": {"a", "d"}, "?tag=eu": {"a", "b", "c"}, "?tag=e": nil, "?q=C.EXAMPLE": {"c"}, "?q=%25": nil, "?group=shop&tag=prod&q=b": {"b"},
	} {
		got, _ := names("/api/v1/endpoints" + query)
		require.Equal(t, want, got, query)
	}
	_, next := names("/api/v1/endpoints?tag=eu&limit=1")
	got, _ := names(next.(string))
	require.Equal(t, []string{"b"}, got, "a page keeps the filter of the one before")
	for query, words := range map[string]string{"?after=%25": "no cursor", "?after=AAAA": "no cursor", "?q=%00": "q: it is no text", "?limit=0": `"limit"`} {
		a := s.get(t, "/api/v1/endpoints"+query)
		require.Equal(t, 400, a.status, query)
		require.Contains(t, a.object(t)["detail"], words)
	}
}

func TestOneEndpointAndItsHistory(t *testing.T) {
	t.Parallel()
	db, s := setup(t)
	db.BeginEndpoints(t)
	id := uuid.New()
	path := "/api/v1/endpoints/" + id.String()
	require.Equal(t, 404, s.get(t, path).status)
	require.Equal(t, 404, s.get(t, path+"/history").status)
	require.Equal(t, 400, s.get(t, "/api/v1/endpoints/42").status)
	require.Equal(t, 504, s.get(t, path+"?wait=0&position=endpoint.command.v1/0@0").status)

	first := db.PutEndpoint(t, id, `{"url":"https://a.example/","name":"a","group":"","tags":[],"interval":"30s","enabled":true,"retries":3}`, "ann")
	second := db.PutEndpoint(t, id, `{"url":"https://a.example/","name":"a","group":"","tags":["eu"],"interval":"1h30m","enabled":false,"retries":3}`, "bob")
	o := s.get(t, path+"?position=endpoint.command.v1/0@1").object(t)
	require.Equal(t, []any{"https://a.example/", "a", "", []any{"eu"}, "1h30m", false, "bob", second.String(), "endpoint.command.v1/0@1"},
		[]any{o["url"], o["name"], o["group"], o["tags"], o["interval"], o["enabled"], o["changed_by"], o["ticket"], o["position"]})
	require.EqualValues(t, 3, o["document"].(map[string]any)["retries"], "what this release does not know is shown too")
	ticket := s.get(t, "/api/v1/tickets/"+second.String()+"?position=endpoint.command.v1/0@1").object(t)
	require.Equal(t, []any{"applied", "endpoints"}, []any{ticket["state"], ticket["projection"]})
	require.Equal(t, "applied", s.get(t, "/api/v1/tickets/"+first.String()).object(t)["state"])
	ticket = s.get(t, "/api/v1/tickets/"+uuid.NewString()).object(t)
	require.Equal(t, []any{"unknown", nil, nil}, []any{ticket["state"], ticket["projection"], ticket["generation"]})

	third := db.DeleteEndpoint(t, id, "cid")
	a := s.get(t, path)
	require.Equal(t, 404, a.status)
	require.Contains(t, a.object(t)["detail"], "was deleted at")
	var got []map[string]any
	for next := any(path + "/history?limit=1"); next != nil; {
		a := s.get(t, next.(string))
		require.Equal(t, 200, a.status, a.body)
		for _, item := range a.object(t)["items"].([]any) {
			got = append(got, item.(map[string]any))
		}
		next = a.object(t)["next"]
	}
	require.Len(t, got, 3)
	require.Equal(t, []any{third.String(), "delete", "cid", nil}, []any{got[0]["ticket"], got[0]["kind"], got[0]["sent_by"], got[0]["document"]})
	require.Equal(t, []any{second.String(), "put", "bob"}, []any{got[1]["ticket"], got[1]["kind"], got[1]["sent_by"]})
	require.Equal(t, []any{
		map[string]any{"member": "enabled", "before": true, "after": false}, map[string]any{"member": "interval", "before": "30s", "after": "1h30m"},
		map[string]any{"member": "tags", "before": []any{}, "after": []any{"eu"}},
	}, got[1]["changes"])
	require.Equal(t, []any{first.String(), []any{}}, []any{got[2]["ticket"], got[2]["changes"]})
}

// A table that is being computed for the first time is a part, and a part is not shown as the whole.
func TestEndpointsAreNotShownBeforeTheyHaveCaughtUpOnce(t *testing.T) {
	t.Parallel()
	db, s := setup(t)
	a := s.get(t, "/api/v1/endpoints")
	require.Equal(t, 503, a.status, "never begun")
	require.Equal(t, "/problems/rebuilding", a.object(t)["type"])
	db.BeginEndpoints(t)
	id := uuid.New()
	db.PutEndpoint(t, id, aDocument("a", "", "", "30s"), "")
	require.Equal(t, 200, s.get(t, "/api/v1/endpoints").status)
	db.Must(t, `UPDATE endpoints.projection_progress SET caught_up_at = NULL, log_end = 8`)
	for _, path := range []string{"/api/v1/endpoints", "/api/v1/endpoints/" + id.String(), "/api/v1/endpoints/" + id.String() + "/history"} {
		a := s.get(t, path)
		require.Equal(t, 503, a.status, path)
		o := a.object(t)
		require.Equal(t, []any{"/problems/rebuilding", "endpoints", "1", "8", "12.5"}, []any{o["type"], o["projection"], o["done"], o["total"], o["percent"]})
		require.NotEmpty(t, a.header.Get("Retry-After"))
	}
	db.Must(t, `UPDATE endpoints.projection_progress SET caught_up_at = now() - interval '1 hour'`)
	require.Equal(t, 200, s.get(t, "/api/v1/endpoints").status, "behind is no part of a first time")
}

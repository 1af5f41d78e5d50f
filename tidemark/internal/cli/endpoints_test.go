package cli_test

import (
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/shared/problem"
)

const (
	site      = "6f2b8a0e-58cf-8d63-9a0d-0d1f3c1f3a55"
	change    = "endpoint.command.v1/2@7"
	endpoint1 = `{"id":"` + site + `","url":"https://example.org/","name":"shop","group":"eu","tags":["a","b"],"interval":"30s","enabled":true,"document":{"url":"https://example.org/"},
		"created_at":"2026-01-02T03:04:05Z","changed_at":"2026-01-03T03:04:05Z","changed_by":"ci","ticket":"` + id + `","position":"` + change + `"}`
)

// received is what the door was asked.
type received struct {
	path, key string
	body      map[string]any
}

func (r *received) accept(w http.ResponseWriter, req *http.Request) {
	r.path, r.key = req.Method+" "+req.URL.Path, req.Header.Get("Idempotency-Key")
	text, _ := io.ReadAll(req.Body)
	r.body = nil
	_ = json.Unmarshal(text, &r.body) // a delete has none
	w.Header().Set("Tidemark-Position", change)
	answer(http.StatusAccepted, `{"id":"`+id+`","endpoint_id":"`+site+`"}`)(w, req)
}

func TestAnEndpointIsAddedPutAndDeleted(t *testing.T) {
	t.Parallel()
	var got received
	s := services{
		"POST /api/v1/endpoints":        got.accept,
		"PUT /api/v1/endpoints/{id}":    got.accept,
		"DELETE /api/v1/endpoints/{id}": got.accept,
		"GET /api/v1/tickets/" + id: func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Query().Get("position") != change {
				refuse(problem.Problem{Status: 400})(w, r)
				return
			}
			answer(200, `{"id":"`+id+`","state":"applied","projection":"endpoints"}`)(w, r)
		},
	}
	status, out, errOut := run(t, s, "endpoints", "put", "--url", "https://example.org/")
	require.Zero(t, status, errOut)
	require.Equal(t, "POST /api/v1/endpoints", got.path)
	require.Equal(t, map[string]any{"url": "https://example.org/"}, got.body, "the door knows the defaults")
	require.Equal(t, uuid.Version(7), uuid.MustParse(got.key).Version())
	require.Equal(t, "endpoint  "+site+"\nticket    "+id+"\nposition  "+change+"\n", out)

	status, out, errOut = run(t, s, "endpoints", "put", site, "--url", "https://example.org/", "--name", "shop", "--group", "eu", "--tag", "a,b", "--tag", "c",
		"--interval", "30s", "--disabled", "--key", id, "--wait", "-o", "json")
	require.Zero(t, status, errOut)
	require.Equal(t, "PUT /api/v1/endpoints/"+site, got.path)
	require.Equal(t, id, got.key)
	require.Equal(t, map[string]any{
		"url": "https://example.org/", "name": "shop", "group": "eu", "tags": []any{"a", "b", "c"}, "interval": "30s", "enabled": false,
	}, got.body)
	require.JSONEq(t, `{"id":"`+id+`","endpoint_id":"`+site+`","position":"`+change+`","key":"`+id+`","state":"applied"}`, out)

	status, out, errOut = run(t, s, "endpoints", "delete", site, "--yes", "--wait")
	require.Zero(t, status, errOut)
	require.Equal(t, "DELETE /api/v1/endpoints/"+site, got.path)
	require.Contains(t, out, "applied")
	status, _, errOut = run(t, s, "endpoints", "put", site)
	require.Equal(t, 2, status, "the whole endpoint is put")
	require.Contains(t, errOut, "url")
}

func TestAnEndpointThatIsNotAcceptedSaysEveryPath(t *testing.T) {
	t.Parallel()
	s := services{"POST /api/v1/endpoints": func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", problem.ContentType)
		w.WriteHeader(400)
		_, _ = w.Write([]byte(`{"type":"/problems/bad-endpoint","title":"Endpoint not accepted","status":400,"errors":[{"path":"url","message":"expected http or https"},{"path":"tags[1]","message":"it is empty"}]}`))
	}}
	status, _, errOut := run(t, s, "endpoints", "put", "--url", "ftp://x")
	require.Equal(t, 3, status)
	require.Contains(t, errOut, "\n  url: expected http or https\n  tags[1]: it is empty\n")
	s["POST /api/v1/endpoints"] = refuse(problem.Problem{Status: 503, Detail: "no answer", Extra: map[string]string{"ticket": id, "retry_key": id}})
	status, _, errOut = run(t, s, "endpoints", "put", "--url", "https://example.org/", "--key", id)
	require.Equal(t, 4, status)
	require.Contains(t, errOut, "--key "+id)
}

func TestEndpointsAreListedShownAndTheirHistoryTold(t *testing.T) {
	t.Parallel()
	var queries []string
	s := services{
		"GET /api/v1/endpoints": func(w http.ResponseWriter, r *http.Request) {
			queries = append(queries, r.URL.RawQuery)
			if r.URL.Query().Get("after") == "" {
				answer(200, `{"items":[`+endpoint1+`],"next":"/api/v1/endpoints?after=c1&group=eu"}`)(w, r)
				return
			}
			answer(200, `{"items":[`+strings.Replace(endpoint1, `"enabled":true`, `"enabled":false`, 1)+`],"next":"/api/v1/endpoints?after=c2"}`)(w, r)
		},
		"GET /api/v1/endpoints/" + site: answer(200, endpoint1),
		"GET /api/v1/endpoints/{id}":    refuse(problem.Problem{Status: 404, Detail: "no endpoint has this id"}),
		"GET /api/v1/endpoints/" + site + "/history": answer(200, `{"items":[
			{"ticket":"`+id+`","kind":"put","document":{},"changes":[{"member":"interval","before":"30s","after":"1m"},{"member":"group","before":null,"after":"eu"}],"sent_by":"ci","created_at":"2026-01-03T03:04:05Z","position":"`+change+`"},
			{"ticket":"`+id+`","kind":"delete","document":null,"changes":[],"sent_by":"","created_at":"2026-01-02T03:04:05Z","position":"`+change+`"}],"next":null}`),
	}
	status, out, errOut := run(t, s, "endpoints", "list", "--group", "eu", "--tag", "a", "-q", "sho p", "--limit", "2")
	require.Zero(t, status, errOut)
	require.Equal(t, 2, strings.Count(out, site))
	require.Contains(t, out, "every 30s")
	require.Contains(t, out, "disabled")
	require.Contains(t, errOut, "--after c2")
	require.Equal(t, []string{"group=eu&limit=2&q=sho+p&tag=a", "after=c1&group=eu&limit=1&q=sho+p&tag=a"}, sortedQueries(queries))

	status, out, errOut = run(t, s, "endpoints", "get", site)
	require.Zero(t, status, errOut)
	for _, text := range []string{"https://example.org/", "shop", "a, b", "ci", change} {
		require.Contains(t, out, text)
	}
	status, _, errOut = run(t, s, "endpoints", "get", id)
	require.Equal(t, 5, status)
	require.Contains(t, errOut, "no endpoint has this id")
	status, out, errOut = run(t, s, "endpoints", "history", site)
	require.Zero(t, status, errOut)
	require.Contains(t, out, `interval: "30s" → "1m"; group: none → "eu"`)
	require.Contains(t, out, "delete")
	require.Contains(t, out, "nobody named")
}

// sortedQueries puts the parameters of each query in the order of their names.
func sortedQueries(raw []string) []string {
	var out []string
	for _, q := range raw {
		r, err := http.NewRequest(http.MethodGet, "/?"+q, nil)
		if err == nil {
			q = r.URL.Query().Encode()
		}
		out = append(out, q)
	}
	return out
}

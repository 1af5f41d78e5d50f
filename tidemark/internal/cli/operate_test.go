package cli_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/shared/problem"
	"github.com/tidemark/tidemark/tidemark/internal/cli"
)

// letterbox speaks the contract of dead letters: a list in pages, and decisions.
type letterbox struct {
	mu       sync.Mutex
	letters  []string // positions, all open
	queries  []string
	redriven map[string]string // payload by position
	given    []string          // discarded
	batches  []int
}

func (l *letterbox) services() services {
	return services{
		"GET /api/v1/deadletters": func(w http.ResponseWriter, r *http.Request) {
			l.mu.Lock()
			defer l.mu.Unlock()
			l.queries = append(l.queries, r.URL.RawQuery)
			start := 0
			for i, p := range l.letters {
				if p == r.URL.Query().Get("after") {
					start = i + 1
				}
			}
			end := min(start+700, len(l.letters))
			page := map[string]any{"items": []any{}, "next": nil}
			for _, p := range l.letters[start:end] {
				page["items"] = append(page["items"].([]any), map[string]any{
					"position": p, "payload": `{"event_timestamp":"month 13 of ` + p + `"}`, "payload_encoding": "utf-8", "reason_code": "decode",
					"reason": "it is no RFC 3339\ninstant", "first_seen_at": "2026-01-02T03:04:05Z", "state": "open", "headers": []any{},
				})
			}
			if end < len(l.letters) {
				page["next"] = "/api/v1/deadletters?after=" + strings.NewReplacer("/", "%2F", "@", "%40").Replace(l.letters[end-1])
			}
			text, _ := json.Marshal(page) // strings
			answer(200, string(text))(w, r)
		},
		"GET /api/v1/deadletters/{position}": func(w http.ResponseWriter, r *http.Request) {
			if r.PathValue("position") != at {
				refuse(problem.Problem{Status: 404, Detail: "no dead letter is there"})(w, r)
				return
			}
			answer(200, `{"position":"`+at+`","payload":"//8=","payload_encoding":"base64","payload_bytes":2,"headers":[{"key":"producer","value":"x"}],
				"reason_code":"decode","reason":"no JSON","first_seen_at":"2026-01-02T03:04:05Z","state":"redriven",
				"decision":{"decision":"redrive","ticket":"`+id+`","note":"month 13","by":"k1","position":"deadletter.command.v1/0@9","decided_at":"2026-01-02T03:04:06Z"}}`)(w, r)
		},
		"POST /api/v1/deadletters/redrive": func(w http.ResponseWriter, r *http.Request) {
			var body struct {
				Letters []struct{ Position, Payload string }
				Note    string
			}
			if json.NewDecoder(r.Body).Decode(&body) != nil || body.Note != "n" || len(body.Letters) > 1000 {
				refuse(problem.Problem{Status: 400})(w, r)
				return
			}
			l.mu.Lock()
			defer l.mu.Unlock()
			l.batches = append(l.batches, len(body.Letters))
			var results []map[string]string
			for _, d := range body.Letters {
				if strings.Contains(d.Payload, "month 13") {
					w.Header().Set("Content-Type", problem.ContentType)
					w.WriteHeader(422)
					_, _ = w.Write([]byte(`{"type":"/problems/still-broken","title":"Still broken","status":422,"detail":"nothing was written","errors":[{"position":"` + d.Position + `","reason":"month 13"}]}`))
					return
				}
			}
			for _, d := range body.Letters {
				l.redriven[d.Position] = d.Payload
				results = append(results, map[string]string{"position": d.Position, "ticket": id, "command": at, "decision": "deadletter.command.v1/0@1"})
			}
			text, _ := json.Marshal(map[string]any{"results": results})
			w.Header().Set("Tidemark-Position", "deadletter.command.v1/0@77")
			answer(200, string(text))(w, r)
		},
		"POST /api/v1/deadletters/discard": func(w http.ResponseWriter, r *http.Request) {
			var body struct{ Positions []string }
			if json.NewDecoder(r.Body).Decode(&body) != nil {
				refuse(problem.Problem{Status: 400})(w, r)
				return
			}
			l.mu.Lock()
			defer l.mu.Unlock()
			l.batches = append(l.batches, len(body.Positions))
			l.given = append(l.given, body.Positions...)
			answer(200, `{"results":[{"position":"`+body.Positions[0]+`","decision":"deadletter.command.v1/0@1"}]}`)(w, r)
		},
	}
}

func newLetterbox(n int) *letterbox {
	l := &letterbox{redriven: map[string]string{}}
	for i := range n {
		l.letters = append(l.letters, fmt.Sprintf("timestamp.command.v1/3@%d", 10_000+i))
	}
	return l
}

func TestDeadLettersAreListedPageByPage(t *testing.T) {
	t.Parallel()
	l := newLetterbox(1500)
	status, out, errOut := run(t, l.services(), "deadletters", "list", "--limit", "1000", "-q", "month 13", "--partition", "3")
	require.Zero(t, status, errOut)
	require.Equal(t, 1000, strings.Count(out, "\n"), "a line each")
	require.Contains(t, out, "it is no RFC 3339 instant")
	require.Contains(t, errOut, "--after timestamp.command.v1/3@10999")
	require.Contains(t, l.queries[0], "q=month+13")
	require.Contains(t, l.queries[0], "state=open")
	require.Contains(t, l.queries[0], "partition=3")
	require.Contains(t, l.queries[1], "after=timestamp.command.v1%2F3%4010699")

	status, out, errOut = run(t, l.services(), "deadletters", "list", "--after", "timestamp.command.v1/3@11400", "-o", "json")
	require.Zero(t, status, errOut)
	var page struct {
		Items []map[string]any
		Next  string
	}
	require.NoError(t, json.Unmarshal([]byte(out), &page))
	require.Len(t, page.Items, 50)
	require.Equal(t, "timestamp.command.v1/3@11450", page.Next)
}

func TestADeadLetterIsShownWithItsDecision(t *testing.T) {
	t.Parallel()
	status, out, errOut := run(t, newLetterbox(0).services(), "deadletters", "show", at)
	require.Zero(t, status, errOut)
	for _, words := range []string{at, "//8=", "base64", "redriven", "month 13", "k1", id, `"producer"`} {
		require.Contains(t, out, words)
	}
	status, _, errOut = run(t, newLetterbox(0).services(), "deadletters", "show", "timestamp.command.v1/3@43")
	require.Equal(t, 5, status)
	require.Contains(t, errOut, "no dead letter is there")
}

func TestWhatExportWritesRedriveTakesAfterEditing(t *testing.T) {
	t.Parallel()
	l := newLetterbox(2300)
	dir := t.TempDir()
	file := filepath.Join(dir, "letters.ndjson")
	status, out, errOut := run(t, l.services(), "deadletters", "export", "--file", file)
	require.Zero(t, status, errOut)
	require.Contains(t, out, "2300")
	exported, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Equal(t, 2300, bytes.Count(exported, []byte("\n")))

	status, _, errOut = run(t, l.services(), "deadletters", "redrive", "--file", file, "--yes", "--note", "n")
	require.Equal(t, 3, status, "nothing was edited")
	require.Contains(t, errOut, "timestamp.command.v1/3@10000: month 13")
	require.Contains(t, errOut, "timestamp.command.v1/3@12000: month 13", "each batch says its own")
	require.Empty(t, l.redriven)

	require.NoError(t, os.WriteFile(file, bytes.ReplaceAll(exported, []byte("month 13"), []byte("month 12")), 0o600))
	l.batches = nil
	status, out, errOut = run(t, l.services(), "deadletters", "redrive", "--file", file, "--yes", "--note", "n", "-o", "json")
	require.Zero(t, status, errOut)
	require.Equal(t, []int{1000, 1000, 300}, l.batches)
	require.Len(t, l.redriven, 2300)
	require.Equal(t, `{"event_timestamp":"month 12 of timestamp.command.v1/3@10007"}`, l.redriven["timestamp.command.v1/3@10007"])
	require.Contains(t, out, `"position": "deadletter.command.v1/0@77"`)
	require.Equal(t, 2300, strings.Count(out, `"ticket"`))

	require.NoError(t, os.WriteFile(file, []byte("{\"position\":\"p\",\"payload\":\"{}\"}\nbroken\n{}\n"), 0o600))
	status, _, errOut = run(t, l.services(), "deadletters", "redrive", "--file", file, "--yes")
	require.Equal(t, 2, status)
	require.Contains(t, errOut, "line 2")
	require.Contains(t, errOut, "line 3: it has no position")
}

func TestDeadLettersAreDiscardedByNameOrBySearch(t *testing.T) {
	t.Parallel()
	l := newLetterbox(1200)
	status, out, errOut := run(t, l.services(), "deadletters", "discard", at, "--yes")
	require.Zero(t, status, errOut)
	require.Contains(t, out, at)
	status, _, errOut = run(t, l.services(), "deadletters", "discard", "--all", "--reason-code", "decode", "--yes")
	require.Zero(t, status, errOut)
	require.Equal(t, []int{1, 1000, 200}, l.batches)
	require.Equal(t, append([]string{at}, l.letters...), l.given)
	for _, args := range [][]string{{"discard", at, "timestamp.command.v1/3@43"}, {"redrive", "timestamp.command.v1/3@43", "--payload", "{}"}} {
		status, _, errOut = run(t, l.services(), append([]string{"deadletters"}, args...)...)
		require.NotZero(t, status)
		require.Contains(t, errOut, "timestamp.command.v1/3@43: ")
		require.Contains(t, errOut, "no dead letter is there")
	}
	require.Len(t, l.batches, 3, "nothing was sent")
	for _, args := range [][]string{{"discard"}, {"discard", at, "--all"}, {"redrive"}, {"redrive", at}, {"redrive", "--file", "f", "--payload", "{}"}} {
		status, _, _ = run(t, l.services(), append([]string{"deadletters"}, args...)...)
		require.Equal(t, 2, status, args)
	}
}

// works speaks the contract of generations: generation 1 of timestamps is what a test is about, and each GET of it is the
// next of the states.
type works struct {
	mu      sync.Mutex
	states  []string // JSON of generation 1, one after the other; the last one stays
	asked   []string // bodies of POSTs that begin a rebuild
	done    []string
	refusal *problem.Problem
	alone   bool // there is no other projection
}

func generation(state, more string) string {
	return `{"projection":"timestamps","generation":1,"state":"` + state + `","epoch":7,"group":"g.g1","schema":"timestamps_g1","requested_at":"2026-01-02T03:04:05Z","state_since":"2026-01-02T03:04:06Z",
		"swap_wanted":true,"rate_limit":null,"point":null,"progress":{"done":500,"total":1000,"percent":50,"lag":500,"rate":1234.5,"eta_seconds":3,"bottleneck":"postgres","stalled_since":null,"note":""},
		"proof":null` + more + `}`
}

// another is a generation of the projection endpoints.
func another(number, state, more string) string {
	return strings.NewReplacer(`"generation":1`, `"generation":`+number, `"timestamps"`, `"endpoints"`, "timestamps_g1", "endpoints_g"+number).Replace(generation(state, more))
}

const badProof = `,"swap_wanted":false,"proof":{"ok":false,"at":"2026-01-02T03:05:00Z","took_ms":1500,"against":0,"vector":{"timestamp.command.v1/0":5},
	"tables":[{"table":"timestamp_records","ok":false,"rows_serving":5,"rows_candidate":4,"hash_serving":"a","hash_candidate":"b"}],
	"differences":[{"table":"timestamp_records","key":"` + id + `","serving":"(row)","candidate":null}],"finding":"1 row differs"}`

const goodProof = `,"proof":{"ok":true,"at":"2026-01-02T03:05:00Z","took_ms":1500,"against":0,"vector":{},"tables":[],"differences":[],"finding":""}`

const (
	timestamps = `{"projection":"timestamps","topic":"timestamp.command.v1","schema":"public","tables":["timestamp_records"],"running":true,"refusal":""}`
	endpoints  = `{"projection":"endpoints","topic":"endpoint.command.v1","schema":"endpoints","tables":["endpoint_commands","current_endpoints"],"running":true,"refusal":""}`
)

func (k *works) services() services {
	note := func(what string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			k.mu.Lock()
			defer k.mu.Unlock()
			if k.refusal != nil {
				problem.Write(w, *k.refusal)
				return
			}
			k.done = append(k.done, what)
			answer(202, k.states[0])(w, r)
		}
	}
	body := func(r *http.Request) {
		var body bytes.Buffer
		_, _ = body.ReadFrom(r.Body) // the test sees what is missing
		k.mu.Lock()
		defer k.mu.Unlock()
		k.asked = append(k.asked, body.String())
	}
	const of = "/api/v1/projections/timestamps/generations"
	all := `{"projections":[` + endpoints + `,` + timestamps + `]}`
	if k.alone {
		all = `{"projections":[` + timestamps + `]}`
	}
	return services{
		"GET /api/v1/projections": answer(200, all),
		"POST " + of: func(w http.ResponseWriter, r *http.Request) {
			body(r)
			note("start")(w, r)
		},
		"POST /api/v1/rebuilds": func(w http.ResponseWriter, r *http.Request) {
			body(r)
			answer(202, `{"generations":[`+another("2", "filling", "")+`,`+generation("queued", "")+`]}`)(w, r)
		},
		"GET " + of: func(w http.ResponseWriter, r *http.Request) {
			k.mu.Lock()
			defer k.mu.Unlock()
			answer(200, `{"generations":[`+strings.Replace(generation("serving", ""), `"generation":1`, `"generation":0`, 1)+`,`+k.states[0]+`]}`)(w, r)
		},
		"GET /api/v1/projections/endpoints/generations":   answer(200, `{"generations":[`+another("0", "serving", "")+`]}`),
		"GET /api/v1/projections/endpoints/generations/2": answer(200, another("2", "serving", goodProof)),
		"GET " + of + "/1": func(w http.ResponseWriter, r *http.Request) {
			k.mu.Lock()
			defer k.mu.Unlock()
			state := k.states[0]
			if len(k.states) > 1 {
				k.states = k.states[1:]
			}
			if state == "" {
				refuse(problem.Problem{Status: 404, Detail: "there is no generation 1"})(w, r)
				return
			}
			answer(200, state)(w, r)
		},
		"POST " + of + "/1/swap":  note("swap"),
		"POST " + of + "/1/proof": note("proof"),
		"DELETE " + of + "/1":     note("drop"),
	}
}

func TestRebuildIsWatchedToItsEnd(t *testing.T) {
	t.Parallel()
	states := []string{generation("filling", ""), generation("indexing", ""), generation("ready", ""), generation("ready", goodProof), generation("serving", goodProof+`,"fill_ms":18800,"index_ms":2100`)}
	for name, k := range map[string]*works{"the only one": {states: states, alone: true}, "named": {states: states}} {
		args := []string{"rebuild", "--rate-limit", "5000", "--replace-standby", "--yes"}
		if !k.alone {
			args = append(args, "--projection", "timestamps")
		}
		status, out, errOut := run(t, k.services(), args...)
		require.Zero(t, status, "%s: %s", name, errOut)
		require.JSONEq(t, `{"swap":true,"rate_limit":5000,"replace_standby":true}`, k.asked[0])
		require.Contains(t, out, "1, serving since")
		require.Contains(t, out, "passed (against generation 0")
		require.Regexp(t, `phases +fill 18\.8 s, index 2\.1 s`, out)
		require.Contains(t, errOut, "timestamps generation 1 filling  50.0%  1234 records/s, caught up in 3s, postgres is the bottleneck\n", "plain lines in a pipe")
		require.Contains(t, errOut, "generation 1 ready")
	}
}

func TestARebuildWithoutANameIsOfAll(t *testing.T) {
	t.Parallel()
	k := &works{states: []string{generation("queued", ""), generation("filling", ""), generation("serving", goodProof)}}
	status, out, errOut := run(t, k.services(), "rebuild", "--replace-standby", "--yes", "-o", "json")
	require.Zero(t, status, errOut)
	require.JSONEq(t, `{"swap":true,"replace_standby":true}`, k.asked[0])
	require.Contains(t, errOut, "Rebuilding endpoints and timestamps, one after the other")
	require.Contains(t, errOut, "timestamps generation 1 filling")
	var said struct {
		Generations []struct{ Projection, State string }
	}
	require.NoError(t, json.Unmarshal([]byte(out), &said))
	require.Equal(t, []struct{ Projection, State string }{{"endpoints", "serving"}, {"timestamps", "serving"}}, said.Generations)

	k = &works{states: []string{generation("ready", badProof)}}
	status, out, errOut = run(t, k.services(), "rebuild")
	require.Equal(t, 1, status, "one of them has failed")
	require.Contains(t, out, "endpoints")
	require.Contains(t, out, "FAILED: 1 row differs")
	require.Contains(t, errOut, "nothing was swapped")
}

func TestARebuildToAPointIsOfOneProjection(t *testing.T) {
	t.Parallel()
	k := &works{states: []string{generation("held", "")}}
	status, _, errOut := run(t, k.services(), "rebuild", "--projection", "timestamps", "--to-time", "2026-11-03T00:00:00Z")
	require.Zero(t, status, errOut)
	require.JSONEq(t, `{"swap":false,"to":{"time":"2026-11-03T00:00:00Z"}}`, k.asked[0])
	status, _, errOut = run(t, k.services(), "rebuild", "--to-position", at)
	require.Zero(t, status, "the position's topic names it: %s", errOut)
	require.JSONEq(t, `{"swap":false,"to":{"position":"`+at+`"}}`, k.asked[1])
	for want, args := range map[string][]string{
		"name it with --projection":                     {"--to-time", "2026-11-03T00:00:00Z"},
		"no projection reads the topic check.result.v1": {"--to-position", "check.result.v1/0@1"},
		"--to-position: ":                               {"--to-position", "yesterday"},
		`there is no projection "endpoint": there are endpoints and timestamps`: {"--projection", "endpoint"},
	} {
		status, _, errOut = run(t, k.services(), append([]string{"rebuild"}, args...)...)
		require.Equal(t, 2, status, args)
		require.Contains(t, errOut, want)
	}
	require.Len(t, k.asked, 2, "nothing was sent")
}

// With consumer-service down the states of rebuilds are in the database still, which query-service reads.
func TestTheStatusOfARebuildIsKnownWithConsumerServiceDown(t *testing.T) {
	t.Parallel()
	mux := http.NewServeMux()
	mux.HandleFunc("GET /api/v1/projections", answer(200, `{"projections":[{"projection":"timestamps"}]}`))
	mux.HandleFunc("GET /api/v1/projections/timestamps/generations", answer(200, `{"projection":"timestamps","generations":[`+generation("filling", "")+`]}`))
	query := httptest.NewServer(mux)
	defer query.Close()
	gone := httptest.NewServer(mux)
	gone.Close()
	var out, errOut bytes.Buffer
	status := cli.Run(t.Context(), []string{"rebuild", "status"}, cli.Surroundings{
		Environ: map[string]string{"CONSUMER_URL": gone.URL, "QUERY_URL": query.URL, "HOME": t.TempDir()}, Out: &out, Err: &errOut,
	})
	require.Equal(t, 1, status)
	require.Contains(t, out.String(), "500 of 1000 (50.0%)")
	require.Contains(t, errOut.String(), "consumer-service is down")
}

func TestAProofThatFailsIsShown(t *testing.T) {
	t.Parallel()
	k := &works{states: []string{generation("filling", ""), generation("ready", badProof)}}
	status, out, errOut := run(t, k.services(), "rebuild", "--projection", "timestamps")
	require.Equal(t, 1, status)
	require.Contains(t, out, "FAILED: 1 row differs")
	require.Contains(t, out, id)
	require.Contains(t, out, "candidate: (no row)")
	require.Contains(t, errOut, "nothing was swapped")
	require.Contains(t, errOut, "tidemark rebuild drop 1")
}

func TestRebuildSteps(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		states []string
		args   []string
		status int
		done   string
		says   string
	}{
		"start":           {[]string{generation("filling", "")}, []string{"start", "--no-swap", "--projection", "timestamps"}, 0, "start", "filling since"},
		"start all":       {[]string{generation("filling", "")}, []string{"start"}, 0, "", "1, queued since"},
		"status":          {[]string{generation("filling", "")}, []string{"status"}, 0, "", "500 of 1000 (50.0%)"},
		"status of all":   {[]string{generation("filling", "")}, []string{"status"}, 0, "", "endpoints"},
		"status of one":   {[]string{generation("filling", "")}, []string{"status", "1"}, 0, "", "timestamps_g1"},
		"one of several":  {[]string{generation("filling", "")}, []string{"status", "0"}, 2, "", "endpoints and timestamps have a generation 0 each: name one with --projection"},
		"one of one":      {[]string{generation("filling", "")}, []string{"status", "0", "--projection", "endpoints"}, 0, "", "0, serving since"},
		"no such":         {[]string{generation("filling", "")}, []string{"drop", "7"}, 5, "", "there is no generation 7"},
		"no such one":     {[]string{generation("filling", "")}, []string{"swap", "--projection", "check"}, 2, "", "there are endpoints and timestamps"},
		"watch":           {[]string{generation("filling", ""), generation("ready", `,"swap_wanted":false`+goodProof)}, []string{"watch"}, 0, "", "passed"},
		"swap":            {[]string{generation("standby", ""), generation("serving", goodProof)}, []string{"swap"}, 0, "swap", "serving since"},
		"swap of another": {[]string{generation("standby", "")}, []string{"swap", "--projection", "endpoints"}, 5, "", "endpoints: 0 is serving"},
		"swap fails":      {[]string{generation("ready", badProof)}, []string{"swap", "1", "--projection", "timestamps"}, 1, "swap", "FAILED"},
		"verify":          {[]string{generation("ready", ""), generation("ready", goodProof)}, []string{"verify"}, 0, "proof", "passed"},
		"drop":            {[]string{generation("dropping", ""), ""}, []string{"drop", "1", "--yes"}, 0, "drop", "1, dropped"},
		"gone":            {[]string{generation("filling", ""), ""}, []string{"watch", "1"}, 1, "", "cancelled or dropped"},
		"nothing to":      {[]string{generation("filling", "")}, []string{"swap"}, 5, "", "timestamps: 1 is filling"},
		"no number":       {[]string{generation("filling", "")}, []string{"drop", "one"}, 2, "", "tidemark rebuild status"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			k := &works{states: tc.states}
			if name == "swap fails" {
				// the proof that is there before the swap is asked for is not the one that is waited for
				k.states = []string{generation("ready", "")}
				s := k.services()
				s["POST /api/v1/projections/timestamps/generations/1/swap"] = func(w http.ResponseWriter, r *http.Request) {
					k.mu.Lock()
					defer k.mu.Unlock()
					k.done, k.states = append(k.done, "swap"), tc.states
					answer(202, k.states[0])(w, r)
				}
				status, out, errOut := run(t, s, append([]string{"rebuild"}, tc.args...)...)
				require.Equal(t, tc.status, status, errOut)
				require.Contains(t, out+errOut, tc.says)
				return
			}
			status, out, errOut := run(t, k.services(), append([]string{"rebuild"}, tc.args...)...)
			require.Equal(t, tc.status, status, errOut)
			require.Contains(t, out+errOut, tc.says)
			require.Equal(t, tc.done, strings.Join(k.done, " "))
		})
	}
	k := &works{states: []string{generation("filling", "")}, refusal: &problem.Problem{Status: 409, Detail: "generation 1 is filling, cancel it first"}}
	status, _, errOut := run(t, k.services(), "rebuild", "--projection", "timestamps")
	require.Equal(t, 3, status)
	require.Contains(t, errOut, "cancel it first")
	k.refusal = &problem.Problem{Type: "/problems/not-running", Status: 503, Detail: "no process runs timestamps: start a consumer-service whose PROJECTIONS names it"}
	status, _, errOut = run(t, k.services(), "rebuild", "--projection", "timestamps")
	require.Equal(t, 1, status)
	require.Contains(t, errOut, "no process runs timestamps")
}

func TestAudit(t *testing.T) {
	t.Parallel()
	const found = `{"projection":"timestamps","ok":false,"audited_at":"2026-01-02T03:04:05Z","partitions":[{"partition":0,"ok":true,"rows_found":5},{"partition":1,"ok":false,"finding":"7 rows are missing"}]}`
	s := services{
		"GET /api/v1/projections":                   answer(200, `{"projections":[`+summary("checks", "off", "null")+`,`+summary("endpoints", "serving", "true")+`,`+summary("timestamps", "serving", "true")+`]}`),
		"POST /api/v1/projections/timestamps/audit": answer(200, found),
		"POST /api/v1/projections/endpoints/audit":  answer(200, `{"projection":"endpoints","ok":true,"audited_at":"2026-01-02T03:04:05Z","partitions":[{"partition":0,"ok":true,"rows_found":3}]}`),
		"GET /api/v1/projections/timestamps":        answer(200, `{"projection":"timestamps","audit":{"ok":true,"last_run":"2026-01-02T03:04:05Z"}}`),
		"GET /api/v1/projections/endpoints":         answer(200, `{"projection":"endpoints","audit":{"ok":null,"last_run":null}}`),
	}
	status, out, errOut := run(t, s, "audit", "--now")
	require.Equal(t, 1, status)
	require.Contains(t, out, "NOT ok: 7 rows are missing")
	require.Contains(t, out, "ok: 5 rows")
	require.Contains(t, out, "ok: 3 rows")
	require.Contains(t, errOut, "the audit of timestamps has found something")
	require.NotContains(t, out+errOut, "checks", "it was never begun")
	require.Contains(t, errOut, "KAFKA_GROUP_ID that never served")
	status, _, errOut = run(t, s, "audit", "--now", "--projection", "endpoints")
	require.Zero(t, status, errOut)

	status, out, errOut = run(t, s, "audit", "-o", "json")
	require.Equal(t, 1, status)
	require.Contains(t, errOut, "not every partition of endpoints was audited yet")
	require.JSONEq(t, `{"ok":false,"audits":[
		{"projection":"endpoints","ok":null,"last_run":null,"missing":0,"partitions":null},
		{"projection":"timestamps","ok":true,"last_run":"2026-01-02T03:04:05Z","missing":0,"partitions":null}]}`, out)
	status, out, errOut = run(t, s, "audit", "--projection", "timestamps")
	require.Zero(t, status, errOut)
	require.Contains(t, out, "ok, last run 2026-01-02T03:04:05Z")
	status, _, errOut = run(t, s, "audit", "--projection", "states")
	require.Equal(t, 2, status)
	require.Contains(t, errOut, `there is no projection "states": there are checks, endpoints and timestamps`)

	status, _, errOut = run(t, services{"GET /api/v1/projections": answer(200, `{"projections":[`+summary("checks", "off", "null")+`]}`)}, "audit")
	require.Equal(t, 5, status)
	require.Contains(t, errOut, "no projection was begun yet")
	s["POST /api/v1/projections/endpoints/audit"] = refuse(problem.Problem{Status: 503, Detail: "no process runs endpoints"})
	status, out, errOut = run(t, s, "audit", "--now")
	require.Equal(t, 1, status)
	require.Contains(t, errOut, "no process runs endpoints")
	require.Contains(t, out, "7 rows are missing", "the others were audited all the same")
}

func TestDoctorSaysWhatToDo(t *testing.T) {
	t.Parallel()
	var out, errOut bytes.Buffer
	status := cli.Run(t.Context(), []string{"doctor", "--data", t.TempDir(), "-o", "json"}, cli.Surroundings{
		Environ: map[string]string{
			"COMMAND_URL": "http://127.0.0.1:1", "CONSUMER_URL": "http://127.0.0.1:1", "QUERY_URL": "http://127.0.0.1:1",
			"KAFKA_BROKERS": "127.0.0.1:1", "DB_URL": "postgres://u:topsecret@127.0.0.1:1/d?sslmode=disable", "KAFKA_BROKER": "older", "BATCH_SIZE": "many",
		}, Out: &out, Err: &errOut,
	})
	require.Equal(t, 1, status)
	require.NotContains(t, out.String()+errOut.String(), "topsecret")
	var said struct {
		OK       bool
		Findings []struct{ Check, Status, Found, Do string }
	}
	require.NoError(t, json.Unmarshal(out.Bytes(), &said))
	require.False(t, said.OK)
	failed := map[string]string{}
	for _, f := range said.Findings {
		if f.Status != "ok" {
			require.NotEmpty(t, f.Do, "%+v", f)
			failed[f.Check] += f.Found
		}
	}
	for check, words := range map[string]string{
		"configuration": "KAFKA_BROKERS", "command-service": "refused", "consumer-service": "refused", "query-service": "refused", "broker": "127.0.0.1:1", "database": "refused",
	} {
		require.Contains(t, failed[check], words)
	}
	require.Contains(t, failed["configuration"], "BATCH_SIZE")
}

func TestCompletionIsAScript(t *testing.T) {
	t.Parallel()
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		status, out, errOut := run(t, nil, "completion", shell)
		require.Zero(t, status, errOut)
		require.Contains(t, out, "tidemark")
	}
	status, out, _ := run(t, nil, "__complete", "deadletters", "re")
	require.Zero(t, status)
	require.Contains(t, out, "redrive")
	status, out, _ = run(t, (&works{}).services(), "__complete", "rebuild", "--projection", "")
	require.Zero(t, status)
	require.Contains(t, out, "endpoints\ntimestamps\n")
}

func TestABarOnATerminal(t *testing.T) {
	t.Parallel()
	l := newLetterbox(2100)
	s := l.services()
	mux := http.NewServeMux()
	for pattern, handler := range s {
		mux.HandleFunc(pattern, handler)
	}
	server := httptest.NewServer(mux)
	defer server.Close()
	url := server.URL
	var out, errOut bytes.Buffer
	status := cli.Run(t.Context(), []string{"deadletters", "discard", "--all", "--yes"}, cli.Surroundings{
		Environ: map[string]string{"COMMAND_URL": url, "QUERY_URL": url}, Out: &out, Err: &errOut, Terminal: true,
	})
	require.Zero(t, status)
	require.Contains(t, errOut.String(), "\r", "it draws over itself")
	require.Contains(t, errOut.String(), "of 2100")
	require.NotContains(t, out.String(), "\r")
}

package cli_test

import (
	"bufio"
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

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/shared/problem"
	"github.com/tidemark/tidemark/tidemark/internal/cli"
)

// doorway speaks the contract of the bulk stream. Each line goes through judge, which answers nil for an accepted one.
type doorway struct {
	judge   func(line int, id string) map[string]any
	cutAt   func(line int) bool // the connection breaks before this line's answer
	refuses func(stream int) *problem.Problem

	mu      sync.Mutex
	streams int
	got     []string          // every line that came
	rows    map[string]string // accepted, by id
	keys    []string          // Authorization
}

func (d *doorway) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	d.mu.Lock()
	d.streams++
	stream := d.streams
	d.keys = append(d.keys, r.Header.Get("Authorization"))
	d.mu.Unlock()
	rc := http.NewResponseController(w)
	if err := rc.EnableFullDuplex(); err != nil {
		problem.Write(w, problem.Problem{Status: 500})
		return
	}
	if d.refuses != nil {
		if p := d.refuses(stream); p != nil {
			problem.Write(w, *p)
			return
		}
	}
	if r.Header.Get("Content-Type") != "application/x-ndjson" {
		problem.Write(w, problem.Problem{Status: 415})
		return
	}
	in := bufio.NewScanner(r.Body)
	for line := 1; in.Scan(); line++ {
		if d.cutAt != nil && d.cutAt(line) {
			conn, _, err := rc.Hijack()
			if err == nil {
				_ = conn.Close()
			}
			return
		}
		var wanted struct {
			ID string `json:"id"`
			At string `json:"event_timestamp"`
		}
		broken := json.Unmarshal(in.Bytes(), &wanted) != nil
		d.mu.Lock()
		d.got = append(d.got, in.Text())
		answer := map[string]any{"line": line}
		var refused map[string]any
		if broken || wanted.At == "broken" {
			refused = map[string]any{"type": "/problems/bad-instant", "title": "Instant not accepted", "status": 400, "detail": "it is broken"}
		} else if d.judge != nil {
			refused = d.judge(line, wanted.ID)
		}
		if refused == nil {
			if d.rows == nil {
				d.rows = map[string]string{}
			}
			d.rows[wanted.ID] = wanted.At
			answer["id"], answer["position"] = wanted.ID, fmt.Sprintf("timestamp.command.v1/0@%d", len(d.got))
		} else {
			answer["error"] = refused
		}
		d.mu.Unlock()
		text, _ := json.Marshal(answer) // strings and numbers
		_, _ = w.Write(append(text, '\n'))
		_ = rc.Flush() // the test sees what is missing
	}
}

// stamp runs tidemark stamp --file with its input against the doorway.
func (d *doorway) stamp(t *testing.T, input string, args ...string) (status int, out, errOut string) {
	t.Helper()
	server := httptest.NewServer(d)
	defer server.Close()
	file := filepath.Join(t.TempDir(), "it's a file")
	require.NoError(t, os.WriteFile(file, []byte(input), 0o600))
	return d.stampAt(t, server.URL, strings.NewReader(input), append([]string{"stamp", "--file", file}, args...)...)
}

func (d *doorway) stampAt(t *testing.T, url string, in *strings.Reader, args ...string) (status int, out, errOut string) {
	t.Helper()
	var stdout, stderr bytes.Buffer
	status = cli.Run(t.Context(), args, cli.Surroundings{
		Environ: map[string]string{"COMMAND_URL": url, "TIDEMARK_API_KEY": "tmk_secret"}, In: in, Out: &stdout, Err: &stderr,
	})
	return status, stdout.String(), stderr.String()
}

func lines(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "2026-01-02T03:%02d:%02dZ\n", i/60%60, i%60)
	}
	return b.String()
}

const batch = "01920b5c-7d4e-7cc3-98c4-dc0c0c07398f"

func TestEachLineOfAFileIsACommandWithAKey(t *testing.T) {
	t.Parallel()
	d := &doorway{}
	input := "2009-09-28T19:03:12Z\n\n\"2009-09-28T19:03:13Z\"\n{\"event_timestamp\":\"2009-09-28T19:03:14Z\"}\n {} \n" +
		`{"id":"6f2b8a0e-58cf-4d63-9a0d-0d1f3c1f3a55","event_timestamp":"2009-09-28T19:03:15Z"}`
	status, out, errOut := d.stamp(t, input, "-o", "json", "--key", batch)
	require.Zero(t, status, errOut)
	require.Len(t, d.got, 5)
	require.Equal(t, []string{"Bearer tmk_secret"}, d.keys)
	var last uuid.UUID
	for i, at := range []string{"2009-09-28T19:03:12Z", "2009-09-28T19:03:13Z", "2009-09-28T19:03:14Z", ""} {
		var sent struct {
			ID uuid.UUID
			At string `json:"event_timestamp"`
		}
		require.NoError(t, json.Unmarshal([]byte(d.got[i]), &sent), d.got[i])
		require.Equal(t, at, sent.At)
		require.Equal(t, uuid.Version(7), sent.ID.Version())
		require.Equal(t, uuid.RFC4122, sent.ID.Variant())
		require.Equal(t, batch[:13], sent.ID.String()[:13], "the time is that of --key")
		require.Positive(t, bytes.Compare(sent.ID[:], last[:]), "they ascend")
		last = sent.ID
	}
	require.Contains(t, d.rows, "6f2b8a0e-58cf-4d63-9a0d-0d1f3c1f3a55")
	answers := strings.Split(strings.TrimSpace(out), "\n")
	require.Len(t, answers, 6)
	require.Contains(t, answers[1], `{"line":3,"id":"`, "its number in the file")
	require.Contains(t, answers[4], `"key":"6f2b8a0e-58cf-4d63-9a0d-0d1f3c1f3a55"`)
	require.Contains(t, answers[5], `"accepted":5`)
	require.Equal(t, 1, strings.Count(errOut, "\n"), errOut)
	before := d.got

	again := &doorway{}
	status, _, errOut = again.stamp(t, strings.Replace(input, "12Z", "11Z", 1), "--key", batch)
	require.Zero(t, status, errOut)
	key := func(line string) string { return line[:len(`{"id":"`)+36] }
	require.NotEqual(t, key(before[0]), key(again.got[0]), "another content is another command")
	require.Equal(t, before[1:], again.got[1:], "the same line under the same --key is the same command")
}

func TestTheStandardInputIsAFileToo(t *testing.T) {
	t.Parallel()
	d := &doorway{}
	server := httptest.NewServer(d)
	defer server.Close()
	status, out, errOut := d.stampAt(t, server.URL, strings.NewReader(lines(3)), "stamp", "-f", "-")
	require.Zero(t, status, errOut)
	require.Len(t, d.rows, 3)
	require.Regexp(t, `(?s)^line 1  [0-9a-f-]{36}  timestamp.command.v1/0@1\n.*line 3 .*accepted +3\ntook .* a second\nkey +[0-9a-f-]{36}\n$`, out)
}

func TestWhatABrokenStreamLeavesGoesAgainUnderTheSameKey(t *testing.T) {
	t.Parallel()
	const n = 20_000
	breaks := 0
	d := &doorway{cutAt: func(line int) bool {
		if line == 3000 && breaks < 3 {
			breaks++
			return true
		}
		return false
	}}
	status, out, errOut := d.stamp(t, lines(n), "-o", "json")
	require.Zero(t, status, errOut)
	require.Equal(t, 4, d.streams)
	require.Len(t, d.rows, n)
	answers := map[float64]int{}
	for _, text := range strings.Split(strings.TrimSpace(out), "\n") {
		var a map[string]any
		require.NoError(t, json.Unmarshal([]byte(text), &a))
		if line, ok := a["line"].(float64); ok {
			answers[line]++
			_, there := d.rows[fmt.Sprint(a["id"])]
			require.True(t, there, text)
		}
	}
	require.Len(t, answers, n)
	for line, times := range answers {
		require.Equal(t, 1, times, line)
	}
}

func TestLinesThatTheLogDidNotTakeGoAgain(t *testing.T) {
	t.Parallel()
	tried := map[string]int{}
	d := &doorway{judge: func(_ int, id string) map[string]any {
		if tried[id]++; tried[id] < 3 {
			return map[string]any{"type": "/problems/outcome-unknown", "status": 503, "detail": "no answer came", "ticket": id, "retry_key": id}
		}
		return nil
	}}
	status, out, errOut := d.stamp(t, lines(50))
	require.Zero(t, status, errOut)
	require.Contains(t, out, "accepted  50")
	require.Len(t, d.rows, 50)
	require.Len(t, d.got, 150)
	require.Equal(t, 1, d.streams)
}

func TestRefusedLinesAreNamedAndTheOthersGoOn(t *testing.T) {
	t.Parallel()
	d := &doorway{}
	status, out, errOut := d.stamp(t, "2009-09-28T19:03:12Z\n\"broken\"\n"+strings.Repeat("9", 5000)+"\n{\"event_timestamp\":\n2009-09-28T19:03:13Z\n")
	require.Equal(t, 3, status)
	require.Contains(t, out, "accepted  2")
	require.Contains(t, out, "refused   3")
	require.Contains(t, errOut, "line 2: it is broken")
	require.Contains(t, errOut, "line 3: with its key it is longer than 4096 bytes")
	require.Contains(t, errOut, "line 4: it is broken")
	require.Contains(t, errOut, "3 of 5 lines were refused")
	require.Len(t, d.got, 4, "the long one stays here")
}

func TestARunThatGivesUpSaysHowToGoOn(t *testing.T) {
	t.Parallel()
	d := &doorway{judge: func(line int, _ string) map[string]any {
		if line > 100 {
			return map[string]any{"type": "/problems/log-down", "status": 503, "detail": "the log is down"}
		}
		return nil
	}}
	input := lines(200)
	status, out, errOut := d.stamp(t, input, "--retry-for", "300ms", "--key", batch)
	require.Equal(t, 4, status)
	require.Contains(t, out, "accepted  100")
	require.Contains(t, errOut, "no line was accepted for 300ms")
	require.Contains(t, errOut, "every line below 101 is settled")
	require.Contains(t, errOut, "it'\\''s a file' --key "+batch+" --from-line 101")

	d.judge = nil
	status, _, errOut = d.stamp(t, input, "--key", batch, "--from-line", "101")
	require.Zero(t, status, errOut)
	require.Len(t, d.rows, 200)
}

func TestAStreamThatIsRefusedAsAWholeIsNotTriedAgain(t *testing.T) {
	t.Parallel()
	d := &doorway{refuses: func(int) *problem.Problem {
		return &problem.Problem{Status: 401, Detail: "no key, or one that is not taken"}
	}}
	status, _, errOut := d.stamp(t, lines(10))
	require.Equal(t, 3, status)
	require.Equal(t, 1, d.streams)
	require.Contains(t, errOut, "no key, or one that is not taken")

	down := &doorway{refuses: func(stream int) *problem.Problem {
		if stream < 3 {
			return &problem.Problem{Status: 503, Detail: "the log is down"}
		}
		return nil
	}}
	status, _, errOut = down.stamp(t, lines(10))
	require.Zero(t, status, errOut)
	require.Len(t, down.rows, 10)
}

func TestNobodyTakesTheFile(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(http.NotFoundHandler())
	url := server.URL
	server.Close()
	status, _, errOut := new(doorway).stampAt(t, url, strings.NewReader(lines(5)), "stamp", "-f", "-", "--retry-for", "200ms")
	require.Equal(t, 1, status)
	require.Contains(t, errOut, "tidemark up")
	for _, args := range [][]string{{"stamp", "-f", "/nowhere"}, {"stamp", "-f", "-", "2009-09-28T19:03:12Z"}, {"stamp", "-f", "-", "--key", "6f2b8a0e-58cf-4d63-9a0d-0d1f3c1f3a55"}} {
		status, _, _ = new(doorway).stampAt(t, url, strings.NewReader(""), args...)
		require.Equal(t, 2, status, args)
	}
}

package compose_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/integration/stack"
	"github.com/tidemark/tidemark/integration/story"
	"github.com/tidemark/tidemark/shared/await"
	"github.com/tidemark/tidemark/shared/limits"
	"github.com/tidemark/tidemark/shared/service"
)

func TestTheFrontIsMadeFromTheTableOfLimits(t *testing.T) {
	t.Parallel()
	content, err := os.ReadFile(filepath.Join(folder(t), "nginx", "nginx.conf"))
	require.NoError(t, err)
	for _, line := range []string{
		fmt.Sprintf("\tclient_max_body_size %dm;", limits.LargestBody>>20),
		fmt.Sprintf("\tlarge_client_header_buffers 4 %dk;", limits.Header>>10),
		fmt.Sprintf("larger than the %d bytes that any route takes", limits.LargestBody),
		fmt.Sprintf("the headers are larger than the %d bytes", limits.Header),
	} {
		require.Contains(t, string(content), line)
	}
}

// What one part of a request's way sends, the next one takes: 150 letters of 12 kB, which JSON makes 3.6 MB, are redriven
// through the front in as many requests as they need. What is too large anywhere on the way is a problem in words.
func TestLimitsAgreeAlongThePath(t *testing.T) {
	const letters, size = 150, 12_000
	h := newByHand(t, "alone")
	broker, err := stack.StartEmbeddedBroker(t.Context())
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, broker.Close(context.Background())) })
	database, err := stack.StartPostgres(t.Context())
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, database.Close()) })
	url, err := database.CreateDatabase(t.Context(), "tidemark_limits")
	require.NoError(t, err)
	h.places["kafka-1:9092"] = broker.Brokers()[0]
	h.run(url)

	log, err := story.OpenLog(broker.Brokers())
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, log.Close()) })
	var messages []story.Message
	for range letters {
		id := uuid.NewString()
		value := fmt.Sprintf(`{"command_id":%q,%s"event_timestamp":"2026-13-01T00:00:00Z"}`, id, strings.Repeat("\t", size)) // no such month
		messages = append(messages, story.Message{Partition: story.AnyPartition, Key: id, Value: []byte(value)})
	}
	_, err = log.Write(messages...)
	require.NoError(t, err)
	await.Until(t, func() bool { return h.openLetters() == letters }, "the letters are listed")

	file := filepath.Join(h.dir, "letters.ndjson")
	exported := h.tidemark("deadletters", "export")
	require.Greater(t, len(exported), letters*2*size, "JSON writes each of them longer")
	require.NoError(t, os.WriteFile(file, bytes.ReplaceAll(exported, []byte("2026-13-01"), []byte("2026-12-01")), 0o600))
	h.tidemark("deadletters", "redrive", "--file", file, "--yes")
	await.Until(t, func() bool { return h.openLetters() == 0 }, "all are redriven")

	for _, c := range []struct {
		what, method, path string
		body, header       int
		status             int
		detail             string
	}{
		{"a body that the service refuses", http.MethodPost, "/api/v1/timestamp", limits.Body + 1, 0, 413, "larger than the 65536 bytes"},
		{"a body past the usual limit of a front", http.MethodPost, "/api/v1/deadletters/discard", limits.DiscardBody + 1, 0, 413, "larger than the 1048576 bytes"},
		{"a body of the largest size", http.MethodPost, "/api/v1/deadletters/redrive", limits.RedriveBody, 0, 400, ""},
		{"a body that the front refuses", http.MethodPost, "/api/v1/deadletters/redrive", limits.LargestBody + 1, 0, 413, "larger than the 8388608 bytes"},
		{"headers past the usual limit of a front", http.MethodGet, "/api/v1/timestamps", 0, limits.Header / 2, 200, ""},
		{"a header that the front refuses", http.MethodGet, "/api/v1/timestamps", 0, limits.Header + 1, 431, "larger than the 65536 bytes"},
	} {
		req, err := http.NewRequestWithContext(t.Context(), c.method, h.front+c.path, bytes.NewReader(make([]byte, c.body)))
		require.NoError(t, err)
		req.Header.Set("Authorization", "Bearer "+h.key)
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("X-Padding", strings.Repeat("a", c.header))
		res, err := insecure.Do(req)
		require.NoError(t, err, c.what)
		var problem struct {
			Status int
			Title  string
			Detail string
		}
		if c.status != http.StatusOK {
			require.Equal(t, "application/problem+json", res.Header.Get("Content-Type"), c.what)
			require.NoError(t, json.NewDecoder(res.Body).Decode(&problem), c.what)
			require.Equal(t, c.status, problem.Status, c.what)
			require.NotEmpty(t, problem.Title, c.what)
			require.Contains(t, problem.Detail, c.detail, c.what)
		}
		require.NoError(t, res.Body.Close())
		require.Equal(t, c.status, res.StatusCode, c.what)
	}

	h.streams()

	require.NoError(t, h.services["command-service"].Kill())
	a, err := h.do(http.MethodPost, "/api/v1/timestamp", h.key)
	require.NoError(t, err)
	require.Equal(t, http.StatusServiceUnavailable, a.Status)
	require.Equal(t, "application/problem+json", a.Header.Get("Content-Type"))
	require.Equal(t, "1", a.Header.Get("Retry-After"))
	require.Contains(t, a.Text("detail"), "is down")
}

// streams sends bulk streams through the front: the answer to a line comes before the next line is sent, and a stream of the
// command line that is larger than any body is taken whole.
func (h *byHand) streams() {
	h.t.Helper()
	body, lines := io.Pipe()
	req, err := http.NewRequestWithContext(h.t.Context(), http.MethodPost, h.front+"/api/v1/timestamps", body)
	require.NoError(h.t, err)
	req.Header.Set("Authorization", "Bearer "+h.key)
	req.Header.Set("Content-Type", "application/x-ndjson")
	answers := make(chan *http.Response, 1)
	failed := make(chan error, 1)
	go func() {
		res, err := insecure.Do(req) //nolint:bodyclose // whoever receives it closes it
		if err != nil {
			failed <- err
			_ = body.CloseWithError(err) // ends whoever writes lines
			return
		}
		answers <- res
	}()
	_, err = io.WriteString(lines, "{}\n")
	require.NoError(h.t, err)
	var res *http.Response
	select {
	case res = <-answers:
	case err := <-failed:
		require.NoError(h.t, err)
	}
	defer func() { require.NoError(h.t, res.Body.Close()) }()
	require.Equal(h.t, http.StatusOK, res.StatusCode)
	read := bufio.NewReader(res.Body)
	for range 3 {
		answer, err := read.ReadString('\n')
		require.NoError(h.t, err)
		require.Contains(h.t, answer, `"id"`)
		_, err = io.WriteString(lines, "{}\n")
		require.NoError(h.t, err)
	}
	require.NoError(h.t, lines.Close())
	answer, err := read.ReadString('\n')
	require.NoError(h.t, err)
	require.Contains(h.t, answer, `"id"`)
	_, err = read.ReadByte()
	require.ErrorIs(h.t, err, io.EOF)

	// nginx goes on with a request whose answer has begun only while the service takes it at once: the command line has no more
	// under way than fits.
	const long = 100_000
	file := filepath.Join(h.dir, "instants")
	require.NoError(h.t, os.WriteFile(file, []byte(strings.Repeat("2009-09-28T19:03:12Z\n", long)), 0o600))
	require.Equal(h.t, long, bytes.Count(h.tidemark("stamp", "--file", file, "-o", "json"), []byte(`"position"`)))
}

// openLetters is how many open dead letters the front's first page of them holds.
func (h *byHand) openLetters() int {
	h.t.Helper()
	a, err := h.do(http.MethodGet, "/api/v1/deadletters?state=open&limit=200", h.key)
	if err != nil || a.Status != http.StatusOK {
		return -1
	}
	var page struct{ Items []json.RawMessage }
	_ = json.Unmarshal(a.Body, &page) // what cannot be read holds none
	return len(page.Items)
}

// tidemark runs the command line against the front, and returns what it printed.
func (h *byHand) tidemark(args ...string) []byte {
	h.t.Helper()
	var out, errOut bytes.Buffer
	cmd := exec.CommandContext(h.t.Context(), filepath.Join(h.dir, "tidemark"), args...)
	cmd.Env = []string{"TIDEMARK_API_KEY=" + h.key, "TIDEMARK_CA_FILE=" + filepath.Join(h.dir, "secrets", "tls.crt"), "HOME=" + h.dir}
	for _, s := range service.All() {
		cmd.Env = append(cmd.Env, s.URLVariable()+"="+h.front)
	}
	cmd.Stdout, cmd.Stderr = &out, &errOut
	require.NoError(h.t, cmd.Run(), "%s\n%s", &out, &errOut)
	return out.Bytes()
}

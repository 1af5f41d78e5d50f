package httpapi

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/shared/event"
	"github.com/tidemark/tidemark/shared/kafka"
)

// said is one answer of a stream.
type said struct {
	Line     int64
	ID       string
	Position string
	Error    *struct {
		Type, Title, Detail, Instance, Ticket string
		Status                                int
		RetryKey                              string `json:"retry_key"`
	}
}

// timeout of the server for a whole request, shorter than the streams that must outlive it.
const timeout = time.Second

// serve runs the engine on a real connection: a recorder cannot answer while it is read.
func (b *bundle) serve(t *testing.T) string {
	t.Helper()
	s := httptest.NewUnstartedServer(b.engine)
	s.Config.ReadTimeout, s.Config.WriteTimeout = timeout, timeout
	s.Start()
	t.Cleanup(s.Close)
	return s.URL
}

// reply is a response that is closed with the test.
type reply struct {
	StatusCode int
	Header     http.Header
	Body       io.Reader
}

func streamTo(t *testing.T, url string, body io.Reader) reply {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url+"/api/v1/timestamps", body)
	require.NoError(t, err)
	r.Header.Set("Content-Type", "application/x-ndjson")
	if pipe, ok := body.(*io.PipeReader); ok { // net/http waits for a body even when its connection is gone
		late := time.AfterFunc(30*time.Second, func() { _ = pipe.Close() })
		t.Cleanup(func() { late.Stop() })
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	res, err := client.Do(r)
	require.NoError(t, err)
	t.Cleanup(func() { _ = res.Body.Close() })
	return reply{res.StatusCode, res.Header, res.Body}
}

func answers(t *testing.T, body io.Reader) []said {
	t.Helper()
	var all []said
	d := json.NewDecoder(body)
	for d.More() {
		var a said
		require.NoError(t, d.Decode(&a))
		all = append(all, a)
	}
	return all
}

func (b *bundle) records(t *testing.T) map[string]string {
	t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	m := map[string]string{}
	for _, r := range b.sent {
		m[r.UUID] = string(r.Payload)
	}
	return m
}

func TestEveryLineHasItsAnswerInOrder(t *testing.T) {
	t.Parallel()
	b := setup(t)
	const v7, v4 = "01920b5c-7d4e-7cc3-98c4-dc0c0c07398f", "6f2b8a0e-58cf-4d63-9a0d-0d1f3c1f3a55"
	pad := func(n int) string {
		return strings.Repeat(" ", n-len(`"2009-09-28T19:03:12Z"`)) + `"2009-09-28T19:03:12Z"`
	}
	var lines, kinds, says []string
	for _, tc := range []struct {
		line, kind, says string // of the error; "" where it is accepted
	}{
		{`{"event_timestamp":"2009-09-28T19:03:12Z"}`, "", ""},
		{`"2009-09-28T21:03:12+02:00"`, "", ""},
		{`{}`, "", ""},
		{`{"id":"` + v7 + `"}`, "", ""},
		{`{ "id" : "` + v4 + `" , "event_timestamp" : "2009-09-28t19:03:12z" } ` + "\r", "", ""},
		{`{"event_timestamp":"2009-09-28T19:03:12\u005a"}`, "", ""},
		{pad(4096), "", ""},
		{pad(4097), "/problems/bad-line", "longer than 4096 bytes"},
		{strings.Repeat("x", 300_000), "/problems/bad-line", "longer than 4096 bytes"},
		{``, "/problems/bad-line", "it is empty, and {}"},
		{"  \r", "/problems/bad-line", "it is empty, and {}"},
		{`{`, "/problems/bad-line", "ends in the middle"},
		{`{"event_timestamp":"2009`, "/problems/bad-line", "ends in the middle"},
		{`nonsense`, "/problems/bad-line", "no JSON"},
		{`{"event_timestamp":"2009-09-28T19:03:12Z",}`, "/problems/bad-line", "no JSON"},
		{"{\"event_timestamp\":\"\x00\"}", "/problems/bad-line", "no JSON"},
		{`[]`, "/problems/bad-line", "array"},
		{`null`, "/problems/bad-line", "neither a JSON object nor a string"},
		{`1254164592`, "/problems/bad-line", "neither a JSON object nor a string"},
		{`{"event_timestamp":null}`, "/problems/bad-line", "event_timestamp is no string"},
		{`{"id":7}`, "/problems/bad-line", "id is no string"},
		{`{"id":{"a":"b"}}`, "/problems/bad-line", "id is no string"},
		{`{"eventTimestamp":"2009-09-28T19:03:12Z"}`, "/problems/bad-line", `"eventTimestamp"`},
		{`{"id":"` + v7 + `","id":"` + v4 + `"}`, "/problems/bad-line", "id is there twice"},
		{`{} {}`, "/problems/bad-line", "behind"},
		{`{}x`, "/problems/bad-line", "behind"},
		{`{"event_timestamp":"yesterday"}`, "/problems/bad-instant", "yesterday"},
		{`""`, "/problems/bad-instant", "is empty"},
		{`"2016-12-31T23:59:60Z"`, "/problems/bad-instant", "leap second"},
		{"\"\xff\"", "/problems/bad-instant", "RFC 3339"},
		{`{"id":"mine"}`, "/problems/bad-idempotency-key", "mine"},
		{`{"id":""}`, "/problems/bad-idempotency-key", "it is empty"},
		{`{"event_timestamp":"2009-09-28T19:03:12Z"}`, "", ""},
	} {
		lines, kinds, says = append(lines, tc.line), append(kinds, tc.kind), append(says, tc.says)
	}
	res := streamTo(t, b.serve(t), strings.NewReader(strings.Join(lines, "\n")+"\n"))
	require.Equal(t, 200, res.StatusCode)
	require.Equal(t, "application/x-ndjson", res.Header.Get("Content-Type"))
	all := answers(t, res.Body)
	require.Len(t, all, len(lines))
	records := b.records(t)
	accepted := 0
	for i, a := range all {
		require.EqualValues(t, i+1, a.Line)
		if kinds[i] != "" {
			require.NotNil(t, a.Error, lines[i])
			require.Equal(t, kinds[i], a.Error.Type, lines[i])
			require.Contains(t, a.Error.Detail, says[i])
			require.Equal(t, "urn:correlation:"+res.Header.Get("X-Correlation-ID"), a.Error.Instance)
			require.Empty(t, a.ID)
			continue
		}
		accepted++
		require.Nil(t, a.Error, lines[i])
		require.NotEmpty(t, a.Position)
		c, err := event.DecodeTimestampCommand([]byte(records[a.ID]))
		require.NoError(t, err, lines[i])
		require.Equal(t, a.ID, c.CommandID.String())
		if strings.Contains(lines[i], "2009") {
			require.Equal(t, time.Date(2009, 9, 28, 19, 3, 12, 0, time.UTC), c.EventTimestamp)
		} else {
			require.WithinDuration(t, time.Now(), c.EventTimestamp, time.Minute)
		}
	}
	require.Len(t, records, accepted)
	require.Equal(t, v7, all[3].ID, "a UUIDv7 is the ticket")
	w := b.post("/api/v1/timestamp/2009-09-28T19:03:12Z", "", "Idempotency-Key", v4)
	require.Equal(t, decode(t, w)["id"], all[4].ID, "the same key in the header is the same command")
}

func TestALineIsAnsweredWhileTheBodyIsStillSent(t *testing.T) {
	t.Parallel()
	b := setup(t)
	url := b.serve(t)
	r, w := io.Pipe()
	go func() { _, _ = io.WriteString(w, "{}\n") }()
	res := streamTo(t, url, r)
	in := bufio.NewReader(res.Body)
	end := time.Now().Add(2 * timeout)
	n := 1
	for ; time.Now().Before(end); n++ {
		text, err := in.ReadString('\n')
		require.NoError(t, err)
		require.Contains(t, text, fmt.Sprintf(`{"line":%d,"id":`, n))
		_, err = io.WriteString(w, `{"event_`)
		require.NoError(t, err)
		time.Sleep(10 * time.Millisecond) // half a line is there, and nothing for a moment
		_, err = io.WriteString(w, "timestamp\":\"2009-09-28T19:03:12Z\"}\n")
		require.NoError(t, err)
	}
	_, err := io.WriteString(w, "{}") // the last line needs no end
	require.NoError(t, err)
	require.NoError(t, w.Close())
	rest := answers(t, in)
	require.Len(t, rest, 2)
	require.EqualValues(t, n+1, rest[1].Line)
	require.Nil(t, rest[1].Error)
}

func TestAFlightThatFailsSaysUnknownForEachLine(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.fail(errors.New("secret text"))
	const key = "6f2b8a0e-58cf-4d63-9a0d-0d1f3c1f3a55"
	all := answers(t, streamTo(t, b.serve(t), strings.NewReader("{}\nbroken\n{\"id\":\""+key+"\"}\n")).Body)
	require.Len(t, all, 3)
	require.Equal(t, "/problems/outcome-unknown", all[0].Error.Type)
	require.Equal(t, all[0].Error.Ticket, all[0].Error.RetryKey)
	require.Equal(t, uuid.Version(7), uuid.MustParse(all[0].Error.RetryKey).Version())
	require.Equal(t, "/problems/bad-line", all[1].Error.Type)
	require.Equal(t, "/problems/outcome-unknown", all[2].Error.Type)
	require.Equal(t, key, all[2].Error.RetryKey)
	require.NotContains(t, all[2].Error.Detail, "secret")
	require.Len(t, b.sent, 2, "an unknown one is not sent again: that is the client's to decide")
}

func TestWhatWasSurelyNotWrittenIsTriedAgain(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.fail(fmt.Errorf("%w: a broker restarts", kafka.ErrNotSent))
	url := b.serve(t)
	go func() {
		time.Sleep(200 * time.Millisecond) // for some tries
		b.fail(nil)
	}()
	all := answers(t, streamTo(t, url, strings.NewReader("{}\n{}\n")).Body)
	require.Len(t, all, 2)
	for _, a := range all {
		require.Nil(t, a.Error)
		require.Contains(t, b.records(t), a.ID)
	}
}

func TestAShutDoorRefusesTheStreamAsAWhole(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.doors.Timestamps.Shut(errors.New("retention.ms must be -1"))
	res := streamTo(t, b.serve(t), strings.NewReader("{}\n"))
	require.Equal(t, 503, res.StatusCode)
	require.NotEmpty(t, res.Header.Get("Retry-After"))
}

func TestOnlyNDJSONIsAStream(t *testing.T) {
	t.Parallel()
	b := setup(t)
	require.Equal(t, 415, b.post("/api/v1/timestamps", "{}\n").Code, "application/json")
	all := answers(t, streamTo(t, b.serve(t), http.NoBody).Body)
	require.Empty(t, all)
}

func TestAnIdleStreamIsCut(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.server.limits.idle = 2 * timeout
	url := b.serve(t)
	r, w := io.Pipe()
	defer func() { _ = w.Close() }()
	go func() { _, _ = io.WriteString(w, "{}\n{\"id\":\"01920b5c-7d4e-7cc3-98c4-dc0c0c07398f\"") }() // and no more
	all := answers(t, streamTo(t, url, r).Body)
	require.Len(t, all, 2)
	require.Nil(t, all[0].Error)
	require.Zero(t, all[1].Line)
	require.Equal(t, "/problems/stream-idle", all[1].Error.Type)
	require.Len(t, b.records(t), 1, "half a line is no command")

	conn, err := net.Dial("tcp", strings.TrimPrefix(url, "http://"))
	require.NoError(t, err)
	_, err = io.WriteString(conn, "POST /api/v1/timestamps HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n")
	require.NoError(t, err)
	dribbled := make(chan struct{})
	go func() { // bytes are no lines
		defer close(dribbled)
		for err := error(nil); err == nil; time.Sleep(10 * time.Millisecond) { // a slow client
			_, err = io.WriteString(conn, "x")
		}
	}()
	status, err := bufio.NewReader(conn).ReadString('\n')
	require.NoError(t, err)
	require.Contains(t, status, "408")
	require.NoError(t, conn.Close())
	<-dribbled
}

func TestAClientThatReadsNothingIsNotReadFrom(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.server.limits.idle = 2 * timeout
	conn, err := net.Dial("tcp", strings.TrimPrefix(b.serve(t), "http://"))
	require.NoError(t, err)
	defer func() { _ = conn.Close() }()
	require.NoError(t, conn.(*net.TCPConn).SetReadBuffer(4<<10))
	_, err = io.WriteString(conn, "POST /api/v1/timestamps HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-ndjson\r\nContent-Length: 4000000000\r\n\r\n")
	require.NoError(t, err)
	lines := bytes.Repeat([]byte("{}\n"), 10_000)
	var wrote int
	for err == nil { // ends when the server cuts it
		var n int
		n, err = conn.Write(lines)
		wrote += n
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	require.NotEmpty(t, b.sent)
	require.Less(t, wrote, 100<<20, "it stood still")
	ahead := 3 * defaultLimits.chunk * defaultLimits.ahead
	const answer, buffers = 100, 16 << 20 // what two sockets may hold, at most
	require.Less(t, len(b.sent), buffers/answer+ahead)
}

func TestAClientThatBreaksOffLosesHalfALineOnly(t *testing.T) {
	t.Parallel()
	b := setup(t)
	conn, err := net.Dial("tcp", strings.TrimPrefix(b.serve(t), "http://"))
	require.NoError(t, err)
	// The beginning of the second line is a whole line by itself, with another meaning.
	_, err = io.WriteString(conn, "POST /api/v1/timestamps HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n\"2009-09-28T19:03:12Z\"\n{}")
	require.NoError(t, err)
	in := bufio.NewReader(conn)
	for text := ""; !strings.Contains(text, `"line":1`); {
		text, err = in.ReadString('\n')
		require.NoError(t, err)
	}
	require.NoError(t, conn.(*net.TCPConn).CloseWrite())
	rest, err := io.ReadAll(in)
	require.NoError(t, err)
	require.Contains(t, string(rest), "/problems/body-broken")
	require.NoError(t, conn.Close())
	require.Len(t, b.records(t), 1)
}

func TestAStreamEndsWithTheService(t *testing.T) {
	t.Parallel()
	b := setup(t)
	stopping := make(chan struct{})
	b.server.stopping = stopping
	r, w := io.Pipe()
	defer func() { _ = w.Close() }()
	go func() { _, _ = io.WriteString(w, "{}\n") }()
	res := streamTo(t, b.serve(t), r)
	in := bufio.NewReader(res.Body)
	_, err := in.ReadString('\n')
	require.NoError(t, err)
	close(stopping)
	all := answers(t, in)
	require.Len(t, all, 1)
	require.Equal(t, "/problems/stopping", all[0].Error.Type)
}

// The quick decoder must agree with the general one wherever it has an answer.
func FuzzDecodeLine(f *testing.F) {
	for _, seed := range []string{`{}`, `"2009"`, `{"id":"a","event_timestamp":"b"}`, `{"id":"a","id":"b"}`, `{"id":"a",}`, `{,}`, "{\"id\":\"\\u0041\"}", ` {} `, `{"id" "a"}`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		quick, ok := decodePlain(bytes.Clone(raw))
		general, err := decodeAny(bytes.Clone(raw))
		if ok {
			require.NoError(t, err)
			require.Equal(t, general, quick)
		}
	})
}

package door

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/integration/stack"
	"github.com/tidemark/tidemark/shared/position"
	"github.com/tidemark/tidemark/shared/topic"
)

// lineAnswer is one line of what a stream answers.
type lineAnswer struct {
	Line     int
	ID       string
	Position string
	Error    *struct {
		Type     string
		Ticket   string
		RetryKey string `json:"retry_key"`
		Detail   string
	}
}

// as is the answer in the form of a single POST's, for one judge of both.
func (l lineAnswer) as(t *testing.T, key string) answer {
	t.Helper()
	if l.Error != nil {
		return answer{key: key, status: http.StatusServiceUnavailable, kind: l.Error.Type, ticket: l.Error.Ticket, retryKey: l.Error.RetryKey, retry: "1"}
	}
	at, err := position.Parse(l.Position)
	require.NoError(t, err)
	return answer{key: key, status: http.StatusAccepted, ticket: l.ID, at: at}
}

// streamed sends lines for as long as next has one, reading answers meanwhile, and returns them; broken is why the
// stream ended before its last answer.
func (s *service) streamed(t *testing.T, next func() (string, bool)) (all []lineAnswer, broken error) {
	t.Helper()
	r, w := io.Pipe()
	var sender sync.WaitGroup
	sender.Go(func() {
		for line, more := next(); more; line, more = next() {
			if _, err := io.WriteString(w, line+"\n"); err != nil {
				return
			}
		}
		_ = w.Close()
	})
	defer func() {
		_ = r.Close()
		sender.Wait()
	}()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.url+"/api/v1/timestamps", r)
	require.NoError(t, err)
	req.Header.Set("Content-Type", "application/x-ndjson")
	res, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = res.Body.Close() }()
	if res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("answered %d", res.StatusCode)
	}
	lines := bufio.NewScanner(res.Body)
	for lines.Scan() {
		var a lineAnswer
		require.NoError(t, json.Unmarshal(lines.Bytes(), &a), lines.Text())
		require.Equal(t, len(all)+1, a.Line, "one answer a line, in order: %s", lines.Text())
		all = append(all, a)
	}
	return all, lines.Err()
}

// The broker is stopped, killed and started, and its answers are lost, while a stream goes on.
func TestAStreamLosesNoTicketAndGivesNoneThatIsNotThere(t *testing.T) {
	t.Parallel()
	k := startKafka(t)
	s := startService(t, k, time.Second)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	draw := rand.New(rand.NewPCG(seed, 0))
	stop := make(chan struct{})
	var disturbed error
	disturbing := during(func() {
		defer close(stop)
		disturbed = disturb(t, k, draw, 12)
		if disturbed == nil {
			disturbed = k.Kill()
		}
		time.Sleep(1500 * time.Millisecond) // an outage longer than the deadline of a line
		if disturbed == nil {
			disturbed = k.Start(t.Context())
		}
	})
	var keys []string
	done, quiet := 0, time.Time{}
	all, err := s.streamed(t, func() (string, bool) {
		select {
		case <-stop: // and on for a second, in which lines are accepted again
			if quiet.IsZero() {
				quiet = time.Now()
			}
			if time.Since(quiet) > 3*time.Second {
				return "", false
			}
		default:
		}
		if done++; done%40 == 0 {
			time.Sleep(10 * time.Millisecond) // so that the stream lasts through all disturbances
		}
		if done%50 == 0 {
			keys = append(keys, "")
			return "broken", true
		}
		key := newKey(t)
		keys = append(keys, key)
		return fmt.Sprintf(`{"event_timestamp":%q,"id":%q}`, instant, key), true
	})
	<-disturbing
	require.NoError(t, disturbed)
	require.NoError(t, err)
	require.Len(t, all, len(keys), "every line has its answer")
	var judged []answer
	for i, a := range all {
		if keys[i] == "" {
			require.Equal(t, "/problems/bad-line", a.Error.Type)
			continue
		}
		judged = append(judged, a.as(t, keys[i]))
	}
	require.Nil(t, all[len(all)-1-btoi(keys[len(keys)-1] == "")].Error, "it accepts again")
	log := readAll(t, k, s.topic)
	kinds := honest(t, judged, log)
	t.Log(kinds, len(log), "records")
	require.Positive(t, kinds["accepted"])

	var again []string // the unknown ones, as the answers say
	for _, a := range judged {
		if a.kind == "/problems/outcome-unknown" {
			again = append(again, a.retryKey)
		}
	}
	i := 0
	repeated, err := s.streamed(t, func() (string, bool) {
		if i++; i > len(again) {
			return "", false
		}
		return fmt.Sprintf(`{"event_timestamp":%q,"id":%q}`, instant, again[i-1]), true
	})
	require.NoError(t, err)
	require.Len(t, repeated, len(again))
	by := places(readAll(t, k, s.topic))
	for i, key := range again {
		require.Nil(t, repeated[i].Error)
		require.NotEmpty(t, by[key])
	}
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// While a broker that is down for a moment is waited for, lines are not burnt through with a refusal each.
func TestAStreamStandsStillThroughAShortOutage(t *testing.T) {
	t.Parallel()
	k := startKafka(t)
	s := startService(t, k, 20*time.Second)
	sent := 0
	all, err := s.streamed(t, func() (string, bool) {
		switch sent++; sent {
		case 100:
			k.Proxy(door).Cut()
		case 101:
			time.AfterFunc(2*time.Second, k.Proxy(door).Pass)
		}
		return `"` + instant + `"`, sent <= 20_000
	})
	require.NoError(t, err)
	require.Len(t, all, 20_000)
	by := places(readAll(t, k, s.topic))
	for _, a := range all {
		require.Nil(t, a.Error)
		require.Len(t, by[a.ID], 1)
	}
	require.Len(t, by, 20_000)
}

// A stream's size costs the service no memory.
func TestALongStreamNeedsNoMoreMemoryThanAShortOne(t *testing.T) {
	t.Parallel()
	k := startKafka(t)
	built, err := stack.Build(t.Context(), "command-service")
	require.NoError(t, err)
	defer func() { require.NoError(t, built.Remove()) }()
	p, err := stack.StartService(t.Context(), stack.ServiceOptions{
		Program: built.Path("command-service"), Log: filepath.Join(t.TempDir(), "log"),
		Env: map[string]string{"KAFKA_BROKERS": k.Brokers()[0], "LOG_LEVEL": "warn"},
	})
	require.NoError(t, err)
	defer func() { require.NoError(t, p.Kill()) }()
	require.NoError(t, p.Ready(t.Context()))
	s := &service{url: p.URL()}
	send := func(n int) int64 {
		lines := strings.Repeat(strings.Repeat(" ", 300)+`"`+instant+"\"\n", 1000)
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.url+"/api/v1/timestamps", io.MultiReader(repeat(lines, n/1000)...))
		require.NoError(t, err)
		r.Header.Set("Content-Type", "application/x-ndjson")
		res, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(r)
		require.NoError(t, err)
		defer func() { _ = res.Body.Close() }()
		answers, tickets := 0, 0
		for in := bufio.NewScanner(res.Body); in.Scan(); answers++ {
			if bytes.Contains(in.Bytes(), []byte(topic.TimestampCommand.Name+"/")) {
				tickets++
			}
		}
		require.Equal(t, n, answers)
		require.Equal(t, n, tickets)
		peak, err := p.PeakMemory()
		require.NoError(t, err)
		return peak
	}
	short := send(100_000)
	long := send(800_000)
	t.Logf("%d MiB after 100,000 lines, %d MiB after 800,000 more", short>>20, long>>20)
	require.Less(t, long-short, int64(96<<20), "bytes more: the lines alone are 250 MiB")
}

func repeat(s string, n int) []io.Reader {
	readers := make([]io.Reader, n)
	for i := range readers {
		readers[i] = strings.NewReader(s)
	}
	return readers
}

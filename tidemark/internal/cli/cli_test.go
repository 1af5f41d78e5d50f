package cli_test

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/google/uuid"
	_ "github.com/lib/pq"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/tidemark/tidemark/shared/await"
	"github.com/tidemark/tidemark/shared/freeport"
	"github.com/tidemark/tidemark/shared/problem"
	"github.com/tidemark/tidemark/shared/service"
	"github.com/tidemark/tidemark/tidemark/internal/cli"
)

func TestMain(m *testing.M) {
	if args := os.Getenv("TIDEMARK_TEST_ARGS"); args != "" { // a process of its own: see asProcess
		os.Exit(cli.Run(context.Background(), strings.Split(args, " "), cli.Surroundings{
			Environ: map[string]string{"COMMAND_URL": os.Getenv("TIDEMARK_TEST_URL")}, In: os.Stdin, Out: os.Stdout, Err: os.Stderr,
		}))
	}
	// Sarama's metrics keep one goroutine for the life of the process.
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("github.com/rcrowley/go-metrics.(*meterArbiter).tick"))
}

const (
	id = "01920b5c-7d4e-7cc3-98c4-dc0c0c07398f"
	at = "timestamp.command.v1/3@42"
)

// services are stand-ins: each pattern of a ServeMux with its handler, all on one address.
type services map[string]http.HandlerFunc

// run carries out one command line against the stand-ins.
func run(t *testing.T, s services, args ...string) (status int, out, errOut string) {
	t.Helper()
	mux := http.NewServeMux()
	for pattern, handler := range s {
		mux.HandleFunc(pattern, handler)
	}
	server := httptest.NewServer(mux)
	defer server.Close()
	var stdout, stderr bytes.Buffer
	status = cli.Run(t.Context(), args, cli.Surroundings{
		Environ: map[string]string{
			"COMMAND_URL": server.URL, "CONSUMER_URL": server.URL, "QUERY_URL": server.URL + "/", "HOME": t.TempDir(),
			"DB_USER": "me", "KAFKA_BROKER": "none", "SERVER_PORTS": "1", // of another program: a client ignores what it does not read
		},
		Out: &stdout, Err: &stderr,
	})
	return status, stdout.String(), stderr.String()
}

func answer(status int, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		_, _ = w.Write([]byte(body))
	}
}

func accepted(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Tidemark-Position", at)
	answer(http.StatusAccepted, `{"id":"`+id+`"}`)(w, nil)
}

func refuse(p problem.Problem) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { problem.Write(w, p) }
}

const row = `{"id":"` + id + `","command_id":"` + id + `","event_timestamp":"2009-09-28T19:03:12Z","created_at":"2026-01-02T03:04:05.678Z"}`

func TestStampPrintsTicketAndPosition(t *testing.T) {
	t.Parallel()
	var path, key string
	status, out, errOut := run(t, services{"POST /api/v1/timestamp/{instant}": func(w http.ResponseWriter, r *http.Request) {
		path, key = r.PathValue("instant"), r.Header.Get("Idempotency-Key")
		accepted(w, r)
	}}, "stamp", "2009-09-28T21:03:12+02:00")
	require.Zero(t, status, errOut)
	require.Equal(t, "2009-09-28T21:03:12+02:00", path)
	require.Equal(t, uuid.Version(7), uuid.MustParse(key).Version())
	require.Equal(t, "ticket    "+id+"\nposition  "+at+"\n", out)
}

func TestStampNowWithKeyWaitsForItsRow(t *testing.T) {
	t.Parallel()
	var key, position string
	var asked int
	status, out, errOut := run(t, services{
		"POST /api/v1/timestamp": func(w http.ResponseWriter, r *http.Request) {
			key = r.Header.Get("Idempotency-Key")
			accepted(w, r)
		},
		"GET /api/v1/timestamp/" + id: func(w http.ResponseWriter, r *http.Request) {
			position = r.URL.Query().Get("position")
			if asked++; asked == 1 { // a wait that ended first, and time left
				problem.Write(w, problem.Problem{Status: http.StatusGatewayTimeout})
				return
			}
			answer(http.StatusOK, row)(w, r)
		},
	}, "stamp", "--key", id, "--wait", "-o", "json")
	require.Zero(t, status, errOut)
	require.Equal(t, id, key)
	require.Equal(t, at, position)
	require.Equal(t, 2, asked)
	require.JSONEq(t, `{"id":"`+id+`","position":"`+at+`","key":"`+id+`","record":`+row+`}`, out)
}

func TestStampOutcomes(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		door   http.HandlerFunc
		status int
		says   []string
	}{
		"refused": {
			refuse(problem.Problem{Status: 400, Title: "No instant", Detail: `"yesterday" is no RFC 3339 instant, such as 2009-09-28T19:03:12Z`}),
			3, []string{"command-service answered 400", `"yesterday" is no RFC 3339 instant`},
		},
		"log down": {refuse(problem.Problem{Status: 503, Detail: "the log does not answer"}), 1, []string{"503", "the log does not answer"}},
		"unknown": {
			refuse(problem.Problem{Status: 503, Detail: "no answer", Extra: map[string]string{"ticket": id, "retry_key": id}}),
			4, []string{"no answer", "tidemark stamp 2009-09-28T19:03:12Z --key " + id},
		},
		"cut off": {func(w http.ResponseWriter, _ *http.Request) {
			conn, _, err := w.(http.Hijacker).Hijack()
			if err == nil {
				_ = conn.Close()
			}
		}, 4, []string{"gave no answer", "--key " + id}},
		"a stranger": {answer(200, "<html>"), 1, []string{"is it Tidemark's command-service?"}},
		"not json":   {func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "proxy says no", http.StatusBadGateway) }, 1, []string{"502: proxy says no"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			status, out, errOut := run(t, services{"POST /": tc.door}, "stamp", "2009-09-28T19:03:12Z", "--key", id)
			require.Equal(t, tc.status, status, errOut)
			require.Empty(t, out)
			for _, text := range tc.says {
				require.Contains(t, errOut, text)
			}
		})
	}
}

func TestNobodyThere(t *testing.T) {
	t.Parallel()
	port, err := freeport.Find(t.Context())
	require.NoError(t, err)
	nobody := "http://" + freeport.Address(port)
	for _, args := range [][]string{{"stamp"}, {"ticket", id}} {
		var out, errOut bytes.Buffer
		status := cli.Run(t.Context(), args, cli.Surroundings{
			Environ: map[string]string{"COMMAND_URL": nobody, "QUERY_URL": nobody}, Out: &out, Err: &errOut,
		})
		require.Equal(t, 1, status, "a command that reached nobody is not uncertain")
		require.Contains(t, errOut.String(), "connection refused")
		require.Contains(t, errOut.String(), "tidemark up")
	}
}

func TestTicketStates(t *testing.T) {
	t.Parallel()
	for state, want := range map[string]int{"applied": 0, "duplicate": 0, "rejected": 6, "pending": 5, "unknown": 5} {
		t.Run(state, func(t *testing.T) {
			t.Parallel()
			s := services{"GET /api/v1/tickets/" + id: answer(200, `{"id":"`+id+`","state":"`+state+`","position":"`+at+`","generation":0,"epoch":7,"reason":null,"as_of":null}`)}
			status, out, errOut := run(t, s, "ticket", id, "--position", at)
			require.Equal(t, want, status, errOut)
			require.Contains(t, out, "state     "+state)
			status, out, _ = run(t, s, "ticket", id, "--output", "json")
			require.Equal(t, want, status)
			var got map[string]any
			require.NoError(t, json.Unmarshal([]byte(out), &got))
			require.Equal(t, state, got["state"])
			require.EqualValues(t, 7, got["epoch"])
		})
	}
}

func TestTicketWaitsWhileTheAnswerIsOpen(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	asked := 0
	status, out, errOut := run(t, services{"GET /api/v1/tickets/" + id: func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		asked++
		state := "pending"
		if asked == 3 {
			state = "applied"
		}
		answer(200, `{"id":"`+id+`","state":"`+state+`"}`)(w, r)
	}}, "ticket", id, "--position", at, "--wait=5s")
	require.Zero(t, status, errOut)
	require.Contains(t, out, "applied")
}

// summary is one projection in query-service's list.
func summary(name, state, audit string) string {
	return `{"projection":"` + name + `","topic":"t","state":"` + state + `","running":true,"refusal":"another log","generation":0,"epoch":3,
		"caught_up_at":"2026-01-02T03:04:05Z","lag":17,"dead_letters_open":1,"dead_letters_decided":6,"audit_ok":` + audit + `,"audited_at":null,"read_at":"2026-01-02T03:04:06Z"}`
}

// ofUnknownLag is a summary where nobody has read the end of the log of late.
func ofUnknownLag(summary string) string {
	return strings.Replace(summary, `"lag":17`, `"lag":null,"lag_unknown_since":"2026-01-02T03:04:04Z"`, 1)
}

func TestStatusSaysOfEveryProjection(t *testing.T) {
	t.Parallel()
	with := func(projections ...string) services {
		return services{
			"GET /ready":              answer(200, `{"status":"UP"}`),
			"GET /api/v1/projections": answer(200, `{"projections":[`+strings.Join(projections, ",")+`]}`),
			"GET /api/v1/projections/timestamps": answer(200, `{"projection":"timestamps","topic":"timestamp.command.v1","schema":"public","generation":0,"epoch":3,"group":"g","catching_up":true,
				"totals":{"applied":1001,"duplicate":2,"rejected":7,"dead_letters_open":1,"dead_letters_decided":6,"expired":0,"skipped":0,"lag":17},"replay":{"percent":50},
				"audit":{"ok":false,"last_run":"2026-01-02T03:04:00Z","partitions":[{"topic":"t","partition":4,"ok":false,"finding":"7 rows are missing"}]}}`),
		}
	}
	healthy := with(summary("checks", "off", "null"), summary("endpoints", "serving", "null"), summary("timestamps", "catching_up", "true"))
	status, out, errOut := run(t, healthy, "status")
	require.Zero(t, status, errOut)
	for _, text := range []string{
		"command-service", "consumer-service", "query-service", "ready", "checks            off\n", "endpoints         serving, lag 17, caught up 2026-01-02T03:04:05Z, audit pending, dead letters: 1 open, 6 decided",
		"timestamps        catching up, lag 17, caught up 2026-01-02T03:04:05Z, audit ok, dead letters: 1 open, 6 decided",
	} {
		require.Contains(t, out, text)
	}
	status, out, _ = run(t, healthy, "status", "-o", "json")
	require.Zero(t, status)
	var got struct {
		Services    []map[string]any
		Projections []map[string]any
	}
	require.NoError(t, json.Unmarshal([]byte(out), &got))
	require.Len(t, got.Services, 3)
	require.Len(t, got.Projections, 3)

	status, out, errOut = run(t, healthy, "status", "--projection", "timestamps")
	require.Zero(t, status, errOut)
	for _, text := range []string{"1001 applied, 2 duplicate, 7 dead letters (1 open), 0 expired, 0 skipped", "epoch 3, group g", "50.0%", "t/4: 7 rows are missing"} {
		require.Contains(t, out, text)
	}
	require.NotContains(t, out, "endpoints ")
	status, _, errOut = run(t, healthy, "status", "--projection", "states")
	require.Equal(t, 2, status)
	require.Contains(t, errOut, `there is no projection "states": there are checks, endpoints and timestamps`)
}

func TestTheStatusIsThatOfTheWorst(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		projections string
		status      int
		says        []string
	}{
		"refused":    {summary("endpoints", "rebuilding", "true") + "," + summary("timestamps", "refused", "true"), 1, []string{"timestamps is refused: another log", "endpoints has not caught up with its log yet"}},
		"down":       {ofUnknownLag(summary("timestamps", "down", "true")), 1, []string{"timestamps is down: no process reads its log; lag unknown since 2026-01-02T03:04:04Z"}},
		"unknown":    {ofUnknownLag(summary("timestamps", "serving", "true")), 1, []string{"nobody has read the end of the log of timestamps lately: lag unknown since 2026-01-02T03:04:04Z"}},
		"audit":      {summary("endpoints", "serving", "false") + "," + summary("timestamps", "rebuilding", "true"), 1, []string{"the audit of endpoints has found something"}},
		"rebuilding": {summary("endpoints", "rebuilding", "true") + "," + summary("timestamps", "serving", "true"), 5, []string{"endpoints has not caught up with its log yet"}},
	} {
		status, _, errOut := run(t, services{"GET /ready": answer(200, `{}`), "GET /api/v1/projections": answer(200, `{"projections":[`+tc.projections+`]}`)}, "status")
		require.Equal(t, tc.status, status, name)
		for _, text := range tc.says {
			require.Contains(t, errOut, text)
		}
	}
	unready := services{
		"GET /ready":              answer(503, `{"status":"DOWN","missing":{"database":"waiting for the database"}}`),
		"GET /api/v1/projections": refuse(problem.Problem{Status: 503, Detail: "the database does not answer"}),
	}
	status, out, errOut := run(t, unready, "status")
	require.Equal(t, 1, status)
	require.Contains(t, out, "not ready: consumer-service: database: waiting for the database")
	require.Contains(t, errOut, "the database does not answer")
}

func TestMisuse(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"stamp", "a", "b"}, {"ticket"}, {"nonsense"}, {"stamp", "--wait=soon"}, {"status", "-o", "xml"}, {"status", "extra"}} {
		status, out, errOut := run(t, nil, args...)
		require.Equal(t, 2, status, args)
		require.Empty(t, out)
		require.Contains(t, errOut, "tidemark --help")
	}
	var errOut bytes.Buffer
	status := cli.Run(t.Context(), []string{"status"}, cli.Surroundings{Environ: map[string]string{"QUERY_URL": "nowhere", "COMMAND_URL": "x:y"}, Out: &errOut, Err: &errOut})
	require.Equal(t, 2, status)
	require.Contains(t, errOut.String(), "QUERY_URL")
	require.Contains(t, errOut.String(), "COMMAND_URL")
}

func TestEnvSaysWhenNothingRuns(t *testing.T) {
	t.Parallel()
	status, out, errOut := run(t, nil, "env", "--data", t.TempDir())
	require.Equal(t, 5, status)
	require.Empty(t, out, "what a shell would evaluate")
	require.Contains(t, errOut, "no tidemark up runs on")
	require.Contains(t, errOut, "tidemark up --data")
}

// The working directory does not stand in for a home that is not known.
func TestWithoutAHomeADataDirectoryIsAskedFor(t *testing.T) {
	t.Parallel()
	for _, system := range []string{"linux", "darwin"} {
		for _, home := range []string{"", "relative"} {
			require.Empty(t, cli.UsualDataDir(map[string]string{"HOME": home, "XDG_STATE_HOME": home}, system, false), system)
		}
		require.True(t, filepath.IsAbs(cli.UsualDataDir(map[string]string{"HOME": "/home/me"}, system, false)), system)
	}
	for _, command := range []string{"up", "env"} {
		var errOut bytes.Buffer
		status := cli.Run(t.Context(), []string{command, "--data", ""}, cli.Surroundings{Environ: map[string]string{}, Out: &errOut, Err: &errOut})
		require.NotZero(t, status, command)
		require.Contains(t, errOut.String(), "no data directory is named", command)
	}
}

// text is a buffer that may be read while it is written.
type text struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (w *text) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.b.Write(p)
}

func (w *text) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.b.String()
}

// upped is a tidemark up, and somebody at another terminal.
type upped struct {
	dir         string
	environ     map[string]string
	out, errOut text
	stop        context.CancelFunc
	ended       chan int
}

func startUp(t *testing.T) *upped {
	t.Helper()
	u := &upped{dir: t.TempDir(), environ: map[string]string{"HOME": t.TempDir()}, ended: make(chan int, 1)}
	args := []string{"up", "--data", u.dir, "--kafka-port", "0", "--postgres-port", "0"}
	for _, s := range service.All() {
		port, err := freeport.Find(t.Context())
		require.NoError(t, err)
		args = append(args, "--"+s.Short()+"-port", strconv.Itoa(port))
		u.environ[s.URLVariable()] = "http://" + freeport.Address(port)
	}
	ctx, cancel := context.WithCancel(context.Background()) // ended by the cleanup, which waits for it
	u.stop = cancel
	go func() {
		defer close(u.ended)
		u.ended <- cli.Run(ctx, args, cli.Surroundings{Environ: u.environ, Out: &u.out, Err: &u.errOut})
	}()
	t.Cleanup(func() {
		cancel()
		for range u.ended { // until it has ended
		}
	})
	await.Until(t, func() bool { return strings.Contains(u.out.String(), "Ctrl-C stops it") }, "%s%s", &u.out, &u.errOut)
	return u
}

// ask runs a command and returns all it said.
func (u *upped) ask(t *testing.T, args ...string) (int, string) {
	t.Helper()
	var answer, complaint bytes.Buffer
	status := cli.Run(t.Context(), args, cli.Surroundings{Environ: u.environ, Out: &answer, Err: &complaint})
	return status, answer.String() + complaint.String()
}

// The whole of it, as somebody at a terminal would do it.
func TestUpEnvStampTicketStatus(t *testing.T) {
	t.Parallel()
	u := startUp(t)
	dir, environ, out, errOut := u.dir, u.environ, &u.out, &u.errOut
	ask := func(args ...string) (int, string) { return u.ask(t, args...) }
	require.Contains(t, out.String(), environ["QUERY_URL"]+"/\n", "the page")
	require.Contains(t, out.String(), "curl -X POST "+environ["COMMAND_URL"]+"/api/v1/timestamp/2009-09-28T19:03:12Z")

	status, said := ask("stamp", "2009-09-28T19:03:12Z", "--wait=20s", "-o", "json")
	require.Zero(t, status, said)
	var sent struct {
		ID, Position string
		Record       struct {
			EventTimestamp string `json:"event_timestamp"`
		}
	}
	require.NoError(t, json.Unmarshal([]byte(said), &sent))
	require.Equal(t, "2009-09-28T19:03:12Z", sent.Record.EventTimestamp)
	status, said = ask("ticket", sent.ID, "--position", sent.Position, "--wait")
	require.Zero(t, status, said)
	require.Contains(t, said, "applied")
	status, said = ask("stamp", "2009-09-28T19:03:12Z", "--key", sent.ID, "-o", "json")
	require.Zero(t, status, said)
	require.Contains(t, said, sent.ID, "the same key is the same command")
	status, said = ask("stamp", "yesterday")
	require.Equal(t, 3, status)
	require.Contains(t, said, "2009-09-28T19:03:12Z", "an example of what is accepted")
	await.Until(t, func() bool { // it notes once a second how far the log is
		status, said = ask("status")
		return status == 0
	}, "%s", &said)

	status, said = ask("env", "--data", dir)
	require.Zero(t, status, said)
	found := regexp.MustCompile(`(?s)^export COMMAND_URL='.*?'\nexport CONSUMER_URL='.*?'\nexport DB_URL='(.*?)'\nexport KAFKA_BROKERS='(.*?)'\nexport KAFKA_CLAIMED_PARTITIONS='6'\nexport QUERY_URL='(.*?)'\n$`).FindStringSubmatch(said)
	require.Len(t, found, 4, said)
	require.Equal(t, environ["QUERY_URL"], found[3])
	conn, err := net.Dial("tcp", found[2])
	require.NoError(t, err)
	require.NoError(t, conn.Close())
	db, err := sql.Open("postgres", found[1])
	require.NoError(t, err)
	var rows int
	require.NoError(t, db.QueryRow(`SELECT count(*) FROM timestamp_records WHERE id = $1`, sent.ID).Scan(&rows))
	require.Equal(t, 1, rows)
	require.NoError(t, db.Close())
	where, err := url.Parse(found[1])
	require.NoError(t, err)
	password, _ := where.User.Password()
	require.NotEmpty(t, password)
	require.NotContains(t, out.String(), password)

	u.stop()
	require.Zero(t, <-u.ended, errOut)
	require.Contains(t, out.String(), "Stopped. The data stays in "+dir)
	status, _ = ask("env", "--data", dir)
	require.Equal(t, 5, status)
}

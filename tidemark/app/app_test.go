package app_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/tidemark/tidemark/shared/api/query"
	"github.com/tidemark/tidemark/shared/freeport"
	"github.com/tidemark/tidemark/shared/service"
	"github.com/tidemark/tidemark/tidemark/app"
	"github.com/tidemark/tidemark/tidemark/embedded/broker"
	"github.com/tidemark/tidemark/tidemark/embedded/postgres"
	"github.com/tidemark/tidemark/tidemark/internal/client"
)

// runVariable turns the test binary into a process that runs what it describes until it is killed.
const runVariable = "APP_TEST_RUN"

type running struct {
	DataDir string
	Ports   app.Ports
}

func TestMain(m *testing.M) {
	if description := os.Getenv(runVariable); description != "" {
		var r running
		err := json.Unmarshal([]byte(description), &r)
		if err == nil {
			err = app.Run(context.Background(), app.Options{
				DataDir: r.DataDir, Ports: r.Ports, LogTo: os.Stderr, Ready: func(app.Running) { fmt.Println("ready") },
			})
		}
		fmt.Println(err)
		os.Exit(1)
	}
	// Sarama's metrics keep one goroutine for the life of the process.
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("github.com/rcrowley/go-metrics.(*meterArbiter).tick"))
}

// freePorts finds one for each service that nobody listens on; the servers' are chosen and remembered by themselves.
func freePorts(t *testing.T) app.Ports {
	t.Helper()
	ports := app.Ports{Services: map[string]int{}}
	for _, s := range service.All() {
		port, err := freeport.Find(t.Context())
		require.NoError(t, err)
		ports.Services[s.Name] = port
	}
	return ports
}

// up is a run in this process.
type up struct {
	app.Running
	client *client.Client
	stop   func() error
}

func start(t *testing.T, o app.Options) *up {
	t.Helper()
	o.LogTo = t.Output()
	ctx, cancel := context.WithCancel(context.Background()) // t.Context() ends before cleanups that want an orderly stop
	ready := make(chan app.Running, 1)
	o.Ready = func(r app.Running) { ready <- r }
	ended := make(chan error, 1)
	go func() { ended <- app.Run(ctx, o) }()
	u := &up{stop: sync.OnceValue(func() error {
		cancel()
		return <-ended
	})}
	t.Cleanup(func() { require.NoError(t, u.stop()) })
	select {
	case u.Running = <-ready:
	case err := <-ended:
		ended <- nil
		require.FailNow(t, "it did not start", "%v", err)
	case <-time.After(time.Minute):
		require.FailNow(t, "it is not ready")
	}
	u.client = client.New(client.Services{URLs: u.Services})
	t.Cleanup(u.client.Close)
	return u
}

func stamp(t *testing.T, u *up, instant string) query.Timestamp {
	t.Helper()
	sent, err := u.client.Stamp(t.Context(), instant, "")
	require.NoError(t, err)
	record, err := u.client.Record(t.Context(), sent.Id, sent.Position, 20*time.Second)
	require.NoError(t, err)
	require.Equal(t, sent.Id, record.CommandId)
	return record
}

func TestUpStopAndUpAgain(t *testing.T) {
	t.Parallel()
	o := app.Options{DataDir: t.TempDir(), Ports: freePorts(t)}
	u := start(t, o)
	before := time.Now().Add(-time.Second)
	first := stamp(t, u, "2009-09-28T19:03:12Z")
	require.Equal(t, "2009-09-28T19:03:12Z", first.EventTimestamp)
	created, err := time.Parse(time.RFC3339Nano, first.CreatedAt)
	require.NoError(t, err)
	require.WithinRange(t, created, before, time.Now(), "created_at is the log's time")

	found, err := app.Find(o.DataDir)
	require.NoError(t, err)
	require.Equal(t, u.Running, found)
	require.NoError(t, u.stop())
	_, err = app.Find(o.DataDir)
	require.ErrorIs(t, err, app.ErrNotRunning)

	again := start(t, o)
	require.Equal(t, u.Running, again.Running, "what joined it finds it again")
	kept, err := again.client.Record(t.Context(), first.Id, "", 0)
	require.NoError(t, err)
	require.Equal(t, first, kept)
	stamp(t, again, "2009-09-28T19:03:13Z")
}

func TestAKilledUpComesBackWithItsData(t *testing.T) {
	t.Parallel()
	o := app.Options{DataDir: t.TempDir(), Ports: freePorts(t)}
	description, err := json.Marshal(running{o.DataDir, o.Ports})
	require.NoError(t, err)
	ready, w, err := os.Pipe()
	require.NoError(t, err)
	defer ready.Close()
	process := exec.Command(os.Args[0])
	process.Env = append(os.Environ(), runVariable+"="+string(description))
	process.Stdout, process.Stderr = w, os.Stderr
	require.NoError(t, process.Start())
	require.NoError(t, w.Close())
	said := make([]byte, 100)
	n, err := ready.Read(said)
	require.NoError(t, err)
	require.Equal(t, "ready\n", string(said[:n]))

	found, err := app.Find(o.DataDir)
	require.NoError(t, err)
	c := client.New(client.Services{URLs: found.Services})
	defer c.Close()
	killed := &up{Running: found, client: c}
	var rows []query.Timestamp
	for i := range 5 {
		rows = append(rows, stamp(t, killed, fmt.Sprintf("2009-09-28T19:03:1%dZ", i)))
	}
	unread, err := c.Stamp(t.Context(), "2009-09-28T19:03:20Z", "") // perhaps no row yet
	require.NoError(t, err)
	require.NoError(t, process.Process.Kill())
	_ = process.Wait()
	_, err = app.Find(o.DataDir)
	require.ErrorIs(t, err, app.ErrNotRunning, "what a killed run left says nothing")

	u := start(t, o)
	for _, row := range rows {
		kept, err := u.client.Record(t.Context(), row.Id, "", 0)
		require.NoError(t, err)
		require.Equal(t, row, kept)
	}
	_, err = u.client.Record(t.Context(), unread.Id, unread.Position, 20*time.Second)
	require.NoError(t, err)
	stamp(t, u, "2009-09-28T19:03:30Z")
}

func TestNamedServersAreUsedAndNotStarted(t *testing.T) {
	t.Parallel()
	log, err := broker.Start(t.Context(), broker.Options{DataDir: t.TempDir(), NoSync: true})
	require.NoError(t, err)
	defer func() { require.NoError(t, log.Close()) }()
	db, err := postgres.Start(t.Context(), postgres.Options{DataDir: t.TempDir()})
	require.NoError(t, err)
	defer func() { require.NoError(t, db.Close()) }()
	file := filepath.Join(t.TempDir(), "url")
	require.NoError(t, os.WriteFile(file, []byte(db.URL()+"\n"), 0o600))

	o := app.Options{DataDir: t.TempDir(), Ports: freePorts(t), Environ: map[string]string{
		"KAFKA_BROKERS": log.Addresses()[0], "DB_URL_FILE": file, "KAFKA_PARTITIONS": "3",
	}}
	u := start(t, o)
	require.Equal(t, log.Addresses()[0], u.KafkaBrokers)
	require.Equal(t, db.URL(), u.DBURL)
	stamp(t, u, "2009-09-28T19:03:12Z")
	require.NoDirExists(t, filepath.Join(o.DataDir, "kafka"))
	require.NoDirExists(t, filepath.Join(o.DataDir, "postgres"))
	require.NoError(t, u.stop())
}

// A shell that evaluated `tidemark env` still names the servers of that run when it has ended.
func TestItsOwnDeadServersAreRecognised(t *testing.T) {
	t.Parallel()
	o := app.Options{DataDir: t.TempDir(), Ports: freePorts(t), LogTo: t.Output()}
	u := start(t, o)
	environ := u.Environ()
	require.NoError(t, u.stop())

	o.Environ = environ
	err := app.Run(t.Context(), o)
	require.ErrorContains(t, err, "KAFKA_BROKERS and DB_URL: set to what an earlier tidemark up on "+o.DataDir+" started")
	require.ErrorContains(t, err, "unset KAFKA_BROKERS DB_URL KAFKA_CLAIMED_PARTITIONS")

	t.Log("servers that are there are meant, and so are others that are not")
	log, err := broker.Start(t.Context(), broker.Options{DataDir: filepath.Join(o.DataDir, "kafka"), NoSync: true})
	require.NoError(t, err)
	require.Equal(t, environ["KAFKA_BROKERS"], log.Addresses()[0], "it keeps its port")
	defer func() { require.NoError(t, log.Close()) }()
	delete(environ, "DB_URL")
	u = start(t, o)
	require.NoError(t, u.stop())
}

func TestOneUpADirectory(t *testing.T) {
	t.Parallel()
	o := app.Options{DataDir: t.TempDir(), Ports: freePorts(t)}
	start(t, o)
	second := o
	second.Ports = freePorts(t)
	second.LogTo = t.Output()
	err := app.Run(t.Context(), second)
	require.ErrorContains(t, err, "another tidemark up runs here")
	require.ErrorContains(t, err, fmt.Sprintf("process %d", os.Getpid()))
	require.ErrorContains(t, err, "--data")
}

func TestAllTakenPortsAreNamed(t *testing.T) {
	t.Parallel()
	o := app.Options{DataDir: t.TempDir(), Ports: freePorts(t), LogTo: t.Output()}
	for _, port := range []int{o.Ports.Services["command-service"], o.Ports.Services["query-service"]} {
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		require.NoError(t, err)
		defer l.Close()
	}
	err := app.Run(t.Context(), o)
	require.ErrorContains(t, err, fmt.Sprintf("command-service cannot listen on 127.0.0.1:%d", o.Ports.Services["command-service"]))
	require.ErrorContains(t, err, "--query-port")
	require.NotContains(t, err.Error(), "consumer-service")
	require.NoDirExists(t, filepath.Join(o.DataDir, "kafka"), "nothing was started")

	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	o = app.Options{DataDir: t.TempDir(), Ports: freePorts(t), LogTo: t.Output()}
	o.Ports.Postgres = l.Addr().(*net.TCPAddr).Port
	require.ErrorContains(t, app.Run(t.Context(), o), "--postgres-port")
}

func TestAllMistakesAreTold(t *testing.T) {
	t.Parallel()
	err := app.Run(t.Context(), app.Options{DataDir: t.TempDir(), Ports: app.Ports{Services: map[string]int{"command-service": 70000}}, LogTo: t.Output(), Environ: map[string]string{
		"SERVER_PORT": "8080", "KAFKA_BROKER": "x:1", "BATCH_SIZE": "0", "PRODUCE_DEADLINE": "soon",
	}})
	for _, text := range []string{"SERVER_PORT=8080", "--command-port 70000", "KAFKA_BROKER is the name of an older set-up", "BATCH_SIZE=0", `PRODUCE_DEADLINE="soon"`} {
		require.ErrorContains(t, err, text)
	}
}

// A cluster that is named is not the one that up makes in an empty directory: said at once, not waited for.
func TestAnotherClusterThanItsOwnIsRefused(t *testing.T) {
	t.Parallel()
	o := app.Options{DataDir: t.TempDir(), Ports: freePorts(t), LogTo: t.Output(), Environ: map[string]string{
		"KAFKA_CLUSTER_ID": "another", "DB_URL": "postgres://nobody@127.0.0.1:1/nothing?sslmode=disable",
	}}
	require.ErrorContains(t, app.Run(t.Context(), o), "KAFKA_CLUSTER_ID is another and the log in this data directory is of cluster ")
}

// The end of one part is the end of all, and says which part it was.
func TestEndOfTheDatabaseEndsAll(t *testing.T) {
	t.Parallel()
	o := app.Options{DataDir: t.TempDir(), Ports: freePorts(t), LogTo: new(bytes.Buffer)}
	ready := make(chan struct{})
	o.Ready = func(app.Running) { close(ready) }
	ended := make(chan error, 1)
	go func() { ended <- app.Run(context.Background(), o) }()
	select {
	case <-ready:
	case err := <-ended:
		require.FailNow(t, "it did not start", "%v", err)
	}
	pid, err := os.ReadFile(filepath.Join(o.DataDir, "postgres", "cluster", "postmaster.pid"))
	require.NoError(t, err)
	var server int
	_, err = fmt.Sscan(strings.SplitN(string(pid), "\n", 2)[0], &server)
	require.NoError(t, err)
	process, err := os.FindProcess(server)
	require.NoError(t, err)
	require.NoError(t, process.Kill())
	select {
	case err := <-ended:
		require.ErrorContains(t, err, "PostgreSQL has ended by itself")
		require.False(t, errors.Is(err, context.DeadlineExceeded), "stopped in time")
	case <-time.After(50 * time.Second):
		require.FailNow(t, "it goes on without its database")
	}
}

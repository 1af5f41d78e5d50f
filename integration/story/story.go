package story

import (
	"context"
	"database/sql"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/integration/stack"
	"github.com/tidemark/tidemark/shared/loop"
	"github.com/tidemark/tidemark/shared/service"
)

// Proxies are the TCP proxies that every real Kafka of a story has before it, by their names.
var Proxies = []string{"command", "consumer", "other"}

// Patience is the limit of whatever must happen sooner or later: long enough for a slow machine, and only ever waited
// for in full when something is broken.
const Patience = 90 * time.Second

// servers are what the stories of one process share. They are started by the first story that needs them.
var servers struct {
	mu       sync.Mutex
	kafka    *stack.Kafka
	postgres *stack.Postgres
	programs map[string]*stack.Binaries
	stories  atomic.Int64
}

// Main runs a package's tests and stops what they shared. Use it as TestMain's body: os.Exit(story.Main(m)).
func Main(m *testing.M) int {
	code := m.Run()
	servers.mu.Lock()
	defer servers.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	var errs []error
	if servers.kafka != nil {
		errs = append(errs, servers.kafka.Close(ctx))
	}
	if servers.postgres != nil {
		errs = append(errs, servers.postgres.Close())
	}
	for _, b := range servers.programs {
		errs = append(errs, b.Remove())
	}
	for _, err := range errs {
		if err != nil {
			fmt.Fprintln(os.Stderr, "stop the servers:", err)
			code = max(code, 1)
		}
	}
	return code
}

// Kind returns which broker this process's stories run on.
func Kind() string {
	if kind := os.Getenv("TEST_BROKER"); kind != "" {
		return kind
	}
	return stack.ApacheKafka
}

// Story is one test's own log and database, and the services it starts. Everything ends with the test.
type Story struct {
	t        testing.TB
	Broker   stack.Broker
	Kafka    *stack.Kafka // nil on the embedded broker
	Postgres *stack.Postgres
	// Projection is the one that this story looks at, and Log its topic: timestamps, unless it was made by Of.
	Projection Projection
	Log        *Log
	Client     *Client
	// Group is the name that this story's consumers have unless told otherwise.
	Group string
	// DB is an empty database, and DBURL how services reach it.
	DB    *sql.DB
	DBURL string

	number    int64
	databases int
	services  int
	logs      string
}

// New sets a story's stage: a broker without the topics, and an empty database. No service runs yet.
func New(t testing.TB) *Story {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute) // the first story on a machine fetches the servers
	defer cancel()
	s := &Story{t: t, number: servers.stories.Add(1), logs: t.TempDir(), Client: NewClient(time.Minute), Projection: Timestamps}
	t.Cleanup(s.Client.Close)
	s.Group = fmt.Sprintf("story-%d", s.number)
	s.startServers(ctx)
	t.Cleanup(func() {
		if t.Failed() && s.Kafka != nil {
			t.Logf("the end of Kafka's log:\n%s", s.Kafka.LogTail())
		}
	})

	log, err := OpenLog(s.Broker.Brokers())
	require.NoError(t, err)
	t.Cleanup(func() { _ = log.Close() }) // the broker may be down by now
	for _, topic := range []string{Topic, EndpointTopic, DecisionTopic, ReceiptTopic, IdentityTopic} {
		require.NoError(t, log.On(topic).Delete())
	}
	s.Log = log
	s.DB, s.DBURL = s.Database()
	return s
}

// NewOnKafka is New for a story that is told on Apache Kafka alone, and is skipped on the embedded broker, for that reason.
func NewOnKafka(t testing.TB, reason string) *Story {
	t.Helper()
	if Kind() != stack.ApacheKafka {
		t.Skip(reason)
	}
	return New(t)
}

// Of is the same story, looking at another projection. It starts no services and makes no databases of its own.
func (s *Story) Of(p Projection) *Story {
	other := *s
	other.Projection, other.Log = p, s.Log.On(p.Topic)
	return &other
}

func (s *Story) startServers(ctx context.Context) {
	s.t.Helper()
	servers.mu.Lock()
	defer servers.mu.Unlock()
	var err error
	if servers.postgres == nil {
		servers.postgres, err = stack.StartPostgres(ctx)
		require.NoError(s.t, err)
	}
	s.Postgres = servers.postgres
	switch Kind() {
	case stack.ApacheKafka:
		if servers.kafka == nil {
			servers.kafka, err = stack.StartKafka(ctx, stack.KafkaOptions{FastStart: true, Proxies: Proxies})
			require.NoError(s.t, err)
		}
		s.Kafka = servers.kafka
		for _, name := range Proxies { // whatever the story before did with them
			s.Kafka.Proxy(name).Pass()
		}
		s.Broker = servers.kafka
	default: // an embedded one is up in no time: each story has its own
		s.Broker, err = stack.StartBroker(ctx, Kind())
		require.NoError(s.t, err)
		s.t.Cleanup(func() {
			require.NoError(s.t, s.Broker.Close(context.Background())) // the test's context has ended
		})
	}
}

// Database makes another empty database and returns a connection pool to it and its URL.
func (s *Story) Database() (*sql.DB, string) {
	s.t.Helper()
	s.databases++
	name := fmt.Sprintf("story_%d_%d", s.number, s.databases)
	url, err := s.Postgres.CreateDatabase(s.t.Context(), name)
	require.NoError(s.t, err)
	return s.Connect(url), url
}

// Connect opens a connection pool that is closed at the test's end.
func (s *Story) Connect(url string) *sql.DB {
	s.t.Helper()
	db, err := sql.Open("postgres", url)
	require.NoError(s.t, err)
	s.t.Cleanup(func() { _ = db.Close() })
	return db
}

// ResetOffsets sets a group's committed offsets for the projection's topic to the log's start with Kafka's own tool, as an operator does. The tool
// refuses while the group has members, so it is asked again until the context ends.
func (s *Story) ResetOffsets(ctx context.Context, group string) error {
	var said string
	for {
		output, err := stack.Tool(ctx, "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand",
			"--bootstrap-server", s.Broker.Brokers()[0], "--group", group, "--topic", s.Projection.Topic,
			"--reset-offsets", "--to-earliest", "--execute")
		if err == nil && !strings.Contains(output, "Error:") {
			return nil
		}
		if ctx.Err() == nil { // else it was killed in the middle of a word
			said = output
		}
		if err := loop.Sleep(ctx, time.Second); err != nil {
			return fmt.Errorf("reset the offsets of %s: %w\n%s", group, err, said)
		}
	}
}

// Service starts a service as a process, with changes to the environment that it has by default, and does not wait for
// it. It is killed at the test's end, and the end of its log shown when the test failed.
func (s *Story) Service(name string, changes map[string]string) *stack.Service {
	s.t.Helper()
	s.services++
	spec, ok := service.ByName(name)
	require.True(s.t, ok, "%s is no service", name)
	env := map[string]string{"LOG_LEVEL": "info", "KAFKA_GROUP_ID": s.Group, "AUDIT_INTERVAL": "1s"}
	if spec.Kafka {
		env["KAFKA_BROKERS"] = strings.Join(s.Broker.Brokers(), ",")
		env["KAFKA_CLAIMED_PARTITIONS"] = strconv.Itoa(EndpointPartitions)
	}
	if spec.Database {
		env["DB_URL"] = s.DBURL
	}
	maps.Copy(env, changes)
	running, err := stack.StartService(s.t.Context(), stack.ServiceOptions{
		Program: program(s.t, name), Env: env, Log: filepath.Join(s.logs, fmt.Sprintf("%s-%d.log", name, s.services)),
	})
	require.NoError(s.t, err)
	s.t.Cleanup(func() {
		_ = running.Kill() // it may have ended
		if s.t.Failed() {
			s.t.Logf("the end of the log of %s:\n%s", name, running.LogTail())
		}
	})
	return running
}

// Door starts command-service and waits until it is ready.
func (s *Story) Door() *stack.Service { return s.ready(s.Service(service.Command.Name, nil)) }

// Consumer starts consumer-service under a group's name and waits until it is ready; an empty name is the story's.
func (s *Story) Consumer(group string) *stack.Service {
	s.t.Helper()
	changes := map[string]string{}
	if group != "" {
		changes["KAFKA_GROUP_ID"] = group
	}
	return s.ready(s.Service(service.Consumer.Name, changes))
}

// Reader starts query-service and waits until it is ready, for which a consumer must have made the schema.
func (s *Story) Reader() *stack.Service { return s.ready(s.Service(service.Query.Name, nil)) }

func (s *Story) ready(running *stack.Service) *stack.Service {
	s.t.Helper()
	s.Ready(running)
	return running
}

// Ready waits until a service is ready.
func (s *Story) Ready(running *stack.Service) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), Patience)
	defer cancel()
	require.NoError(s.t, running.Ready(ctx))
}

// RequireRefused waits until a consumer is unready because it refuses to go on with the projection, in these words, and
// requires that they stand in the database too, and that the process runs all the same.
func (s *Story) RequireRefused(running *stack.Service, db *sql.DB, words ...string) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), Patience)
	defer cancel()
	require.NoError(s.t, Eventually(ctx, "wait for the refusal", func(ctx context.Context) error {
		if !running.Running() {
			return Final(fmt.Errorf("%s has ended:\n%s", running.Name(), running.LogTail()))
		}
		a, err := s.Client.Get(ctx, running.URL()+"/ready")
		if err != nil {
			return err
		}
		missing, _ := a.JSON()["missing"].(map[string]any)
		told, _ := missing[s.Projection.Name+" assignment"].(string)
		var noted string
		if err := db.QueryRowContext(ctx, "SELECT refusal FROM public.projections WHERE projection = $1", s.Projection.Name).Scan(&noted); err != nil {
			return err
		}
		for _, w := range words {
			if !strings.Contains(told, w) || !strings.Contains(noted, w) {
				return fmt.Errorf("wanted %q on /ready and in the database, had %s and %q", w, a, noted)
			}
		}
		return nil
	}))
}

// Stop ends a service in order and fails the test when it does not obey.
func (s *Story) Stop(running *stack.Service) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), 30*time.Second)
	defer cancel()
	require.NoError(s.t, running.Stop(ctx))
}

// Program is the file of a program of this repository, built once for all stories of the process.
func (s *Story) Program(name string) string { return program(s.t, name) }

// program builds each service once for all stories of the process.
func program(t testing.TB, name string) string {
	t.Helper()
	servers.mu.Lock()
	defer servers.mu.Unlock()
	if b := servers.programs[name]; b != nil {
		return b.Path(name)
	}
	b, err := stack.Build(t.Context(), name)
	require.NoError(t, err)
	if servers.programs == nil {
		servers.programs = map[string]*stack.Binaries{}
	}
	servers.programs[name] = b
	return b.Path(name)
}

// Expected reads the whole log and computes what the projection must hold, and how far the log went.
func (s *Story) Expected() (Expected, Vector) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), Patience)
	defer cancel()
	records, upTo, err := s.Log.Read(ctx, nil)
	require.NoError(s.t, err)
	return s.Projection.Expect(records, Rules{}), upTo
}

// Passed waits until every partition's progress in a database has reached the vector. A database without a schema yet,
// or one that is down, is waited for too.
func (s *Story) Passed(db *sql.DB, upTo Vector) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), Patience)
	defer cancel()
	var reached Vector
	var err error
	for {
		if reached, err = s.Projection.Progress(ctx, db); err == nil && reached.covers(upTo) {
			return
		}
		if loop.Sleep(ctx, 20*time.Millisecond) != nil {
			require.FailNowf(s.t, "the projection does not pass the log's end", "wanted %v, reached %v, last error %v", upTo, reached, err)
		}
	}
}

// Progress reads how far the projection in a database is.
func (p Projection) Progress(ctx context.Context, db *sql.DB) (Vector, error) {
	rows, err := db.QueryContext(ctx, "SELECT partition, next_offset FROM "+p.Schema+".projection_progress WHERE topic = $1", p.Topic)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }() // Err tells
	v := Vector{}
	for rows.Next() {
		var partition int32
		var next int64
		if err := rows.Scan(&partition, &next); err != nil {
			return nil, err
		}
		v[partition] = next
	}
	return v, rows.Err()
}

// covers tells whether every partition of other was passed here.
func (v Vector) covers(other Vector) bool {
	for p, offset := range other {
		if offset > 0 && v[p] < offset {
			return false
		}
	}
	return true
}

// Dump reads a database's projection as text.
func (s *Story) Dump(db *sql.DB) Dump {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), Patience)
	defer cancel()
	d, err := s.Projection.ReadDump(ctx, db)
	require.NoError(s.t, err)
	return d
}

// RequireProjected waits until the projection in db has passed the log's end of this moment, and requires it to be
// what the log says: rows, outcomes and positions of dead letters. Nothing may be written to the log meanwhile. It
// returns the dump.
func (s *Story) RequireProjected(db *sql.DB) Dump {
	s.t.Helper()
	expected, upTo := s.Expected()
	s.Passed(db, upTo)
	d := s.Dump(db)
	expected.Require(s.t, upTo, d)
	return d
}

// Epoch returns the epoch of what serves in db, or 0 while nothing does. A projection that is started over has a greater
// one than before.
func (s *Story) Epoch(db *sql.DB) int64 {
	s.t.Helper()
	var epoch int64
	if err := db.QueryRowContext(s.t.Context(), "SELECT epoch FROM public.projection_generations WHERE projection = $1 AND state IN ('serving', 'swapping')", s.Projection.Name).Scan(&epoch); err != nil {
		return 0
	}
	return epoch
}

// RequireCleanAudit waits for an audit that began after this call and covers every partition, and requires it to have
// found nothing.
func (s *Story) RequireCleanAudit(db *sql.DB) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), Patience)
	defer cancel()
	require.NoError(s.t, s.Projection.CleanAudit(ctx, db))
}

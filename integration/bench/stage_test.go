package bench

import (
	"context"
	"database/sql"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/integration/stack"
	"github.com/tidemark/tidemark/shared/await"
	"github.com/tidemark/tidemark/shared/config"
	"github.com/tidemark/tidemark/shared/event"
	"github.com/tidemark/tidemark/shared/kafka"
	"github.com/tidemark/tidemark/shared/ticket"
	"github.com/tidemark/tidemark/shared/topic"
	"github.com/tidemark/tidemark/tidemark/embedded/postgres"
)

// partitions of the topic in every benchmark.
const partitions = "8"

var programs struct {
	sync.Mutex
	built map[string]*stack.Binaries
}

// program builds a service once a process.
func program(b *testing.B, name string) string {
	b.Helper()
	programs.Lock()
	defer programs.Unlock()
	if programs.built == nil {
		programs.built = map[string]*stack.Binaries{}
	}
	if programs.built[name] == nil {
		built, err := stack.Build(b.Context(), name)
		require.NoError(b, err)
		programs.built[name] = built
	}
	return programs.built[name].Path(name)
}

// stage is a real Kafka of its own and a database that syncs what it commits, with services as processes.
type stage struct {
	kafka *stack.Kafka
	url   string
	db    *sql.DB
	logs  string
}

func newStage(b *testing.B) *stage {
	b.Helper()
	s := &stage{logs: b.TempDir()}
	var err error
	s.kafka, err = stack.StartKafka(b.Context(), stack.KafkaOptions{})
	require.NoError(b, err)
	b.Cleanup(func() { require.NoError(b, s.kafka.Close(context.Background())) }) // the benchmark's context has ended
	server, err := postgres.Start(b.Context(), postgres.Options{DataDir: filepath.Join(b.TempDir(), "postgres")})
	require.NoError(b, err)
	b.Cleanup(func() { require.NoError(b, server.Close()) })
	s.url, err = stack.CreateDatabase(b.Context(), server.URL(), "bench")
	require.NoError(b, err)
	s.db, err = sql.Open("postgres", s.url)
	require.NoError(b, err)
	b.Cleanup(func() { _ = s.db.Close() }) // before the server's stop
	return s
}

// service starts a service and waits until it is ready.
func (s *stage) service(b *testing.B, name string, env map[string]string) *stack.Service {
	b.Helper()
	all := map[string]string{"KAFKA_BROKERS": s.kafka.Brokers()[0], "KAFKA_PARTITIONS": partitions, "DB_URL": s.url, "LOG_LEVEL": "warn"}
	for k, v := range env {
		all[k] = v
	}
	service, err := stack.StartService(b.Context(), stack.ServiceOptions{Program: program(b, name), Env: all, Log: filepath.Join(s.logs, name+".log")})
	require.NoError(b, err)
	b.Cleanup(func() { _ = service.Kill() }) // it may have been stopped
	ctx, cancel := context.WithTimeout(b.Context(), time.Minute)
	defer cancel()
	require.NoError(b, service.Ready(ctx))
	return service
}

func (s *stage) exec(b *testing.B, statement string) {
	b.Helper()
	_, err := s.db.ExecContext(b.Context(), statement)
	require.NoError(b, err)
}

// fill writes n commands to the log, as command-service does. The topic must be there.
func (s *stage) fill(b *testing.B, n int) {
	b.Helper()
	p, err := kafka.NewPublisher(kafka.PublisherOptions{Kafka: config.Kafka{Brokers: s.kafka.Brokers()}, ClientID: "bench", Producer: "bench/1", Log: quiet()})
	require.NoError(b, err)
	defer func() { require.NoError(b, p.Close()) }()
	await.NoError(b, p.State)
	at := time.Now()
	for sent := 0; sent < n; {
		messages := make([]*message.Message, 0, 10_000)
		for range min(cap(messages), n-sent) {
			id, err := ticket.New()
			require.NoError(b, err)
			at = at.Add(time.Microsecond)
			value := event.AppendTimestampCommand(nil, event.TimestampCommand{CommandID: id, EventTimestamp: at})
			messages = append(messages, kafka.NewMessage(id.String(), value, ""))
		}
		require.NoError(b, p.Publish(topic.TimestampCommand.Name, messages...))
		sent += len(messages)
	}
}

func mebibytes(bytes int64) float64 { return float64(bytes) / (1 << 20) }

// psql runs a command of psql's own and returns how long the process took.
func psql(b *testing.B, url, command string) time.Duration {
	b.Helper()
	start := time.Now()
	out, err := exec.CommandContext(b.Context(), "psql", url, "-X", "-q", "-v", "ON_ERROR_STOP=1", "-c", command).CombinedOutput()
	require.NoError(b, err, string(out))
	return time.Since(start)
}

func scratch(b *testing.B, name string) string {
	b.Helper()
	return filepath.Join(b.TempDir(), name)
}

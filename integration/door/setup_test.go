package door

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"testing"
	"time"

	"github.com/Shopify/sarama"
	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/tidemark/tidemark/command-service/app"
	"github.com/tidemark/tidemark/integration/stack"
	"github.com/tidemark/tidemark/shared/await"
	"github.com/tidemark/tidemark/shared/config"
	"github.com/tidemark/tidemark/shared/kafka"
	"github.com/tidemark/tidemark/shared/loop"
	"github.com/tidemark/tidemark/shared/position"
	"github.com/tidemark/tidemark/shared/topic"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		// The thread that forks stays on purpose.
		goleak.IgnoreTopFunction("github.com/tidemark/tidemark/integration/stack.workOnOneThread"),
		// Sarama's metrics keep one ticker a process.
		goleak.IgnoreTopFunction("github.com/rcrowley/go-metrics.(*meterArbiter).tick"))
}

const door = "door" // the proxy

// startKafka starts a broker of the test's own, with a proxy before it.
func startKafka(t *testing.T) *stack.Kafka {
	t.Helper()
	k, err := stack.StartKafka(t.Context(), stack.KafkaOptions{Proxies: []string{door}, FastStart: true})
	require.NoError(t, err)
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(k.LogTail())
		}
		require.NoError(t, k.Close(context.Background()))
	})
	return k
}

func viaProxy(k *stack.Kafka) []string { return []string{k.Proxy(door).Address()} }

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func newTopic(t *testing.T, k *stack.Kafka, partitions int) string {
	t.Helper()
	r := kafka.NewReader(config.Kafka{Brokers: k.Brokers()}, "test")
	defer func() { require.NoError(t, r.Close()) }()
	spec := topic.Spec{Name: "door-" + uuid.NewString(), Partitions: partitions, ReplicationFactor: 1}
	await.Until(t, func() bool {
		return r.Ensure(t.Context(), spec) == nil && r.Check(t.Context(), spec) == nil
	})
	return spec.Name
}

// record is one record as a plain client reads it.
type record struct {
	key   string
	value string
}

// readAll reads the whole topic with a plain client.
func readAll(t *testing.T, k *stack.Kafka, topic string) map[position.Position]record {
	t.Helper()
	c, err := kafka.NewClient(config.Kafka{Brokers: k.Brokers()}, "test")
	require.NoError(t, err)
	consumer, err := sarama.NewConsumerFromClient(c)
	require.NoError(t, err)
	defer func() {
		require.NoError(t, consumer.Close())
		require.NoError(t, c.Close())
	}()
	partitions, err := c.Partitions(topic)
	require.NoError(t, err)
	all := map[position.Position]record{}
	for _, p := range partitions {
		end := endOf(t, c, topic, p)
		if end == 0 {
			continue
		}
		in, err := consumer.ConsumePartition(topic, p, 0)
		require.NoError(t, err)
		for at := int64(-1); at < end-1; {
			select {
			case m := <-in.Messages():
				at = m.Offset
				all[position.Position{Topic: topic, Partition: p, Offset: at}] = record{string(m.Key), string(m.Value)}
			case <-time.After(time.Minute):
				require.Fail(t, "the topic cannot be read to its end")
			}
		}
		require.NoError(t, in.Close())
	}
	return all
}

// endOf asks where a partition ends, and asks again while no leader answers: a broker that has just gone on elects first.
func endOf(t *testing.T, c sarama.Client, topic string, partition int32) (end int64) {
	t.Helper()
	err := loop.Retry(t.Context(), loop.Backoff{Most: 500 * time.Millisecond}, func(context.Context) (final bool, err error) {
		if end, err = c.GetOffset(topic, partition, sarama.OffsetNewest); errors.Is(err, sarama.ErrNotLeaderForPartition) || errors.Is(err, sarama.ErrLeaderNotAvailable) {
			_ = c.RefreshMetadata(topic) // what it does not know yet shows at the next try
			return false, err
		}
		return true, err
	})
	require.NoError(t, err)
	return end
}

// places is readAll by key.
func places(all map[position.Position]record) map[string][]position.Position {
	by := map[string][]position.Position{}
	for at, r := range all {
		by[r.key] = append(by[r.key], at)
	}
	return by
}

// service is one run of the command-service behind the proxy.
type service struct {
	url    string
	topic  string
	client *http.Client
	stop   context.CancelFunc
	ended  chan error
}

func startService(t *testing.T, k *stack.Kafka, deadline time.Duration) *service {
	t.Helper()
	c := app.DefaultConfig()
	c.ServerPort, c.Brokers, c.Partitions, c.ProduceDeadline = 0, viaProxy(k), 6, deadline
	s := &service{topic: "door-" + uuid.NewString(), client: &http.Client{Timeout: time.Minute, Transport: &http.Transport{MaxIdleConnsPerHost: 100}}}
	listening, ended := make(chan string, 1), make(chan error, 2)
	ctx, stop := context.WithCancel(context.Background()) // ended by the cleanup, which sees how it ended
	go func() {
		ended <- app.Run(ctx, app.Options{
			Config: c, Log: quiet(), Topic: s.topic, Watch: app.WatchOptions{Retry: 50 * time.Millisecond, Guard: 200 * time.Millisecond},
			Listening: func(address string) { listening <- address },
		})
	}()
	s.stop, s.ended = stop, ended
	t.Cleanup(func() {
		s.client.CloseIdleConnections()
		stop()
		require.NoError(t, <-ended)
	})
	select {
	case address := <-listening:
		s.url = "http://" + address
	case err := <-ended:
		ended <- err
		require.NoError(t, err)
	}
	s.awaitReady(t)
	return s
}

func (s *service) awaitReady(t *testing.T) {
	t.Helper()
	await.Until(t, func() bool {
		res, err := s.client.Get(s.url + "/ready")
		if err != nil {
			return false
		}
		_, _ = io.Copy(io.Discard, res.Body)
		return res.Body.Close() == nil && res.StatusCode == http.StatusOK
	})
}

// answer is what a POST got.
type answer struct {
	key      string // sent as Idempotency-Key
	status   int
	kind     string // the problem's type
	ticket   string
	retryKey string
	at       position.Position
	retry    string // Retry-After
	took     time.Duration
}

// post stamps the instant under key, a UUIDv7 of the test's own, so that even a refused command has a
// name to look for.
func (s *service) post(instant, key string) (answer, error) {
	a := answer{key: key}
	r, err := http.NewRequest(http.MethodPost, s.url+"/api/v1/timestamp/"+instant, http.NoBody)
	if err != nil {
		return a, err
	}
	if key != "" {
		r.Header.Set("Idempotency-Key", key)
	}
	start := time.Now()
	res, err := s.client.Do(r)
	if err != nil {
		return a, err
	}
	defer func() { _ = res.Body.Close() }()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		return a, err
	}
	a.took, a.status, a.retry = time.Since(start), res.StatusCode, res.Header.Get("Retry-After")
	var m struct {
		ID       string `json:"id"`
		Type     string `json:"type"`
		Ticket   string `json:"ticket"`
		RetryKey string `json:"retry_key"`
	}
	if err := json.NewDecoder(bytes.NewReader(body)).Decode(&m); err != nil {
		return a, fmt.Errorf("%d %q: %w", a.status, body, err)
	}
	a.kind, a.ticket, a.retryKey = m.Type, m.Ticket, m.RetryKey
	if a.status == http.StatusAccepted {
		a.ticket = m.ID
		a.at, err = position.Parse(res.Header.Get(position.Header))
	}
	return a, err
}

func newKey(t *testing.T) string {
	t.Helper()
	id, err := uuid.NewV7()
	require.NoError(t, err)
	return id.String()
}

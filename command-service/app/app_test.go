package app

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/Shopify/sarama"
	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kfake"
	"go.uber.org/goleak"

	"github.com/tidemark/tidemark/shared/await"
	"github.com/tidemark/tidemark/shared/config"
	"github.com/tidemark/tidemark/shared/event"
	"github.com/tidemark/tidemark/shared/freeport"
	"github.com/tidemark/tidemark/shared/kafka"
	"github.com/tidemark/tidemark/shared/position"
	"github.com/tidemark/tidemark/shared/telemetry"
	"github.com/tidemark/tidemark/shared/topic"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		// Sarama's metrics start one clock for the whole process.
		goleak.IgnoreTopFunction("github.com/rcrowley/go-metrics.(*meterArbiter).tick"),
	)
}

func realKafka(t *testing.T) []string {
	t.Helper()
	brokers := os.Getenv("TEST_KAFKA_BROKERS")
	require.NotEmpty(t, brokers, "TEST_KAFKA_BROKERS must name a real Kafka: make test starts one")
	return strings.Split(brokers, ",")
}

// running is one run of the app.
type running struct {
	url   string
	topic string
	log   *lines
	stop  context.CancelFunc
	ended chan error
}

// lines collects a log.
type lines struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func options(brokers []string) Options {
	name := uuid.NewString()
	o := Options{Config: DefaultConfig(), Topic: "commands-" + name, Endpoints: "endpoints-" + name, Decisions: "decisions-" + name, Identity: "identity-" + name}
	o.Config.ServerPort, o.Config.Brokers, o.Config.Partitions, o.Config.ClaimedPartitions = 0, brokers, 3, 5
	o.Watch = WatchOptions{Retry: 20 * time.Millisecond, Guard: 50 * time.Millisecond, Look: 20 * time.Millisecond}
	return o
}

func start(t *testing.T, o Options) *running {
	t.Helper()
	s := &running{topic: o.Topic, log: &lines{}, ended: make(chan error, 1)}
	log, err := telemetry.NewLogger(s.log, Name, "debug")
	require.NoError(t, err)
	listening := make(chan string, 1)
	o.Log, o.Listening = log, func(address string) { listening <- address }
	ctx, stop := context.WithCancel(context.Background()) // ended by the cleanup, which sees how it ended
	s.stop = stop
	go func() { s.ended <- Run(ctx, o) }()
	t.Cleanup(func() {
		stop()
		if err, more := <-s.ended; more {
			require.NoError(t, err)
		}
	})
	select {
	case address := <-listening:
		s.url = "http://" + address
	case err := <-s.ended:
		close(s.ended)
		require.NoError(t, err, "it ended")
	}
	return s
}

// ends waits for a run that ends by itself.
func (s *running) ends(t *testing.T) error {
	t.Helper()
	select {
	case err := <-s.ended:
		close(s.ended)
		return err
	case <-time.After(time.Minute):
		require.Fail(t, "it goes on")
		return nil
	}
}

func (s *running) do(t *testing.T, method, path string) (int, http.Header, map[string]any) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, s.url+path, http.NoBody)
	require.NoError(t, err)
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 30 * time.Second}
	res, err := client.Do(r)
	require.NoError(t, err)
	defer func() { _ = res.Body.Close() }()
	var m map[string]any
	require.NoError(t, json.NewDecoder(res.Body).Decode(&m))
	return res.StatusCode, res.Header, m
}

func (s *running) ready(t *testing.T) {
	t.Helper()
	await.Until(t, func() bool {
		status, _, _ := s.do(t, http.MethodGet, "/ready")
		return status == http.StatusOK
	})
}

func TestACommandIsARecordOfTheLog(t *testing.T) {
	t.Parallel()
	brokers := realKafka(t)
	s := start(t, options(brokers))
	s.ready(t)
	r := kafka.NewReader(config.Kafka{Brokers: brokers}, "test")
	defer func() { require.NoError(t, r.Close()) }()
	before := time.Now().Add(-time.Second)
	for range 20 {
		status, header, body := s.do(t, http.MethodPost, "/api/v1/timestamp/0001-01-01T00:00:00.000001Z")
		require.Equal(t, 202, status, body)
		at, err := position.Parse(header.Get(position.Header))
		require.NoError(t, err)
		require.Equal(t, s.topic, at.Topic)
		rec, found, err := r.RecordAt(t.Context(), at.Topic, at.Partition, at.Offset)
		require.NoError(t, err)
		require.True(t, found)
		require.Equal(t, body["id"], string(rec.Key))
		require.Equal(t, kafka.PartitionOf(rec.Key, 3), at.Partition)
		require.Equal(t, fmt.Sprintf(`{"command_id":"%s","event_timestamp":"0001-01-01T00:00:00.000001Z"}`, body["id"]), string(rec.Value))
		require.WithinRange(t, rec.Timestamp, before, time.Now().Add(time.Second), "the log's own time")
	}
	require.Equal(t, map[string]string{
		event.HeaderCorrelationID: "mine 1", event.HeaderProducer: "command-service/" + telemetry.Version,
	}, headersOf(t, s, brokers))
}

func TestAnEndpointIsARecordOfItsTopic(t *testing.T) {
	t.Parallel()
	brokers := realKafka(t)
	o := options(brokers)
	s := start(t, o)
	s.ready(t)
	r := kafka.NewReader(config.Kafka{Brokers: brokers}, "test")
	defer func() { require.NoError(t, r.Close()) }()
	made := topic.EndpointCommand.Sized(o.Config.Kafka)
	made.Name = o.Endpoints
	require.NoError(t, r.Check(t.Context(), made), "five partitions, kept forever")
	put := func(n int) *http.Response {
		t.Helper()
		body := "- url: https://example.org/1" + strings.Repeat("\n- url: https://example.org/more", n-1)
		request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.url+"/api/v1/endpoints", strings.NewReader(body))
		require.NoError(t, err)
		request.Header.Set("Content-Type", "application/yaml")
		request.Header.Set("Idempotency-Key", "6f2b8a0e-58cf-4d63-9a0d-0d1f3c1f3a55")
		request.Close = true
		res, err := http.DefaultClient.Do(request)
		require.NoError(t, err)
		require.Equal(t, 202, res.StatusCode)
		return res
	}
	type accepted struct {
		ID         string `json:"id"`
		EndpointID string `json:"endpoint_id"`
		Position   string `json:"position"`
	}
	var values []string
	for range 2 { // a retry makes no second endpoint
		res := put(20)
		var all []accepted
		require.NoError(t, json.NewDecoder(res.Body).Decode(&all))
		require.NoError(t, res.Body.Close())
		require.Len(t, all, 20)
		for i, a := range all {
			at, err := position.Parse(a.Position)
			require.NoError(t, err)
			rec, found, err := r.RecordAt(t.Context(), o.Endpoints, at.Partition, at.Offset)
			require.NoError(t, err)
			require.True(t, found)
			require.Equal(t, a.EndpointID, string(rec.Key))
			require.Equal(t, kafka.PartitionOf(rec.Key, 5), at.Partition)
			c, err := event.DecodeEndpointCommand(rec.Value)
			require.NoError(t, err)
			require.Equal(t, []string{a.ID, a.EndpointID}, []string{c.CommandID.String(), c.EndpointID.String()})
			if len(values) < 20 {
				values = append(values, string(rec.Value))
			}
			require.Equal(t, values[i], string(rec.Value))
		}
	}
}

// headersOf reads the headers of a command's record with a plain client.
func headersOf(t *testing.T, s *running, brokers []string) map[string]string {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.url+"/app", http.NoBody)
	require.NoError(t, err)
	r.Header.Set("correlationId", "mine 1")
	r.Close = true
	res, err := http.DefaultClient.Do(r)
	require.NoError(t, err)
	require.NoError(t, res.Body.Close())
	require.Equal(t, 200, res.StatusCode)
	at, err := position.Parse(res.Header.Get(position.Header))
	require.NoError(t, err)
	c, err := kafka.NewClient(config.Kafka{Brokers: brokers}, "test")
	require.NoError(t, err)
	consumer, err := sarama.NewConsumerFromClient(c)
	require.NoError(t, err)
	defer func() {
		require.NoError(t, consumer.Close())
		require.NoError(t, c.Close())
	}()
	p, err := consumer.ConsumePartition(at.Topic, at.Partition, at.Offset)
	require.NoError(t, err)
	defer func() { require.NoError(t, p.Close()) }()
	headers := map[string]string{}
	for _, h := range (<-p.Messages()).Headers {
		headers[string(h.Key)] = string(h.Value)
	}
	return headers
}

func TestABrokerThatIsMissingIsWaitedFor(t *testing.T) {
	t.Parallel()
	port, err := freeport.Find(t.Context())
	require.NoError(t, err)
	address := freeport.Address(port)

	s := start(t, options([]string{address}))
	status, _, body := s.do(t, http.MethodGet, "/health")
	require.Equal(t, 200, status)
	require.Equal(t, "UP", body["status"])
	await.Until(t, func() bool {
		_, _, body = s.do(t, http.MethodGet, "/ready")
		missing, _ := body["missing"].(map[string]any)
		const nobody = "nothing listens at the addresses of KAFKA_BROKERS"
		return missing[partLog] == nobody && missing[partPublisher] == nobody
	}, "it says what is missing, and to nobody where it was looked for")
	require.Contains(t, s.log.String(), address, "the log has it")
	status, header, body := s.do(t, http.MethodPost, "/app")
	require.Equal(t, 503, status)
	require.Equal(t, "/problems/log-down", body["type"])
	require.NotEmpty(t, header.Get("Retry-After"))

	c, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.Ports(port))
	require.NoError(t, err)
	defer c.Close()
	s.ready(t)
	status, _, body = s.do(t, http.MethodPost, "/app")
	require.Equal(t, 200, status, body)
}

func TestAnUnsafeTopicIsRefusedAtTheStart(t *testing.T) {
	t.Parallel()
	brokers := realKafka(t)
	o := options(brokers)
	r := kafka.NewReader(config.Kafka{Brokers: brokers}, "test")
	defer func() { require.NoError(t, r.Close()) }()
	made := topic.Spec{Name: o.Topic, Partitions: 5, ReplicationFactor: 1}
	require.NoError(t, r.Ensure(t.Context(), made))
	alter(t, brokers, o.Topic, "cleanup.policy", "compact")
	var guard *kafka.GuardError
	await.Until(t, func() bool { return errors.As(r.Check(t.Context(), made), &guard) })
	s := start(t, o)
	err := s.ends(t)
	require.ErrorAs(t, err, &guard)
	for _, words := range []string{o.Topic, "cleanup.policy must be delete and is compact", "the number of partitions must be 3 and is 5"} {
		require.ErrorContains(t, err, words)
	}
}

func TestATopicThatBecomesUnsafeShutsTheDoorUntilItIsMended(t *testing.T) {
	t.Parallel()
	brokers := realKafka(t)
	o := options(brokers)
	s := start(t, o)
	s.ready(t)
	alter(t, brokers, o.Topic, "retention.ms", "86400000")
	var body map[string]any
	await.Until(t, func() bool {
		var status int
		status, _, body = s.do(t, http.MethodPost, "/app")
		return status == 503
	})
	require.Equal(t, "/problems/log-unsafe", body["type"])
	require.Contains(t, body["detail"], "retention.ms must be -1 and is 86400000")
	status, _, body := s.do(t, http.MethodGet, "/ready")
	require.Equal(t, 503, status)
	require.Contains(t, fmt.Sprint(body["missing"]), "retention.ms")
	require.Contains(t, s.log.String(), `"level":"ERROR"`)
	require.Equal(t, 1, strings.Count(s.log.String(), "the topic is not safe"), "logged once, not each minute")

	alter(t, brokers, o.Topic, "retention.ms", "-1")
	s.ready(t)
	status, _, _ = s.do(t, http.MethodPost, "/app")
	require.Equal(t, 200, status)
}

func TestATopicThatIsDeletedIsNotMadeAnew(t *testing.T) {
	t.Parallel()
	brokers := realKafka(t)
	o := options(brokers)
	s := start(t, o)
	s.ready(t)
	admin := newAdmin(t, brokers)
	require.NoError(t, admin.DeleteTopic(o.Topic))
	await.Until(t, func() bool {
		status, _, _ := s.do(t, http.MethodGet, "/ready")
		return status == 503
	})
	status, _, _ := s.do(t, http.MethodPost, "/app")
	require.Equal(t, 503, status)
	topics, err := admin.ListTopics()
	require.NoError(t, err)
	require.NotContains(t, topics, o.Topic)
}

func TestAPortThatIsTakenIsNamed(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer func() { _ = l.Close() }()
	o := options([]string{"127.0.0.1:1"})
	o.Config.ServerPort = l.Addr().(*net.TCPAddr).Port
	o.Log = slog.New(slog.DiscardHandler)
	require.ErrorContains(t, Run(t.Context(), o), "SERVER_PORT")
}

func TestAStopFinishesWhatIsInHand(t *testing.T) {
	t.Parallel()
	brokers := realKafka(t)
	s := start(t, options(brokers))
	s.ready(t)
	var mu sync.Mutex
	statuses := map[int]int{}
	var callers sync.WaitGroup
	for range 8 {
		callers.Go(func() {
			client := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{}}
			defer client.CloseIdleConnections()
			for {
				res, err := client.Post(s.url+"/app", "", nil)
				if err != nil {
					return // the port is closed
				}
				_, _ = io.Copy(io.Discard, res.Body)
				_ = res.Body.Close()
				mu.Lock()
				statuses[res.StatusCode]++
				mu.Unlock()
			}
		})
	}
	await.Until(t, func() bool { // the stop comes in the middle of requests
		mu.Lock()
		defer mu.Unlock()
		return statuses[200] > 100
	})
	s.stop()
	require.NoError(t, s.ends(t))
	callers.Wait()
	require.Positive(t, statuses[200])
	require.Len(t, statuses, 1, "nobody who got in was turned away: %v", statuses)
}

func TestConfigurationIsCheckedAsAWhole(t *testing.T) {
	t.Parallel()
	c := DefaultConfig()
	require.NoError(t, config.Load(&c, map[string]string{}))
	err := config.Load(&c, map[string]string{
		"PRODUCE_DEADLINE": "1ms", "QUERY_URL": "nowhere", "BIND_ADDRESS": "0.0.0.0", "KAFKA_PARTITIONS": "0", "KAFKA_BROKER": "x:1", "LOG_LEVEL": "loud",
	})
	for _, name := range []string{"PRODUCE_DEADLINE", "QUERY_URL", "BIND_ADDRESS", "KAFKA_PARTITIONS", "KAFKA_BROKER ", "LOG_LEVEL"} {
		require.ErrorContains(t, err, name)
	}
}

func newAdmin(t *testing.T, brokers []string) sarama.ClusterAdmin {
	t.Helper()
	c, err := kafka.NewClient(config.Kafka{Brokers: brokers}, "test")
	require.NoError(t, err)
	admin, err := sarama.NewClusterAdminFromClient(c)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, admin.Close()) }) // and the client with it
	return admin
}

func alter(t *testing.T, brokers []string, topic, setting, value string) {
	t.Helper()
	admin := newAdmin(t, brokers)
	await.Until(t, func() bool {
		return admin.IncrementalAlterConfig(sarama.TopicResource, topic, map[string]sarama.IncrementalAlterConfigsEntry{
			setting: {Operation: sarama.IncrementalAlterConfigsOperationSet, Value: &value},
		}, false) == nil
	})
}

// A redrive is an ordinary command that names its letter, and then the decision; both are where the answer says.
func TestDecisionsOnDeadLettersAreRecordsOfTheLog(t *testing.T) {
	t.Parallel()
	brokers := realKafka(t)
	o := options(brokers)
	s := start(t, o)
	s.ready(t)
	for range 3 { // a letter is a record that is there
		status, _, _ := s.do(t, http.MethodPost, "/app")
		require.Equal(t, 200, status)
	}
	r := kafka.NewReader(config.Kafka{Brokers: brokers}, "test")
	defer func() { require.NoError(t, r.Close()) }()
	ends, err := r.StableEnds(t.Context(), o.Topic, []int32{0, 1, 2})
	require.NoError(t, err)
	var written []position.Position
	for p, end := range ends {
		for offset := range end {
			written = append(written, position.Position{Topic: o.Topic, Partition: p, Offset: offset})
		}
	}
	letter, other := written[0], written[1]
	post := func(url, what, body string) (int, http.Header, map[string]any) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url+"/api/v1/deadletters/"+what, strings.NewReader(body))
		require.NoError(t, err)
		req.Header.Set("Content-Type", "application/json")
		req.Close = true
		res, err := http.DefaultClient.Do(req)
		require.NoError(t, err)
		defer func() { _ = res.Body.Close() }()
		var m map[string]any
		require.NoError(t, json.NewDecoder(res.Body).Decode(&m))
		return res.StatusCode, res.Header, m
	}
	at := func(text string) kafka.Record {
		p, err := position.Parse(text)
		require.NoError(t, err)
		record, found, err := r.RecordAt(t.Context(), p.Topic, p.Partition, p.Offset)
		require.NoError(t, err)
		require.True(t, found, text)
		return record
	}

	id := uuid.NewString()
	status, _, body := post(s.url, "discard", `{"positions":["`+letter.String()+`"]}`)
	require.Equal(t, 422, status, body)
	require.Contains(t, body["errors"].([]any)[0].(map[string]any)["reason"], "can be read")
	status, header, body := post(s.url, "redrive", `{"letters":[{"position":"`+letter.String()+`","payload":"{\"command_id\":\"`+id+`\",\"event_timestamp\":\"2009-09-28T21:03:12+02:00\"}"}],"note":"a <typo>","readable":true}`)
	require.Equal(t, 200, status, body)
	result := body["results"].([]any)[0].(map[string]any)
	require.Equal(t, letter.String(), result["position"])
	require.Equal(t, id, result["ticket"])
	command := at(result["command"].(string))
	require.Equal(t, `{"command_id":"`+id+`","event_timestamp":"2009-09-28T19:03:12Z"}`, string(command.Value))
	require.Equal(t, id, string(command.Key))
	headers := map[string]string{}
	for _, h := range command.Headers {
		headers[string(h.Key)] = string(h.Value)
	}
	require.Equal(t, letter.String(), headers["redriveOf"])
	require.NotEmpty(t, headers["correlationId"])
	require.Equal(t, result["decision"], header.Get(position.Header))
	decision := at(result["decision"].(string))
	require.Equal(t, letter.String(), string(decision.Key))
	require.Regexp(t, `^{"position":"`+regexp.QuoteMeta(letter.String())+`","decision":"redrive","command_id":"`+id+`","request_id":"[0-9a-f-]{36}","note":"a <typo>","by":""}$`, string(decision.Value))

	// It is decided, also for a service that was not there then.
	another := start(t, o)
	another.ready(t)
	for _, url := range []string{s.url, another.url} {
		status, _, body = post(url, "discard", `{"positions":["`+letter.String()+`"],"readable":true}`)
		require.Equal(t, 409, status, body)
		require.Contains(t, body["errors"].([]any)[0].(map[string]any)["reason"], "as ticket "+id+", in "+result["decision"].(string))
	}
	decidedOn, err := r.StableEnds(t.Context(), o.Decisions, []int32{0, 1, 2})
	require.NoError(t, err)
	require.EqualValues(t, 1, decidedOn[0]+decidedOn[1]+decidedOn[2])
	letter = other
	status, _, body = post(another.url, "discard", `{"positions":["`+letter.String()+`"],"readable":true}`)
	require.Equal(t, 200, status, body)
	result = body["results"].([]any)[0].(map[string]any)
	require.NotContains(t, result, "ticket")
	require.Regexp(t, `^{"position":"`+regexp.QuoteMeta(letter.String())+`","decision":"discard","request_id":"[0-9a-f-]{36}","note":"","by":""}$`, string(at(result["decision"].(string)).Value))

	before, err := r.StableEnds(t.Context(), o.Topic, []int32{0, 1, 2})
	require.NoError(t, err)
	letter.Offset = before[letter.Partition]
	status, _, body = post(s.url, "discard", `{"positions":["`+letter.String()+`"]}`)
	require.Equal(t, 422, status, body)
	require.Contains(t, fmt.Sprint(body["errors"]), "ends at offset")
}

// The guard's own time to look again is a minute here.
func TestWhatAPostFoundOutReadinessKnowsAtOnce(t *testing.T) {
	t.Parallel()
	brokers := realKafka(t)
	unready := func(t *testing.T, s *running) string {
		var missing string
		await.Until(t, func() bool {
			status, _, body := s.do(t, http.MethodGet, "/ready")
			missing = fmt.Sprint(body["missing"])
			return status == 503
		})
		return missing
	}
	t.Run("the topic is gone", func(t *testing.T) {
		t.Parallel()
		o := options(brokers)
		o.Watch.Guard = time.Minute
		s := start(t, o)
		s.ready(t)
		require.NoError(t, newAdmin(t, brokers).DeleteTopic(o.Topic))
		await.Until(t, func() bool {
			status, _, _ := s.do(t, http.MethodPost, "/app")
			return status == 503
		})
		require.Contains(t, unready(t, s), "topic "+o.Topic+" is not there")
	})
	t.Run("the topic takes no record", func(t *testing.T) {
		t.Parallel()
		o := options(brokers)
		o.Watch.Guard = time.Minute
		s := start(t, o)
		s.ready(t)
		alter(t, brokers, o.Topic, "max.message.bytes", "150")
		var body map[string]any
		await.Until(t, func() bool {
			var status int
			status, _, body = s.do(t, http.MethodPost, "/app")
			return status == 413
		})
		require.Equal(t, "/problems/record-too-large", body["type"])
		require.Contains(t, body["detail"], "max.message.bytes")
		require.Contains(t, unready(t, s), "max.message.bytes must be at least 131072 and is 150")
	})
}

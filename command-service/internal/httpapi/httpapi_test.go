package httpapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/gin-gonic/gin"
	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/tidemark/tidemark/command-service/internal/deadletter"
	"github.com/tidemark/tidemark/command-service/internal/door"
	api "github.com/tidemark/tidemark/shared/api/command"
	"github.com/tidemark/tidemark/shared/config"
	"github.com/tidemark/tidemark/shared/event"
	sharedhttp "github.com/tidemark/tidemark/shared/httpapi"
	"github.com/tidemark/tidemark/shared/kafka"
	"github.com/tidemark/tidemark/shared/kafka/kafkatest"
	"github.com/tidemark/tidemark/shared/limits"
	"github.com/tidemark/tidemark/shared/position"
	"github.com/tidemark/tidemark/shared/problem"
	"github.com/tidemark/tidemark/shared/topic"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		// Sarama's metrics start one clock for the whole process.
		goleak.IgnoreTopFunction("github.com/rcrowley/go-metrics.(*meterArbiter).tick"),
	)
}

// bundle is the service's HTTP side on topics in memory. Each partition of those that have dead letters holds lettersEnd offsets to
// begin with: records that nobody can read, and at markerAt none.
type bundle struct {
	engine    *gin.Engine
	doors     Doors
	decisions *door.Door
	server    *Server

	mu     sync.Mutex
	err    error
	topics map[string]error // of one topic only
	sent   []*message.Message
	logs   map[string]*kafkatest.Log // by topic
}

const markerAt, lettersEnd = 99, 100

// sizes are those of the topics of this bundle.
var sizes = config.Kafka{Partitions: 12, ClaimedPartitions: 48}

// newTopic makes a topic, or makes it anew.
func (b *bundle) newTopic(spec topic.Spec, letters bool) {
	l := kafkatest.NewLog(spec.Sized(sizes).Partitions)
	offsets, markers := 0, int64(0)
	if letters {
		offsets, markers = markerAt, lettersEnd-markerAt
	}
	for p := range l.Records {
		for range offsets {
			l.Add(p, time.Now(), "poison")
		}
		l.Pass(p, kafka.Gap{Markers: markers})
	}
	l.Fault = func(m *message.Message) (written bool, err error) {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.sent = append(b.sent, m)
		err = errors.Join(b.err, b.topics[spec.Name])
		return err == nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.logs[spec.Name] = l
}

func (b *bundle) log(topic string) *kafkatest.Log {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.logs[topic]
}

func (b *bundle) PublishAll(topic string, msgs ...*message.Message) []kafka.Result {
	return b.log(topic).PublishAll(topic, msgs...)
}

func (b *bundle) StableEnds(ctx context.Context, topic string, partitions []int32) (map[int32]int64, error) {
	return b.log(topic).StableEnds(ctx, topic, partitions)
}

func (b *bundle) ReadFrom(ctx context.Context, topic string, partition int32, offset int64) ([]kafka.Record, int64, error) {
	return b.log(topic).ReadFrom(ctx, topic, partition, offset)
}

func (b *bundle) RecordAt(ctx context.Context, topic string, partition int32, offset int64) (kafka.Record, bool, error) {
	return b.log(topic).RecordAt(ctx, topic, partition, offset)
}

// placeOf is where the newest command of a key stands.
func (b *bundle) placeOf(t *testing.T, of topic.Spec, key uuid.UUID) string {
	t.Helper()
	partition := kafka.PartitionOf([]byte(key.String()), int32(of.Sized(sizes).Partitions))
	records := b.log(of.Name).Written(partition)
	newest := records[len(records)-1]
	require.Equal(t, key.String(), string(newest.Key))
	return position.Position{Topic: of.Name, Partition: partition, Offset: newest.Offset}.String()
}

// fail makes all topics fail to take and to answer, until it is told nil.
func (b *bundle) fail(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.err = err
	for _, l := range b.logs {
		l.Fail(err)
	}
}

// failTopics makes those topics fail to take what is published.
func (b *bundle) failTopics(topics map[string]error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.topics = topics
}

// forgetDecisions is a topic of decisions that was made anew.
func (b *bundle) forgetDecisions() { b.newTopic(topic.DeadLetterCommand, false) }

// readable puts a timestamp into each partition at an offset, whatever its topic.
func (b *bundle) readable(offset int64) {
	for _, l := range b.logs {
		for _, records := range l.Records {
			if offset < int64(len(records)) {
				records[offset].Value = event.AppendTimestampCommand(nil, event.TimestampCommand{CommandID: uuid.New(), EventTimestamp: time.Now()})
			}
		}
	}
}

// last is the newest record.
func (b *bundle) last(t *testing.T) event.TimestampCommand {
	t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	require.NotEmpty(t, b.sent)
	m := b.sent[len(b.sent)-1]
	c, err := event.DecodeTimestampCommand(m.Payload)
	require.NoError(t, err)
	require.Equal(t, c.CommandID.String(), m.UUID, "the key is the command's id")
	return c
}

func setup(t *testing.T) *bundle {
	t.Helper()
	b := &bundle{logs: map[string]*kafkatest.Log{}}
	for _, of := range []topic.Spec{topic.TimestampCommand, topic.EndpointCommand, topic.ProjectionReceipt} {
		b.newTopic(of, true)
	}
	b.newTopic(topic.DeadLetterCommand, false)
	quiet := slog.New(slog.DiscardHandler)
	registry := prometheus.NewRegistry()
	var err error
	metrics := door.NewMetrics(registry)
	for d, of := range map[**door.Door]topic.Spec{
		&b.doors.Timestamps: topic.TimestampCommand, &b.doors.Endpoints: topic.EndpointCommand, &b.decisions: topic.DeadLetterCommand,
	} {
		*d, err = door.New(door.Options{Topic: of.Name, Log: b, Metrics: metrics})
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, (*d).Close(context.Background())) }) // the test's context has ended
		(*d).Open()
	}
	engine, err := sharedhttp.NewEngine(t.Context(), sharedhttp.Options{Log: quiet, Registry: registry, Spec: api.Spec, MaxBody: 256, MaxBodies: limits.Bodies})
	require.NoError(t, err)
	b.engine = engine.Engine
	letters := deadletter.New(deadletter.Options{
		Topics: []deadletter.Topic{
			deadletter.Timestamps(topic.TimestampCommand.Sized(sizes), b.doors.Timestamps), deadletter.Endpoints(topic.EndpointCommand.Sized(sizes), b.doors.Endpoints),
			deadletter.Foreign(topic.ProjectionReceipt.Sized(sizes)),
		},
		Decisions: b.decisions, DecisionTopic: topic.DeadLetterCommand.Sized(sizes), Log: b, Deadline: 5 * time.Second,
	})
	b.server = &Server{
		doors: b.doors, letters: letters, queryURL: "http://read.example:7082", failures: &failures{log: quiet}, now: time.Now, limits: defaultLimits, stopping: t.Context().Done(),
	}
	mount(b.engine, b.server)
	return b
}

func (b *bundle) post(path, body string, header ...string) *httptest.ResponseRecorder {
	var r *http.Request
	if body == "" {
		r = httptest.NewRequest(http.MethodPost, path, http.NoBody)
	} else {
		r = httptest.NewRequest(http.MethodPost, path, strings.NewReader(body))
		r.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	b.engine.ServeHTTP(w, r)
	return w
}

func decode(t *testing.T, w *httptest.ResponseRecorder) map[string]any {
	t.Helper()
	var m map[string]any
	require.NoError(t, json.Unmarshal(w.Body.Bytes(), &m), w.Body)
	return m
}

func TestAnAcceptedCommandHasATicketAPlaceAndALocation(t *testing.T) {
	t.Parallel()
	b := setup(t)
	w := b.post("/api/v1/timestamp/2009-09-28T19:03:12Z", "", "correlationId", "mine 1")
	require.Equal(t, 202, w.Code, w.Body)
	c := b.last(t)
	require.Equal(t, `{"id":"`+c.CommandID.String()+`"}`, w.Body.String())
	place := b.placeOf(t, topic.TimestampCommand, c.CommandID)
	require.Equal(t, place, w.Header().Get("Tidemark-Position"))
	require.Equal(t, "http://read.example:7082/api/v1/tickets/"+c.CommandID.String()+"?position="+place, w.Header().Get("Location"))
	require.Equal(t, "application/json; charset=utf-8", w.Header().Get("Content-Type"))
	require.Equal(t, "mine 1", w.Header().Get(sharedhttp.CorrelationHeader))
	require.Equal(t, "mine 1", b.sent[0].Metadata[event.HeaderCorrelationID])
	require.EqualValues(t, 7, c.CommandID.Version())
	require.Equal(t, time.Date(2009, 9, 28, 19, 3, 12, 0, time.UTC), c.EventTimestamp)
}

func TestEverySpellingOfAnInstant(t *testing.T) {
	t.Parallel()
	b := setup(t)
	at := time.Date(2009, 9, 28, 17, 3, 12, 123456000, time.UTC)
	for path, body := range map[string]string{
		"/api/v1/timestamp/2009-09-28T19:03:12.123456+02:00":         "",
		"/api/v1/timestamp/2009-09-28T19:03:12.123456%2B02:00":       "",
		"/api/v1/timestamp/2009-09-28T19%3A03%3A12.123456+02%3A00":   "",
		"/api/v1/timestamp/2009-09-28T19%3A03%3A12.123456%2b02%3a00": "",
		"/api/v1/timestamp/2009-09-28t17:03:12.123456z":              "",
		"/api/v1/timestamp/2009-09-28T17:03:12.1234569999999999999Z": "",
		"/api/v1/timestamp":  `{"event_timestamp":"2009-09-28T19:03:12.123456+02:00"}`,
		"/api/v1/timestamp/": `{"event_timestamp":"2009-09-28T17:03:12.123456Z"}`,
		"/app":               `{"event_timestamp":"2009-09-28T17:03:12.1234567Z"}`,
	} {
		w := b.post(path, body)
		want := 202
		if path == "/app" {
			want = 200
		}
		require.Equal(t, want, w.Code, "%s %s", path, w.Body)
		require.Equal(t, at, b.last(t).EventTimestamp, path)
	}
}

func TestNowIsNow(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for _, path := range []string{"/api/v1/timestamp", "/api/v1/timestamp/", "/app"} {
		for _, body := range []string{"", "{}", " {} "} {
			before := time.Now().Truncate(time.Microsecond)
			w := b.post(path, body)
			require.Less(t, w.Code, 300, w.Body)
			at := b.last(t).EventTimestamp
			require.False(t, at.Before(before))
			require.False(t, at.After(time.Now()))
		}
	}
	w := b.post("/app", "", "Content-Type", "application/x-www-form-urlencoded")
	require.Equal(t, 200, w.Code, "a client that names a type and sends nothing: %s", w.Body)
	w = b.post("/app", "", "Content-Type", "application/json")
	require.Equal(t, 200, w.Code, w.Body)
}

func TestWhatIsNotAcceptedSaysWhy(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for _, tc := range []struct {
		path, body string
		status     int
		detail     []string
	}{
		{"/api/v1/timestamp/yesterday", "", 400, []string{`"yesterday"`, "no RFC 3339 instant", "2009-09-28T19:03:12Z"}},
		{"/api/v1/timestamp/0001-01-01T00:00:00+01:00", "", 400, []string{`"0001-01-01T00:00:00+01:00"`, "year in UTC is 0", "2009-09-28T19:03:12Z"}},
		{"/api/v1/timestamp/2016-12-31T23:59:60Z", "", 400, []string{`"2016-12-31T23:59:60Z"`, "leap second", "2009-09-28T19:03:12Z"}},
		{"/api/v1/timestamp/2009%2F09%2F28", "", 400, []string{`"2009/09/28"`}},
		{"/api/v1/timestamp/%25zz", "", 400, []string{`"%zz"`}},
		{"/api/v1/timestamp/%20", "", 400, []string{`" "`}},
		{"/api/v1/timestamp", `{"event_timestamp":""}`, 400, []string{"empty"}},
		{"/api/v1/timestamp", `{"event_timestamp":"2009-02-30T00:00:00Z"}`, 400, []string{"2009-02-30"}},
		{"/api/v1/timestamp", `{"event_timestamp":5}`, 400, []string{"/event_timestamp", "string"}},
		{"/api/v1/timestamp", `{"eventTimestamp":"2009-09-28T19:03:12Z"}`, 400, []string{"eventTimestamp"}},
		{"/api/v1/timestamp", `[]`, 400, []string{"the body"}},
		{"/api/v1/timestamp", `{"event_timestamp"`, 400, []string{"the body"}},
		{"/app", `{"event_timestamp":"` + strings.Repeat("1", 300) + `"}`, 413, []string{"256 bytes"}},
		{"/api/v1/timestamp/2009-09-28T19:03:12Z/more", "", 404, []string{"/docs"}},
		{"/api/v1/stamp", "", 404, []string{"/docs"}},
	} {
		w := b.post(tc.path, tc.body)
		require.Equal(t, tc.status, w.Code, "%s: %s", tc.path, w.Body)
		require.Equal(t, problem.ContentType, w.Header().Get("Content-Type"))
		m := decode(t, w)
		for _, words := range tc.detail {
			require.Contains(t, m["detail"], words, tc.path)
		}
		require.Equal(t, "urn:correlation:"+w.Header().Get(sharedhttp.CorrelationHeader), m["instance"])
	}
	r := httptest.NewRequest(http.MethodGet, "/app", http.NoBody)
	w := httptest.NewRecorder()
	b.engine.ServeHTTP(w, r)
	require.Equal(t, 405, w.Code)
	require.Empty(t, b.sent)
}

func TestAKeyIsOneCommandByWhateverRouteItComes(t *testing.T) {
	t.Parallel()
	b := setup(t)
	const key = "6f2b8a0e-58cf-4d63-9a0d-0d1f3c1f3a55"
	ids := map[string]bool{}
	for _, path := range []string{"/api/v1/timestamp/2009-09-28T19:03:12Z", "/api/v1/timestamp/2009-09-28T21:03:12%2B02:00"} {
		ids[decode(t, b.post(path, "", "Idempotency-Key", key))["id"].(string)] = true
	}
	for _, path := range []string{"/api/v1/timestamp", "/api/v1/timestamp/", "/app"} {
		ids[decode(t, b.post(path, `{"event_timestamp":"2009-09-28T19:03:12.0Z"}`, "Idempotency-Key", key))["id"].(string)] = true
	}
	require.Equal(t, map[string]bool{"14b6d3bf-5f77-87a1-b723-4ef3ac785284": true}, ids)

	w := b.post("/app", "", "Idempotency-Key", key)
	require.NotContains(t, ids, decode(t, w)["id"])
	require.Equal(t, decode(t, w)["id"], decode(t, b.post("/api/v1/timestamp", "", "Idempotency-Key", key))["id"], "two commands for now")

	own, err := uuid.NewV7()
	require.NoError(t, err)
	require.Equal(t, own.String(), decode(t, b.post("/app", "", "Idempotency-Key", own.String()))["id"])

	w = b.post("/app", "", "Idempotency-Key", "my key")
	require.Equal(t, 400, w.Code)
	require.Equal(t, "/problems/bad-idempotency-key", decode(t, w)["type"])
	require.Contains(t, decode(t, w)["detail"], "a key is a UUID")
}

func TestTwoKeysAreRefused(t *testing.T) {
	t.Parallel()
	b := setup(t)
	r := httptest.NewRequest(http.MethodPost, "/app", http.NoBody)
	r.Header["Idempotency-Key"] = []string{"6f2b8a0e-58cf-4d63-9a0d-0d1f3c1f3a55", "6f2b8a0e-58cf-4d63-9a0d-0d1f3c1f3a56"}
	w := httptest.NewRecorder()
	b.engine.ServeHTTP(w, r)
	require.Equal(t, 400, w.Code, w.Body)
	require.Empty(t, b.sent)
}

func TestWhenTheLogDoesNotTakeItNothingWasWritten(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.fail(fmt.Errorf("%w: dial tcp 10.1.2.3:9092: secret", kafka.ErrNotSent))
	w := b.post("/app", "")
	require.Equal(t, 503, w.Code)
	require.Equal(t, "1", w.Header().Get("Retry-After"))
	m := decode(t, w)
	require.Equal(t, "/problems/log-down", m["type"])
	require.Contains(t, m["detail"], "nothing was written")
	require.NotContains(t, m, "ticket")
	require.NotContains(t, w.Body.String(), "10.1.2.3")
	require.NotContains(t, w.Body.String(), "secret")
	require.Empty(t, w.Header().Get("Location"))
}

func TestAnUnknownOutcomeCarriesItsTicketAndTheKeyToRetryItWith(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.fail(errors.New("read tcp 10.1.2.3:9092: connection reset"))
	w := b.post("/app", "")
	require.Equal(t, 503, w.Code)
	require.NotEmpty(t, w.Header().Get("Retry-After"))
	m := decode(t, w)
	require.Equal(t, "/problems/outcome-unknown", m["type"])
	first := b.last(t).CommandID.String()
	require.Equal(t, first, m["ticket"])
	require.Equal(t, first, m["retry_key"], "a ticket of the door's own is its own key")
	require.NotContains(t, w.Body.String(), "10.1.2.3")

	b.fail(nil)
	require.Equal(t, first, decode(t, b.post("/app", "", "Idempotency-Key", m["retry_key"].(string)))["id"])

	b.fail(errors.New("gone"))
	const key = "6f2b8a0e-58cf-4d63-9a0d-0d1f3c1f3a55"
	m = decode(t, b.post("/api/v1/timestamp/2009-09-28T19:03:12Z", "", "Idempotency-Key", key))
	require.Equal(t, key, m["retry_key"], "the caller's own")
	require.NotEqual(t, key, m["ticket"])
	b.fail(nil)
	require.Equal(t, m["ticket"], decode(t, b.post("/api/v1/timestamp/2009-09-28T19:03:12Z", "", "Idempotency-Key", m["retry_key"].(string)))["id"])
}

func TestAnUnsafeLogIsNamed(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.doors.Timestamps.Shut(&kafka.GuardError{Topic: "timestamp.command.v1", Faults: []kafka.Fault{{Setting: "retention.ms", Wanted: "-1", Found: "1000", Why: "records would expire"}}})
	w := b.post("/app", "")
	require.Equal(t, 503, w.Code)
	require.NotEmpty(t, w.Header().Get("Retry-After"))
	m := decode(t, w)
	require.Equal(t, "/problems/log-unsafe", m["type"])
	for _, words := range []string{"timestamp.command.v1", "retention.ms", "-1", "1000", "nothing was written"} {
		require.Contains(t, m["detail"], words)
	}
}

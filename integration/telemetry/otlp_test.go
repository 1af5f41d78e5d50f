package telemetry_test

import (
	"context"
	"encoding/hex"
	"fmt"
	"net"
	"strconv"
	"sync"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/collector/component/componenttest"
	"go.opentelemetry.io/collector/confmap"
	"go.opentelemetry.io/collector/consumer/consumertest"
	"go.opentelemetry.io/collector/pdata/ptrace"
	"go.opentelemetry.io/collector/receiver/otlpreceiver"
	"go.opentelemetry.io/collector/receiver/receivertest"

	"github.com/tidemark/tidemark/integration/story"
	"github.com/tidemark/tidemark/shared/await"
	"github.com/tidemark/tidemark/shared/freeport"
)

// collector is the OTLP receiver of the OpenTelemetry Collector, on a port of its own, that keeps what it gets.
type collector struct {
	url     string
	traces  consumertest.TracesSink
	metrics consumertest.MetricsSink
}

func startCollector(t *testing.T) *collector {
	t.Helper()
	port, err := freeport.Find(t.Context())
	require.NoError(t, err)
	c := &collector{}
	address := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	c.url = "http://" + address
	factory := otlpreceiver.NewFactory()
	cfg := factory.CreateDefaultConfig()
	require.NoError(t, confmap.NewFromStringMap(map[string]any{
		"protocols": map[string]any{"http": map[string]any{"endpoint": address}},
	}).Unmarshal(cfg))
	settings := receivertest.NewNopSettings(factory.Type())
	traces, err := factory.CreateTraces(t.Context(), settings, cfg, &c.traces)
	require.NoError(t, err)
	metrics, err := factory.CreateMetrics(t.Context(), settings, cfg, &c.metrics)
	require.NoError(t, err)
	require.NoError(t, traces.Start(t.Context(), componenttest.NewNopHost()))
	require.NoError(t, metrics.Start(t.Context(), componenttest.NewNopHost()))
	t.Cleanup(func() {
		require.NoError(t, traces.Shutdown(context.Background()))
		require.NoError(t, metrics.Shutdown(context.Background()))
	})
	return c
}

// span is a span and the service that made it.
type span struct {
	ptrace.Span
	service string
}

func (s span) id() string     { return s.SpanID().String() }
func (s span) parent() string { return s.ParentSpanID().String() }

func (s span) attribute(name string) string {
	v, ok := s.Attributes().Get(name)
	if !ok {
		return ""
	}
	return v.AsString()
}

func (c *collector) spans() []span {
	var out []span
	for _, td := range c.traces.AllTraces() {
		for _, rs := range td.ResourceSpans().All() {
			service, _ := rs.Resource().Attributes().Get("service.name")
			for _, ss := range rs.ScopeSpans().All() {
				for _, s := range ss.Spans().All() {
					out = append(out, span{s, service.AsString()})
				}
			}
		}
	}
	return out
}

// wait returns the spans that match once there are at least n of them.
func (c *collector) wait(t *testing.T, n int, what string, match func(span) bool) []span {
	t.Helper()
	var found []span
	await.Until(t, func() bool {
		found = nil
		for _, s := range c.spans() {
			if match(s) {
				found = append(found, s)
			}
		}
		return len(found) >= n
	}, "%d spans: %s", n, what)
	return found
}

// sending is a service's environment.
func (c *collector) sending() map[string]string {
	return map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": c.url, "OTEL_METRIC_EXPORT_INTERVAL": "200", "OTEL_BSP_SCHEDULE_DELAY": "100"}
}

// trace is a client's own trace, as its traceparent.
type trace struct{ id, span, header string }

func newTrace(sampled bool) trace {
	id, root := uuid.New(), uuid.New()
	t := trace{id: hex.EncodeToString(id[:]), span: hex.EncodeToString(root[:8])}
	t.header = fmt.Sprintf("00-%s-%s-%02x", t.id, t.span, map[bool]int{true: 1}[sampled])
	return t
}

func TestOneTraceFollowsACommandFromItsPostToItsRow(t *testing.T) {
	s := story.New(t)
	c := startCollector(t)
	door, consumer := s.Service("command-service", c.sending()), s.Service("consumer-service", c.sending())
	s.Ready(door)
	s.Ready(consumer)
	reader := s.Service("query-service", c.sending())
	s.Ready(reader)

	mine := newTrace(true)
	ticket, err := s.Client.Stamp(t.Context(), door.URL(), "2009-09-28T19:03:12Z", "traceparent", mine.header, "correlationId", "my own")
	require.NoError(t, err)
	row, err := s.Client.Get(t.Context(), reader.URL()+"/api/v1/timestamp/"+ticket.ID, "traceparent", mine.header, "Tidemark-Position", ticket.Position)
	require.NoError(t, err)
	require.Equal(t, 200, row.Status, row)

	names := map[string]span{}
	for _, s := range c.wait(t, 6, "of the one trace", func(s span) bool { return s.TraceID().String() == mine.id }) {
		require.NotContains(t, names, s.Name())
		names[s.Name()] = s
	}
	post := names["POST /api/v1/timestamp/:instant"]
	require.Equal(t, "command-service", post.service)
	require.Equal(t, ptrace.SpanKindServer, post.Kind())
	require.Equal(t, mine.span, post.parent())
	require.Equal(t, "202", post.attribute("http.response.status_code"))
	require.Equal(t, "my own", post.attribute("tidemark.correlation_id"))

	create := names["create "+story.Topic]
	require.Equal(t, ptrace.SpanKindProducer, create.Kind())
	require.Equal(t, post.id(), create.parent())
	require.Equal(t, ticket.Position, create.attribute("tidemark.position"))
	require.Equal(t, ticket.ID, create.attribute("messaging.kafka.message.key"))

	became := names["row of "+story.Topic]
	require.Equal(t, "consumer-service", became.service)
	require.Equal(t, create.id(), became.parent(), "by way of the record's traceparent")
	require.Equal(t, ticket.Position, became.attribute("tidemark.position"))
	require.Equal(t, "applied", became.attribute("tidemark.outcome"))

	batch := names["project "+story.Topic]
	require.Equal(t, create.id(), batch.parent(), "the batch of one traced command stands in its trace")
	require.Equal(t, batch.id(), became.Links().At(0).SpanID().String())
	require.Equal(t, s.Group, batch.attribute("messaging.consumer.group.name"))
	insert := names["INSERT timestamp_records"]
	require.Equal(t, batch.id(), insert.parent())
	require.Equal(t, "postgresql", insert.attribute("db.system.name"))

	get := names["GET /api/v1/timestamp/:id"]
	require.Equal(t, "query-service", get.service)
	require.Equal(t, mine.span, get.parent())

	flights := c.wait(t, 1, "the flight", func(s span) bool { return s.Name() == "send "+story.Topic })
	require.Equal(t, create.id(), flights[0].Links().At(0).SpanID().String())

	t.Run("the same once more is a duplicate, and poison is rejected", func(t *testing.T) {
		again, poison := newTrace(true), newTrace(true)
		_, err := s.Client.Stamp(t.Context(), door.URL(), "2009-09-28T19:03:12Z", "traceparent", again.header, "Idempotency-Key", ticket.ID)
		require.NoError(t, err)
		_, err = s.Log.Write(story.Message{Partition: 1, Value: []byte("poison"), Headers: map[string]string{"traceparent": poison.header}})
		require.NoError(t, err)
		for id, outcome := range map[string]string{again.id: "duplicate", poison.id: "rejected"} {
			found := c.wait(t, 1, outcome, func(s span) bool { return s.TraceID().String() == id && s.Name() == "row of "+story.Topic })
			require.Equal(t, outcome, found[0].attribute("tidemark.outcome"))
		}
	})

	t.Run("commands that share a flight and a batch are linked", func(t *testing.T) {
		const n = 100
		mine := make([]trace, n)
		var posting sync.WaitGroup
		for i := range mine {
			mine[i] = newTrace(true)
			posting.Go(func() {
				if _, err := s.Client.Stamp(t.Context(), door.URL(), "", "traceparent", mine[i].header); err != nil {
					t.Errorf("POST: %v", err)
				}
			})
		}
		posting.Wait()
		ours := map[string]bool{}
		for _, m := range mine {
			ours[m.id] = true
		}
		rows := c.wait(t, n, "one of each command", func(s span) bool { return ours[s.TraceID().String()] && s.Name() == "row of "+story.Topic })
		require.Len(t, rows, n)
		for _, name := range []string{"send " + story.Topic, "project " + story.Topic} {
			linked := map[string]int{}
			await.Until(t, func() bool {
				clear(linked)
				for _, s := range c.spans() {
					for _, l := range s.Links().All() {
						if s.Name() == name && ours[l.TraceID().String()] {
							linked[l.TraceID().String()]++
						}
					}
				}
				return len(linked) == n
			}, "%s is linked to each", name)
			for id, times := range linked {
				require.Equal(t, 1, times, "%s of %s", name, id)
			}
		}
	})

	t.Run("what nobody samples leaves nothing in the log", func(t *testing.T) {
		quiet := newTrace(false)
		before := s.Log
		ticket, err := s.Client.Stamp(t.Context(), door.URL(), "", "traceparent", quiet.header)
		require.NoError(t, err)
		records, _, err := before.Read(t.Context(), nil)
		require.NoError(t, err)
		found := false
		for _, r := range records {
			if r.Position() == ticket.Position {
				found = true
				require.NotContains(t, r.Headers, "traceparent")
			}
		}
		require.True(t, found)
	})

	t.Run("metrics go the same way", func(t *testing.T) {
		wanted := map[string]string{
			"tidemark_commands_total": "command-service", "tidemark_projection_records_total": "consumer-service",
			"tidemark_query_reads_total": "query-service", "go_goroutines": "query-service",
		}
		await.Until(t, func() bool {
			missing := len(wanted)
			seen := map[string]bool{}
			for _, md := range c.metrics.AllMetrics() {
				for _, rm := range md.ResourceMetrics().All() {
					service, _ := rm.Resource().Attributes().Get("service.name")
					for _, sm := range rm.ScopeMetrics().All() {
						for _, m := range sm.Metrics().All() {
							if wanted[m.Name()] == service.AsString() && !seen[m.Name()] {
								seen[m.Name()] = true
								missing--
							}
						}
					}
				}
			}
			return missing == 0
		})
	})
}

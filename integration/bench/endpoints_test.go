package bench

import (
	"fmt"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/shared/await"
	"github.com/tidemark/tidemark/shared/config"
	"github.com/tidemark/tidemark/shared/event"
	"github.com/tidemark/tidemark/shared/kafka"
	"github.com/tidemark/tidemark/shared/ticket"
	"github.com/tidemark/tidemark/shared/topic"
)

// BenchmarkEndpoints compares the replay of commands about endpoints into their main table and the derived one, the
// endpoints as they are now, with psql's \copy of the main table's rows alone. The goal is half of it.
func BenchmarkEndpoints(b *testing.B) {
	n, times := 1_000_000, 5
	if testing.Short() {
		n, times = 20_000, 1
	}
	s := newStage(b)
	file := scratch(b, "rows")
	env := map[string]string{"PROJECTIONS": "endpoints", "KAFKA_CLAIMED_PARTITIONS": partitions, "AUDIT_INTERVAL": "1h"}
	wait := func() {
		await.UntilWithin(b, 20*time.Minute, func() bool {
			var next int
			err := s.db.QueryRowContext(b.Context(), `SELECT coalesce(sum(next_offset), 0) FROM endpoints.projection_progress`).Scan(&next)
			return err == nil && next >= n
		})
	}
	runs := 0
	replay := func() float64 {
		s.exec(b, `TRUNCATE endpoints.endpoint_commands; CHECKPOINT`)
		runs++
		env["KAFKA_GROUP_ID"] = fmt.Sprint("run-", runs)
		c := s.service(b, "consumer-service", env)
		wait()
		require.NoError(b, c.Stop(b.Context()))
		var seconds float64
		var rows, now int
		require.NoError(b, s.db.QueryRowContext(b.Context(), `
SELECT extract(epoch FROM max(p.updated_at) - min(g.started_at)), (SELECT count(*) FROM endpoints.endpoint_commands), (SELECT count(*) FROM endpoints.current_endpoints)
FROM endpoints.projection_progress p CROSS JOIN projection_generations g WHERE g.projection = 'endpoints'`).Scan(&seconds, &rows, &now))
		require.Equal(b, n, rows)
		require.Equal(b, n/commandsEach, now)
		return float64(n) / seconds
	}

	first := s.service(b, "consumer-service", env) // makes topic and schema
	s.fillEndpoints(b, n)
	wait()
	require.NoError(b, first.Stop(b.Context()))
	psql(b, s.url, `\copy endpoints.endpoint_commands TO '`+file+`'`)
	s.exec(b, `CREATE TABLE copied (LIKE endpoints.endpoint_commands INCLUDING ALL)`)
	replay() // warm
	for b.Loop() {
		rates := make([]run, times)
		for i := range rates {
			s.exec(b, `TRUNCATE copied; CHECKPOINT`)
			rates[i].Reference = float64(n) / psql(b, s.url, `\copy copied FROM '`+file+`'`).Seconds()
			s.exec(b, `TRUNCATE copied`)
			rates[i].Value = replay()
		}
		report(b, "endpoints-replay-vs-copy", "records/s", rates)
	}
}

// commandsEach is how many commands there are about each endpoint, some time apart.
const commandsEach = 10

// fillEndpoints writes n commands to the log, as command-service does: each endpoint is put, changed, deleted once and put
// anew. The topic must be there.
func (s *stage) fillEndpoints(b *testing.B, n int) {
	b.Helper()
	p, err := kafka.NewPublisher(kafka.PublisherOptions{Kafka: config.Kafka{Brokers: s.kafka.Brokers()}, ClientID: "bench", Producer: "bench/1", Log: quiet()})
	require.NoError(b, err)
	defer func() { require.NoError(b, p.Close()) }()
	await.NoError(b, p.State)
	endpoints := make([]uuid.UUID, n/commandsEach)
	for i := range endpoints {
		if endpoints[i], err = ticket.New(); err != nil {
			require.NoError(b, err)
		}
	}
	var messages []*message.Message
	for round := range commandsEach {
		for i, id := range endpoints {
			command, err := ticket.New()
			require.NoError(b, err)
			c := event.EndpointCommand{CommandID: command, EndpointID: id, Kind: event.EndpointDelete, SentBy: "bench"}
			if round != commandsEach/2 {
				c.Kind = event.EndpointPut
				c.Document = event.AppendEndpoint(nil, event.Endpoint{
					URL: fmt.Sprintf("https://host-%d.example.org/health?round=%d", i, round), Name: fmt.Sprint("endpoint ", i), Group: "bench",
					Tags: []string{"one", "two"}, Interval: time.Minute, Enabled: true,
				})
			}
			messages = append(messages, kafka.NewMessage(id.String(), event.AppendEndpointCommand(nil, c), ""))
			if len(messages) == 10_000 || round == commandsEach-1 && i == len(endpoints)-1 {
				require.NoError(b, p.Publish(topic.EndpointCommand.Name, messages...))
				messages = messages[:0]
			}
		}
	}
}

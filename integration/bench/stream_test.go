package bench

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	"github.com/Shopify/sarama"
	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/shared/await"
	"github.com/tidemark/tidemark/shared/config"
	"github.com/tidemark/tidemark/shared/event"
	"github.com/tidemark/tidemark/shared/kafka"
	"github.com/tidemark/tidemark/shared/ticket"
	"github.com/tidemark/tidemark/shared/topic"
)

// BenchmarkStream compares the bulk stream, with a ticket and a place for every line, with Sarama's own
// asynchronous producer sending as many ready-made records of the same keys and values and being told the place of
// each. Both wait for all in-sync replicas; neither is idempotent work for the other: the door also decodes lines,
// makes tickets and answers over HTTP, and its client runs on this machine too.
func BenchmarkStream(b *testing.B) {
	brokers := os.Getenv("TEST_KAFKA_BROKERS")
	require.NotEmpty(b, brokers, "TEST_KAFKA_BROKERS must name a real Kafka")
	debug.SetGCPercent(400) // as the service's main does; here it serves both
	n, times := 1_000_000, 3
	if testing.Short() {
		n, times = 20_000, 1
	}
	door := startDoor(b, strings.Split(brokers, ","))
	body := streamBody(n)
	raw := newRaw(b, strings.Split(brokers, ","), n)
	stream(b, door, body[:len(body)/n*(n/10)], n/10) // warm up
	for b.Loop() {
		runs := make([]run, times)
		for i := range runs {
			runs[i].Reference = raw.send(b)
			runs[i].Value = stream(b, door, body, n)
		}
		report(b, "stream", "timestamps/s", runs)
	}
}

// streamBody is n lines of one length.
func streamBody(n int) []byte {
	var body bytes.Buffer
	at := time.Date(2026, 1, 2, 3, 4, 5, 123456000, time.UTC)
	for i := range n {
		fmt.Fprintf(&body, "{\"event_timestamp\":\"%s\"}\n", at.Add(time.Duration(i)*time.Second).Format("2006-01-02T15:04:05.000000Z"))
	}
	return body.Bytes()
}

// stream posts the body and returns how many lines a second were answered with a ticket.
func stream(b *testing.B, door string, body []byte, n int) float64 {
	b.Helper()
	r, err := http.NewRequestWithContext(b.Context(), http.MethodPost, "http://"+door+"/api/v1/timestamps", bytes.NewReader(body))
	require.NoError(b, err)
	r.Header.Set("Content-Type", "application/x-ndjson")
	start := time.Now()
	res, err := http.DefaultClient.Do(r)
	require.NoError(b, err)
	defer func() { _ = res.Body.Close() }()
	require.Equal(b, http.StatusOK, res.StatusCode)
	lines, tickets := 0, 0
	var rest []byte
	for buf := make([]byte, 256<<10); ; {
		read, err := res.Body.Read(buf)
		whole := buf[:read]
		lines += bytes.Count(whole, []byte{'\n'})
		tickets += bytes.Count(append(rest, whole...), []byte(`","position":"`))
		rest = append(rest[:0], whole[max(0, len(whole)-len(`","position":"`)+1):]...)
		if err == io.EOF {
			break
		}
		require.NoError(b, err)
	}
	took := time.Since(start)
	require.Equal(b, n, lines)
	require.Equal(b, n, tickets)
	return float64(n) / took.Seconds()
}

// raw is Sarama's asynchronous producer with its records at hand.
type raw struct {
	brokers []string
	topic   string
	records [][2]string
}

const partitionCount = 12

func newRaw(b *testing.B, brokers []string, n int) *raw {
	b.Helper()
	r := &raw{brokers: brokers, topic: "bench-" + uuid.NewString(), records: make([][2]string, n)}
	log := kafka.NewReader(config.Kafka{Brokers: brokers}, "bench")
	defer func() { require.NoError(b, log.Close()) }()
	spec := topic.Spec{Name: r.topic, Partitions: partitionCount, ReplicationFactor: 1}
	await.NoError(b, func() error { return log.Ensure(b.Context(), spec) })
	at := time.Date(2026, 1, 2, 3, 4, 5, 123456000, time.UTC)
	for i := range r.records {
		id, err := ticket.New()
		require.NoError(b, err)
		r.records[i] = [2]string{id.String(), string(event.AppendTimestampCommand(nil, event.TimestampCommand{CommandID: id, EventTimestamp: at.Add(time.Duration(i) * time.Second)}))}
	}
	return r
}

// send writes all records and returns how many a second were acknowledged.
func (r *raw) send(b *testing.B) float64 {
	b.Helper()
	c := sarama.NewConfig()
	c.Version = sarama.V2_8_0_0
	c.Producer.RequiredAcks = sarama.WaitForAll
	c.Producer.Return.Successes = true
	c.Producer.Partitioner = sarama.NewManualPartitioner
	c.ChannelBufferSize = 4096
	p, err := sarama.NewAsyncProducer(r.brokers, c)
	require.NoError(b, err)
	start := time.Now()
	go func() {
		for _, record := range r.records {
			p.Input() <- &sarama.ProducerMessage{Topic: r.topic, Partition: kafka.PartitionOf([]byte(record[0]), partitionCount), Key: sarama.StringEncoder(record[0]), Value: sarama.StringEncoder(record[1])}
		}
		p.AsyncClose()
	}()
	placed := 0
	failed := p.Errors()
	for sent := p.Successes(); sent != nil || failed != nil; {
		select {
		case m, open := <-sent:
			if !open {
				sent = nil
			} else if m.Offset >= 0 {
				placed++
			}
		case err, open := <-failed:
			if !open {
				failed = nil
			} else {
				require.NoError(b, err)
			}
		}
	}
	took := time.Since(start)
	require.Equal(b, len(r.records), placed)
	return float64(placed) / took.Seconds()
}

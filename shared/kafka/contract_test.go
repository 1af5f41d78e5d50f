package kafka_test

import (
	"context"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/Shopify/sarama"
	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/shared/await"
	"github.com/tidemark/tidemark/shared/config"
	"github.com/tidemark/tidemark/shared/kafka"
	"github.com/tidemark/tidemark/shared/kafka/kafkatest"
	topics "github.com/tidemark/tidemark/shared/topic"
)

// answers are those of a kafka.Reader that a log in memory has, too.
type answers interface {
	ClusterID(ctx context.Context) (string, error)
	Bounds(ctx context.Context, topic string, partitions []int32) (map[int32]kafka.Bounds, error)
	StableEnds(ctx context.Context, topic string, partitions []int32) (map[int32]int64, error)
	OffsetsAt(ctx context.Context, topic string, partitions []int32, at time.Time) (map[int32]int64, error)
	Committed(ctx context.Context, group, topic string, partitions []int32) (map[int32]kafka.Committed, error)
	RecordAt(ctx context.Context, topic string, partition int32, offset int64) (kafka.Record, bool, error)
	ReadFrom(ctx context.Context, topic string, partition int32, offset int64) ([]kafka.Record, int64, error)
	Explain(ctx context.Context, topic string, partition int32, from, to int64) (kafka.Gap, error)
	DeleteGroup(ctx context.Context, group string) error
}

// log is one partition of a topic that a test writes to and asks.
type log struct {
	answers
	topic string
	write func(t *testing.T, n int, commit bool) // a transaction and its marker
	trim  func(t *testing.T, below int64)
}

func inMemory(*testing.T) log {
	l := kafkatest.NewLog(1)
	return log{
		answers: l, topic: "topic", trim: func(_ *testing.T, below int64) { l.Start = below },
		write: func(_ *testing.T, n int, commit bool) {
			for i := range n {
				if commit {
					l.Add(0, time.Now(), fmt.Sprint("value ", i))
				}
			}
			if commit {
				n = 0
			}
			l.Pass(0, kafka.Gap{Aborted: int64(n), Markers: 1})
		},
	}
}

func onKafka(t *testing.T) log {
	t.Helper()
	brokers := strings.Split(os.Getenv("TEST_KAFKA_BROKERS"), ",")
	r := kafka.NewReader(config.Kafka{Brokers: brokers}, "test")
	t.Cleanup(func() { require.NoError(t, r.Close()) })
	of := topics.Spec{Name: "contract-" + hex.EncodeToString(fmt.Append(nil, rand.Uint32())), Kept: topics.Forever, Transactional: true, Partitions: 1, ReplicationFactor: 1}
	require.NoError(t, r.Ensure(t.Context(), of))
	await.NoError(t, func() error { _, err := r.StableEnds(t.Context(), of.Name, []int32{0}); return err })

	c := sarama.NewConfig()
	c.Version = sarama.V2_8_0_0
	c.Producer.Return.Successes, c.Producer.Idempotent, c.Net.MaxOpenRequests = true, true, 1
	c.Producer.RequiredAcks, c.Producer.Transaction.ID = sarama.WaitForAll, of.Name
	client, err := sarama.NewClient(brokers, c)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, client.Close()) })
	var p sarama.SyncProducer
	await.NoError(t, func() (err error) { // a broker that has just started still loads its transactions
		p, err = sarama.NewSyncProducerFromClient(client)
		return err
	})
	t.Cleanup(func() { require.NoError(t, p.Close()) })
	return log{
		answers: r, topic: of.Name,
		write: func(t *testing.T, n int, commit bool) {
			t.Helper()
			require.NoError(t, p.BeginTxn())
			for i := range n {
				_, _, err := p.SendMessage(&sarama.ProducerMessage{Topic: of.Name, Value: sarama.StringEncoder(fmt.Sprint("value ", i))})
				require.NoError(t, err)
			}
			if commit {
				require.NoError(t, p.CommitTxn())
			} else {
				require.NoError(t, p.AbortTxn())
			}
		},
		trim: func(t *testing.T, below int64) {
			t.Helper()
			admin, err := sarama.NewClusterAdminFromClient(client) // closing it would close the client
			require.NoError(t, err)
			require.NoError(t, admin.DeleteRecords(of.Name, map[int32]int64{0: below}))
		},
	}
}

// The log in memory gives the answers that the Reader gives of the same log on a real Kafka.
func TestTheLogInMemoryAnswersAsTheReaderDoes(t *testing.T) {
	t.Parallel()
	for name, open := range map[string]func(*testing.T) log{"in memory": inMemory, "Kafka": onKafka} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := open(t)
			one := []int32{0}
			stable := func(end int64) { // a transaction's marker comes a moment after the answer to its end
				await.Until(t, func() bool {
					ends, err := l.StableEnds(t.Context(), l.topic, one)
					return err == nil && ends[0] == end
				})
			}
			l.write(t, 3, true)  // 0 to 2, marker 3
			l.write(t, 2, false) // 4 and 5, marker 6
			stable(7)
			time.Sleep(2 * time.Millisecond) // log times are whole milliseconds, and the next one is to be a later one
			between := time.Now()
			time.Sleep(2 * time.Millisecond) // as above
			l.write(t, 1, true)              // 7, marker 8
			l.write(t, 1, false)             // 9, marker 10
			stable(11)
			records := map[int64]string{0: "value 0", 1: "value 1", 2: "value 2", 7: "value 0"}

			cluster, err := l.ClusterID(t.Context())
			require.NoError(t, err)
			require.NotEmpty(t, cluster)
			bounds, err := l.Bounds(t.Context(), l.topic, one)
			require.NoError(t, err)
			require.Equal(t, map[int32]kafka.Bounds{0: {Start: 0, Stable: 11}}, bounds)
			var committed map[int32]kafka.Committed
			await.NoError(t, func() (err error) { // a Kafka whose first group this is still makes its topic of offsets
				committed, err = l.Committed(t.Context(), "nobody", l.topic, one)
				return err
			})
			require.Equal(t, map[int32]kafka.Committed{0: {Offset: -1}}, committed)
			for at, want := range map[time.Time]int64{between.Add(-time.Hour): 0, between: 7, between.Add(time.Hour): 11} {
				offsets, err := l.OffsetsAt(t.Context(), l.topic, one, at)
				require.NoError(t, err)
				require.Equal(t, map[int32]int64{0: want}, offsets)
			}

			for offset := range int64(13) {
				r, found, err := l.RecordAt(t.Context(), l.topic, 0, offset)
				require.NoError(t, err)
				require.Equal(t, records[offset], string(r.Value), "offset %d", offset)
				require.Equal(t, records[offset] != "", found, "offset %d", offset)
			}
			read := map[int64]string{}
			for at := int64(0); at < 11; {
				some, next, err := l.ReadFrom(t.Context(), l.topic, 0, at)
				require.NoError(t, err)
				require.Greater(t, next, at, "reading goes on past markers and aborted records")
				for _, r := range some {
					require.GreaterOrEqual(t, r.Offset, at)
					read[r.Offset] = string(r.Value)
				}
				at = next
			}
			require.Equal(t, records, read)
			some, next, err := l.ReadFrom(t.Context(), l.topic, 0, 11)
			require.NoError(t, err)
			require.Empty(t, some)
			require.EqualValues(t, 11, next)

			for _, tc := range []struct {
				from, to int64
				want     kafka.Gap
			}{
				{0, 11, kafka.Gap{Records: 4, Aborted: 3, Markers: 4}},
				{1, 3, kafka.Gap{Records: 2}},
				{3, 4, kafka.Gap{Markers: 1}},
				{3, 7, kafka.Gap{Markers: 2, Aborted: 2}},
				{5, 7, kafka.Gap{Markers: 1, Aborted: 1}},
				{11, 11, kafka.Gap{}},
				{10, 15, kafka.Gap{Markers: 1, Missing: 4}},
			} {
				got, err := l.Explain(t.Context(), l.topic, 0, tc.from, tc.to)
				require.NoError(t, err)
				require.Equal(t, tc.want, got, "[%d, %d)", tc.from, tc.to)
			}

			l.trim(t, 2)
			bounds, err = l.Bounds(t.Context(), l.topic, one)
			require.NoError(t, err)
			require.Equal(t, map[int32]kafka.Bounds{0: {Start: 2, Stable: 11}}, bounds)
			_, found, err := l.RecordAt(t.Context(), l.topic, 0, 1)
			require.NoError(t, err)
			require.False(t, found)
			_, found, err = l.RecordAt(t.Context(), l.topic, 0, 2)
			require.NoError(t, err)
			require.True(t, found)
			got, err := l.Explain(t.Context(), l.topic, 0, 0, 2)
			require.NoError(t, err)
			require.Equal(t, kafka.Gap{Missing: 2}, got)

			require.NoError(t, l.DeleteGroup(t.Context(), "nobody"), "a group that is not there is deleted")
		})
	}
}

package kafka

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"testing"

	"github.com/Shopify/sarama"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/shared/await"
	"github.com/tidemark/tidemark/shared/config"
	"github.com/tidemark/tidemark/shared/event"
	"github.com/tidemark/tidemark/shared/topic"
)

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// setupTopic makes a topic and waits until its partitions have leaders.
func setupTopic(t *testing.T, brokers []string, partitions int) (*Reader, string) {
	t.Helper()
	r := setupReader(t, brokers)
	spec := topic.Spec{Name: randomTopic("publish"), Partitions: partitions, ReplicationFactor: 1}
	require.NoError(t, r.Ensure(t.Context(), spec))
	all := make([]int32, spec.Partitions)
	for p := range all {
		all[p] = int32(p)
	}
	await.Until(t, func() bool { // what is sent while a new partition has no leader may be in the log or not
		_, err := r.Bounds(t.Context(), spec.Name, all)
		return err == nil
	})
	await.Until(t, func() bool { return r.Check(t.Context(), spec) == nil })
	return r, spec.Name
}

func setupPublisher(t *testing.T, o PublisherOptions) *Publisher {
	t.Helper()
	o.ClientID, o.Producer, o.Log = "test", "test-service/1", quiet()
	p, err := NewPublisher(o)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, p.Close()) })
	return p
}

func connected(t *testing.T, p *Publisher) {
	t.Helper()
	await.Until(t, func() bool { return p.State() == nil })
}

func TestEveryMessageOfAPublishKnowsItsPlace(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, brokers []string) {
		r, topic := setupTopic(t, brokers, 3)
		p := setupPublisher(t, PublisherOptions{Kafka: config.Kafka{Brokers: brokers}})
		connected(t, p)
		for flight := range 3 {
			msgs := make([]*message.Message, 500)
			for i := range msgs {
				msgs[i] = NewMessage(uuid.NewString(), fmt.Appendf(nil, "value %d of %d", i, flight), "correlation "+fmt.Sprint(i))
			}
			for i, res := range p.PublishAll(topic, msgs...) {
				require.NoError(t, res.Err)
				require.Equal(t, topic, res.Position.Topic)
				require.Equal(t, PartitionOf([]byte(msgs[i].UUID), 3), res.Position.Partition)
				if i%50 != 0 {
					continue
				}
				rec, found, err := r.RecordAt(t.Context(), topic, res.Position.Partition, res.Position.Offset)
				require.NoError(t, err)
				require.True(t, found)
				require.Equal(t, msgs[i].UUID, string(rec.Key))
				require.Equal(t, string(msgs[i].Payload), string(rec.Value))
			}
		}
	})
}

// The golden test of what a record looks like on the wire.
func TestARecordCarriesKeyValueAndHeaders(t *testing.T) {
	t.Parallel()
	f := flights{producer: &sarama.RecordHeader{Key: []byte(event.HeaderProducer), Value: []byte("command-service/1.2.3")}}
	out, _ := f.record(WithHeader(NewMessage("0192-key", []byte(`{"a":1}`), "mine 1"), "another", "z"))
	var headers []string
	for _, h := range out.Headers {
		headers = append(headers, string(h.Key)+"="+string(h.Value))
	}
	require.Equal(t, "0192-key", string(out.Key))
	require.Equal(t, `{"a":1}`, string(out.Value))
	require.Equal(t, []string{"another=z", event.HeaderCorrelationID + "=mine 1", event.HeaderProducer + "=command-service/1.2.3"}, headers)
	require.Equal(t, "correlationId", event.HeaderCorrelationID)
	require.Equal(t, "producer", event.HeaderProducer)

	out, _ = f.record(NewMessage("", nil, ""))
	require.Nil(t, out.Key)
	require.Len(t, out.Headers, 1)
}

func TestMessagesWithoutAKeySpread(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, brokers []string) {
		_, topic := setupTopic(t, brokers, 4)
		p := setupPublisher(t, PublisherOptions{Kafka: config.Kafka{Brokers: brokers}})
		connected(t, p)
		msgs := make([]*message.Message, 200)
		for i := range msgs {
			msgs[i] = NewMessage("", []byte("v"), "")
		}
		seen := map[int32]bool{}
		for _, r := range p.PublishAll(topic, msgs...) {
			require.NoError(t, r.Err)
			seen[r.Position.Partition] = true
		}
		require.Len(t, seen, 4)
	})
}

func TestSomeMessagesFailWhileOthersAreAcknowledged(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, brokers []string) {
		_, topic := setupTopic(t, brokers, 4)
		p := setupPublisher(t, PublisherOptions{Kafka: config.Kafka{Brokers: brokers}})
		connected(t, p)
		big := bytes.Repeat([]byte("x"), 3<<20) // above max.message.bytes
		msgs := []*message.Message{NewMessage("21", []byte("a"), ""), NewMessage("foobar", big, ""), NewMessage("21", []byte("b"), "")}
		require.NotEqual(t, PartitionOf([]byte("21"), 4), PartitionOf([]byte("foobar"), 4))
		results := p.PublishAll(topic, msgs...)
		require.NoError(t, results[0].Err)
		require.NoError(t, results[2].Err)
		require.Equal(t, results[0].Position.Offset+1, results[2].Position.Offset)
		require.ErrorIs(t, results[1].Err, ErrNotSent, "the broker refused it before it wrote")
		require.NoError(t, p.State(), "a refusal leaves the connection as it was")
		require.NoError(t, p.Publish(topic, NewMessage("foobar", []byte("small"), "")), "and the sequence")
	})
}

func TestALargeFlightIsCutIntoRequestsInOrder(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, brokers []string) {
		_, topic := setupTopic(t, brokers, 2)
		p := setupPublisher(t, PublisherOptions{Kafka: config.Kafka{Brokers: brokers}})
		connected(t, p)
		value := bytes.Repeat([]byte("x"), 100<<10)
		msgs := make([]*message.Message, 40)
		for i := range msgs {
			msgs[i] = NewMessage("one key", value, "")
		}
		for i, res := range p.PublishAll(topic, msgs...) {
			require.NoError(t, res.Err)
			require.Equal(t, int64(i), res.Position.Offset)
		}
	})
}

func TestAPublisherWaitsForABrokerThatIsNotThere(t *testing.T) {
	t.Parallel()
	states := make(chan error, 100)
	p := setupPublisher(t, PublisherOptions{Kafka: config.Kafka{Brokers: []string{"127.0.0.1:1"}}, OnState: func(err error) { states <- err }})
	require.ErrorIs(t, p.Publish("topic", NewMessage("k", []byte("v"), "")), ErrNotSent)
	require.ErrorContains(t, <-states, "127.0.0.1:1")
	require.ErrorIs(t, p.State(), ErrNotSent)
}

func TestATopicThatIsNotThereIsNotSentTo(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, brokers []string) {
		p := setupPublisher(t, PublisherOptions{Kafka: config.Kafka{Brokers: brokers}})
		connected(t, p)
		require.ErrorIs(t, p.Publish(randomTopic("missing"), NewMessage("k", []byte("v"), "")), ErrNotSent)
	})
}

func TestSequenceNumbersWrapAsTheBrokerExpects(t *testing.T) {
	t.Parallel()
	require.Equal(t, int32(5), advance(2, 3))
	require.Equal(t, int32(0), advance(1<<31-1, 1))
	require.Equal(t, int32(1), advance(1<<31-2, 3))
}

func TestAClosedPublisherSaysSo(t *testing.T) {
	t.Parallel()
	p, err := NewPublisher(PublisherOptions{Kafka: config.Kafka{Brokers: []string{"127.0.0.1:1"}}, ClientID: "c", Producer: "p", Log: quiet()})
	require.NoError(t, err)
	require.NoError(t, p.Close())
	require.ErrorContains(t, p.Publish("t", NewMessage("", nil, "")), "closed")
	_, err = NewPublisher(PublisherOptions{})
	require.Error(t, err)
}

func TestBatchesAreCutToWhatTheTopicTakes(t *testing.T) {
	t.Parallel()
	brokers := realKafka(t)
	_, topic := setupTopic(t, brokers, 1)
	p := setupPublisher(t, PublisherOptions{Kafka: config.Kafka{Brokers: brokers}})
	connected(t, p)
	admin, err := sarama.NewClusterAdminFromClient(setupClient(t, brokers))
	require.NoError(t, err)
	most := "150000"
	require.NoError(t, admin.IncrementalAlterConfig(sarama.TopicResource, topic, map[string]sarama.IncrementalAlterConfigsEntry{
		"max.message.bytes": {Operation: sarama.IncrementalAlterConfigsOperationSet, Value: &most},
	}, false))
	large := func() []Result { return p.PublishAll(topic, NewMessage("k", bytes.Repeat([]byte("x"), 160_000), "")) }
	await.Until(t, func() bool { return errors.Is(large()[0].Err, ErrTooLarge) })

	msgs := make([]*message.Message, 40)
	for i := range msgs {
		size := 20 << 10
		if i == 17 {
			size = 160_000
		}
		msgs[i] = NewMessage("k", bytes.Repeat([]byte("x"), size), "")
	}
	for range 2 { // the second time it is known how large a batch may be
		var last int64
		for i, r := range p.PublishAll(topic, msgs...) {
			if i == 17 {
				require.ErrorIs(t, r.Err, ErrTooLarge)
				require.ErrorIs(t, r.Err, ErrNotSent)
				continue
			}
			require.NoError(t, r.Err, "%d: the others of its group go on", i)
			require.True(t, i == 0 || r.Position.Offset == last+1, "in their order")
			last = r.Position.Offset
		}
	}
}

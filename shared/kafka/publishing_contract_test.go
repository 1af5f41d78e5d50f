package kafka_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/shared/await"
	"github.com/tidemark/tidemark/shared/config"
	"github.com/tidemark/tidemark/shared/event"
	"github.com/tidemark/tidemark/shared/kafka"
	"github.com/tidemark/tidemark/shared/kafka/kafkatest"
	topics "github.com/tidemark/tidemark/shared/topic"
)

// published is a topic of three partitions that a test publishes to and reads.
type published struct {
	answers
	topic      string
	publishAll func(topic string, msgs ...*message.Message) []kafka.Result
	cut        func(written bool) // the answer to the next message gets lost
}

const publishedPartitions = 3

func publishedInMemory(*testing.T) published {
	l := kafkatest.NewLog(publishedPartitions)
	return published{
		answers: l, topic: "topic", publishAll: l.PublishAll,
		cut: func(written bool) {
			l.Fault = func(*message.Message) (bool, error) {
				l.Fault = nil
				return written, errors.New("the connection ends")
			}
		},
	}
}

func publishedOn(t *testing.T, brokers []string, cut func(written bool)) published {
	t.Helper()
	k := config.Kafka{Brokers: brokers}
	of := topics.Spec{Name: "published-" + hex.EncodeToString(fmt.Append(nil, rand.Uint32())), Kept: topics.Forever, Partitions: publishedPartitions, ReplicationFactor: 1}
	maker := kafka.NewReader(k, "test")
	require.NoError(t, maker.Ensure(t.Context(), of))
	await.NoError(t, func() error { return maker.Check(t.Context(), of) })
	await.NoError(t, func() error { _, err := maker.StableEnds(t.Context(), of.Name, []int32{0, 1, 2}); return err })
	require.NoError(t, maker.Close())
	p, err := kafka.NewPublisher(kafka.PublisherOptions{
		Kafka: k, ClientID: "test", Producer: "test/1", Log: slog.New(slog.DiscardHandler), RetryFor: time.Millisecond, // a lost answer stays lost
	})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, p.Close()) })
	await.NoError(t, p.State)
	r := kafka.NewReader(k, "test")
	t.Cleanup(func() { require.NoError(t, r.Close()) })
	return published{answers: r, topic: of.Name, publishAll: p.PublishAll, cut: cut}
}

// records are all records that the log holds, by partition.
func (p published) records(t *testing.T) map[int32][]kafka.Record {
	t.Helper()
	var ends map[int32]int64
	await.NoError(t, func() (err error) { // a connection of the reader may have been cut with the publisher's
		ends, err = p.StableEnds(t.Context(), p.topic, []int32{0, 1, 2})
		return err
	})
	all := map[int32][]kafka.Record{}
	for partition, end := range ends {
		for at := int64(0); at < end; {
			await.NoError(t, func() error {
				some, next, err := p.ReadFrom(t.Context(), p.topic, partition, at)
				if err == nil {
					all[partition], at = append(all[partition], some...), next
				}
				return err
			})
		}
	}
	return all
}

// The log in memory takes what is published as a Publisher brings it to a real Kafka and to the embedded broker.
func TestTheLogInMemoryTakesWhatAPublisherPublishes(t *testing.T) {
	t.Parallel()
	for name, open := range map[string]func(*testing.T) published{
		"in memory": publishedInMemory,
		"Kafka": func(t *testing.T) published {
			return publishedOn(t, strings.Split(os.Getenv("TEST_KAFKA_BROKERS"), ","), nil)
		},
		"embedded": func(t *testing.T) published {
			brokers, cut := kafka.EmbeddedThatCuts(t)
			return publishedOn(t, brokers, cut)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := open(t)
			require.Empty(t, p.publishAll(p.topic))

			var msgs []*message.Message
			for i := range 60 {
				m := kafka.NewMessage(fmt.Sprint("key ", i%7), fmt.Append(nil, "value ", i), fmt.Sprint("correlation ", i))
				msgs = append(msgs, kafka.WithHeader(m, "another", "header"))
			}
			tooLarge := 20
			msgs[tooLarge].Payload = bytes.Repeat([]byte("x"), 3<<20)
			ends := map[int32]int64{} // where the next one of a partition comes
			for flight := range 2 {
				results := p.publishAll(p.topic, msgs...)
				require.Len(t, results, len(msgs))
				for i, r := range results {
					if i == tooLarge {
						require.ErrorIs(t, r.Err, kafka.ErrTooLarge)
						require.ErrorIs(t, r.Err, kafka.ErrNotSent)
						require.Zero(t, r.Position)
						continue
					}
					require.NoError(t, r.Err, "the others of its flight go on")
					require.Equal(t, p.topic, r.Position.Topic)
					partition := kafka.PartitionOf([]byte(msgs[i].UUID), publishedPartitions)
					require.Equal(t, partition, r.Position.Partition, "by its key")
					require.Equal(t, ends[partition], r.Position.Offset, "in their order, flight %d, message %d", flight, i)
					ends[partition]++
				}
				all := p.records(t)
				for i, r := range results {
					if i == tooLarge {
						continue
					}
					found := all[r.Position.Partition][r.Position.Offset]
					require.Equal(t, r.Position.Offset, found.Offset)
					require.Equal(t, msgs[i].UUID, string(found.Key))
					require.Equal(t, string(msgs[i].Payload), string(found.Value))
					require.WithinDuration(t, time.Now(), found.Timestamp, time.Hour)
					require.Equal(t, []kafka.Header{
						{Key: []byte("another"), Value: []byte("header")},
						{Key: []byte(event.HeaderCorrelationID), Value: fmt.Append(nil, "correlation ", i)},
					}, found.Headers[:2])
				}
			}
			for partition, records := range p.records(t) {
				require.Len(t, records, int(ends[partition]), "what was refused is not in the log")
			}

			r := p.publishAll(p.topic, kafka.NewMessage("", nil, ""))[0]
			require.NoError(t, r.Err)
			found := p.records(t)[r.Position.Partition][r.Position.Offset]
			require.Nil(t, found.Key)
			require.Empty(t, found.Value)
			if p.cut == nil {
				return // nobody can cut into a Kafka that all tests share
			}
			for _, written := range []bool{true, false} {
				key := fmt.Sprint("written ", written)
				p.cut(written)
				r := p.publishAll(p.topic, kafka.NewMessage(key, []byte("value"), ""))[0]
				require.Error(t, r.Err)
				require.NotErrorIs(t, r.Err, kafka.ErrNotSent, "nobody knows")
				require.Zero(t, r.Position)
				there := false
				for _, records := range p.records(t) {
					for _, found := range records {
						there = there || string(found.Key) == key
					}
				}
				require.Equal(t, written, there)
				await.Until(t, func() bool { return p.publishAll(p.topic, kafka.NewMessage("after", nil, ""))[0].Err == nil }, "it goes on by itself")
			}
		})
	}
}

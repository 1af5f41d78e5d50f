package kafkatest

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/tidemark/tidemark/shared/kafka"
	"github.com/tidemark/tidemark/shared/position"
)

// MaxMessageBytes is the longest value that the log takes, about what a topic takes unless it is set otherwise.
const MaxMessageBytes = 1 << 20

// PublishAll is kafka.Publisher's. It takes the log's Takes, and Fault says what goes wrong. The topic is the Log itself, whatever
// its name; the header of the producer is left out, since no log names one.
func (l *Log) PublishAll(topic string, msgs ...*message.Message) []kafka.Result {
	if len(msgs) == 0 {
		return nil
	}
	time.Sleep(l.Takes) // outside the lock, so that time goes on in a bubble of testing/synctest
	l.mu.Lock()
	defer l.mu.Unlock()
	l.flights = append(l.flights, len(msgs))
	results := make([]kafka.Result, len(msgs))
	for i, m := range msgs {
		written := len(m.Payload) <= MaxMessageBytes
		if !written {
			results[i].Err = fmt.Errorf("%w: %w", kafka.ErrNotSent, kafka.ErrTooLarge)
		} else if l.Fault != nil {
			written, results[i].Err = l.Fault(m)
		}
		if !written {
			continue
		}
		p := int32(0)
		if m.UUID != "" {
			p = kafka.PartitionOf([]byte(m.UUID), int32(len(l.Records)))
		}
		r := kafka.Record{Offset: l.stable(p), Timestamp: time.Now(), Value: m.Payload}
		if m.UUID != "" {
			r.Key = []byte(m.UUID)
		}
		for _, name := range slices.Sorted(maps.Keys(m.Metadata)) {
			r.Headers = append(r.Headers, kafka.Header{Key: []byte(name), Value: []byte(m.Metadata[name])})
		}
		l.Records[p] = append(l.Records[p], r)
		if results[i].Err == nil {
			results[i].Position = position.Position{Topic: topic, Partition: p, Offset: r.Offset}
		}
	}
	return results
}

// Flights are how many messages each PublishAll had, in their order.
func (l *Log) Flights() []int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.flights)
}

// Written are the records of a partition.
func (l *Log) Written(partition int32) []kafka.Record {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.Records[partition])
}

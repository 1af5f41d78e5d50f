package kafka

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/Shopify/sarama"

	"github.com/tidemark/tidemark/shared/position"
)

// A flight is the messages of one Publish on their way: one request to each leader, in it one batch for
// each partition, and what the broker said of each batch. What the broker did not answer, or could not
// take for the moment, is sent again until the publisher's RetryFor is over, as the very same batch with
// the very same sequence number: the broker then recognises a batch it has, whatever became of its
// answer, and names the offset it gave it. That is what makes "unknown" rare and an acknowledgement true.
//
// Sarama's own producer is not used for this. It numbers messages, not batches, and cuts them anew when
// it repeats; after a broken connection the broker finds numbers it cannot place (an error for records
// that are in the log), and a number that is used again after an error can make it acknowledge one
// message with the place of another.
type flight struct {
	msgs    []*sarama.ProducerMessage
	results []Result
	flown   bool
	broken  error // the connection or the sequence is no longer good
}

type flightKey struct{}

// withFlight returns the context by which a message names its flight to the marshaler; no deadline
// rides on it.
func withFlight(f *flight) context.Context {
	return context.WithValue(context.Background(), flightKey{}, f)
}

// batch is what one partition gets in one request.
type batch struct {
	flight    *flight
	topic     string
	partition int32
	of        []int // indexes of its messages in the flight
	records   *sarama.RecordBatch
	bytes     int

	last  error // of the last attempt; nil once it is acknowledged
	maybe bool  // it may be in the log after one of the attempts
}

type topicPartition struct {
	topic     string
	partition int32
}

const (
	maxBatchBytes = 512 << 10 // well below a topic's max.message.bytes, 1 MiB unless set otherwise
	ackTimeout    = 5 * time.Second
)

// flights is a producer with one producer id. Flights are flown one after the other.
type flights struct {
	sarama.SyncProducer // closed; it answers for transactions, which flights do not have

	client   sarama.Client
	id       int64
	epoch    int16
	next     map[topicPartition]int32 // sequence number of the next record
	retryFor time.Duration
}

func newFlights(o PublisherOptions) (*flights, error) {
	c, err := baseConfig(o.Kafka, o.ClientID)
	if err != nil {
		return nil, err
	}
	c.Net.MaxOpenRequests = 1
	c.Metadata.Retry.Max = 0
	c.Metadata.Full = false
	c.Metadata.RefreshFrequency = 0 // a refresh in the background would hold the connection while a broker hangs
	client, err := sarama.NewClient(o.Kafka.Brokers, c)
	if err != nil {
		return nil, explained(err, o.Kafka)
	}
	f := &flights{client: client, next: map[topicPartition]int32{}, retryFor: o.RetryFor}
	if err := f.identify(); err != nil {
		return nil, errors.Join(explained(err, o.Kafka), client.Close())
	}
	return f, nil
}

// identify gets a producer id. Just after a broker's start it is refused ("still loading"); whoever
// connects tries again.
func (f *flights) identify() error {
	b := f.client.LeastLoadedBroker()
	if b == nil {
		return sarama.ErrOutOfBrokers
	}
	res, err := b.InitProducerID(&sarama.InitProducerIDRequest{Version: 3, ProducerID: -1, ProducerEpoch: -1})
	if err != nil {
		return fmt.Errorf("get a producer id: %w", err)
	}
	if res.Err != sarama.ErrNoError {
		return fmt.Errorf("get a producer id: %w", res.Err)
	}
	f.id, f.epoch = res.ProducerID, res.ProducerEpoch
	return nil
}

// Close ends the connections. It waits for a request under way, at most the read timeout.
func (f *flights) Close() error { return f.client.Close() }

// SendMessage gathers the messages of a flight; the last one starts it and returns when it has landed.
// The flight holds the results.
func (f *flights) SendMessage(m *sarama.ProducerMessage) (partition int32, offset int64, err error) {
	fl := m.Metadata.(*flight)
	fl.msgs = append(fl.msgs, m)
	if len(fl.msgs) == len(fl.results) {
		f.fly(fl)
	}
	return 0, 0, nil
}

// SendMessages is SendMessage for each.
func (f *flights) SendMessages(msgs []*sarama.ProducerMessage) error {
	for _, m := range msgs {
		if _, _, err := f.SendMessage(m); err != nil {
			return err
		}
	}
	return nil
}

func (f *flights) fly(fl *flight) {
	fl.flown = true
	deadline := time.Now().Add(f.retryFor)
	queues := f.load(fl)
	for wait := 20 * time.Millisecond; len(queues) > 0; {
		heads := make([]*batch, 0, len(queues))
		for _, q := range queues {
			heads = append(heads, q[0])
		}
		f.send(heads)
		again := false
		for tp, q := range queues {
			b := q[0]
			switch {
			case b.last == nil:
				f.next[tp] = advance(b.records.FirstSequence, len(b.of))
				if len(q) > 1 {
					q[1].records.FirstSequence = f.next[tp]
					queues[tp] = q[1:]
					continue
				}
				delete(queues, tp)
			case repeatable(b.last) && time.Now().Add(wait).Before(deadline):
				again = true
			default:
				fl.fail(q)
				delete(queues, tp)
			}
		}
		if again {
			time.Sleep(wait)
			wait = min(2*wait, 500*time.Millisecond)
			// An error here shows as that of the next attempt.
			_ = f.client.RefreshMetadata(topicsOf(queues)...)
		}
	}
}

// load cuts the flight into batches, those of one partition in their order.
func (f *flights) load(fl *flight) map[topicPartition][]*batch {
	queues := map[topicPartition][]*batch{}
	now := time.Now().Truncate(time.Millisecond)
	for i, m := range fl.msgs {
		partition, err := f.partition(m)
		if err != nil {
			fl.results[i].Err = fmt.Errorf("%w: %w", ErrNotSent, err)
			if !errors.Is(err, sarama.ErrUnknownTopicOrPartition) {
				fl.broken = err // no broker answers
			}
			continue
		}
		record := &sarama.Record{Headers: make([]*sarama.RecordHeader, len(m.Headers))}
		size := 64
		for h := range m.Headers {
			record.Headers[h] = &m.Headers[h]
			size += len(m.Headers[h].Key) + len(m.Headers[h].Value) + 10
		}
		if record.Key, err = encode(m.Key); err == nil {
			record.Value, err = encode(m.Value)
		}
		if err != nil {
			fl.results[i].Err = fmt.Errorf("%w: %w", ErrNotSent, err)
			continue
		}
		size += len(record.Key) + len(record.Value)
		tp := topicPartition{m.Topic, partition}
		q := queues[tp]
		if len(q) == 0 || q[len(q)-1].bytes+size > maxBatchBytes {
			b := &batch{flight: fl, topic: tp.topic, partition: tp.partition, records: &sarama.RecordBatch{
				Version: 2, FirstTimestamp: now, MaxTimestamp: now,
				ProducerID: f.id, ProducerEpoch: f.epoch, FirstSequence: f.next[tp],
			}}
			q = append(q, b)
			queues[tp] = q
		}
		b := q[len(q)-1]
		record.OffsetDelta = int64(len(b.of))
		b.records.LastOffsetDelta = int32(len(b.of))
		b.records.Records = append(b.records.Records, record)
		b.of = append(b.of, i)
		b.bytes += size
	}
	return queues
}

func (f *flights) partition(m *sarama.ProducerMessage) (int32, error) {
	partitions, err := f.client.Partitions(m.Topic)
	if err != nil {
		return 0, err
	}
	n := int32(len(partitions))
	if n == 0 {
		return 0, sarama.ErrUnknownTopicOrPartition
	}
	if m.Key == nil {
		return partitions[rand.Int32N(n)], nil
	}
	key, err := m.Key.Encode()
	if err != nil {
		return 0, err
	}
	return partitions[PartitionOf(key, n)], nil
}

// send sends each batch to its partition's leader, one request a leader, and notes what came of it.
func (f *flights) send(batches []*batch) {
	loads := map[*sarama.Broker][]*batch{}
	for _, b := range batches {
		leader, err := f.client.Leader(b.topic, b.partition)
		if err != nil {
			b.end(notWritten{err})
			continue
		}
		loads[leader] = append(loads[leader], b)
	}
	var others sync.WaitGroup
	for leader, load := range loads {
		if len(loads) == 1 {
			f.produce(leader, load)
			return
		}
		others.Go(func() { f.produce(leader, load) })
	}
	others.Wait()
}

func (f *flights) produce(leader *sarama.Broker, load []*batch) {
	request := &sarama.ProduceRequest{Version: 3, RequiredAcks: sarama.WaitForAll, Timeout: int32(ackTimeout.Milliseconds())}
	for _, b := range load {
		request.AddBatch(b.topic, b.partition, b.records)
	}
	type answer struct {
		res *sarama.ProduceResponse
		err error
	}
	answers := make(chan answer, 1)
	err := leader.AsyncProduce(request, func(res *sarama.ProduceResponse, err error) { answers <- answer{res, err} })
	if err != nil {
		if beforeWrite(err) {
			err = notWritten{err}
		}
	} else {
		a := <-answers
		if a.err == nil {
			for _, b := range load {
				b.land(a.res.GetBlock(b.topic, b.partition))
			}
			return
		}
		err = a.err
	}
	_ = leader.Close() // Leader opens it anew
	for _, b := range load {
		b.end(err)
	}
}

// land books what the broker said of the batch.
func (b *batch) land(said *sarama.ProduceResponseBlock) {
	switch {
	case said == nil:
		b.end(sarama.ErrIncompleteResponse)
	case said.Err == sarama.ErrNoError && said.Offset >= 0:
		b.last = nil
		for i, m := range b.of {
			b.flight.results[m].Position = position.Position{Topic: b.topic, Partition: b.partition, Offset: said.Offset + int64(i)}
		}
	case said.Err == sarama.ErrNoError:
		b.end(sarama.ErrDuplicateSequenceNumber) // acknowledged, and the place is forgotten
	case slices.Contains(refusals, said.Err):
		b.end(notWritten{said.Err})
	default:
		b.end(said.Err)
	}
}

// end books an attempt that failed.
func (b *batch) end(err error) {
	b.last = err
	var not notWritten
	b.maybe = b.maybe || !errors.As(err, &not)
}

// fail gives up the batches of a partition: the first failed, the others were never sent.
func (fl *flight) fail(queue []*batch) {
	for i, b := range queue {
		err := queue[0].last
		if i > 0 || !b.maybe {
			err = fmt.Errorf("%w: %w", ErrNotSent, err)
		}
		for _, m := range b.of {
			fl.results[m].Err = err
		}
	}
	// A refusal leaves connection and sequence as they were.
	if b := queue[0]; b.maybe || !isCode(b.last) {
		fl.broken = b.last
	}
}

// notWritten is an attempt after which the batch is surely not in the log.
type notWritten struct{ error }

func (e notWritten) Unwrap() error { return e.error }

// refusals are the codes a broker gives before it writes. The loss of leadership is none of them: it
// is also the answer when it happens between writing and replicating.
var refusals = []sarama.KError{
	sarama.ErrInvalidMessage, sarama.ErrUnknownTopicOrPartition, sarama.ErrMessageSizeTooLarge,
	sarama.ErrInvalidTopic, sarama.ErrMessageSetSizeTooLarge, sarama.ErrNotEnoughReplicas,
	sarama.ErrTopicAuthorizationFailed, sarama.ErrClusterAuthorizationFailed, sarama.ErrInvalidTimestamp,
	sarama.ErrUnsupportedForMessageFormat, sarama.ErrPolicyViolation, sarama.ErrInvalidRecord,
	sarama.ErrLeaderNotAvailable, sarama.ErrReplicaNotAvailable,
}

// passing are the codes that another attempt may not meet again.
var passing = []sarama.KError{
	sarama.ErrUnknownTopicOrPartition, sarama.ErrLeaderNotAvailable, sarama.ErrNotLeaderForPartition,
	sarama.ErrRequestTimedOut, sarama.ErrReplicaNotAvailable, sarama.ErrNetworkException,
	sarama.ErrNotEnoughReplicas, sarama.ErrNotEnoughReplicasAfterAppend, sarama.ErrKafkaStorageError,
	sarama.ErrFencedLeaderEpoch, sarama.ErrUnknownLeaderEpoch,
}

func repeatable(err error) bool {
	var code sarama.KError
	if errors.As(err, &code) {
		return slices.Contains(passing, code)
	}
	var encoding sarama.PacketEncodingError
	return !errors.As(err, &encoding)
}

func isCode(err error) bool {
	var code sarama.KError
	return errors.As(err, &code)
}

// beforeWrite knows the errors of sending that happen before the first byte is written.
func beforeWrite(err error) bool {
	var op *net.OpError
	var encoding sarama.PacketEncodingError
	return errors.Is(err, sarama.ErrNotConnected) || errors.As(err, &encoding) || errors.As(err, &op) && op.Op == "dial"
}

// advance is the sequence number after n records from first on; numbers wrap to 0.
func advance(first int32, n int) int32 {
	return int32((int64(first) + int64(n)) & math.MaxInt32)
}

func encode(e sarama.Encoder) ([]byte, error) {
	if e == nil {
		return nil, nil
	}
	return e.Encode()
}

func topicsOf(queues map[topicPartition][]*batch) []string {
	names := map[string]struct{}{}
	for tp := range queues {
		names[tp.topic] = struct{}{}
	}
	return slices.Collect(maps.Keys(names))
}

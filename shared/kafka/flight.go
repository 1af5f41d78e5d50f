package kafka

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/Shopify/sarama"
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/tidemark/tidemark/shared/event"
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
	topic   string
	msgs    []*message.Message
	results []Result // of each message
	broken  error    // the connection or the sequence is no longer good
}

// batch is what one partition gets in one request.
type batch struct {
	flight    *flight
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
	client   sarama.Client
	producer *sarama.RecordHeader // of every record
	id       int64
	epoch    int16
	next     map[topicPartition]int32 // sequence number of the next record
	most     map[string]int           // bytes of a batch, of topics that take less than maxBatchBytes
	retryFor time.Duration
}

func newFlights(o PublisherOptions) (*flights, error) {
	c, err := baseConfig(o.Kafka, o.ClientID)
	if err != nil {
		return nil, err
	}
	c.Net.MaxOpenRequests = 1
	c.Metadata.Retry.Max = 0
	c.Metadata.Timeout = o.RetryFor // else each broker that hangs is waited for, one after the other
	c.Metadata.Full = false
	c.Metadata.RefreshFrequency = 0 // a refresh in the background would hold the connection while a broker hangs
	client, err := sarama.NewClient(o.Kafka.Brokers, c)
	if err != nil {
		return nil, explained(err)
	}
	f := &flights{
		client: client, next: map[topicPartition]int32{}, most: map[string]int{}, retryFor: o.RetryFor,
		producer: &sarama.RecordHeader{Key: []byte(event.HeaderProducer), Value: []byte(o.Producer)},
	}
	if err := f.identify(); err != nil {
		return nil, errors.Join(explained(err), client.Close())
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

// fly sends the messages and returns when each is acknowledged or has failed; the flight then holds the results.
func (f *flights) fly(fl *flight) {
	deadline := time.Now().Add(f.retryFor)
	queues := f.load(fl)
	for wait := 20 * time.Millisecond; len(queues) > 0; {
		heads := make([]*batch, 0, len(queues))
		for _, q := range queues {
			heads = append(heads, q[0])
		}
		f.send(heads)
		again := false
		for partition, q := range queues {
			b := q[0]
			switch {
			case b.last == nil:
				next := advance(b.records.FirstSequence, len(b.of))
				f.next[topicPartition{fl.topic, partition}] = next
				if len(q) > 1 {
					q[1].records.FirstSequence = next
					queues[partition] = q[1:]
					continue
				}
				delete(queues, partition)
			case errors.Is(b.last, sarama.ErrMessageSizeTooLarge) && !b.maybe && len(b.of) > 1:
				f.most[fl.topic] = min(f.mostBytes(fl.topic), max(b.bytes/2, leastRecordBytes))
				queues[partition] = append(b.halves(), q[1:]...)
			case errors.Is(b.last, sarama.ErrMessageSizeTooLarge) && !b.maybe && len(q) > 1: // only this record is refused
				fl.fail(q[:1])
				q[1].records.FirstSequence = b.records.FirstSequence
				queues[partition] = q[1:]
			case repeatable(b.last) && time.Now().Add(wait).Before(deadline):
				again = true
			default:
				fl.fail(q)
				delete(queues, partition)
			}
		}
		if again {
			time.Sleep(wait)
			wait = min(2*wait, 500*time.Millisecond)
			// An error here shows as that of the next attempt.
			_ = f.client.RefreshMetadata(fl.topic)
		}
	}
}

// load cuts the flight into batches, those of one partition in their order.
func (f *flights) load(fl *flight) map[int32][]*batch {
	queues := map[int32][]*batch{}
	now, most := time.Now().Truncate(time.Millisecond), f.mostBytes(fl.topic)
	for i, m := range fl.msgs {
		record, size := f.record(m)
		partition, err := f.partition(fl.topic, record.Key)
		if err != nil {
			fl.results[i].Err = fmt.Errorf("%w: %w", ErrNotSent, err)
			if !errors.Is(err, sarama.ErrUnknownTopicOrPartition) {
				fl.broken = err // no broker answers
			}
			continue
		}
		q := queues[partition]
		if len(q) == 0 || q[len(q)-1].bytes+size > most {
			q = append(q, &batch{flight: fl, partition: partition, records: &sarama.RecordBatch{
				Version: 2, FirstTimestamp: now, MaxTimestamp: now,
				ProducerID: f.id, ProducerEpoch: f.epoch, FirstSequence: f.next[topicPartition{fl.topic, partition}],
			}})
			queues[partition] = q
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

// mostBytes is how large a batch of the topic may be, about.
func (f *flights) mostBytes(topic string) int {
	if most, known := f.most[topic]; known {
		return most
	}
	return maxBatchBytes
}

// halves are two batches of the records of one that the topic does not take, in their order. The second gets its sequence
// number once the first is written.
func (b *batch) halves() []*batch {
	middle := len(b.of) / 2
	part := func(of []int, records []*sarama.Record) *batch {
		whole := b.records
		half := &batch{flight: b.flight, partition: b.partition, of: of, bytes: b.bytes / 2, records: &sarama.RecordBatch{
			Version: whole.Version, FirstTimestamp: whole.FirstTimestamp, MaxTimestamp: whole.MaxTimestamp,
			ProducerID: whole.ProducerID, ProducerEpoch: whole.ProducerEpoch, FirstSequence: whole.FirstSequence,
			LastOffsetDelta: int32(len(records) - 1), Records: records,
		}}
		for i, r := range records {
			r.OffsetDelta = int64(i)
		}
		return half
	}
	return []*batch{part(b.of[:middle], b.records.Records[:middle]), part(b.of[middle:], b.records.Records[middle:])}
}

// record returns the record of a message, and about how many bytes it takes.
func (f *flights) record(m *message.Message) (r *sarama.Record, size int) {
	r = &sarama.Record{Value: m.Payload, Headers: make([]*sarama.RecordHeader, 0, len(m.Metadata)+1)}
	if m.UUID != "" {
		r.Key = []byte(m.UUID)
	}
	size = 64 + len(r.Key) + len(r.Value)
	for name, value := range m.Metadata {
		r.Headers = append(r.Headers, &sarama.RecordHeader{Key: headerName(name), Value: []byte(value)})
	}
	if len(r.Headers) > 1 { // in a fixed order, so that equal messages are equal records
		slices.SortFunc(r.Headers, func(a, b *sarama.RecordHeader) int { return bytes.Compare(a.Key, b.Key) })
	}
	r.Headers = append(r.Headers, f.producer)
	for _, h := range r.Headers {
		size += len(h.Key) + len(h.Value) + 10
	}
	return r, size
}

var correlationHeader = []byte(event.HeaderCorrelationID)

func headerName(name string) []byte {
	if name == event.HeaderCorrelationID { // on nearly every record
		return correlationHeader
	}
	return []byte(name)
}

func (f *flights) partition(topic string, key []byte) (int32, error) {
	partitions, err := f.client.Partitions(topic)
	if err != nil {
		return 0, err
	}
	n := int32(len(partitions))
	switch {
	case n == 0:
		return 0, sarama.ErrUnknownTopicOrPartition
	case key == nil:
		return partitions[rand.Int32N(n)], nil
	default:
		return partitions[PartitionOf(key, n)], nil
	}
}

// send sends each batch to its partition's leader, one request a leader, and notes what came of it.
func (f *flights) send(batches []*batch) {
	loads := map[*sarama.Broker][]*batch{}
	for _, b := range batches {
		leader, err := f.client.Leader(b.flight.topic, b.partition)
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
		request.AddBatch(b.flight.topic, b.partition, b.records)
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
				b.land(a.res.GetBlock(b.flight.topic, b.partition))
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
			b.flight.results[m].Position = position.Position{Topic: b.flight.topic, Partition: b.partition, Offset: said.Offset + int64(i)}
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

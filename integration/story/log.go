package story

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
	"log"
	"maps"
	"math"
	"slices"
	"time"

	"github.com/Shopify/sarama"
)

// Topic is the log of timestamp commands. It is written out here, and so are the settings below, because a stranger's
// client has to write them too.
const Topic = "timestamp.command.v1"

// The other topics: commands about endpoints, decisions on dead letters, and receipts.
const (
	EndpointTopic = "endpoint.command.v1"
	DecisionTopic = "deadletter.command.v1"
	ReceiptTopic  = "projection.receipt.v1"
	IdentityTopic = "log.identity.v1" // what command-service has noted of the other topics
)

// Log is a plain client of one topic, timestamp commands unless On says otherwise. It shares no code with the services, so that it can judge them.
type Log struct {
	topic    string
	client   sarama.Client
	admin    sarama.ClusterAdmin
	producer sarama.SyncProducer
}

// Record is one record as it lies in the log.
type Record struct {
	Topic     string // timestamp commands where it is empty
	Partition int32
	Offset    int64
	Time      time.Time // the log's own, in milliseconds
	Key       []byte
	Value     []byte
	Headers   map[string]string
}

// Position writes where the record is: topic/partition@offset.
func (r Record) Position() string {
	return fmt.Sprintf("%s/%d@%d", cmp.Or(r.Topic, Topic), r.Partition, r.Offset)
}

// Message is a record to write.
type Message struct {
	Partition int32 // AnyPartition leaves the choice to the key
	Key       string
	Value     []byte // nil is a record without a value
	Headers   map[string]string
	Time      time.Time // what the producer says; the log is to ignore it. Zero is now.
}

// AnyPartition leaves the choice of the partition to the record's key.
const AnyPartition int32 = -1

// Vector says how far each partition was read: the offset after the last record.
type Vector map[int32]int64

// OpenLog connects. The caller closes it.
func OpenLog(brokers []string) (*Log, error) {
	config := sarama.NewConfig()
	config.ClientID = "story"
	config.Version = sarama.V2_8_0_0
	config.Producer.Return.Successes = true
	config.Producer.RequiredAcks = sarama.WaitForAll
	config.Producer.Partitioner = func(topic string) sarama.Partitioner { return &chosen{newPartitioner(topic)} }
	config.Producer.Flush.MaxMessages = 10_000
	config.Metadata.AllowAutoTopicCreation = false
	config.Net.DialTimeout, config.Net.ReadTimeout, config.Net.WriteTimeout = 5*time.Second, 10*time.Second, 10*time.Second
	client, err := sarama.NewClient(brokers, config)
	if err != nil {
		return nil, fmt.Errorf("open the log: %w", err)
	}
	l := &Log{topic: Topic, client: client}
	if l.admin, err = sarama.NewClusterAdminFromClient(client); err == nil {
		l.producer, err = sarama.NewSyncProducerFromClient(client)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open the log: %w", err), client.Close())
	}
	return l, nil
}

// On is the same client on another topic. It ends with the one it was made of.
func (l *Log) On(topic string) *Log {
	other := *l
	other.topic = topic
	return &other
}

// Close ends the connections.
func (l *Log) Close() error { return errors.Join(l.producer.Close(), l.admin.Close()) } // the admin closes the client

// Admin is for what this type has no method for.
func (l *Log) Admin() sarama.ClusterAdmin { return l.admin }

// Create makes the topic as the services would, with changes to its settings.
func (l *Log) Create(partitions int32, changes map[string]string) error {
	settings := map[string]string{
		"cleanup.policy": "delete", "retention.ms": "-1", "retention.bytes": "-1", "message.timestamp.type": "LogAppendTime",
	}
	entries := map[string]*string{}
	for name, value := range settings {
		entries[name] = &value
	}
	for name, value := range changes {
		entries[name] = &value
	}
	detail := &sarama.TopicDetail{NumPartitions: partitions, ReplicationFactor: 1, ConfigEntries: entries}
	if err := l.admin.CreateTopic(l.topic, detail, false); err != nil {
		return fmt.Errorf("create %s: %w", l.topic, err)
	}
	// The controller knows a topic a little before the broker leads it.
	return l.until("there", func(known bool) bool {
		if !known || l.client.RefreshMetadata(l.topic) != nil {
			return false
		}
		_, err := l.Ends()
		return err == nil
	})
}

// Delete throws the topic away, if it is there, and returns when no trace of it is left.
func (l *Log) Delete() error {
	err := l.admin.DeleteTopic(l.topic)
	if err != nil && !errors.Is(err, sarama.ErrUnknownTopicOrPartition) {
		return fmt.Errorf("delete %s: %w", l.topic, err)
	}
	return l.until("gone", func(known bool) bool { return !known })
}

// DeleteBefore deletes each partition's records below those offsets.
func (l *Log) DeleteBefore(starts Vector) error {
	if err := l.admin.DeleteRecords(l.topic, starts); err != nil {
		return fmt.Errorf("delete records of %s: %w", l.topic, err)
	}
	return nil
}

func (l *Log) until(what string, done func(known bool) bool) error {
	for range 500 {
		topics, err := l.admin.DescribeTopics([]string{l.topic})
		if err != nil {
			return fmt.Errorf("describe %s: %w", l.topic, err)
		}
		known := topics[0].Err == sarama.ErrNoError && len(topics[0].Partitions) > 0
		if done(known) {
			return nil
		}
		time.Sleep(20 * time.Millisecond)
	}
	return fmt.Errorf("%s is still not %s", l.topic, what)
}

// Write appends messages, each acknowledged, and returns where they are, in the same order.
func (l *Log) Write(messages ...Message) ([]Record, error) {
	batch := make([]*sarama.ProducerMessage, len(messages))
	for i, m := range messages {
		p := &sarama.ProducerMessage{Topic: l.topic, Partition: m.Partition, Timestamp: m.Time}
		if m.Partition != AnyPartition {
			p.Metadata = m.Partition
		}
		if m.Key != "" {
			p.Key = sarama.StringEncoder(m.Key)
		}
		if m.Value != nil {
			p.Value = sarama.ByteEncoder(m.Value)
		}
		for name, value := range m.Headers {
			p.Headers = append(p.Headers, sarama.RecordHeader{Key: []byte(name), Value: []byte(value)})
		}
		batch[i] = p
	}
	if err := l.producer.SendMessages(batch); err != nil {
		return nil, fmt.Errorf("write %d records: %w", len(messages), err)
	}
	records := make([]Record, len(messages))
	for i, p := range batch {
		records[i] = Record{
			Topic: l.topic, Partition: p.Partition, Offset: p.Offset, Key: []byte(messages[i].Key),
			Value: messages[i].Value, Headers: messages[i].Headers,
		}
	}
	return records, nil
}

// newPartitioner leads keys to partitions as Java clients do, and so Tidemark's services; Sarama's own default differs.
var newPartitioner = sarama.NewCustomPartitioner(sarama.WithAbsFirst(), sarama.WithCustomHashFunction(func() hash.Hash32 { return &murmur2{} }))

// murmur2 is the hash of Kafka's Java client: MurmurHash2 with its own seed.
type murmur2 struct{ key []byte }

func (m *murmur2) Write(key []byte) (int, error) { m.key = append(m.key, key...); return len(key), nil }
func (m *murmur2) Sum(b []byte) []byte           { return binary.BigEndian.AppendUint32(b, m.Sum32()) }
func (m *murmur2) Reset()                        { m.key = m.key[:0] }
func (m *murmur2) Size() int                     { return 4 }
func (m *murmur2) BlockSize() int                { return 4 }

func (m *murmur2) Sum32() uint32 {
	const seed, mix = 0x9747b28c, 0x5bd1e995
	rest := m.key
	h := uint32(seed) ^ uint32(len(rest))
	for ; len(rest) >= 4; rest = rest[4:] {
		k := binary.LittleEndian.Uint32(rest) * mix
		h = h*mix ^ (k^k>>24)*mix
	}
	var last uint32
	for i, b := range rest {
		last |= uint32(b) << (8 * i)
	}
	if len(rest) > 0 {
		h = (h ^ last) * mix
	}
	h = (h ^ h>>13) * mix
	return h ^ h>>15
}

// PartitionOf returns where a key's records belong in a topic of so many partitions.
func PartitionOf(key string, partitions int32) int32 {
	return int32((&murmur2{key: []byte(key)}).Sum32()&0x7fffffff) % partitions
}

// chosen takes the partition that a message names, else the one its key leads to.
type chosen struct{ byKey sarama.Partitioner }

func (c *chosen) Partition(m *sarama.ProducerMessage, partitions int32) (int32, error) {
	if partition, ok := m.Metadata.(int32); ok {
		return partition, nil
	}
	return c.byKey.Partition(m, partitions)
}

func (c *chosen) RequiresConsistency() bool { return true }

// Ends returns where each partition ends now: the offset that the next record will have.
func (l *Log) Ends() (Vector, error) { return l.bounds(sarama.OffsetNewest) }

// Starts returns each partition's first offset.
func (l *Log) Starts() (Vector, error) { return l.bounds(sarama.OffsetOldest) }

func (l *Log) bounds(at int64) (Vector, error) {
	partitions, err := l.client.Partitions(l.topic)
	if err != nil {
		return nil, fmt.Errorf("bounds of %s: %w", l.topic, err)
	}
	bounds := Vector{}
	for _, p := range partitions {
		if bounds[p], err = l.client.GetOffset(l.topic, p, at); err != nil {
			return nil, fmt.Errorf("bounds of %s/%d: %w", l.topic, p, err)
		}
	}
	return bounds, nil
}

// Read returns all committed records below a vector, or below the ends of this moment where it is nil, by partition
// and offset, and the vector that it read up to.
func (l *Log) Read(ctx context.Context, upTo Vector) ([]Record, Vector, error) {
	starts, err := l.Starts()
	if err != nil {
		return nil, nil, err
	}
	if upTo == nil {
		if upTo, err = l.Ends(); err != nil {
			return nil, nil, err
		}
	}
	records, err := l.ReadFrom(ctx, starts, upTo)
	return records, upTo, err
}

// ReadFrom returns all committed records from one vector on and below another, by partition and offset.
func (l *Log) ReadFrom(ctx context.Context, from, upTo Vector) ([]Record, error) {
	var records []Record
	for _, p := range slices.Sorted(maps.Keys(upTo)) {
		part, err := l.readPartition(ctx, p, from[p], upTo[p])
		if err != nil {
			return nil, fmt.Errorf("read %s/%d: %w", l.topic, p, err)
		}
		records = append(records, part...)
	}
	return records, nil
}

// readPartition fetches batches by hand: a consumer would never say that what is left before the end are a
// transaction's markers, and wait for ever.
func (l *Log) readPartition(ctx context.Context, partition int32, from, end int64) ([]Record, error) {
	var records []Record
	for from < end {
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("at offset %d of %d: %w", from, end, err)
		}
		leader, err := l.client.Leader(l.topic, partition)
		if err != nil {
			return nil, err
		}
		request := &sarama.FetchRequest{
			Version: 4, MinBytes: 1, MaxWaitTime: 200, MaxBytes: 16 << 20, Isolation: sarama.ReadCommitted,
		}
		request.AddBlock(l.topic, partition, from, 16<<20, -1)
		response, err := leader.Fetch(request)
		if err != nil {
			_ = leader.Close() // it would else not connect again
			return nil, err
		}
		block := response.GetBlock(l.topic, partition)
		if block == nil {
			return nil, errors.New("the broker's answer has no such partition")
		}
		if block.Err != sarama.ErrNoError {
			return nil, block.Err
		}
		aborted := block.AbortedTransactions
		for _, set := range block.RecordsSet {
			b := set.RecordBatch
			if b == nil || b.PartialTrailingRecord {
				continue
			}
			for _, r := range b.Records {
				offset := b.FirstOffset + r.OffsetDelta
				if offset < from || offset >= end || b.Control || isAborted(aborted, b) {
					continue
				}
				records = append(records, asRecord(l.topic, partition, b, r))
			}
			if b.Control {
				aborted = withoutEnded(aborted, b)
			}
			from = max(from, b.LastOffset()+1)
		}
	}
	return records, nil
}

func asRecord(topic string, partition int32, b *sarama.RecordBatch, r *sarama.Record) Record {
	at := b.FirstTimestamp.Add(r.TimestampDelta)
	if b.LogAppendTime {
		at = b.MaxTimestamp
	}
	headers := make(map[string]string, len(r.Headers))
	for _, h := range r.Headers {
		headers[string(h.Key)] = string(h.Value)
	}
	return Record{
		Topic: topic, Partition: partition, Offset: b.FirstOffset + r.OffsetDelta, Time: at.UTC(),
		Key: r.Key, Value: r.Value, Headers: headers,
	}
}

func isAborted(aborted []*sarama.AbortedTransaction, b *sarama.RecordBatch) bool {
	return b.IsTransactional && slices.ContainsFunc(aborted, func(a *sarama.AbortedTransaction) bool {
		return a.ProducerID == b.ProducerID && a.FirstOffset <= b.FirstOffset
	})
}

// withoutEnded drops the transaction that a marker ends: what its producer wrote later is another one.
func withoutEnded(aborted []*sarama.AbortedTransaction, marker *sarama.RecordBatch) []*sarama.AbortedTransaction {
	first := int64(math.MaxInt64)
	for _, a := range aborted {
		if a.ProducerID == marker.ProducerID && a.FirstOffset < marker.FirstOffset {
			first = min(first, a.FirstOffset)
		}
	}
	return slices.DeleteFunc(slices.Clone(aborted), func(a *sarama.AbortedTransaction) bool {
		return a.ProducerID == marker.ProducerID && a.FirstOffset == first
	})
}

// Committed returns the offsets that a group has committed, with their metadata, as any other client sees them.
// Partitions without one are left out.
func (l *Log) Committed(group string) (map[int32]Commit, error) {
	partitions, err := l.client.Partitions(l.topic)
	if err != nil {
		return nil, fmt.Errorf("committed offsets of %s: %w", group, err)
	}
	response, err := l.admin.ListConsumerGroupOffsets(group, map[string][]int32{l.topic: partitions})
	if err != nil {
		return nil, fmt.Errorf("committed offsets of %s: %w", group, err)
	}
	commits := map[int32]Commit{}
	for _, p := range partitions {
		block := response.GetBlock(l.topic, p)
		if block == nil || block.Offset < 0 {
			continue
		}
		if block.Err != sarama.ErrNoError {
			return nil, fmt.Errorf("committed offset of %s in %s/%d: %w", group, l.topic, p, block.Err)
		}
		commits[p] = Commit{Offset: block.Offset, Metadata: block.Metadata}
	}
	return commits, nil
}

// Commit is one committed offset.
type Commit struct {
	Offset   int64
	Metadata string
}

func init() { sarama.Logger = log.New(io.Discard, "", 0) }

package projectiontest

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/Shopify/sarama"
	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/shared/await"
	"github.com/tidemark/tidemark/shared/kafka"
)

// sent is a record that is in the log.
type sent struct {
	Record
	offset int64
	at     time.Time // log time
}

// writer fills a topic. Where the topic is transactional it writes in transactions, and aborts one now and then.
type writer struct {
	topic         string
	partitions    int32
	transactional bool

	mu       sync.Mutex
	client   sarama.Client
	producer sarama.SyncProducer
	records  []sent          // in the order of their offsets, by partition
	past     map[int32]int64 // partition → the offset after the last record that was written, aborted ones included
	aborted  int             // records
	sends    int
}

const mostInTransaction = 10

func newWriter(t *testing.T, brokers []string, topic string, partitions int32, transactional bool) *writer {
	t.Helper()
	c := sarama.NewConfig()
	c.ClientID, c.Version = "projectiontest", sarama.V2_8_0_0
	c.Producer.Return.Successes = true
	c.Producer.RequiredAcks = sarama.WaitForAll
	c.Producer.Partitioner = sarama.NewManualPartitioner
	if transactional {
		c.Producer.Idempotent, c.Net.MaxOpenRequests = true, 1
		c.Producer.Transaction.ID = uuid.NewString()
	}
	client, err := sarama.NewClient(brokers, c)
	require.NoError(t, err)
	var producer sarama.SyncProducer
	await.NoError(t, func() (err error) { // a broker that has just started may still be loading what it knows of transactions
		producer, err = sarama.NewSyncProducerFromClient(client)
		return err
	})
	w := &writer{topic: topic, partitions: partitions, transactional: transactional, client: client, producer: producer, past: map[int32]int64{}}
	t.Cleanup(func() {
		require.NoError(t, w.producer.Close())
		if admin, err := sarama.NewClusterAdminFromClient(w.client); err == nil {
			_ = admin.DeleteTopic(topic) // a courtesy to the tests that follow
		}
		require.NoError(t, w.client.Close())
	})
	return w
}

// send writes records to the end of the log and returns them with their places. It may be called from any goroutine.
func (w *writer) send(records ...Record) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := range records {
		w.place(&records[i])
	}
	if !w.transactional {
		return w.write(records, true)
	}
	for len(records) > 0 {
		n := min(len(records), mostInTransaction)
		w.sends++
		if w.sends%3 == 2 { // the same records, which nobody is ever given
			if err := w.transaction(records[:n], false); err != nil {
				return err
			}
			w.aborted += n
		}
		if err := w.transaction(records[:n], true); err != nil {
			return err
		}
		records = records[n:]
	}
	return nil
}

// place gives a record that names none the partition of its key.
func (w *writer) place(r *Record) {
	if r.Partition < 0 {
		r.Partition = kafka.PartitionOf(r.Key, w.partitions)
	}
}

func (w *writer) transaction(records []Record, commit bool) error {
	if err := w.producer.BeginTxn(); err != nil {
		return fmt.Errorf("begin a transaction: %w", err)
	}
	if err := w.write(records, commit); err != nil {
		return err
	}
	if !commit {
		return w.producer.AbortTxn()
	}
	return w.producer.CommitTxn()
}

func (w *writer) write(records []Record, keep bool) error {
	msgs := make([]*sarama.ProducerMessage, len(records))
	for i, r := range records {
		msgs[i] = &sarama.ProducerMessage{Topic: w.topic, Partition: r.Partition, Key: sarama.ByteEncoder(r.Key), Value: sarama.ByteEncoder(r.Value), Timestamp: r.Logged}
		for _, h := range r.Headers {
			msgs[i].Headers = append(msgs[i].Headers, sarama.RecordHeader{Key: h.Key, Value: h.Value})
		}
	}
	if err := w.producer.SendMessages(msgs); err != nil {
		return fmt.Errorf("send %d records: %w", len(msgs), err)
	}
	for i, m := range msgs {
		w.past[m.Partition] = m.Offset + 1
		if keep {
			w.records = append(w.records, sent{records[i], m.Offset, m.Timestamp})
		}
	}
	return nil
}

// stable reports whether each partition's stable end is past everything that was sent: a transaction's marker follows its
// commit by some moments.
func (w *writer) stable(ends map[int32]int64) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for p, past := range w.past {
		if ends[p] < past || w.transactional && ends[p] == past {
			return false
		}
	}
	return true
}

// all are the records that are in the log.
func (w *writer) all() []sent {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]sent(nil), w.records...)
}

// timedByTheWriter makes a topic whose log times are those that the records bear, as no topic of the log is made: so a
// test can have records of long ago.
func timedByTheWriter(t *testing.T, brokers []string, topic string, partitions int32) {
	t.Helper()
	c := sarama.NewConfig()
	c.Version = sarama.V2_8_0_0
	admin, err := sarama.NewClusterAdmin(brokers, c)
	require.NoError(t, err)
	times, forever := "CreateTime", "-1"
	require.NoError(t, admin.CreateTopic(topic, &sarama.TopicDetail{
		NumPartitions: partitions, ReplicationFactor: 1, ConfigEntries: map[string]*string{"message.timestamp.type": &times, "retention.ms": &forever},
	}, false))
	require.NoError(t, admin.Close())
}

// reset commits offsets for a group that has no members, as kafka-consumer-groups --reset-offsets does.
func (w *writer) reset(t *testing.T, group string, offsets map[int32]int64) {
	t.Helper()
	await.NoError(t, func() error { // the group may still have a member for a moment
		if err := w.client.RefreshCoordinator(group); err != nil {
			return fmt.Errorf("find the coordinator: %w", err)
		}
		coordinator, err := w.client.Coordinator(group)
		if err != nil {
			return fmt.Errorf("find the coordinator: %w", err)
		}
		request := &sarama.OffsetCommitRequest{Version: 2, ConsumerGroup: group, ConsumerGroupGeneration: -1, RetentionTime: -1}
		for p, offset := range offsets {
			request.AddBlock(w.topic, p, offset, 0, 0, "")
		}
		res, err := coordinator.CommitOffset(request)
		if err != nil {
			return fmt.Errorf("commit: %w", err)
		}
		for p := range offsets {
			if code := res.Errors[w.topic][p]; code != sarama.ErrNoError {
				return fmt.Errorf("commit: %w", code)
			}
		}
		return nil
	})
}

func (w *writer) deleteTopic(t *testing.T) {
	t.Helper()
	admin, err := sarama.NewClusterAdminFromClient(w.client)
	require.NoError(t, err)
	require.NoError(t, admin.DeleteTopic(w.topic))
}

// beginAnew forgets what was written: the topic is another one now.
func (w *writer) beginAnew(t *testing.T) {
	t.Helper()
	await.NoError(t, func() error { return w.client.RefreshMetadata(w.topic) })
	w.mu.Lock()
	defer w.mu.Unlock()
	w.records, w.past, w.aborted = nil, map[int32]int64{}, 0
}

package kafka

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/Shopify/sarama"
	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/shared/await"
	"github.com/tidemark/tidemark/shared/config"
)

// member is a subscriber whose batches are acknowledged at once, and what it has seen.
type member struct {
	*Subscriber
	mu       sync.Mutex
	next     map[int32]int64 // where the next session seeks to, as a database would say
	records  map[int32][]Record
	sessions int
	current  Session
	onBatch  func(*Batch) bool // takes over a batch where it returns true
	over     chan struct{}     // closed when the channel of batches is
}

const testMetadata = "metadata of a test"

// join subscribes a member and takes its batches until the test ends.
func join(t *testing.T, brokers []string, group, topic string, change func(*SubscriberOptions, *member)) *member {
	t.Helper()
	m := &member{next: map[int32]int64{}, records: map[int32][]Record{}, over: make(chan struct{})}
	o := SubscriberOptions{
		Kafka: config.Kafka{Brokers: brokers}, ClientID: "test", Group: group, BatchSize: 100, Log: quiet(),
		SetUp: func(s Session) error {
			m.mu.Lock()
			defer m.mu.Unlock()
			m.sessions++
			m.current = s
			for _, p := range s.Partitions() {
				s.Seek(p, m.next[p], testMetadata)
			}
			s.Commit()
			return nil
		},
		CleanUp: func() {},
	}
	if change != nil {
		change(&o, m)
	}
	var err error
	m.Subscriber, err = NewSubscriber(o)
	require.NoError(t, err)
	var batches <-chan *Batch
	await.Until(t, func() bool {
		batches, err = m.Subscribe(t.Context(), topic)
		return err == nil
	})
	go func() {
		defer close(m.over)
		for b := range batches {
			go m.take(b)
		}
	}()
	t.Cleanup(func() { m.leave(t) })
	return m
}

func (m *member) leave(t *testing.T) {
	t.Helper()
	require.NoError(t, m.Close())
	<-m.over
}

func (m *member) take(b *Batch) {
	if m.onBatch != nil && m.onBatch(b) {
		return
	}
	m.mu.Lock()
	m.records[b.Partition] = append(m.records[b.Partition], b.Records...)
	m.next[b.Partition] = b.Records[len(b.Records)-1].Offset + 1
	next := m.next[b.Partition]
	m.mu.Unlock()
	b.Done(next, testMetadata)
}

func (m *member) count() (n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, records := range m.records {
		n += len(records)
	}
	return n
}

// offsets are those of the records of a partition that were delivered, in the order of their delivery.
func (m *member) offsets(partition int32) (offsets []int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, r := range m.records[partition] {
		offsets = append(offsets, r.Offset)
	}
	return offsets
}

func (m *member) sessionsSeen() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.sessions
}

// fill writes n records to each partition, whose values say where they are.
func fill(t *testing.T, brokers []string, topic string, partitions, n int) {
	t.Helper()
	c, err := baseConfig(config.Kafka{Brokers: brokers}, "test")
	require.NoError(t, err)
	c.Producer.Return.Successes = true
	c.Producer.RequiredAcks = sarama.WaitForAll
	c.Producer.Idempotent, c.Net.MaxOpenRequests = true, 1 // a retry would change the order else
	c.Producer.Partitioner = sarama.NewManualPartitioner
	client, err := sarama.NewClient(brokers, c)
	require.NoError(t, err)
	defer func() { require.NoError(t, client.Close()) }()
	for partition := range partitions { // a new topic's partition that has no leader yet outlasts the producer's retries
		await.Until(t, func() bool {
			_, err := client.GetOffset(topic, int32(partition), sarama.OffsetNewest)
			return err == nil
		}, "partition %d has no leader", partition)
	}
	var p sarama.SyncProducer
	await.Until(t, func() bool { // a broker that just started is still loading its producer ids
		p, err = sarama.NewSyncProducerFromClient(client)
		return err == nil
	})
	defer func() { require.NoError(t, p.Close()) }()
	var messages []*sarama.ProducerMessage
	for i := range n {
		for partition := range partitions {
			messages = append(messages, &sarama.ProducerMessage{
				Topic: topic, Partition: int32(partition), Key: sarama.StringEncoder(fmt.Sprint("key ", i)), Value: sarama.StringEncoder(fmt.Sprint("value ", i)),
				Headers: []sarama.RecordHeader{{Key: []byte("a"), Value: []byte{0, 255}}, {Key: []byte("a"), Value: nil}},
			})
		}
	}
	require.NoError(t, p.SendMessages(messages))
}

// inOrder requires each partition's records to be there once, in order, from 0 on.
func (m *member) inOrder(t *testing.T, partitions, n int) {
	t.Helper()
	m.mu.Lock()
	defer m.mu.Unlock()
	for p := range int32(partitions) {
		require.Len(t, m.records[p], n, "partition %d", p)
		for i, r := range m.records[p] {
			require.Equal(t, int64(i), r.Offset)
		}
	}
}

func TestBatchesKeepTheOrderAndLoseNothing(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, brokers []string) {
		const partitions, n = 3, 1000
		_, topic := setupTopic(t, brokers, partitions)
		fill(t, brokers, topic, partitions, n)
		var mu sync.Mutex
		inFlight, sizes := map[int32]int{}, []int{}
		m := join(t, brokers, "group-"+topic, topic, func(_ *SubscriberOptions, m *member) {
			m.onBatch = func(b *Batch) bool {
				mu.Lock()
				inFlight[b.Partition]++
				two := inFlight[b.Partition] > 1
				sizes = append(sizes, len(b.Records))
				mu.Unlock()
				if two {
					t.Errorf("two batches of partition %d are in flight", b.Partition)
				}
				time.Sleep(5 * time.Millisecond) // the next batch grows meanwhile
				mu.Lock()
				inFlight[b.Partition]--
				mu.Unlock()
				return false
			}
		})
		await.Until(t, func() bool { return m.count() == partitions*n })
		m.inOrder(t, partitions, n)
		first := m.records[1][0]
		require.Equal(t, "key 0", string(first.Key))
		require.Equal(t, "value 0", string(first.Value))
		require.Equal(t, []Header{{[]byte("a"), []byte{0, 255}}, {[]byte("a"), []byte{}}}, withoutNil(first.Headers))
		require.WithinDuration(t, time.Now(), first.Timestamp, time.Minute)
		require.Equal(t, time.UTC, first.Timestamp.Location())

		mu.Lock()
		defer mu.Unlock()
		most := 0
		for _, size := range sizes {
			require.LessOrEqual(t, size, 100)
			most = max(most, size)
		}
		require.Equal(t, 100, most, "records that wait are handed over together")
	})
}

func withoutNil(headers []Header) []Header {
	for i := range headers {
		if headers[i].Value == nil {
			headers[i].Value = []byte{}
		}
	}
	return headers
}

// A session that is given back is followed by another, which begins where set-up says, and a member that joins or leaves
// begins another for all of them: nothing is lost or read twice beyond what was acknowledged.
func TestSessionsFollowEachOther(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, brokers []string) {
		const partitions, n = 4, 300
		_, topic := setupTopic(t, brokers, partitions)
		fill(t, brokers, topic, partitions, n)
		var ended sync.Map // partition@offset of a batch that was given back once
		var next sync.Map  // partition → offset: what two members know of each other
		both := func(o *SubscriberOptions, m *member) {
			o.BatchSize = 20
			o.SetUp = func(s Session) error {
				m.mu.Lock()
				defer m.mu.Unlock()
				m.sessions++
				for _, p := range s.Partitions() {
					at, _ := next.LoadOrStore(p, int64(0))
					s.Seek(p, at.(int64), testMetadata)
				}
				return nil
			}
			m.onBatch = func(b *Batch) bool {
				first := b.Records[0].Offset
				if _, again := ended.LoadOrStore(fmt.Sprint(b.Partition, first/100), true); !again && first > 0 {
					b.End()
					return true
				}
				at, _ := next.Load(b.Partition)
				if b.Context().Err() != nil || first != at.(int64) || !next.CompareAndSwap(b.Partition, at, b.Records[len(b.Records)-1].Offset+1) {
					b.End() // as a fenced writer does
					return true
				}
				return false
			}
		}
		one := join(t, brokers, "group-"+topic, topic, both)
		await.Until(t, func() bool { return one.count() > partitions*n/10 })
		two := join(t, brokers, "group-"+topic, topic, both)
		await.Until(t, func() bool { return one.count()+two.count() == partitions*n })
		require.Greater(t, one.sessionsSeen(), 2)

		// Every record was taken exactly once, by either of them, in order within each.
		seen := map[string]int{}
		for _, m := range []*member{one, two} {
			m.mu.Lock()
			for p, records := range m.records {
				for i, r := range records {
					seen[fmt.Sprint(p, "@", r.Offset)]++
					if i > 0 {
						require.Greater(t, r.Offset, records[i-1].Offset)
					}
				}
			}
			m.mu.Unlock()
		}
		require.Len(t, seen, partitions*n)
	})
}

// A session's End gives all its partitions back, an idle one's, too.
func TestEndOfASession(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, brokers []string) {
		_, topic := setupTopic(t, brokers, 2)
		m := join(t, brokers, "group-"+topic, topic, nil)
		await.Until(t, func() bool { return m.sessionsSeen() == 1 })
		m.mu.Lock()
		m.current.End()
		m.mu.Unlock()
		await.Until(t, func() bool { return m.sessionsSeen() == 2 })
		fill(t, brokers, topic, 2, 10)
		await.Until(t, func() bool { return m.count() == 20 })
		m.inOrder(t, 2, 10)
	})
}

// Seeking works both ways: ahead of what was committed, and behind it.
func TestSeekGoesBothWays(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, brokers []string) {
		_, topic := setupTopic(t, brokers, 1)
		fill(t, brokers, topic, 1, 50)
		for _, at := range []int64{30, 10, 40, 0} {
			m := join(t, brokers, "group-"+topic, topic, func(_ *SubscriberOptions, m *member) { m.next[0] = at })
			await.Until(t, func() bool { return m.count() == 50-int(at) }, "from %d", at)
			require.Equal(t, at, m.records[0][0].Offset)
			m.leave(t)
		}
	})
}

// An offset that the log does not have is never reset in silence: nothing is delivered.
func TestAnOffsetOutsideTheLogDeliversNothing(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, brokers []string) {
		_, topic := setupTopic(t, brokers, 1)
		fill(t, brokers, topic, 1, 50)
		m := join(t, brokers, "group-"+topic, topic, func(_ *SubscriberOptions, m *member) { m.next[0] = 60 })
		await.Until(t, func() bool { return m.sessionsSeen() > 1 }, "the session ends, to be set up anew")
		require.Zero(t, m.count())
	})
}

// A topic that is deleted and made again is read on at the old offset by Sarama, without a word, as soon as it reaches that
// far. The session ends first, so that set-up can see that it is another topic.
func TestATopicMadeAnewEndsTheSessionBeforeItIsRead(t *testing.T) {
	t.Parallel()
	brokers := realKafka(t)
	r, topic := setupTopic(t, brokers, 1)
	fill(t, brokers, topic, 1, 50)
	had := make(chan int, 10)
	m := join(t, brokers, "group-"+topic, topic, func(o *SubscriberOptions, m *member) {
		o.SetUp = func(s Session) error {
			m.mu.Lock()
			s.Seek(0, m.next[0], testMetadata)
			had <- len(m.records[0])
			m.mu.Unlock()
			return nil
		}
	})
	require.Zero(t, <-had)
	await.Until(t, func() bool { return m.count() == 50 })

	c := setupClient(t, r.kafka.Brokers)
	admin, err := sarama.NewClusterAdminFromClient(c)
	require.NoError(t, err)
	require.NoError(t, admin.DeleteTopic(topic))
	await.Until(t, func() bool {
		return admin.CreateTopic(topic, &sarama.TopicDetail{NumPartitions: 1, ReplicationFactor: 1}, false) == nil
	})
	await.Until(t, func() bool { return c.RefreshMetadata(topic) == nil })
	fill(t, brokers, topic, 1, 80)

	select {
	case n := <-had:
		require.Equal(t, 50, n, "records of the new topic were delivered in the old session")
	case <-time.After(time.Minute):
		require.Failf(t, "the session goes on", "%d records were delivered in it", m.count())
	}
	await.Until(t, func() bool { return m.count() == 80 })
}

// What was acknowledged is what the group has committed, as any other client sees it, with its metadata. On a current
// Kafka that is no matter of course.
func TestCommittedOffsetsAreCommitted(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"dynamic", "static"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			brokers := realKafka(t)
			_, topic := setupTopic(t, brokers, 2)
			fill(t, brokers, topic, 2, 250)
			group := "group-" + topic
			m := join(t, brokers, group, topic, func(o *SubscriberOptions, _ *member) {
				if kind == "static" {
					o.InstanceID = "one"
				}
			})
			await.Until(t, func() bool { return m.count() == 500 })
			m.leave(t)
			require.Equal(t, map[int32]string{0: "250 " + testMetadata, 1: "250 " + testMetadata}, committedAsOthersSeeIt(t, brokers, group, topic, 2))

			// Our own eyes see the same.
			r := setupReader(t, brokers)
			at, err := r.Committed(t.Context(), group, topic, []int32{0, 1})
			require.NoError(t, err)
			require.Equal(t, map[int32]Committed{0: {250, testMetadata}, 1: {250, testMetadata}}, at)
			at, err = r.Committed(t.Context(), "nobody-"+topic, topic, []int32{0, 1})
			require.NoError(t, err)
			require.Equal(t, map[int32]Committed{0: {Offset: -1}, 1: {Offset: -1}}, at)
		})
	}
}

// Why the subscriber sets a retention: without one Sarama commits with a request version that Kafka 4 no longer answers,
// and nothing is ever committed. When this test fails, the setting has become needless.
func TestWithoutARetentionSaramaCommitsNothing(t *testing.T) {
	t.Parallel()
	brokers := realKafka(t)
	for _, retention := range []time.Duration{0, time.Hour} {
		_, topic := setupTopic(t, brokers, 1)
		fill(t, brokers, topic, 1, 10)
		c, err := baseConfig(config.Kafka{Brokers: brokers}, "test")
		require.NoError(t, err)
		c.Consumer.Offsets.Initial = sarama.OffsetOldest
		c.Consumer.Offsets.Retention = retention
		group := "group-" + uuid.NewString()
		g, err := sarama.NewConsumerGroup(brokers, group, c)
		require.NoError(t, err)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		h := &acknowledgeAll{cancel: cancel, want: 10}
		_ = g.Consume(ctx, []string{topic}, h) // ends with the context
		cancel()
		_ = g.Close() // commits, or believes so
		require.Equal(t, 10, h.seen)
		want := map[int32]string{0: "10 "}
		if retention == 0 {
			want = map[int32]string{}
		}
		require.Equal(t, want, committedAsOthersSeeIt(t, brokers, group, topic, 1), "retention %s", retention)
	}
}

type acknowledgeAll struct {
	cancel     func()
	want, seen int
}

func (h *acknowledgeAll) Setup(sarama.ConsumerGroupSession) error   { return nil }
func (h *acknowledgeAll) Cleanup(sarama.ConsumerGroupSession) error { return nil }
func (h *acknowledgeAll) ConsumeClaim(s sarama.ConsumerGroupSession, c sarama.ConsumerGroupClaim) error {
	for m := range c.Messages() {
		s.MarkMessage(m, "")
		if h.seen++; h.seen == h.want {
			s.Commit()
			h.cancel()
		}
	}
	return nil
}

// committedAsOthersSeeIt asks by a client with settings of its own.
func committedAsOthersSeeIt(t *testing.T, brokers []string, group, topic string, partitions int) map[int32]string {
	t.Helper()
	c := sarama.NewConfig()
	c.Version = sarama.V2_0_0_0
	admin, err := sarama.NewClusterAdmin(brokers, c)
	require.NoError(t, err)
	defer func() { require.NoError(t, admin.Close()) }()
	var all []int32
	for p := range int32(partitions) {
		all = append(all, p)
	}
	res, err := admin.ListConsumerGroupOffsets(group, map[string][]int32{topic: all})
	require.NoError(t, err)
	out := map[int32]string{}
	for p, block := range res.Blocks[topic] {
		if block.Offset >= 0 {
			out[p] = fmt.Sprint(block.Offset, " ", block.Metadata)
		}
	}
	return out
}

// A member is given what was committed and nothing else: neither the records of an aborted transaction nor, before its
// end, those of one that is open. Whatever comes after them in the log is delivered after them, so what was seen once the
// last committed record is there is all that a member will ever see of what is before it.
func TestOnlyCommittedRecordsAreDelivered(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, brokers []string) {
		r, topic := setupTopic(t, brokers, 1)
		fill(t, brokers, topic, 1, 2) // 0 and 1
		p := setupTransactor(t, brokers, topic)
		p.abort(3)  // 2 to 4, marker 5
		p.commit(2) // 6 and 7, marker 8
		stable(t, r, topic, 9)
		p.begin(2) // 9 and 10, open while the member reads
		m := join(t, brokers, "group-"+topic, topic, nil)
		await.Until(t, func() bool { return slices.Contains(m.offsets(0), 7) })
		require.Equal(t, []int64{0, 1, 6, 7}, m.offsets(0))
		require.NoError(t, p.AbortTxn()) // marker 11
		p.commit(1)                      // 12, marker 13
		await.Until(t, func() bool { return slices.Contains(m.offsets(0), 12) })
		require.Equal(t, []int64{0, 1, 6, 7, 12}, m.offsets(0))
	})
}

// Two processes with one instance id would put each other out of the group for ever. The one that is fenced learns its id.
func TestAFencedInstanceIsTold(t *testing.T) {
	t.Parallel()
	brokers := realKafka(t)
	_, topic := setupTopic(t, brokers, 1)
	fenced := make(chan string, 100)
	static := func(o *SubscriberOptions, _ *member) {
		o.InstanceID = "same"
		o.Fenced = func(id string) {
			select {
			case fenced <- id:
			default:
			}
		}
	}
	one := join(t, brokers, "group-"+topic, topic, static)
	await.Until(t, func() bool { return one.sessionsSeen() == 1 })
	join(t, brokers, "group-"+topic, topic, static)
	select {
	case id := <-fenced:
		require.Equal(t, "same", id)
	case <-time.After(time.Minute):
		require.Fail(t, "nobody was told")
	}
}

package kafka

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/Shopify/sarama"
	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/shared/await"
	"github.com/tidemark/tidemark/shared/config"
	topics "github.com/tidemark/tidemark/shared/topic"
)

// transactor writes records in transactions to partition 0.
type transactor struct {
	sarama.SyncProducer
	t     *testing.T
	topic string
}

func setupTransactor(t *testing.T, brokers []string, topic string) *transactor {
	t.Helper()
	c, err := baseConfig(config.Kafka{Brokers: brokers}, "test")
	require.NoError(t, err)
	c.Producer.Return.Successes = true
	c.Producer.Idempotent = true
	c.Producer.RequiredAcks = sarama.WaitForAll
	c.Net.MaxOpenRequests = 1
	c.Producer.Transaction.ID = "transactor-" + topic
	c.Producer.Partitioner = sarama.NewManualPartitioner
	client, err := sarama.NewClient(brokers, c) // of its own: a producer that fails to start leaves the one it made open
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, client.Close()) })
	var p sarama.SyncProducer
	await.Until(t, func() bool { // a broker that has just started still loads its transactions
		var err error
		p, err = sarama.NewSyncProducerFromClient(client)
		return err == nil
	})
	t.Cleanup(func() { require.NoError(t, p.Close()) })
	return &transactor{p, t, topic}
}

func (p *transactor) begin(n int) {
	p.t.Helper()
	require.NoError(p.t, p.BeginTxn())
	for i := range n {
		_, _, err := p.SendMessage(&sarama.ProducerMessage{Topic: p.topic, Value: sarama.StringEncoder(fmt.Sprint("value ", i))})
		require.NoError(p.t, err)
	}
}

func (p *transactor) commit(n int) { p.t.Helper(); p.begin(n); require.NoError(p.t, p.CommitTxn()) }
func (p *transactor) abort(n int)  { p.t.Helper(); p.begin(n); require.NoError(p.t, p.AbortTxn()) }

// stable waits until a topic's partition 0 can be read up to end: a transaction's marker comes a moment after the answer
// to its commit.
func stable(t *testing.T, r *Reader, topic string, end int64) {
	t.Helper()
	await.Until(t, func() bool {
		ends, err := r.StableEnds(t.Context(), topic, []int32{0})
		return err == nil && ends[0] == end
	})
}

func TestExplainTellsMarkersAbortedMissingAndCommittedRecordsApart(t *testing.T) {
	t.Parallel()
	brokers := realKafka(t)
	r, topic := setupTopic(t, brokers, 1)
	fill(t, brokers, topic, 1, 5) // 0 to 4
	p := setupTransactor(t, brokers, topic)
	p.commit(3) // 5 to 7, marker 8
	p.abort(2)  // 9 and 10, marker 11
	p.commit(1) // 12, marker 13
	p.abort(1)  // 14, marker 15
	stable(t, r, topic, 16)
	for _, tc := range []struct {
		from, to int64
		want     Gap
	}{
		{0, 16, Gap{Records: 9, Aborted: 3, Markers: 4}},
		{0, 5, Gap{Records: 5}},
		{2, 4, Gap{Records: 2}},
		{8, 9, Gap{Markers: 1}},
		{8, 12, Gap{Markers: 2, Aborted: 2}},
		{9, 11, Gap{Aborted: 2}},
		{10, 12, Gap{Aborted: 1, Markers: 1}},
		{12, 13, Gap{Records: 1}},
		{13, 16, Gap{Markers: 2, Aborted: 1}},
		{15, 16, Gap{Markers: 1}},
		{16, 16, Gap{}},
		{14, 20, Gap{Aborted: 1, Markers: 1, Missing: 4}},
	} {
		got, err := r.Explain(t.Context(), topic, 0, tc.from, tc.to)
		require.NoError(t, err)
		require.Equal(t, tc.want, got, "[%d, %d)", tc.from, tc.to)
	}

	// Records deleted from the start leave nothing.
	c := setupClient(t, r.kafka.Brokers)
	admin, err := sarama.NewClusterAdminFromClient(c)
	require.NoError(t, err)
	require.NoError(t, admin.DeleteRecords(topic, map[int32]int64{0: 7}))
	got, err := r.Explain(t.Context(), topic, 0, 2, 5)
	require.NoError(t, err)
	require.Equal(t, Gap{Missing: 3}, got)
	bounds, err := r.Bounds(t.Context(), topic, []int32{0})
	require.NoError(t, err)
	require.Equal(t, map[int32]Bounds{0: {Start: 7, Stable: 16}}, bounds)
}

// One producer's aborted transaction does not make another producer's records aborted, nor its own later ones.
func TestExplainKeepsProducersApart(t *testing.T) {
	t.Parallel()
	brokers := realKafka(t)
	r, topic := setupTopic(t, brokers, 1)
	one := setupTransactor(t, brokers, topic)
	one.begin(2)                  // 0 and 1
	fill(t, brokers, topic, 1, 2) // 2 and 3, in the middle of it
	require.NoError(t, one.AbortTxn())
	one.commit(2) // 5 and 6, marker 7
	stable(t, r, topic, 8)
	got, err := r.Explain(t.Context(), topic, 0, 0, 8)
	require.NoError(t, err)
	require.Equal(t, Gap{Aborted: 2, Records: 4, Markers: 2}, got)
}

func TestStableEndsStopAtAnOpenTransaction(t *testing.T) {
	t.Parallel()
	brokers := realKafka(t)
	r, topic := setupTopic(t, brokers, 2)
	fill(t, brokers, topic, 2, 5)
	p := setupTransactor(t, brokers, topic)
	p.begin(3)
	ends, err := r.StableEnds(t.Context(), topic, []int32{0, 1})
	require.NoError(t, err)
	require.Equal(t, map[int32]int64{0: 5, 1: 5}, ends)
	high, err := setupClient(t, brokers).GetOffset(topic, 0, sarama.OffsetNewest)
	require.NoError(t, err)
	require.Equal(t, int64(8), high, "Sarama's own question has another answer")
	require.NoError(t, p.CommitTxn())
	stable(t, r, topic, 9)
}

func TestRecordAt(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, brokers []string) {
		r, topic := setupTopic(t, brokers, 1)
		fill(t, brokers, topic, 1, 100)
		m := join(t, brokers, "group-"+topic, topic, nil)
		await.Until(t, func() bool { return m.count() == 100 })
		for _, offset := range []int64{0, 1, 57, 99} {
			got, found, err := r.RecordAt(t.Context(), topic, 0, offset)
			require.NoError(t, err)
			require.True(t, found)
			read := m.records[0][offset] // what a subscriber is given is the same, its time included
			require.Equal(t, read.Offset, got.Offset)
			require.Equal(t, read.Timestamp, got.Timestamp)
			require.Equal(t, read.Key, got.Key)
			require.Equal(t, read.Value, got.Value)
		}
		_, found, err := r.RecordAt(t.Context(), topic, 0, 100)
		require.NoError(t, err)
		require.False(t, found)
		_, found, err = r.RecordAt(t.Context(), topic, 0, 5000)
		require.NoError(t, err)
		require.False(t, found)
	})
}

func TestRecordAtAMarkerIsNone(t *testing.T) {
	t.Parallel()
	brokers := realKafka(t)
	r, topic := setupTopic(t, brokers, 1)
	setupTransactor(t, brokers, topic).commit(2)
	stable(t, r, topic, 3)
	_, found, err := r.RecordAt(t.Context(), topic, 0, 2)
	require.NoError(t, err)
	require.False(t, found)
	got, found, err := r.RecordAt(t.Context(), topic, 0, 1)
	require.NoError(t, err)
	require.True(t, found)
	require.Equal(t, "value 1", string(got.Value))
}

func TestRecordAtARecordOfAnAbortedTransactionIsNone(t *testing.T) {
	t.Parallel()
	brokers := realKafka(t)
	r, topic := setupTopic(t, brokers, 1)
	p := setupTransactor(t, brokers, topic)
	p.abort(2)  // 0 and 1, marker 2
	p.commit(1) // 3, marker 4
	stable(t, r, topic, 5)
	for _, offset := range []int64{0, 1, 2, 4} {
		_, found, err := r.RecordAt(t.Context(), topic, 0, offset)
		require.NoError(t, err)
		require.False(t, found, offset)
	}
	_, found, err := r.RecordAt(t.Context(), topic, 0, 3)
	require.NoError(t, err)
	require.True(t, found)
}

// Compaction leaves gaps within batches, removes whole batches, and leaves batches that are empty; transactions leave
// markers and aborted records among them. Reading on comes to the end all the same.
func TestACompactedTransactionalTopicIsReadToItsEnd(t *testing.T) {
	t.Parallel()
	brokers := realKafka(t)
	r := setupReader(t, brokers)
	spec := topics.Spec{Name: randomTopic("compacted"), Kept: topics.Compacted, Transactional: true, Partitions: 1, ReplicationFactor: 1}
	require.NoError(t, r.Ensure(t.Context(), spec))
	await.Until(t, func() bool { return r.Check(t.Context(), spec) == nil })
	for setting, value := range map[string]string{"segment.ms": "50", "min.cleanable.dirty.ratio": "0.001", "delete.retention.ms": "0"} {
		alter(t, r, spec.Name, setting, value)
	}
	p := setupTransactor(t, brokers, spec.Name)
	write := func(n int, keyed string) {
		require.NoError(t, p.BeginTxn())
		for i := range n {
			_, _, err := p.SendMessage(&sarama.ProducerMessage{
				Topic: spec.Name, Key: sarama.StringEncoder(fmt.Sprint(keyed, i%3)), Value: sarama.StringEncoder(fmt.Sprint("value ", i)),
			})
			require.NoError(t, err)
		}
	}
	for round := range 10 {
		write(5, "key")
		if round%3 == 2 {
			require.NoError(t, p.AbortTxn())
		} else {
			require.NoError(t, p.CommitTxn())
		}
		time.Sleep(60 * time.Millisecond) // past segment.ms: the next record begins a new segment, and this one can be cleaned
	}
	write(3, "last")
	require.NoError(t, p.CommitTxn())
	const end = 10*6 + 4
	stable(t, r, spec.Name, end)

	readAll := func() (offsets []int64) {
		for at := int64(0); at < end; {
			records, next, err := r.ReadFrom(t.Context(), spec.Name, 0, at)
			require.NoError(t, err)
			require.Greater(t, next, at, "reading goes on")
			for _, record := range records {
				offsets = append(offsets, record.Offset)
			}
			at = next
		}
		return offsets
	}
	var left []int64
	for began := time.Now(); ; time.Sleep(200 * time.Millisecond) { // the broker looks for what to clean every 15 s
		if left = readAll(); len(left) < 20 {
			break
		}
		require.Less(t, time.Since(began), time.Minute, "nothing was compacted")
	}
	var found []int64
	var gap Gap
	for compacted := true; compacted; { // the broker may compact more meanwhile, and then the three differ
		before := readAll()
		found = nil
		for offset := range int64(end) {
			_, there, err := r.RecordAt(t.Context(), spec.Name, 0, offset)
			require.NoError(t, err)
			if there {
				found = append(found, offset)
			}
		}
		var err error
		gap, err = r.Explain(t.Context(), spec.Name, 0, 0, end)
		require.NoError(t, err)
		left = readAll()
		compacted = !slices.Equal(before, left)
	}
	require.True(t, slices.IsSorted(left))
	require.Equal(t, []int64{end - 4, end - 3, end - 2}, left[len(left)-3:])
	require.Equal(t, left, found)
	require.Equal(t, int64(len(left)), gap.Records)
	require.Equal(t, int64(end), gap.Records+gap.Markers+gap.Aborted+gap.Missing)
	require.Positive(t, gap.Missing)
}

func TestReaderSaysWhenNobodyAnswers(t *testing.T) {
	t.Parallel()
	r := NewReader(config.Kafka{Brokers: []string{"127.0.0.1:1"}}, "test")
	_, err := r.ClusterID(t.Context())
	require.Error(t, err)
	_, err = r.Bounds(t.Context(), "topic", []int32{0})
	require.Error(t, err)
	require.NoError(t, r.Close())
}

func TestReaderKnowsTheClusterAndItsTopics(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, brokers []string) {
		r, topic := setupTopic(t, brokers, 3)
		id, err := r.ClusterID(t.Context())
		require.NoError(t, err)
		require.NotEmpty(t, id)
		again, err := setupReader(t, brokers).ClusterID(t.Context())
		require.NoError(t, err)
		require.Equal(t, id, again)
		n, err := r.Partitions(t.Context(), topic)
		require.NoError(t, err)
		require.Equal(t, 3, n)
	})
}

// Whoever reads on from where ReadFrom says comes to the stable end, has every committed record once, and no other.
func TestReadFromComesToTheStableEndPastMarkers(t *testing.T) {
	t.Parallel()
	brokers := realKafka(t)
	r, topic := setupTopic(t, brokers, 1)
	fill(t, brokers, topic, 1, 300) // in batches of some
	p := setupTransactor(t, brokers, topic)
	p.commit(3) // 300 to 302, marker 303
	p.abort(2)  // 304 and 305, marker 306
	p.commit(1) // 307, marker 308
	stable(t, r, topic, 309)
	p.begin(1) // still open
	var want []int64
	for offset := range int64(308) {
		if offset != 303 && (offset < 304 || offset > 306) {
			want = append(want, offset)
		}
	}
	for _, start := range []int64{0, 1, 299, 301, 303, 305, 308} {
		got := []int64{}
		at := start
		for at < 309 {
			records, next, err := r.ReadFrom(t.Context(), topic, 0, at)
			require.NoError(t, err)
			require.Greater(t, next, at)
			for _, record := range records {
				got = append(got, record.Offset)
				require.NotEmpty(t, record.Value)
				require.WithinDuration(t, time.Now(), record.Timestamp, time.Minute)
			}
			at = next
		}
		require.EqualValues(t, 309, at)
		first, _ := slices.BinarySearch(want, start)
		require.Equal(t, want[first:], got, "from %d", start)
	}
	records, next, err := r.ReadFrom(t.Context(), topic, 0, 309)
	require.NoError(t, err)
	require.Empty(t, records)
	require.EqualValues(t, 309, next)
	require.NoError(t, p.AbortTxn())
}

func TestReadFromGivesHeaders(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, brokers []string) {
		r, topic := setupTopic(t, brokers, 1)
		p := setupPublisher(t, PublisherOptions{Kafka: config.Kafka{Brokers: brokers}})
		connected(t, p)
		require.NoError(t, p.Publish(topic, WithHeader(NewMessage("k", []byte("v"), ""), "redriveOf", "a/0@1")))
		records, next, err := r.ReadFrom(t.Context(), topic, 0, 0)
		require.NoError(t, err)
		require.EqualValues(t, 1, next)
		require.Equal(t, []Header{{[]byte("redriveOf"), []byte("a/0@1")}, {[]byte("producer"), []byte("test-service/1")}}, records[0].Headers)
	})
}

package story_test

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/Shopify/sarama"
	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/integration/story"
	"github.com/tidemark/tidemark/shared/await"
)

func TestMain(m *testing.M) { os.Exit(story.Main(m)) }

func TestLogReadsWhatWasCommittedAndOnlyThat(t *testing.T) {
	s := story.New(t)
	require.NoError(t, s.Log.Create(2, nil))
	long := strings.Repeat("x", 1000)
	began := time.Now().Truncate(time.Millisecond)
	var messages []story.Message
	for range 3000 { // several batches and several fetches
		messages = append(messages, story.Message{Partition: 1, Value: []byte(long), Time: time.Date(2001, 1, 1, 0, 0, 0, 0, time.UTC)})
	}
	messages = append(messages, story.Message{Partition: 0, Key: "key", Value: nil, Headers: map[string]string{"correlationId": "c"}})
	written, err := s.Log.Write(messages...)
	require.NoError(t, err)
	require.Equal(t, int64(2999), written[2999].Offset)

	transact(t, s, false, "aborted")
	transact(t, s, true, "committed")
	transact(t, s, false, "aborted, too") // what is left before the end are an aborted record and its marker

	records, upTo, err := s.Log.Read(t.Context(), nil)
	require.NoError(t, err)
	require.Equal(t, story.Vector{0: 7, 1: 3000}, upTo)
	require.Len(t, records, 3002)
	first := records[0]
	require.Equal(t, "timestamp.command.v1/0@0", first.Position())
	require.Nil(t, first.Value)
	require.Equal(t, "key", string(first.Key))
	require.Equal(t, map[string]string{"correlationId": "c"}, first.Headers)
	require.Equal(t, "committed", string(records[1].Value))
	require.Equal(t, int64(3), records[1].Offset)
	for i, r := range records[2:] {
		require.Equal(t, int64(i), r.Offset)
		require.Equal(t, long, string(r.Value))
		require.False(t, r.Time.Before(began), "a back-dated record has the log's time, not %s", r.Time)
		require.False(t, r.Time.After(time.Now()), "%s", r.Time)
	}

	some, _, err := s.Log.Read(t.Context(), story.Vector{0: 1, 1: 17})
	require.NoError(t, err)
	require.Len(t, some, 18)
}

// transact writes one record to partition 0 in a transaction of its own, which takes two offsets.
func transact(t *testing.T, s *story.Story, commit bool, value string) {
	t.Helper()
	config := sarama.NewConfig()
	config.Version = sarama.V2_8_0_0
	config.Producer.Return.Successes = true
	config.Producer.Idempotent = true
	config.Producer.RequiredAcks = sarama.WaitForAll
	config.Net.MaxOpenRequests = 1
	config.Producer.Transaction.ID = "story"
	config.Producer.Partitioner = sarama.NewManualPartitioner
	var producer sarama.SyncProducer
	await.NoError(t, func() (err error) { // a broker that has just started still loads its transactions
		producer, err = sarama.NewSyncProducer(s.Broker.Brokers(), config)
		return err
	})
	defer func() { require.NoError(t, producer.Close()) }()
	require.NoError(t, producer.BeginTxn())
	_, _, err := producer.SendMessage(&sarama.ProducerMessage{Topic: story.Topic, Partition: 0, Value: sarama.StringEncoder(value)})
	require.NoError(t, err)
	if commit {
		require.NoError(t, producer.CommitTxn())
	} else {
		require.NoError(t, producer.AbortTxn())
	}
}

func TestEachStoryHasALogAndADatabaseOfItsOwn(t *testing.T) {
	for range 2 {
		t.Run("story", func(t *testing.T) {
			s := story.New(t)
			require.NoError(t, s.Log.Create(3, nil))
			ends, err := s.Log.Ends()
			require.NoError(t, err)
			require.Equal(t, story.Vector{0: 0, 1: 0, 2: 0}, ends)
			_, err = s.Log.Write(story.Message{Partition: story.AnyPartition, Key: "k", Value: []byte("v")})
			require.NoError(t, err)
			_, err = s.DB.ExecContext(t.Context(), "CREATE TABLE here (a integer)")
			require.NoError(t, err)
		})
	}
}

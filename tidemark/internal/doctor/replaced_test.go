package doctor

import (
	"strings"
	"testing"

	"github.com/Shopify/sarama"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kfake"

	"github.com/tidemark/tidemark/shared/config"
	"github.com/tidemark/tidemark/shared/event"
	"github.com/tidemark/tidemark/shared/kafka"
	"github.com/tidemark/tidemark/shared/topic"
)

// log is a broker with topics, and a producer to them.
func log(t *testing.T, topics ...string) (config.Kafka, sarama.Client, sarama.SyncProducer) {
	t.Helper()
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(1, topics...))
	require.NoError(t, err)
	t.Cleanup(cluster.Close)
	k := config.DefaultKafka()
	k.Brokers, k.Partitions = cluster.ListenAddrs(), 1
	client, err := kafka.NewClient(k, "test")
	require.NoError(t, err)
	client.Config().Producer.Return.Successes = true
	producer, err := sarama.NewSyncProducerFromClient(client)
	require.NoError(t, err)
	return k, client, producer
}

// findings are those of the broker that are no success.
func findings(t *testing.T, p Installation, check string) (found []Finding) {
	t.Helper()
	broker(t.Context(), p, func(f Finding) {
		if f.Check == check && f.Status != OK {
			found = append(found, f)
		}
	})
	return found
}

// What a restart would do is told by a check that fails, until the setting names where the log starts.
func TestALogThatLostItsBeginningIsAFailedCheckUntilItIsAccepted(t *testing.T) {
	t.Parallel()
	name := topic.TimestampCommand.Name
	k, client, producer := log(t, name)
	for range 3 {
		_, _, err := producer.SendMessage(&sarama.ProducerMessage{Topic: name, Value: sarama.StringEncoder("x")})
		require.NoError(t, err)
	}
	require.NoError(t, producer.Close())
	starts := func(p Installation) (out []Finding) {
		for _, f := range findings(t, p, "topic "+name) {
			if strings.Contains(f.Found, " starts at offset ") {
				out = append(out, f)
			}
		}
		return out
	}
	require.Empty(t, starts(Installation{Kafka: k}))
	admin, err := sarama.NewClusterAdminFromClient(client)
	require.NoError(t, err)
	require.NoError(t, admin.DeleteRecords(name, map[int32]int64{0: 2}))
	require.NoError(t, admin.Close())

	for _, accepted := range []map[int32]int64{nil, {0: 1}} {
		found := starts(Installation{Kafka: k, Starts: map[string]map[int32]int64{name: accepted}})
		require.Len(t, found, 1)
		require.Equal(t, Fail, found[0].Status)
		require.Contains(t, found[0].Found, "a restart would refuse this log")
		require.Contains(t, found[0].Found, "ACCEPT_LOG_START="+name+"/0@2")
	}
	require.Empty(t, starts(Installation{Kafka: k, Starts: map[string]map[int32]int64{name: {0: 2}}}))
	found := starts(Installation{Kafka: k, Starts: map[string]map[int32]int64{name: {0: 3}}})
	require.Len(t, found, 1)
	require.Contains(t, found[0].Found, "it would skip 1 records that are in the log")
}

func TestAnotherClusterIsAFailedCheck(t *testing.T) {
	t.Parallel()
	k, client, producer := log(t, topic.TimestampCommand.Name)
	require.NoError(t, producer.Close())
	require.NoError(t, client.Close())
	require.Empty(t, findings(t, Installation{Kafka: k}, "broker"))
	k.ClusterID = "another"
	found := findings(t, Installation{Kafka: k}, "broker")
	require.Len(t, found, 1)
	require.Equal(t, Fail, found[0].Status)
	require.Contains(t, found[0].Found, "KAFKA_CLUSTER_ID is another and the brokers at KAFKA_BROKERS are of cluster ")
}

func TestALogThatWasReplacedIsAFailedCheck(t *testing.T) {
	t.Parallel()
	k, client, producer := log(t, topic.LogIdentity.Name, topic.TimestampCommand.Name)
	noted := event.LogIdentity{TopicID: "AQAAAAAAAAAAAAAAAAAAAA", ClusterID: "c"}
	for _, name := range []string{topic.TimestampCommand.Name, topic.EndpointCommand.Name} {
		noted.Topic = name
		_, _, err := producer.SendMessage(&sarama.ProducerMessage{Topic: topic.LogIdentity.Name, Value: sarama.ByteEncoder(event.AppendLogIdentity(nil, noted))})
		require.NoError(t, err)
	}
	require.NoError(t, producer.Close())
	require.NoError(t, client.Close())

	found := map[string]Finding{}
	broker(t.Context(), Installation{Kafka: k}, func(f Finding) { found[f.Check] = f })
	require.Equal(t, Fail, found["topic "+topic.TimestampCommand.Name].Status)
	require.Contains(t, found["topic "+topic.TimestampCommand.Name].Found, "is another one")
	require.Equal(t, Fail, found["topic "+topic.EndpointCommand.Name].Status)
	require.Contains(t, found["topic "+topic.EndpointCommand.Name].Found, "It is not made again")
	require.Equal(t, Warn, found["topic "+topic.DeadLetterCommand.Name].Status, "nobody has known it")
}

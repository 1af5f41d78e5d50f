package doctor

import (
	"testing"

	"github.com/Shopify/sarama"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kfake"

	"github.com/tidemark/tidemark/shared/config"
	"github.com/tidemark/tidemark/shared/event"
	"github.com/tidemark/tidemark/shared/kafka"
	"github.com/tidemark/tidemark/shared/topic"
)

func TestALogThatWasReplacedIsAFailedCheck(t *testing.T) {
	t.Parallel()
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(1, topic.LogIdentity.Name, topic.TimestampCommand.Name))
	require.NoError(t, err)
	t.Cleanup(cluster.Close)
	k := config.DefaultKafka()
	k.Brokers = cluster.ListenAddrs()
	noted := event.LogIdentity{TopicID: "AQAAAAAAAAAAAAAAAAAAAA", ClusterID: "c"}
	client, err := kafka.NewClient(k, "test")
	require.NoError(t, err)
	client.Config().Producer.Return.Successes = true
	producer, err := sarama.NewSyncProducerFromClient(client)
	require.NoError(t, err)
	for _, name := range []string{topic.TimestampCommand.Name, topic.EndpointCommand.Name} {
		noted.Topic = name
		_, _, err := producer.SendMessage(&sarama.ProducerMessage{Topic: topic.LogIdentity.Name, Value: sarama.ByteEncoder(event.AppendLogIdentity(nil, noted))})
		require.NoError(t, err)
	}
	require.NoError(t, producer.Close())
	require.NoError(t, client.Close())

	found := map[string]Finding{}
	broker(t.Context(), k, func(f Finding) { found[f.Check] = f })
	require.Equal(t, Fail, found["topic "+topic.TimestampCommand.Name].Status)
	require.Contains(t, found["topic "+topic.TimestampCommand.Name].Found, "is another one")
	require.Equal(t, Fail, found["topic "+topic.EndpointCommand.Name].Status)
	require.Contains(t, found["topic "+topic.EndpointCommand.Name].Found, "It is not made again")
	require.Equal(t, Warn, found["topic "+topic.DeadLetterCommand.Name].Status, "nobody has known it")
}

package logid

import (
	"os"
	"strings"
	"testing"

	"github.com/Shopify/sarama"
	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kfake"
	"go.uber.org/goleak"

	"github.com/tidemark/tidemark/shared/await"
	"github.com/tidemark/tidemark/shared/config"
	"github.com/tidemark/tidemark/shared/kafka"
)

func TestMain(m *testing.M) {
	await.SideBySide()
	goleak.VerifyTestMain(m,
		// Sarama's metrics start one clock for the whole process.
		goleak.IgnoreTopFunction("github.com/rcrowley/go-metrics.(*meterArbiter).tick"),
	)
}

// onBoth runs a test on a real Kafka and on the embedded broker.
func onBoth(t *testing.T, test func(t *testing.T, k config.Kafka)) {
	t.Helper()
	t.Run("kafka", func(t *testing.T) {
		t.Parallel()
		brokers := os.Getenv("TEST_KAFKA_BROKERS")
		require.NotEmpty(t, brokers, "TEST_KAFKA_BROKERS must name a real Kafka: make test starts one")
		test(t, config.Kafka{Brokers: strings.Split(brokers, ",")})
	})
	t.Run("embedded", func(t *testing.T) {
		t.Parallel()
		c, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.DefaultNumPartitions(1))
		require.NoError(t, err)
		t.Cleanup(c.Close)
		test(t, config.Kafka{Brokers: c.ListenAddrs()})
	})
}

// setupAdmin returns an admin of the brokers and a name of a topic that is not there.
func setupAdmin(t *testing.T, k config.Kafka) (admin sarama.ClusterAdmin, topic string) {
	t.Helper()
	client, err := kafka.NewClient(k, "test")
	require.NoError(t, err)
	admin, err = sarama.NewClusterAdminFromClient(client)
	require.NoError(t, err)
	topic = "logid-" + uuid.NewString()
	t.Cleanup(func() {
		_ = admin.DeleteTopic(topic)      // some tests have
		require.NoError(t, admin.Close()) // the client too
	})
	return admin, topic
}

func makeTopic(t *testing.T, admin sarama.ClusterAdmin, topic string) {
	t.Helper()
	require.NoError(t, admin.CreateTopic(topic, &sarama.TopicDetail{NumPartitions: 1, ReplicationFactor: 1}, false))
}

package kafka

import (
	"encoding/hex"
	"math/rand/v2"
	"os"
	"strings"
	"testing"

	"github.com/Shopify/sarama"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kfake"
	"go.uber.org/goleak"

	"github.com/tidemark/tidemark/shared/await"
	"github.com/tidemark/tidemark/shared/config"
)

func TestMain(m *testing.M) {
	await.SideBySide()
	goleak.VerifyTestMain(m,
		// Sarama's metrics start one clock for the whole process.
		goleak.IgnoreTopFunction("github.com/rcrowley/go-metrics.(*meterArbiter).tick"),
	)
}

// onBoth runs a test on a real Kafka and on the embedded broker.
func onBoth(t *testing.T, test func(t *testing.T, brokers []string)) {
	t.Helper()
	t.Run("kafka", func(t *testing.T) {
		t.Parallel()
		test(t, realKafka(t))
	})
	t.Run("embedded", func(t *testing.T) {
		t.Parallel()
		test(t, embedded(t))
	})
}

func realKafka(t *testing.T) []string {
	t.Helper()
	brokers := os.Getenv("TEST_KAFKA_BROKERS")
	require.NotEmpty(t, brokers, "TEST_KAFKA_BROKERS must name a real Kafka: make test starts one")
	return strings.Split(brokers, ",")
}

func embedded(t *testing.T) []string {
	t.Helper()
	c, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.DefaultNumPartitions(1))
	require.NoError(t, err)
	t.Cleanup(c.Close)
	return c.ListenAddrs()
}

func setupClient(t *testing.T, brokers []string) sarama.Client {
	t.Helper()
	c, err := NewClient(config.Kafka{Brokers: brokers}, "test")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.Close()) })
	return c
}

func randomTopic(name string) string {
	var b [4]byte
	for i := range b {
		b[i] = byte(rand.IntN(256))
	}
	return name + "-" + hex.EncodeToString(b[:])
}

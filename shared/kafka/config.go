// Package kafka is how Tidemark speaks to its log: one Sarama configuration for every client, a
// publisher that turns many messages into one request, a subscriber that hands over batches, topics
// made as the design wants them, and the guards that refuse a topic which could lose what it holds.
//
// Publisher and subscriber are Watermill's own, left as they are; speed and positions come through
// the hooks that watermill-kafka offers for tracing. Through such a hook the producer under the publisher
// is exchanged as well, because an acknowledgement of Sarama's is not always true (see flight).
package kafka

import (
	"time"

	"github.com/Shopify/sarama"
	"github.com/rcrowley/go-metrics"
)

// Sarama keeps metrics of its own about every request: samples with locks and heaps, and one ticker for
// the process. Nobody reads them here; what is worth knowing is measured where it is meant.
func init() { metrics.UseNilMetrics = true }

// baseConfig is what every client shares. Version 2.8.0 is the newest this Sarama speaks well and is
// still served by Apache Kafka 4.
func baseConfig(clientID string) *sarama.Config {
	c := sarama.NewConfig()
	c.ClientID = clientID
	c.Version = sarama.V2_8_0_0
	c.Net.DialTimeout = 3 * time.Second
	c.Net.ReadTimeout = 10 * time.Second
	c.Net.WriteTimeout = 10 * time.Second
	c.Metadata.Retry.Max = 3
	c.Metadata.Retry.Backoff = 250 * time.Millisecond
	c.Metadata.RefreshFrequency = time.Minute
	c.Metadata.AllowAutoTopicCreation = false
	return c
}

// NewClient returns a plain client for requests of one's own. The caller closes it.
func NewClient(brokers []string, clientID string) (sarama.Client, error) {
	return sarama.NewClient(brokers, baseConfig(clientID))
}

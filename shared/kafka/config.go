// Package kafka is how Tidemark speaks to its log: one Sarama configuration for every client, a
// publisher that turns many messages into one request, a subscriber that hands over batches, a reader
// that asks the log about itself, and the guard that makes a topic as its Spec says and refuses one
// which could lose what it holds.
//
// The subscriber is Watermill's own, left as it is; its speed comes through a hook that watermill-kafka
// offers for tracing. The publisher is a Watermill publisher over a producer of our own, because an
// acknowledgement of Sarama's is not always true (see flight).
package kafka

import (
	"time"

	"github.com/Shopify/sarama"
	"github.com/rcrowley/go-metrics"

	"github.com/tidemark/tidemark/shared/config"
)

// Sarama keeps metrics of its own about every request: samples with locks and heaps, and one ticker for
// the process. Nobody reads them here; what is worth knowing is measured where it is meant.
func init() { metrics.UseNilMetrics = true }

// baseConfig is what every client shares, how to prove who it is to the brokers included: there is no other
// way to a connection. Version 2.8.0 is the newest this Sarama speaks well and is still served by Apache
// Kafka 4. It fails where a file that the configuration names cannot be used.
func baseConfig(k config.Kafka, clientID string) (*sarama.Config, error) {
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
	if err := secure(c, k); err != nil {
		return nil, err
	}
	return c, nil
}

// NewClient returns a plain client for requests of one's own. The caller closes it.
func NewClient(k config.Kafka, clientID string) (sarama.Client, error) {
	c, err := baseConfig(k, clientID)
	if err != nil {
		return nil, err
	}
	client, err := sarama.NewClient(k.Brokers, c)
	if err != nil {
		return nil, explained(err, k)
	}
	return client, nil
}

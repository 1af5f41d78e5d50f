// Package kafka is Tidemark's client of its log.
//
// It has a publisher, which sends many messages in one request; a subscriber, which delivers batches; a reader, which
// asks the log for its ends, offsets and single records; and a guard, which makes a topic as its Spec says and refuses
// one that could lose what it holds. One Sarama configuration serves them all.
//
// The subscriber is Watermill's own; a hook that watermill-kafka offers for tracing makes batches of its messages. The
// publisher is a Watermill publisher with a producer of our own, because Sarama's may acknowledge records that are not
// in the log (see flight).
//
// What the records mean is left to shared/event, and which topics there are to shared/topic.
package kafka

import (
	"time"

	"github.com/Shopify/sarama"
	"github.com/rcrowley/go-metrics"

	"github.com/tidemark/tidemark/shared/config"
)

// Sarama keeps metrics of its own about every request: samples with locks and heaps, and one ticker for the
// process. Nobody reads them, so they are off.
func init() { metrics.UseNilMetrics = true }

// baseConfig is the configuration that every client begins with; it says how the client proves who it is to the
// brokers. Version 2.8.0 is the newest that this Sarama speaks well, and Apache Kafka 4 still serves it. baseConfig
// fails where a file that k names cannot be used.
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

// NewClient returns a plain Sarama client. The caller closes it.
func NewClient(k config.Kafka, clientID string) (sarama.Client, error) {
	c, err := baseConfig(k, clientID)
	if err != nil {
		return nil, err
	}
	client, err := sarama.NewClient(k.Brokers, c)
	if err != nil {
		return nil, explained(err)
	}
	return client, nil
}

package logid

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/sasl/plain"
	"github.com/twmb/franz-go/pkg/sasl/scram"

	"github.com/tidemark/tidemark/shared/config"
	"github.com/tidemark/tidemark/shared/kafka"
)

// Seen is one answer of a broker.
type Seen struct {
	ClusterID string
	Topics    map[string]ID // every topic that was asked for; the zero ID where it is not there
}

// Asker asks the brokers for ids. It has a client of its own, since the answers that Sarama reads carry none. It connects
// when it is first used, and is safe for concurrent use.
type Asker struct {
	kafka    config.Kafka
	clientID string

	mu     sync.Mutex
	client *kgo.Client // nil until it is first used
	closed bool
}

// NewAsker returns an asker that has not connected yet. The caller closes it.
func NewAsker(k config.Kafka, clientID string) *Asker { return &Asker{kafka: k, clientID: clientID} }

// askLimit bounds one question, retries included.
const askLimit = 5 * time.Second

// Ask returns the ids of the cluster and of these topics as one broker knows them. It never makes a topic. Where the
// configuration names a cluster, any other one is a *kafka.ClusterError.
func (a *Asker) Ask(ctx context.Context, topics ...string) (Seen, error) {
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	client, err := a.use()
	if err != nil {
		return Seen{}, err
	}
	request := kmsg.NewPtrMetadataRequest()
	request.Topics = []kmsg.MetadataRequestTopic{} // none, where nil would be all
	for _, topic := range topics {
		of := kmsg.NewMetadataRequestTopic()
		of.Topic = kmsg.StringPtr(topic)
		request.Topics = append(request.Topics, of)
	}
	answer, err := request.RequestWith(ctx, client)
	if err != nil {
		return Seen{}, fmt.Errorf("ask for the ids of topics: %w", err)
	}
	seen := Seen{Topics: make(map[string]ID, len(topics))}
	if answer.ClusterID != nil {
		seen.ClusterID = *answer.ClusterID
	}
	if wanted := a.kafka.ClusterID; wanted != "" && seen.ClusterID != wanted {
		return Seen{}, &kafka.ClusterError{Wanted: wanted, Found: seen.ClusterID}
	}
	for _, t := range answer.Topics {
		if t.Topic == nil {
			continue
		}
		id := ID(t.TopicID)
		switch err := kerr.ErrorForCode(t.ErrorCode); {
		case errors.Is(err, kerr.UnknownTopicOrPartition):
			id = ID{}
		case id == (ID{}) && err == nil:
			return Seen{}, kafka.Cause{Found: "the broker gives topics no ids: Tidemark needs Kafka 2.8 or newer", Do: "upgrade Kafka"}
		case id == (ID{}):
			return Seen{}, fmt.Errorf("ask for the id of %s: %w", *t.Topic, err)
		}
		seen.Topics[*t.Topic] = id
	}
	for _, topic := range topics {
		if _, ok := seen.Topics[topic]; !ok {
			return Seen{}, fmt.Errorf("the broker has not answered for %s", topic)
		}
	}
	return seen, nil
}

// TopicID returns the id of one topic as Kafka prints it, empty where the topic is not there.
func (a *Asker) TopicID(ctx context.Context, topic string) (string, error) {
	seen, err := a.Ask(ctx, topic)
	return seen.Topics[topic].String(), err
}

var errClosed = errors.New("the asker is closed")

func (a *Asker) use() (*kgo.Client, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case a.closed:
		return nil, errClosed
	case a.client != nil:
		return a.client, nil
	}
	opts := []kgo.Opt{
		kgo.SeedBrokers(a.kafka.Brokers...), kgo.ClientID(a.clientID), kgo.DisableClientMetrics(), kgo.Dialer(a.dial),
		kgo.RetryTimeout(askLimit), kgo.RequestRetries(3),
	}
	switch user, password := a.kafka.SASLUsername, a.kafka.SASLPassword; a.kafka.SASLMechanism {
	case "":
	case "PLAIN":
		opts = append(opts, kgo.SASL(plain.Auth{User: user, Pass: password}.AsMechanism()))
	case "SCRAM-SHA-256":
		opts = append(opts, kgo.SASL(scram.Auth{User: user, Pass: password}.AsSha256Mechanism()))
	case "SCRAM-SHA-512":
		opts = append(opts, kgo.SASL(scram.Auth{User: user, Pass: password}.AsSha512Mechanism()))
	default:
		return nil, fmt.Errorf("KAFKA_SASL_MECHANISM=%q is none of PLAIN, SCRAM-SHA-256, SCRAM-SHA-512", a.kafka.SASLMechanism)
	}
	client, err := kgo.NewClient(opts...)
	if err != nil {
		return nil, fmt.Errorf("make a client of the brokers: %w", err)
	}
	a.client = client
	return client, nil
}

// dial reads the files of TLS for each connection, so that renewed ones are taken up without a restart.
func (a *Asker) dial(ctx context.Context, network, address string) (net.Conn, error) {
	c, err := kafka.TLS(a.kafka)
	if err != nil {
		return nil, err
	}
	dialer := &net.Dialer{Timeout: 3 * time.Second}
	if c == nil {
		return dialer.DialContext(ctx, network, address)
	}
	return (&tls.Dialer{NetDialer: dialer, Config: c}).DialContext(ctx, network, address)
}

// Close ends the connections. Whoever asks later gets an error.
func (a *Asker) Close() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.closed = true
	if a.client != nil {
		a.client.Close()
	}
	return nil
}

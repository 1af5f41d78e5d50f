package stack_test

import (
	"context"
	"fmt"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/Shopify/sarama"
	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/integration/stack"
	"github.com/tidemark/tidemark/shared/await"
)

func TestKafka(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	k, err := stack.StartKafka(ctx, stack.KafkaOptions{FastStart: true, Proxies: []string{"writer", "reader"}})
	require.NoError(t, err)
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(k.LogTail())
		}
		require.NoError(t, k.Close(context.Background()))
	})
	makeTopic(t, k.Brokers(), "facts")

	// One story, since each step stands on the one before and a broker takes seconds to start.
	t.Log("a record outlives an orderly restart and a kill")
	written := []string{write(t, k.Brokers(), "facts")}
	require.NoError(t, k.Restart(ctx))
	written = append(written, write(t, k.Brokers(), "facts"))
	require.NoError(t, k.Kill())
	requireRefused(t, k.Brokers()[0])
	began := time.Now()
	require.NoError(t, k.Start(ctx))
	t.Logf("listening %s after a kill", time.Since(began))
	written = append(written, write(t, k.Brokers(), "facts"))
	t.Logf("writing %s after a kill", time.Since(began))
	require.Equal(t, written, read(t, k.Brokers(), "facts", 3))

	t.Log("a client that comes through a proxy stays on it")
	for _, name := range []string{"writer", "reader"} {
		p := k.Proxy(name)
		written = append(written, write(t, []string{p.Address()}, "facts"))
		p.Cut()
		_, err = tryWrite([]string{p.Address()}, "facts")
		require.Error(t, err)
		written = append(written, write(t, k.Brokers(), "facts"))
		p.Pass()
		require.Equal(t, written, read(t, []string{p.Address()}, "facts", len(written)))
	}

	t.Log("a stopped broker hangs and goes on")
	require.NoError(t, k.Signal(syscall.SIGSTOP))
	_, err = tryWrite(k.Brokers(), "facts")
	require.Error(t, err)
	require.NoError(t, k.Signal(syscall.SIGCONT))
	write(t, k.Brokers(), "facts")

	t.Log("Kafka's own tools reach it")
	output, err := stack.Tool(ctx, "org.apache.kafka.tools.TopicCommand", "--bootstrap-server", k.Brokers()[0], "--list")
	require.NoError(t, err)
	require.Contains(t, output, "facts")
}

func TestKafkaSaysWhyItDoesNotStart(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	_, err := stack.StartKafka(ctx, stack.KafkaOptions{FastStart: true, Settings: map[string]string{"num.io.threads": "many"}})
	require.ErrorContains(t, err, "num.io.threads")
}

func client(brokers []string) (sarama.Client, error) {
	config := sarama.NewConfig()
	config.Version = sarama.V2_8_0_0
	config.Net.DialTimeout, config.Net.ReadTimeout, config.Net.WriteTimeout = time.Second, time.Second, time.Second
	config.Producer.Return.Successes = true
	config.Producer.RequiredAcks = sarama.WaitForAll
	config.Producer.Timeout = time.Second
	config.Producer.Retry.Max = 2
	config.Metadata.Retry.Max = 2
	config.Consumer.Offsets.Initial = sarama.OffsetOldest
	return sarama.NewClient(brokers, config)
}

func makeTopic(t *testing.T, brokers []string, topic string) {
	t.Helper()
	c, err := client(brokers)
	require.NoError(t, err)
	admin, err := sarama.NewClusterAdminFromClient(c)
	require.NoError(t, err)
	defer func() { _ = admin.Close() }() // closes c too
	require.NoError(t, admin.CreateTopic(topic, &sarama.TopicDetail{NumPartitions: 1, ReplicationFactor: 1}, false))
}

// write sends one record with a value of its own, trying for some seconds, and returns the value.
func write(t *testing.T, brokers []string, topic string) string {
	t.Helper()
	var value string
	await.NoError(t, func() (err error) {
		value, err = tryWrite(brokers, topic)
		return err
	})
	return value
}

func tryWrite(brokers []string, topic string) (string, error) {
	c, err := client(brokers)
	if err != nil {
		return "", err
	}
	defer func() { _ = c.Close() }()
	producer, err := sarama.NewSyncProducerFromClient(c)
	if err != nil {
		return "", err
	}
	defer func() { _ = producer.Close() }()
	value := fmt.Sprintf("written at %s", time.Now().Format(time.RFC3339Nano))
	_, _, err = producer.SendMessage(&sarama.ProducerMessage{Topic: topic, Value: sarama.StringEncoder(value)})
	return value, err
}

func read(t *testing.T, brokers []string, topic string, n int) []string {
	t.Helper()
	c, err := client(brokers)
	require.NoError(t, err)
	defer func() { _ = c.Close() }()
	consumer, err := sarama.NewConsumerFromClient(c)
	require.NoError(t, err)
	defer func() { _ = consumer.Close() }()
	partition, err := consumer.ConsumePartition(topic, 0, sarama.OffsetOldest)
	require.NoError(t, err)
	defer func() { _ = partition.Close() }()
	var values []string
	for len(values) < n {
		select {
		case m := <-partition.Messages():
			values = append(values, string(m.Value))
		case <-time.After(soon):
			require.Failf(t, "no more records", "read %d of %d: %s", len(values), n, strings.Join(values, ", "))
		}
	}
	return values
}

func requireRefused(t *testing.T, addr string) {
	t.Helper()
	conn, err := new(net.Dialer).DialContext(t.Context(), "tcp", addr)
	if err == nil {
		_ = conn.Close()
	}
	require.ErrorIs(t, err, syscall.ECONNREFUSED)
}

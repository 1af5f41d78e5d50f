package broker_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/Shopify/sarama"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"go.uber.org/goleak"

	"github.com/tidemark/tidemark/tidemark/embedded/broker"
	"github.com/tidemark/tidemark/tidemark/internal/datadir"
)

// runDirVariable turns the test binary into a process that runs a broker until it is killed.
const runDirVariable = "BROKER_TEST_RUN_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(runDirVariable); dir != "" {
		b, err := broker.Start(context.Background(), broker.Options{DataDir: dir})
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println(b.Addresses()[0])
		_, _ = io.Copy(io.Discard, os.Stdin) // which the parent holds open
		runtime.KeepAlive(b)                 // and with it the lock of its folder
		os.Exit(0)
	}
	// Sarama's metrics keep one goroutine for the life of the process.
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("github.com/rcrowley/go-metrics.(*meterArbiter).tick"))
}

// longAgo is the time that back-dating producers claim.
var longAgo = time.Date(2009, 9, 28, 19, 3, 12, 0, time.UTC)

func start(t *testing.T, opts broker.Options) *broker.Broker {
	t.Helper()
	if opts.DataDir == "" {
		opts.DataDir = t.TempDir()
	}
	opts.Log = slog.New(slog.NewTextHandler(t.Output(), nil))
	b, err := broker.Start(t.Context(), opts)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, b.Close()) })
	return b
}

func saramaConfig() *sarama.Config {
	config := sarama.NewConfig()
	config.Version = sarama.V2_8_0_0
	config.Producer.Return.Successes = true
	config.Producer.RequiredAcks = sarama.WaitForAll
	return config
}

func admin(t *testing.T, b *broker.Broker) sarama.ClusterAdmin {
	t.Helper()
	a, err := sarama.NewClusterAdmin(b.Addresses(), saramaConfig())
	require.NoError(t, err)
	t.Cleanup(func() { _ = a.Close() })
	return a
}

func createTopic(t *testing.T, b *broker.Broker, topic string) {
	t.Helper()
	logTime := "LogAppendTime"
	require.NoError(t, admin(t, b).CreateTopic(topic, &sarama.TopicDetail{
		NumPartitions: 1, ReplicationFactor: 1,
		ConfigEntries: map[string]*string{"message.timestamp.type": &logTime},
	}, false))
}

// consume reads the first n records of partition 0.
func consume(t *testing.T, b *broker.Broker, topic string, n int) []*sarama.ConsumerMessage {
	t.Helper()
	consumer, err := sarama.NewConsumer(b.Addresses(), saramaConfig())
	require.NoError(t, err)
	defer consumer.Close()
	partition, err := consumer.ConsumePartition(topic, 0, sarama.OffsetOldest)
	require.NoError(t, err)
	defer partition.Close()
	var records []*sarama.ConsumerMessage
	for len(records) < n {
		select {
		case record := <-partition.Messages():
			records = append(records, record)
		case <-time.After(time.Minute):
			require.FailNow(t, "no record came", "have %d of %d", len(records), n)
		}
	}
	return records
}

func TestSaramaRecordsBearTheBrokersClock(t *testing.T) {
	t.Parallel()
	for _, codec := range []sarama.CompressionCodec{
		sarama.CompressionNone, sarama.CompressionGZIP, sarama.CompressionSnappy, sarama.CompressionLZ4, sarama.CompressionZSTD,
	} {
		for _, idempotent := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s idempotent=%t", codec, idempotent), func(t *testing.T) {
				t.Parallel()
				b := start(t, broker.Options{NoSync: true})
				createTopic(t, b, "times")
				config := saramaConfig()
				config.Producer.Compression = codec
				config.Producer.Idempotent = idempotent
				if idempotent {
					config.Net.MaxOpenRequests = 1
				}
				producer, err := sarama.NewSyncProducer(b.Addresses(), config)
				require.NoError(t, err)
				before := time.Now().Truncate(time.Millisecond)
				require.NoError(t, producer.SendMessages(backdated("times", 50)))
				after := time.Now()
				require.NoError(t, producer.Close())

				for i, record := range consume(t, b, "times", 50) {
					require.WithinRange(t, record.Timestamp, before, after, "record %d", i)
					require.Equal(t, fmt.Sprintf("value %d", i), string(record.Value))
					require.Equal(t, fmt.Sprintf("key %d", i), string(record.Key))
					require.Len(t, record.Headers, 1)
					require.Equal(t, "header", string(record.Headers[0].Key))
				}
			})
		}
	}
}

// backdated makes records whose times lie months apart, forwards and backwards from the first.
func backdated(topic string, n int) []*sarama.ProducerMessage {
	messages := make([]*sarama.ProducerMessage, n)
	for i := range messages {
		apart := time.Duration(i) * 100 * 24 * time.Hour
		if i%2 == 1 {
			apart = -apart
		}
		messages[i] = &sarama.ProducerMessage{
			Topic: topic, Partition: 0, Timestamp: longAgo.Add(apart),
			Key:     sarama.StringEncoder(fmt.Sprintf("key %d", i)),
			Value:   sarama.StringEncoder(fmt.Sprintf("value %d", i)),
			Headers: []sarama.RecordHeader{{Key: []byte("header"), Value: []byte("x")}},
		}
	}
	return messages
}

func TestFranzRecordsBearTheBrokersClock(t *testing.T) {
	t.Parallel()
	for name, codec := range map[string]kgo.CompressionCodec{
		"none": kgo.NoCompression(), "gzip": kgo.GzipCompression(), "snappy": kgo.SnappyCompression(), "lz4": kgo.Lz4Compression(), "zstd": kgo.ZstdCompression(),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := start(t, broker.Options{NoSync: true})
			createTopic(t, b, "times")
			client, err := kgo.NewClient(kgo.SeedBrokers(b.Addresses()...), kgo.ProducerBatchCompression(codec), kgo.ProducerLinger(20*time.Millisecond))
			require.NoError(t, err)
			defer client.Close()
			var records []*kgo.Record
			for i := range 50 {
				records = append(records, &kgo.Record{
					Topic: "times", Value: fmt.Appendf(nil, "value %d", i), Timestamp: longAgo.Add(time.Duration(i) * 24 * time.Hour),
				})
			}
			before := time.Now().Truncate(time.Millisecond)
			require.NoError(t, client.ProduceSync(t.Context(), records...).FirstErr())
			after := time.Now()

			for i, record := range consume(t, b, "times", 50) {
				require.WithinRange(t, record.Timestamp, before, after, "record %d", i)
				require.Equal(t, fmt.Sprintf("value %d", i), string(record.Value))
			}
		})
	}
}

// A producer that marks its own times as the log's is refused, as by Kafka, and writes nothing.
func TestProducerCannotClaimTheLogsTime(t *testing.T) {
	t.Parallel()
	b := start(t, broker.Options{NoSync: true})
	createTopic(t, b, "times")
	config := saramaConfig()
	client, err := sarama.NewClient(b.Addresses(), config)
	require.NoError(t, err)
	defer client.Close()
	leader, err := client.Leader("times", 0)
	require.NoError(t, err)
	request := &sarama.ProduceRequest{Version: 7, RequiredAcks: sarama.WaitForAll, Timeout: 1000}
	request.AddBatch("times", 0, &sarama.RecordBatch{
		Version: 2, ProducerID: -1, ProducerEpoch: -1, LogAppendTime: true, FirstTimestamp: longAgo, MaxTimestamp: longAgo,
		Records: []*sarama.Record{{Value: []byte("forged")}},
	})
	response, err := leader.Produce(request)
	require.NoError(t, err)
	require.Equal(t, sarama.KError(kerr.InvalidTimestamp.Code), response.Blocks["times"][0].Err)
	newest, err := client.GetOffset("times", 0, sarama.OffsetNewest)
	require.NoError(t, err)
	require.Zero(t, newest)
}

func TestTopicSettingsComeBack(t *testing.T) {
	t.Parallel()
	b := start(t, broker.Options{NoSync: true})
	asked := map[string]string{
		"message.timestamp.type": "LogAppendTime", "cleanup.policy": "delete", "retention.ms": "-1", "retention.bytes": "-1",
		"min.insync.replicas": "1", "unclean.leader.election.enable": "false", "max.message.bytes": "1048588",
	}
	entries := map[string]*string{}
	for name, value := range asked {
		entries[name] = &value
	}
	a := admin(t, b)
	require.NoError(t, a.CreateTopic("asked", &sarama.TopicDetail{NumPartitions: 12, ReplicationFactor: 1, ConfigEntries: entries}, false))
	wrong := "CreateTime"
	require.NoError(t, a.CreateTopic("wrong", &sarama.TopicDetail{
		NumPartitions: 1, ReplicationFactor: 1, ConfigEntries: map[string]*string{"message.timestamp.type": &wrong},
	}, false))

	found := settings(t, a, "asked")
	for name, value := range asked {
		require.Equal(t, value, found[name], name)
	}
	require.Equal(t, "CreateTime", settings(t, a, "wrong")["message.timestamp.type"])
	topics, err := a.DescribeTopics([]string{"asked"})
	require.NoError(t, err)
	require.Len(t, topics[0].Partitions, 12)
}

func settings(t *testing.T, a sarama.ClusterAdmin, topic string) map[string]string {
	t.Helper()
	entries, err := a.DescribeConfig(sarama.ConfigResource{Type: sarama.TopicResource, Name: topic})
	require.NoError(t, err)
	found := map[string]string{}
	for _, entry := range entries {
		found[entry.Name] = entry.Value
	}
	return found
}

func TestLogPortAndClusterIDStayOverARestart(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	b := start(t, broker.Options{DataDir: dir})
	createTopic(t, b, "times")
	send(t, b.Addresses(), 3)
	address, id := b.Addresses(), b.ClusterID()
	before := consume(t, b, "times", 3)
	require.NoError(t, b.Close())

	again := start(t, broker.Options{DataDir: dir})
	require.Equal(t, address, again.Addresses())
	require.Equal(t, id, again.ClusterID())
	client, err := sarama.NewClient(again.Addresses(), saramaConfig())
	require.NoError(t, err)
	defer client.Close()
	metadata, err := client.LeastLoadedBroker().GetMetadata(&sarama.MetadataRequest{Version: 5})
	require.NoError(t, err)
	require.Equal(t, id, *metadata.ClusterID)
	after := consume(t, again, "times", 3)
	for i := range before {
		require.Equal(t, before[i].Timestamp, after[i].Timestamp)
		require.Equal(t, before[i].Value, after[i].Value)
	}
	require.Equal(t, "LogAppendTime", settings(t, admin(t, again), "times")["message.timestamp.type"])
}

func send(t *testing.T, addresses []string, n int) {
	t.Helper()
	producer, err := sarama.NewSyncProducer(addresses, saramaConfig())
	require.NoError(t, err)
	defer producer.Close()
	for i := range n {
		_, offset, err := producer.SendMessage(&sarama.ProducerMessage{Topic: "times", Value: sarama.StringEncoder(strconv.Itoa(i))})
		require.NoError(t, err)
		require.EqualValues(t, i, offset)
	}
}

func TestAcknowledgedRecordsSurviveAKill(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	ready, w, err := os.Pipe()
	require.NoError(t, err)
	defer ready.Close()
	process := exec.Command(os.Args[0])
	process.Env = append(os.Environ(), runDirVariable+"="+dir)
	process.Stdout, process.Stderr = w, os.Stderr
	_, err = process.StdinPipe() // closed by Wait
	require.NoError(t, err)
	require.NoError(t, process.Start())
	require.NoError(t, w.Close())
	line := make([]byte, 100)
	n, err := ready.Read(line)
	require.NoError(t, err)
	addresses := []string{strings.TrimSpace(string(line[:n]))}

	config := saramaConfig()
	a, err := sarama.NewClusterAdmin(addresses, config)
	require.NoError(t, err)
	require.NoError(t, a.CreateTopic("times", &sarama.TopicDetail{NumPartitions: 1, ReplicationFactor: 1}, false))
	require.NoError(t, a.Close())
	send(t, addresses, 20)
	require.NoError(t, process.Process.Kill())
	_ = process.Wait()

	b := start(t, broker.Options{DataDir: dir})
	require.Equal(t, addresses, b.Addresses())
	for i, record := range consume(t, b, "times", 20) {
		require.EqualValues(t, i, record.Offset)
		require.Equal(t, strconv.Itoa(i), string(record.Value))
	}
}

func TestOneBrokerADirectory(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	start(t, broker.Options{DataDir: dir, NoSync: true})
	_, err := broker.Start(t.Context(), broker.Options{DataDir: dir})
	require.ErrorIs(t, err, datadir.ErrLocked)
	require.ErrorContains(t, err, strconv.Itoa(os.Getpid()))
}

func TestPortInUseIsAnErrorAndLeavesTheDirectoryFree(t *testing.T) {
	t.Parallel()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer taken.Close()
	dir := t.TempDir()
	_, err = broker.Start(t.Context(), broker.Options{DataDir: dir, Port: taken.Addr().(*net.TCPAddr).Port})
	require.ErrorContains(t, err, "address already in use")
	require.NoError(t, taken.Close())
	start(t, broker.Options{DataDir: dir})
}

// Whatever else knocks at the port loses its connection, and the broker goes on.
func TestStrangersAtThePort(t *testing.T) {
	t.Parallel()
	b := start(t, broker.Options{NoSync: true})
	createTopic(t, b, "times")

	client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get("http://" + b.Addresses()[0] + "/")
	if err == nil {
		_ = resp.Body.Close()
	}
	require.Error(t, err)
	require.NotErrorIs(t, err, context.DeadlineExceeded)

	unknown := binary.BigEndian.AppendUint32(nil, 8)
	unknown = append(unknown, 0x7f, 0xff, 0, 0, 0, 0, 0, 1)
	conn, err := net.Dial("tcp", b.Addresses()[0])
	require.NoError(t, err)
	defer conn.Close()
	require.NoError(t, conn.SetDeadline(time.Now().Add(5*time.Second)))
	_, err = conn.Write(unknown)
	require.NoError(t, err)
	n, err := conn.Read(make([]byte, 1))
	require.Zero(t, n)
	require.Error(t, err)
	require.NotErrorIs(t, err, os.ErrDeadlineExceeded)

	send(t, b.Addresses(), 1)
}

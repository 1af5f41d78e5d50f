package app

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/Shopify/sarama"
	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/shared/await"
	"github.com/tidemark/tidemark/shared/kafka"
	"github.com/tidemark/tidemark/shared/logid"
	"github.com/tidemark/tidemark/shared/topic"
)

// shut waits until the door is shut with these words.
func (s *running) shut(t *testing.T, words string) {
	t.Helper()
	var body map[string]any
	await.Until(t, func() bool {
		var status int
		status, _, body = s.do(t, http.MethodPost, "/app")
		return status == 503 && body["type"] == "/problems/log-unsafe" && strings.Contains(fmt.Sprint(body["detail"]), words)
	}, "the door is shut")
	status, _, ready := s.do(t, http.MethodGet, "/ready")
	require.Equal(t, 503, status)
	require.Contains(t, fmt.Sprint(ready["missing"]), words)
}

func (s *running) metrics(t *testing.T) string {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.url+"/metrics", http.NoBody)
	require.NoError(t, err)
	res, err := http.DefaultClient.Do(r)
	require.NoError(t, err)
	defer func() { _ = res.Body.Close() }()
	text, err := io.ReadAll(res.Body)
	require.NoError(t, err)
	return string(text)
}

func TestATopicMadeAnewShutsTheDoorUntilItIsAccepted(t *testing.T) {
	t.Parallel()
	brokers := realKafka(t)
	o := options(brokers)
	o.Watch.Guard = 0 // a minute: looking at the id finds it, and no other check
	s := start(t, o)
	s.ready(t)
	admin := newAdmin(t, brokers)
	detail := &sarama.TopicDetail{NumPartitions: 3, ReplicationFactor: 1, ConfigEntries: map[string]*string{}}
	for name, value := range map[string]string{"message.timestamp.type": "LogAppendTime", "retention.ms": "-1"} {
		detail.ConfigEntries[name] = &value
	}
	require.NoError(t, admin.DeleteTopic(o.Topic))
	await.NoError(t, func() error { return admin.CreateTopic(o.Topic, detail, false) })
	s.shut(t, "topic "+o.Topic+" is another one")
	require.Contains(t, s.metrics(t), fmt.Sprintf(`tidemark_log_fault{fault="replaced",topic=%q} 1`, o.Topic))

	s.stop()
	require.NoError(t, s.ends(t))
	s = start(t, o)
	s.shut(t, "topic "+o.Topic+" is another one") // after a restart too
	s.stop()
	require.NoError(t, s.ends(t))

	asker := logid.NewAsker(o.Config.Kafka, "test")
	t.Cleanup(func() { require.NoError(t, asker.Close()) })
	seen, err := asker.Ask(t.Context(), o.Topic)
	require.NoError(t, err)
	o.Config.AcceptNewLog = []string{o.Topic + "@" + seen.Topics[o.Topic].String()}
	s = start(t, o)
	s.ready(t)
	status, _, _ := s.do(t, http.MethodPost, "/app")
	require.Equal(t, 200, status)

	reader := kafka.NewReader(o.Config.Kafka, "test")
	t.Cleanup(func() { require.NoError(t, reader.Close()) })
	noted := topic.LogIdentity.Sized(o.Config.Kafka)
	noted.Name = o.Identity
	book := logid.NewBook(logid.Options{Reader: reader, Asker: asker, Topic: noted})
	require.NoError(t, book.SameLog(t.Context(), o.Topic))
	note, ok := book.Notes().Current(o.Topic)
	require.True(t, ok)
	require.Equal(t, seen.Topics[o.Topic], note.ID)
	require.NotZero(t, note.Replaces)
	require.Equal(t, note.NotedAt, book.Notes().Since(o.Topic))
	require.Zero(t, book.Notes().Since(o.Endpoints), "it was never another")

	s.stop()
	require.NoError(t, s.ends(t))
	o.Config.AcceptNewLog = nil
	start(t, o).ready(t) // what is noted needs no acceptance
}

// The notes may be lost while the door is open: what it has read of them it remembers.
func TestARunningDoorRemembersWhatWasNoted(t *testing.T) {
	t.Parallel()
	brokers := realKafka(t)
	o := options(brokers)
	s := start(t, o)
	s.ready(t)
	admin := newAdmin(t, brokers)
	require.NoError(t, admin.DeleteTopic(o.Identity))
	require.NoError(t, admin.DeleteTopic(o.Topic))
	s.shut(t, "topic "+o.Topic+" is not there: it was, with the id ")
	await.NoError(t, func() error {
		return admin.CreateTopic(o.Topic, &sarama.TopicDetail{NumPartitions: 3, ReplicationFactor: 1}, false)
	})
	s.shut(t, "topic "+o.Topic+" is another one")
}

func TestANotedTopicIsNotMadeAgainAfterARestart(t *testing.T) {
	t.Parallel()
	brokers := realKafka(t)
	o := options(brokers)
	s := start(t, o)
	s.ready(t)
	s.stop()
	require.NoError(t, s.ends(t))
	admin := newAdmin(t, brokers)
	require.NoError(t, admin.DeleteTopic(o.Topic))
	s = start(t, o)
	s.shut(t, "It is not made again")
	topics, err := admin.ListTopics()
	require.NoError(t, err)
	require.NotContains(t, topics, o.Topic)
}

func TestAnotherClusterIsRefused(t *testing.T) {
	t.Parallel()
	o := options(realKafka(t))
	o.Config.ClusterID = "another"
	s := start(t, o)
	await.Until(t, func() bool {
		_, _, body := s.do(t, http.MethodGet, "/ready")
		return strings.Contains(fmt.Sprint(body["missing"]), "KAFKA_CLUSTER_ID is another")
	})
	status, _, _ := s.do(t, http.MethodPost, "/app")
	require.Equal(t, 503, status)
}

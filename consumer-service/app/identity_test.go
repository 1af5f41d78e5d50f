package app

import (
	"errors"
	"fmt"
	"testing"

	"github.com/Shopify/sarama"
	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/shared/await"
	"github.com/tidemark/tidemark/shared/event"
	"github.com/tidemark/tidemark/shared/kafka"
	"github.com/tidemark/tidemark/shared/logid"
	"github.com/tidemark/tidemark/shared/topic"
)

// note writes what command-service notes of a topic.
func (i *installation) note(t *testing.T, of topic.Spec) {
	t.Helper()
	asker := logid.NewAsker(i.config.Kafka, "test")
	defer func() { require.NoError(t, asker.Close()) }()
	seen, err := asker.Ask(t.Context(), of.Name)
	require.NoError(t, err)
	n := event.LogIdentity{Topic: of.Name, TopicID: seen.Topics[of.Name].String(), ClusterID: seen.ClusterID}
	await.NoError(t, func() error { return i.reader.Ensure(t.Context(), i.identity) })
	i.made = append(i.made, i.identity.Name)
	await.NoError(t, func() error {
		_, _, err := i.producer.SendMessage(&sarama.ProducerMessage{Topic: i.identity.Name, Partition: 0, Key: sarama.StringEncoder(of.Name), Value: sarama.ByteEncoder(event.AppendLogIdentity(nil, n))})
		return err
	})
}

func (i *installation) remove(t *testing.T, of topic.Spec) {
	t.Helper()
	admin, err := sarama.NewClusterAdminFromClient(i.client)
	require.NoError(t, err)
	require.NoError(t, admin.DeleteTopic(of.Name))
	await.NoError(t, func() error {
		if _, err := i.reader.Partitions(t.Context(), of.Name); !errors.Is(err, kafka.ErrNoTopic) {
			return fmt.Errorf("%s is there still", of.Name)
		}
		return nil
	})
}

// A process that starts while a topic that was noted is gone makes none and waits, and readers are told why; those of every
// projection where it is the topic of decisions.
func TestReadersAreToldOfATopicThatIsGoneAtTheStart(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		of   func(*installation) topic.Spec
		told int // projections
	}{
		{"the topic of a projection", func(i *installation) topic.Spec { return i.definitions[0].Topic }, 1},
		{"the topic of decisions", func(i *installation) topic.Spec { return i.decisions }, 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			i := install(t)
			of := c.of(i)
			i.note(t, of)
			i.remove(t, of)
			p := i.run(t)
			p.unready(t, of.Name+" is not there: it was")
			told := fmt.Sprintf(`projections WHERE refused_at IS NOT NULL AND refusal LIKE 'topic %s is not there: it was%%'`, of.Name)
			i.rows(t, told, c.told)
			require.NoError(t, p.stop())
			i.rows(t, told, c.told)

			i.ensure(t, of)
			i.note(t, of) // as if it were accepted
			p = i.run(t)
			p.ready(t)
			i.rows(t, "projections WHERE refusal <> ''", 0)
			require.NoError(t, p.stop())
		})
	}
}

// Where the configuration names a cluster, another one is waited out, and nothing of it is read.
func TestAnotherClusterIsNotRead(t *testing.T) {
	t.Parallel()
	i := install(t)
	i.stamps(t, 0, 3)
	i.config.ClusterID = "another"
	p := i.run(t)
	p.unready(t, "KAFKA_CLUSTER_ID is another and the brokers at KAFKA_BROKERS are of cluster ")
	i.rows(t, "timestamp_records", 0)
	require.NoError(t, p.stop())

	cluster, err := i.reader.ClusterID(t.Context())
	require.NoError(t, err)
	i.config.ClusterID = cluster
	p = i.run(t)
	p.ready(t)
	i.rows(t, "timestamp_records", 3)
	require.NoError(t, p.stop())
}

package logid

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/shared/await"
	"github.com/tidemark/tidemark/shared/config"
	"github.com/tidemark/tidemark/shared/kafka"
)

func TestATopicMadeAnewHasAnotherID(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, k config.Kafka) {
		admin, topic := setupAdmin(t, k)
		asker := NewAsker(k, "test")
		t.Cleanup(func() { require.NoError(t, asker.Close()) })
		idOf := func() ID {
			seen, err := asker.Ask(t.Context(), topic)
			require.NoError(t, err)
			return seen.Topics[topic]
		}
		require.Zero(t, idOf(), "a topic that is not there; asking does not make it")
		require.Zero(t, idOf())

		makeTopic(t, admin, topic)
		await.Until(t, func() bool { return idOf() != ID{} }, "the topic is there")
		first := idOf()
		require.Equal(t, first, idOf())
		again, err := ParseID(first.String())
		require.NoError(t, err)
		require.Equal(t, first, again)

		require.NoError(t, admin.DeleteTopic(topic))
		await.Until(t, func() bool { return idOf() == ID{} }, "the topic is gone")
		makeTopic(t, admin, topic)
		await.Until(t, func() bool { return idOf() != ID{} }, "the topic is there again")
		require.NotEqual(t, first, idOf())

		seen, err := asker.Ask(t.Context(), topic)
		require.NoError(t, err)
		reader := kafka.NewReader(k, "test")
		t.Cleanup(func() { require.NoError(t, reader.Close()) })
		cluster, err := reader.ClusterID(t.Context())
		require.NoError(t, err)
		require.Equal(t, cluster, seen.ClusterID)
	})
}

func TestAnAskerThatIsClosedSaysSo(t *testing.T) {
	t.Parallel()
	asker := NewAsker(config.Kafka{Brokers: []string{"127.0.0.1:1"}}, "test")
	_, err := asker.Ask(t.Context(), "a")
	require.Error(t, err, "nobody listens there")
	require.NoError(t, asker.Close())
	_, err = asker.Ask(t.Context(), "a")
	require.ErrorIs(t, err, errClosed)
}

func TestAcceptance(t *testing.T) {
	t.Parallel()
	id, other := ID{1}, ID{2}
	a, err := ParseAcceptance([]string{"timestamp.command.v1@" + id.String(), "timestamp.command.v1@" + (ID{3}).String()})
	require.NoError(t, err)
	require.True(t, a.Accepts("timestamp.command.v1", id))
	require.True(t, a.Accepts("timestamp.command.v1", ID{3}))
	require.False(t, a.Accepts("timestamp.command.v1", other))
	require.False(t, a.Accepts("endpoint.command.v1", id))
	for _, bad := range []string{"", "a", "@" + id.String(), "a@", "a@b", "a@" + id.String() + "=", "a@AAAAAAAAAAAAAAAAAAAAAA"} {
		_, err := ParseAcceptance([]string{bad})
		require.ErrorContains(t, err, "ACCEPT_NEW_LOG", "%q", bad)
	}
}

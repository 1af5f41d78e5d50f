package event

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/shared/topic"
)

func TestLogIdentityGolden(t *testing.T) {
	t.Parallel()
	const first, second = "AQAAAAAAAAAAAAAAAAAAAA", "AgAAAAAAAAAAAAAAAAAAAA"
	notes := []LogIdentity{
		{Topic: topic.TimestampCommand.Name, TopicID: first, ClusterID: "4L6g3nShT-eMCtK--X86sw"},
		{Topic: topic.TimestampCommand.Name, TopicID: second, ClusterID: "4L6g3nShT-eMCtK--X86sw", Replaces: first},
	}
	lines := golden(t, topic.LogIdentity.Name)
	require.Len(t, lines, len(notes))
	for i, n := range notes {
		require.Equal(t, lines[i], string(AppendLogIdentity(nil, n)))
		got, err := DecodeLogIdentity([]byte(lines[i]))
		require.NoError(t, err)
		require.Equal(t, n, got)
	}
	for _, bad := range []string{"", "[]", "{}", `{"topic":"a"}`, `{"topic":1,"topic_id":"b"}`} {
		_, err := DecodeLogIdentity([]byte(bad))
		require.Error(t, err, bad)
	}
}

package topic

import (
	"regexp"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/shared/config"
)

func TestTopicsAreWellFormed(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for _, s := range All() {
		require.Regexp(t, regexp.MustCompile(`^[a-z]+\.[a-z]+\.v[0-9]+$`), s.Name)
		require.False(t, seen[s.Name], "%s stands twice", s.Name)
		seen[s.Name] = true
		require.NotEmpty(t, s.Key, s.Name)
		require.NotEmpty(t, s.Writer, s.Name)
		require.Equal(t, s.Kept == Expiring, s.Retention > 0, "%s: a retention is of an expiring topic", s.Name)
		got, ok := ByName(s.Name)
		require.True(t, ok)
		require.Equal(t, s, got)
	}
	_, ok := ByName("nothing.v1")
	require.False(t, ok)
}

func TestClaimedTopicsHaveACountOfTheirOwn(t *testing.T) {
	t.Parallel()
	k := config.Kafka{Partitions: 12, ClaimedPartitions: 48, ReplicationFactor: 3}
	plain, claimed := TimestampCommand.Sized(k), EndpointCommand.Sized(k)
	require.Equal(t, 12, plain.Partitions)
	require.Equal(t, 48, claimed.Partitions)
	require.Equal(t, 3, claimed.ReplicationFactor)
	require.Zero(t, EndpointCommand.Partitions, "the list itself stays without counts")
	fixed := LogIdentity.Sized(k)
	require.Equal(t, 1, fixed.Partitions, "a fixed count stays")
	require.Equal(t, 3, fixed.ReplicationFactor)
	require.Empty(t, fixed.CountVariable())
}

func TestOnlyWhatCommandServiceWritesCanBeRedriven(t *testing.T) {
	t.Parallel()
	require.True(t, TimestampCommand.Redrivable())
	require.False(t, ProjectionReceipt.Redrivable())
	require.False(t, LogIdentity.Redrivable(), "it holds no commands")
}

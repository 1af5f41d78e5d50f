package kafka

import (
	"errors"
	"testing"
	"time"

	"github.com/Shopify/sarama"
	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/shared/await"
	"github.com/tidemark/tidemark/shared/config"
	"github.com/tidemark/tidemark/shared/topic"
)

func setupReader(t *testing.T, brokers []string) *Reader {
	t.Helper()
	r := NewReader(config.Kafka{Brokers: brokers}, "test")
	t.Cleanup(func() { require.NoError(t, r.Close()) })
	return r
}

func TestATopicThatWasMadeForeverPassesTheGuard(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, brokers []string) {
		r := setupReader(t, brokers)
		spec := topic.Spec{Name: randomTopic("forever"), Partitions: 3, ReplicationFactor: 1}
		require.NoError(t, r.Ensure(t.Context(), spec))
		require.NoError(t, r.Ensure(t.Context(), spec), "a topic that is there is fine")
		guard := func() error { return r.Check(t.Context(), spec) }
		await.Until(t, func() bool { return guard() == nil })

		id, err := r.ClusterID(t.Context())
		require.NoError(t, err)
		require.NotEmpty(t, id)
	})
}

func TestTwoServicesMakeATopicAtOnce(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, brokers []string) {
		spec := topic.Spec{Name: randomTopic("race"), Partitions: 3, ReplicationFactor: 1}
		errs := make(chan error, 4)
		for range cap(errs) {
			r := setupReader(t, brokers)
			go func() { errs <- r.Ensure(t.Context(), spec) }()
		}
		for range cap(errs) {
			require.NoError(t, <-errs)
		}
	})
}

func TestTheGuardNamesEverySettingThatCouldLoseRecords(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, brokers []string) {
		for name, tc := range map[string]struct {
			setting, value string
			want           []string
		}{
			"expiry":       {"retention.ms", "604800000", []string{"retention.ms must be -1 and is 604800000"}},
			"size":         {"retention.bytes", "1000000", []string{"retention.bytes must be -1 and is 1000000"}},
			"compaction":   {"cleanup.policy", "compact", []string{"cleanup.policy must be delete and is compact"}},
			"both":         {"cleanup.policy", "compact,delete", []string{"cleanup.policy must be delete and is compact,delete"}},
			"clients time": {"message.timestamp.type", "CreateTime", []string{"message.timestamp.type must be LogAppendTime and is CreateTime"}},
			"partitions":   {"retention.ms", "-1", []string{"the number of partitions must be 3 and is 4", "KAFKA_PARTITIONS"}},
			"two at once":  {"retention.ms", "1000", []string{"retention.ms", "the number of partitions must be 3 and is 5"}},
		} {
			r := setupReader(t, brokers)
			made := topic.Spec{Name: randomTopic("guard"), Partitions: 3, ReplicationFactor: 1}
			wanted := made
			switch name {
			case "partitions":
				made.Partitions = 4
			case "two at once":
				made.Partitions = 5
			}
			require.NoError(t, r.Ensure(t.Context(), made))
			alter(t, r, made.Name, tc.setting, tc.value)
			var guard *GuardError
			faults := 1
			if name == "two at once" {
				faults = 2
			}
			await.Until(t, func() bool { // a change of settings takes a moment to reach the broker
				return errors.As(r.Check(t.Context(), wanted), &guard) && len(guard.Faults) == faults
			}, name)
			require.Equal(t, made.Name, guard.Topic)
			for _, words := range tc.want {
				require.ErrorContains(t, guard, words, name)
			}
		}
	})
}

// Elections and replicas are beyond one broker, so the judgement is tried without one; unclean
// election is also set on the real Kafka.
func TestTheGuardKnowsHowReplicasLoseRecords(t *testing.T) {
	t.Parallel()
	good := func() map[string]string {
		found := map[string]string{minInSync: "2"}
		for _, s := range guarded(topic.Spec{}) {
			found[s.name] = s.value
		}
		return found
	}
	spec := topic.Spec{Name: "t", Partitions: 12}
	require.Empty(t, judge(spec, 12, 3, good()))
	one := good()
	one[minInSync] = "1"
	require.Empty(t, judge(spec, 12, 1, one), "with one replica there is nothing to be out of sync")
	faults := judge(spec, 12, 3, one)
	require.Len(t, faults, 1)
	require.Equal(t, minInSync, faults[0].Setting)
	require.Equal(t, "1", faults[0].Found)
	none := good()
	delete(none, "retention.ms")
	require.Equal(t, "not known to the broker", judge(spec, 12, 1, none)[0].Found)

	r := setupReader(t, realKafka(t))
	made := topic.Spec{Name: randomTopic("unclean"), Partitions: 1, ReplicationFactor: 1}
	require.NoError(t, r.Ensure(t.Context(), made))
	alter(t, r, made.Name, uncleanElection, "true")
	var guard *GuardError
	await.Until(t, func() bool { return errors.As(r.Check(t.Context(), made), &guard) })
	require.ErrorContains(t, guard, "unclean.leader.election.enable must be false and is true")
}

func TestABrokerThatIsDownIsNoGuardError(t *testing.T) {
	t.Parallel()
	r := setupReader(t, []string{"127.0.0.1:1"})
	spec := topic.Spec{Name: "t", Partitions: 1, ReplicationFactor: 1}
	require.Error(t, r.Ensure(t.Context(), spec))
	err := r.Check(t.Context(), spec)
	require.Error(t, err)
	var guard *GuardError
	require.False(t, errors.As(err, &guard))

	there := setupReader(t, realKafka(t))
	err = there.Check(t.Context(), topic.Spec{Name: randomTopic("missing"), Partitions: 1})
	require.ErrorIs(t, err, sarama.ErrUnknownTopicOrPartition)
	require.False(t, errors.As(err, &guard))
}

func alter(t *testing.T, r *Reader, topic, setting, value string) {
	t.Helper()
	c := setupClient(t, r.kafka.Brokers)
	admin, err := sarama.NewClusterAdminFromClient(c)
	require.NoError(t, err)
	await.Until(t, func() bool {
		return admin.IncrementalAlterConfig(sarama.TopicResource, topic, map[string]sarama.IncrementalAlterConfigsEntry{
			setting: {Operation: sarama.IncrementalAlterConfigsOperationSet, Value: &value},
		}, false) == nil
	})
}

func TestATopicThatExpiresMustKeepItsRecordsLongEnough(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, brokers []string) {
		r := setupReader(t, brokers)
		made := topic.Spec{Name: randomTopic("expiring"), Kept: topic.Expiring, Retention: 30 * 24 * time.Hour, Partitions: 2, ReplicationFactor: 1}
		longer, shorter, forever := made, made, made
		longer.Retention, shorter.Retention = 31*24*time.Hour, time.Hour
		forever.Kept, forever.Retention = topic.Forever, 0
		require.NoError(t, r.Ensure(t.Context(), made))
		require.NoError(t, r.Ensure(t.Context(), longer), "one that is there is left as it is")
		await.Until(t, func() bool { return r.Check(t.Context(), made) == nil })
		require.NoError(t, r.Check(t.Context(), shorter))
		var guard *GuardError
		require.ErrorAs(t, r.Check(t.Context(), forever), &guard)
		require.Len(t, guard.Faults, 1)
		require.Contains(t, guard.Error(), "retention.ms must be -1 and is 2592000000")
		require.ErrorAs(t, r.Check(t.Context(), longer), &guard)
		require.Len(t, guard.Faults, 1)
		require.Contains(t, guard.Error(), "retention.ms must be at least 2678400000 and is 2592000000")
		alter(t, r, made.Name, timestampType, "CreateTime")
		await.Until(t, func() bool { return errors.As(r.Check(t.Context(), made), &guard) })
		require.Contains(t, guard.Error(), "message.timestamp.type must be LogAppendTime")
		alter(t, r, made.Name, timestampType, "LogAppendTime")
		alter(t, r, made.Name, retentionTime, "-1")
		await.Until(t, func() bool { return r.Check(t.Context(), longer) == nil })
	})
}

func TestACompactedTopicMustCompactAndNeverDelete(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, brokers []string) {
		r := setupReader(t, brokers)
		made := topic.Spec{Name: randomTopic("compacted"), Kept: topic.Compacted, Partitions: 2, ReplicationFactor: 1}
		require.NoError(t, r.Ensure(t.Context(), made))
		await.Until(t, func() bool { return r.Check(t.Context(), made) == nil })
		for _, policy := range []string{"delete", "compact,delete"} {
			alter(t, r, made.Name, cleanupPolicy, policy)
			var guard *GuardError
			await.Until(t, func() bool {
				return errors.As(r.Check(t.Context(), made), &guard) && guard.Faults[0].Found == policy
			})
			require.Contains(t, guard.Error(), "cleanup.policy must be compact and is "+policy)
		}
	})
}

// The count that is wanted has one of two settings, and the guard names the right one.
func TestTheGuardOfAClaimedTopicNamesItsOwnCount(t *testing.T) {
	t.Parallel()
	faults := judge(topic.Spec{Name: "t", Kept: topic.Expiring, Claimed: true, Partitions: 48}, 12, 1, map[string]string{
		timestampType: "LogAppendTime", retentionTime: "-1",
	})
	require.Len(t, faults, 1)
	require.Contains(t, faults[0].Why, "KAFKA_CLAIMED_PARTITIONS")
}

package kafka

import (
	"context"
	"testing"

	"github.com/Shopify/sarama"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/shared/await"
	"github.com/tidemark/tidemark/shared/topic"
)

func TestALogThatIsTrimmedUnderWayMakesTheServiceUnready(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, brokers []string) {
		for name, tc := range map[string]struct {
			accepted map[int32]int64
			reason   string // empty where the service stays ready
		}{
			"not accepted":     {map[int32]int64{}, "@2 before it: rows that are there stay"},
			"nobody may":       {nil, "a restart would refuse this log: bring the records back"},
			"another is named": {map[int32]int64{0: 5, 1: 1}, "/1 starts at offset 2"},
			"accepted":         {map[int32]int64{1: 2}, ""},
		} {
			r := setupReader(t, brokers)
			g, p := setupGuard(r, topic.Forever)
			g.o.WatchStart, g.o.AcceptStart = true, tc.accepted
			registry := prometheus.NewRegistry()
			g.o.Faults = NewFaults(registry)
			checks := make(chan error, 1)
			g.o.Checked = func(err error) {
				select {
				case checks <- err:
				default:
				}
			}
			require.NoError(t, g.Await(t.Context()))
			trim(t, brokers, g.o.Topic.Name, 1, 2)
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan struct{})
			go func() { defer close(ended); g.Keep(ctx) }()
			if tc.reason != "" {
				await.Until(t, func() bool { ready, _ := p.get(); return !ready }, name)
				_, reason := p.get()
				require.Contains(t, reason, tc.reason, name)
				require.NotContains(t, reason, "/0 starts", name)
				require.Equal(t, []string{"trimmed"}, found(t, registry, g.o.Topic.Name), name)
			} else {
				for range 3 { // the first may be of before
					require.NoError(t, <-checks, name)
				}
			}
			cancel()
			<-ended
			require.NoError(t, r.Check(t.Context(), g.o.Topic), "its settings are as they were")
		}
	})
}

// trim writes records to a partition and deletes those before an offset.
func trim(t *testing.T, brokers []string, of string, partition int32, before int64) {
	t.Helper()
	c := setupClient(t, brokers)
	c.Config().Producer.Return.Successes, c.Config().Producer.Partitioner = true, sarama.NewManualPartitioner
	p, err := sarama.NewSyncProducerFromClient(c)
	require.NoError(t, err)
	for range before + 1 {
		_, _, err := p.SendMessage(&sarama.ProducerMessage{Topic: of, Partition: partition, Value: sarama.StringEncoder("x")})
		require.NoError(t, err)
	}
	require.NoError(t, p.Close())
	admin, err := sarama.NewClusterAdminFromClient(c)
	require.NoError(t, err)
	require.NoError(t, admin.DeleteRecords(of, map[int32]int64{partition: before}))
}

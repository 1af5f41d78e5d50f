package kafka

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/Shopify/sarama"
	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/shared/await"
	"github.com/tidemark/tidemark/shared/config"
	"github.com/tidemark/tidemark/shared/topic"
)

// part is one part of a readiness.
type part struct {
	mu     sync.Mutex
	ready  bool
	reason string
}

func (p *part) Ready(string)             { p.set(true, "") }
func (p *part) Unready(_, reason string) { p.set(false, reason) }

func (p *part) set(ready bool, reason string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ready, p.reason = ready, reason
}

func (p *part) get() (bool, string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.ready, p.reason
}

func setupGuard(r *Reader, kept topic.Kept) (*Guard, *part) {
	p := &part{}
	return NewGuard(GuardOptions{
		Reader: r, Part: "log", Ready: p, Log: quiet(), Retry: 10 * time.Millisecond, Every: 20 * time.Millisecond,
		Topic: topic.Spec{Name: randomTopic("guard"), Kept: kept, Retention: 24 * time.Hour, Partitions: 2, ReplicationFactor: 1},
	}), p
}

func TestAGuardMakesItsTopicAndWatchesOverIt(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, brokers []string) {
		for kept, spoilt := range map[topic.Kept][2]string{
			topic.Forever: {retentionTime, "1000"}, topic.Expiring: {retentionTime, "1000"}, topic.Compacted: {cleanupPolicy, "delete"},
		} {
			r := setupReader(t, brokers)
			g, p := setupGuard(r, kept)
			require.NoError(t, g.Await(t.Context()))
			ready, _ := p.get()
			require.True(t, ready)
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan struct{})
			go func() { defer close(ended); g.Keep(ctx) }()

			alter(t, r, g.o.Topic.Name, spoilt[0], spoilt[1])
			await.Until(t, func() bool { ready, _ := p.get(); return !ready })
			_, reason := p.get()
			require.Contains(t, reason, spoilt[0])
			another, other := setupGuard(r, kept)
			another.o.Topic = g.o.Topic
			var unsafe *GuardError
			require.ErrorAs(t, another.Await(t.Context()), &unsafe, "a service does not start on it")
			_, reason = other.get()
			require.Contains(t, reason, spoilt[0])

			good := "-1"
			if kept == topic.Compacted {
				good = "compact"
			}
			alter(t, r, g.o.Topic.Name, spoilt[0], good)
			await.Until(t, func() bool { ready, _ := p.get(); return ready }, "it is mended")
			cancel()
			<-ended
		}
	})
}

func TestAGuardDoesNotMakeALostTopicAnew(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, brokers []string) {
		r := setupReader(t, brokers)
		g, p := setupGuard(r, topic.Forever)
		require.NoError(t, g.Await(t.Context()))
		admin, err := sarama.NewClusterAdminFromClient(setupClient(t, brokers))
		require.NoError(t, err)
		require.NoError(t, admin.DeleteTopic(g.o.Topic.Name))
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { defer close(ended); g.Keep(ctx) }()
		await.Until(t, func() bool { ready, _ := p.get(); return !ready })
		_, err = r.Partitions(t.Context(), g.o.Topic.Name)
		require.ErrorIs(t, err, ErrNoTopic)
		cancel()
		<-ended
	})
}

// A topic that the guard has just made is not safe before it is noted: whoever writes to it waits for that.
func TestAGuardWaitsUntilTheTopicItMadeIsNoted(t *testing.T) {
	t.Parallel()
	r := setupReader(t, embedded(t))
	g, p := setupGuard(r, topic.Forever)
	answers := []error{ErrNotKnown, ErrNotKnown, ErrNotKnown, errors.New("noted, and not read back yet"), nil, nil}
	var was []bool
	g.o.SameLog = func(context.Context, string) error {
		ready, _ := p.get()
		was = append(was, ready)
		answer := answers[0]
		answers = answers[1:]
		return answer
	}
	require.NoError(t, g.Await(t.Context()))
	require.Empty(t, answers)
	require.NotContains(t, was, true)
	ready, _ := p.get()
	require.True(t, ready)
}

func TestAGuardWaitsForABrokerThatIsMissing(t *testing.T) {
	t.Parallel()
	r := NewReader(config.Kafka{Brokers: []string{"127.0.0.1:1"}}, "test")
	defer func() { require.NoError(t, r.Close()) }()
	g, p := setupGuard(r, topic.Forever)
	checks := make(chan error, 100)
	g.o.Checked = func(err error) { checks <- err }
	cause := errors.New("told to stop")
	ctx, cancel := context.WithCancelCause(t.Context())
	awaited := make(chan error, 1)
	go func() { awaited <- g.Await(ctx) }()
	for range 2 {
		err := <-checks
		var unsafe *GuardError
		require.Error(t, err)
		require.False(t, errors.As(err, &unsafe))
	}
	ready, reason := p.get()
	require.False(t, ready)
	require.Contains(t, reason, "nothing listens at the addresses of KAFKA_BROKERS")
	cancel(cause)
	require.ErrorIs(t, <-awaited, cause)
}

func TestAGuardLooksAtOnceWhereItIsAskedTo(t *testing.T) {
	t.Parallel()
	brokers := embedded(t)
	r := setupReader(t, brokers)
	g, p := setupGuard(r, topic.Forever)
	g.o.Every = time.Hour
	require.NoError(t, g.Await(t.Context()))
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); g.Keep(ctx) }()
	admin, err := sarama.NewClusterAdminFromClient(setupClient(t, brokers))
	require.NoError(t, err)
	require.NoError(t, admin.DeleteTopic(g.o.Topic.Name))
	g.CheckNow()
	await.Until(t, func() bool {
		_, reason := p.get()
		return strings.Contains(reason, "is not there")
	})
	stop()
	<-done
}

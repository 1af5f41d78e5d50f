package kafka

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/Shopify/sarama"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/tidemark/tidemark/shared/await"
	"github.com/tidemark/tidemark/shared/config"
)

// A group that refuses a member is asked with growing pauses, and the log tells of equal refusals once a second.
func TestARefusedMemberPausesAndSaysItOnce(t *testing.T) {
	t.Parallel()
	c, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(1, "refused"))
	require.NoError(t, err)
	t.Cleanup(c.Close)
	var tries atomic.Int32
	c.ControlKey(int16(kmsg.JoinGroup), func(r kmsg.Request) (kmsg.Response, error, bool) {
		c.KeepControl()
		tries.Add(1)
		refusal := r.ResponseKind().(*kmsg.JoinGroupResponse)
		refusal.ErrorCode = kerr.GroupAuthorizationFailed.Code
		return refusal, nil, true
	})
	var said lines
	s, err := NewSubscriber(SubscriberOptions{
		Kafka: config.Kafka{Brokers: c.ListenAddrs()}, ClientID: "test", Group: "refused", BatchSize: 1,
		Log:   slog.New(slog.NewTextHandler(&said, nil)),
		SetUp: func(Session) error { return errors.New("this group takes nobody") }, CleanUp: func() {},
	})
	require.NoError(t, err)
	began := time.Now()
	batches, err := s.Subscribe(t.Context(), "refused")
	require.NoError(t, err)
	await.Until(t, func() bool { return tries.Load() >= 5 })
	took := time.Since(began)
	require.NoError(t, s.Close())
	for range batches {
		require.Fail(t, "a batch of a group that was not joined")
	}
	require.GreaterOrEqual(t, took, 750*time.Millisecond, "four pauses, of at least half of 0.1, 0.2, 0.4 and 0.8 s")
	refusals := bytes.Count(said.text(), []byte("not authorized"))
	require.Positive(t, refusals)
	require.LessOrEqual(t, refusals, 2+int(time.Since(began)/repeatEvery))
}

// A member that is told to stop while the broker takes connections and does not answer stops at once. Sarama waits for ten
// seconds, four times.
func TestJoiningEndsWithItsContext(t *testing.T) {
	t.Parallel()
	h := setupHangs(t)
	s, err := NewSubscriber(SubscriberOptions{
		Kafka: config.Kafka{Brokers: h.brokers}, ClientID: "test", Group: "hangs", BatchSize: 1, Log: quiet(),
		SetUp: func(Session) error { return nil }, CleanUp: func() {},
	})
	require.NoError(t, err)
	h.answers.Lock()
	ctx, end := context.WithCancel(t.Context())
	joining := make(chan error, 1)
	go func() {
		_, err := s.Subscribe(ctx, "hangs")
		joining <- err
	}()
	await.Until(t, func() bool {
		h.mu.Lock()
		defer h.mu.Unlock()
		return len(h.conns) > 0
	})
	end()
	select {
	case err = <-joining:
	case <-time.After(9 * time.Second): // Sarama's first wait is longer
	}
	h.answers.Unlock()
	require.ErrorIs(t, err, context.Canceled)
	require.NoError(t, s.Close())
	s.left.Wait() // the broker answers again
}

// Equal errors of one second are one line, which says how many came since the last one.
func TestEqualErrorsAreLoggedOnceASecond(t *testing.T) {
	t.Parallel()
	r := repeats{seen: map[string]*repeat{}}
	now := time.Now()
	require.Equal(t, 1, r.count("gone", now))
	for range 100 {
		require.Zero(t, r.count("gone", now.Add(repeatEvery/2)))
	}
	require.Equal(t, 1, r.count("another", now.Add(repeatEvery/2)))
	require.Equal(t, 101, r.count("gone", now.Add(repeatEvery)))
	require.Equal(t, 1, r.count("gone", now.Add(time.Hour)))
	require.Len(t, r.seen, 1, "what has not come for a minute is forgotten")
}

// Watermill's errors come to the watcher one by one, whatever the log leaves out.
func TestEveryErrorIsShownToTheWatcher(t *testing.T) {
	t.Parallel()
	var said lines
	seen := 0
	l := newWatermillLogger(slog.New(slog.NewTextHandler(&said, nil)), func(error) { seen++ })
	for range 10 {
		l.With(nil).Error("Group consume error", sarama.ErrFencedInstancedId, nil)
	}
	require.Equal(t, 10, seen)
	require.Equal(t, 1, bytes.Count(said.text(), []byte("Group consume error")))
}

// lines is a log that may be read while it is written.
type lines struct {
	mu   sync.Mutex
	said bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.said.Write(p)
}

func (l *lines) text() []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	return bytes.Clone(l.said.Bytes())
}

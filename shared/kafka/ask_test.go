package kafka

import (
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/Shopify/sarama"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kfake"

	"github.com/tidemark/tidemark/shared/await"
	"github.com/tidemark/tidemark/shared/config"
	"github.com/tidemark/tidemark/shared/topic"
)

// hangs is a broker that can be told to hang: it takes connections and requests, and its answers wait.
type hangs struct {
	brokers []string
	cluster *kfake.Cluster
	answers sync.RWMutex // locked while it hangs

	mu    sync.Mutex
	conns []*hangingConn
}

func setupHangs(t *testing.T) *hangs {
	t.Helper()
	h := &hangs{}
	c, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.ListenFn(func(network, address string) (net.Listener, error) {
		l, err := net.Listen(network, address)
		return hangingListener{l, h}, err
	}))
	require.NoError(t, err)
	t.Cleanup(c.Close)
	h.brokers, h.cluster = c.ListenAddrs(), c
	return h
}

// lose drops what is answered on the connections there are, from now on. New ones work.
func (h *hangs) lose() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, c := range h.conns {
		c.lost.Store(true)
	}
}

// cut is lose by a connection that ends.
func (h *hangs) cut() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, c := range h.conns {
		c.cut.Store(true)
	}
}

type hangingListener struct {
	net.Listener
	h *hangs
}

func (l hangingListener) Accept() (net.Conn, error) {
	inner, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	c := &hangingConn{Conn: inner, h: l.h}
	l.h.mu.Lock()
	defer l.h.mu.Unlock()
	l.h.conns = append(l.h.conns, c)
	return c, nil
}

type hangingConn struct {
	net.Conn
	h    *hangs
	lost atomic.Bool
	cut  atomic.Bool
}

func (c *hangingConn) Write(b []byte) (int, error) {
	c.h.answers.RLock()
	defer c.h.answers.RUnlock()
	if c.lost.Load() {
		return len(b), nil
	}
	if c.cut.Load() {
		return 0, c.Close()
	}
	return c.Conn.Write(b)
}

// calls are all calls of a reader.
func calls(r *Reader, name string) map[string]func(context.Context) error {
	spec, all := topic.Spec{Name: name, Partitions: 1, ReplicationFactor: 1}, []int32{0}
	missing := topic.Spec{Name: name + "-other", Partitions: 1, ReplicationFactor: 1}
	return map[string]func(context.Context) error{
		"ClusterID":        func(ctx context.Context) error { _, err := r.ClusterID(ctx); return err },
		"Partitions":       func(ctx context.Context) error { _, err := r.Partitions(ctx, name); return err },
		"Bounds":           func(ctx context.Context) error { _, err := r.Bounds(ctx, name, all); return err },
		"StableEnds":       func(ctx context.Context) error { _, err := r.StableEnds(ctx, name, all); return err },
		"OffsetsAt":        func(ctx context.Context) error { _, err := r.OffsetsAt(ctx, name, all, time.Now()); return err },
		"FirstStampedFrom": func(ctx context.Context) error { _, err := r.FirstStampedFrom(ctx, name, all, time.Now()); return err },
		"Committed": func(ctx context.Context) error {
			_, err := r.Committed(ctx, "g", name, all)
			if errors.Is(err, sarama.ErrIncompleteResponse) { // the embedded broker leaves out what a group never committed
				return nil
			}
			return err
		},
		"DeleteGroup": func(ctx context.Context) error { return r.DeleteGroup(ctx, "g") },
		"RecordAt":    func(ctx context.Context) error { _, _, err := r.RecordAt(ctx, name, 0, 0); return err },
		"ReadFrom":    func(ctx context.Context) error { _, _, err := r.ReadFrom(ctx, name, 0, 0); return err },
		"Explain":     func(ctx context.Context) error { _, err := r.Explain(ctx, name, 0, 0, 1); return err },
		"Ensure":      func(ctx context.Context) error { return r.Ensure(ctx, missing) },
		"Check":       func(ctx context.Context) error { return r.Check(ctx, spec) },
	}
}

// Half of Sarama's read timeout, and far above what a busy machine needs to see that a context has ended.
const soon = 5 * time.Second

func TestEveryCallEndsWithItsContextWhileTheBrokerHangs(t *testing.T) {
	t.Parallel()
	for name := range calls(nil, "") {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := setupHangs(t)
			r := setupReader(t, h.brokers)
			spec := topic.Spec{Name: "hangs", Partitions: 1, ReplicationFactor: 1}
			require.NoError(t, r.Ensure(t.Context(), spec))
			await.Until(t, func() bool { return r.Check(t.Context(), spec) == nil })
			call := calls(r, spec.Name)[name]
			require.NoError(t, call(t.Context()))

			h.answers.Lock()
			began := time.Now()
			for range 3 { // the first one hangs in its request, the next ones while they connect
				ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
				err := call(ctx)
				cancel()
				require.ErrorIs(t, err, context.DeadlineExceeded)
				require.ErrorContains(t, err, "the broker has not answered")
			}
			require.Less(t, time.Since(began), soon)
			h.answers.Unlock()
			require.NoError(t, call(t.Context()), "it goes on by itself")
		})
	}
}

func TestConnectingEndsWithItsContextAndIsDoneOnceForAll(t *testing.T) {
	t.Parallel()
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	accepted := make(chan net.Conn, 100)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			c, err := silent.Accept()
			if err != nil {
				return
			}
			accepted <- c
		}
	}()
	r := NewReader(config.Kafka{Brokers: []string{silent.Addr().String()}}, "test")
	began := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	var wg sync.WaitGroup
	for range 10 {
		wg.Go(func() {
			if _, err := r.ClusterID(ctx); err == nil {
				t.Error("nobody has answered")
			}
		})
	}
	wg.Wait()
	require.Less(t, time.Since(began), soon)
	require.NoError(t, r.Close())
	_, err = r.ClusterID(t.Context())
	require.ErrorIs(t, err, errReaderClosed)
	require.NoError(t, silent.Close())
	<-ended
	require.Len(t, accepted, 1, "ten who ask share one attempt")
	(<-accepted).Close()
}

// A call that was left behind must not take the connection from under the others.
func TestACallThatIsLeftBehindHarmsNoOther(t *testing.T) {
	t.Parallel()
	h := setupHangs(t)
	r := setupReader(t, h.brokers)
	_, err := r.ClusterID(t.Context())
	require.NoError(t, err)
	h.answers.Lock()
	patient := make(chan error, 1)
	go func() { _, err := r.ClusterID(t.Context()); patient <- err }()
	hasty, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err = r.ClusterID(hasty)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	h.answers.Unlock()
	require.NoError(t, <-patient)
}

// A network that forgets a connection (a firewall, a move of an address) must not cost more than the call that finds it.
func TestAConnectionWithoutAnswersIsGivenUp(t *testing.T) {
	t.Parallel()
	h := setupHangs(t)
	r := setupReader(t, h.brokers)
	_, err := r.ClusterID(t.Context())
	require.NoError(t, err)
	h.lose()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err = r.ClusterID(ctx)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	ctx, cancel = context.WithTimeout(t.Context(), soon)
	defer cancel()
	_, err = r.ClusterID(ctx)
	require.NoError(t, err, "on a new connection")
}

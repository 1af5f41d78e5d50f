package compose_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/Shopify/sarama"
	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/integration/stack"
	"github.com/tidemark/tidemark/integration/story"
	"github.com/tidemark/tidemark/shared/await"
	"github.com/tidemark/tidemark/shared/config"
	"github.com/tidemark/tidemark/shared/kafka"
	"github.com/tidemark/tidemark/shared/position"
)

// answer is what a POST got.
type answer struct {
	key      string // sent as Idempotency-Key
	status   int
	kind     string // the problem's type
	position string
	at       time.Time
}

func (a answer) accepted() bool { return a.status == http.StatusAccepted }

// stamp posts under a key of its own, a UUIDv7, so that even a refused command has a name to look for.
func (h *byHand) stamp(key string) (answer, error) {
	a := answer{key: key}
	got, err := h.do(http.MethodPost, "/api/v1/timestamp/2009-09-28T21:03:12%2B02:00", h.key, "Idempotency-Key", key)
	if err != nil {
		return a, err
	}
	a.status, a.kind, a.position, a.at = got.Status, got.Text("type"), got.Header.Get("Tidemark-Position"), time.Now()
	if id := got.Text("id"); a.accepted() && id != key {
		return a, fmt.Errorf("the ticket of %s is %s", key, id)
	}
	return a, nil
}

func newID() string { return uuid.Must(uuid.NewV7()).String() }

// writers post through the front until they are stopped, and keep every answer.
type writers struct {
	stop     context.CancelFunc
	posting  sync.WaitGroup
	accepted atomic.Int64

	mu      sync.Mutex
	answers []answer
	failed  error
}

func startWriters(h *byHand, n int) *writers {
	ctx, stop := context.WithCancel(h.t.Context())
	w := &writers{stop: stop}
	h.t.Cleanup(w.close)
	for range n {
		w.posting.Go(func() {
			for ctx.Err() == nil {
				a, err := h.stamp(newID())
				w.mu.Lock()
				w.answers, w.failed = append(w.answers, a), err
				w.mu.Unlock()
				switch {
				case err != nil:
					return
				case a.accepted():
					w.accepted.Add(1)
				default:
					time.Sleep(20 * time.Millisecond) // a client that is refused comes again
				}
			}
		})
	}
	return w
}

func (w *writers) close() {
	w.stop()
	w.posting.Wait()
}

// goOn requires that tickets are given: n more from now on.
func (w *writers) goOn(t *testing.T, n int64, when string) {
	t.Helper()
	from, began := w.accepted.Load(), time.Now()
	await.Until(t, func() bool { return w.accepted.Load() >= from+n }, "no tickets %s", when)
	t.Logf("%d tickets %s after %s", n, when, time.Since(began).Round(time.Millisecond))
}

// inSync waits until every partition of the topic has all three replicas.
func inSync(t *testing.T, brokers []string) {
	t.Helper()
	began, left := time.Now(), ""
	await.Until(t, func() bool {
		c, err := kafka.NewClient(config.Kafka{Brokers: brokers}, "test")
		if err != nil {
			left = err.Error()
			return false
		}
		defer func() { _ = c.Close() }()
		partitions, err := c.Partitions(story.Topic)
		if err != nil || len(partitions) != 12 {
			left = fmt.Sprint(len(partitions), " partitions ", err)
			return false
		}
		for _, p := range partitions {
			isr, err := c.InSyncReplicas(story.Topic, p)
			if err != nil || len(isr) < 3 {
				left = fmt.Sprint("partition ", p, " has in sync ", isr, " ", err)
				return false
			}
		}
		return true
	}, "not in sync: %s", &left)
	t.Logf("all replicas are in sync after %s", time.Since(began).Round(time.Millisecond))
}

// leader is the address of the broker that leads the partition.
func leader(t *testing.T, brokers []string, partition int32) string {
	t.Helper()
	c, err := kafka.NewClient(config.Kafka{Brokers: brokers}, "test")
	require.NoError(t, err)
	defer func() { require.NoError(t, c.Close()) }()
	b, err := c.Leader(story.Topic, partition)
	require.NoError(t, err)
	return b.Addr()
}

// highWatermarks are the ends of what all in-sync replicas have, of the partitions that the broker leads. While it is alone
// they stand still.
func highWatermarks(t *testing.T, broker string) map[int32]int64 {
	t.Helper()
	ends := map[int32]int64{}
	await.NoError(t, func() (err error) {
		c, err := kafka.NewClient(config.Kafka{Brokers: []string{broker}}, "test")
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, c.Close()) }()
		partitions, err := c.Partitions(story.Topic)
		if err != nil {
			return err
		}
		for _, p := range partitions {
			leader, err := c.Leader(story.Topic, p)
			if err != nil || leader.Addr() != broker {
				continue // it died
			}
			if ends[p], err = c.GetOffset(story.Topic, p, sarama.OffsetNewest); err != nil {
				return err
			}
		}
		if len(ends) == 0 {
			return errors.New("it leads no partition")
		}
		return nil
	})
	return ends
}

// requireAcknowledgedByTwo looks at the topic itself, which has its settings from when it was made.
func requireAcknowledgedByTwo(t *testing.T, brokers []string) {
	t.Helper()
	log, err := story.OpenLog(brokers)
	require.NoError(t, err)
	defer func() { require.NoError(t, log.Close()) }()
	entries, err := log.Admin().DescribeConfig(sarama.ConfigResource{Type: sarama.TopicResource, Name: story.Topic, ConfigNames: []string{"min.insync.replicas"}})
	require.NoError(t, err)
	require.Equal(t, "2", entries[0].Value)
}

// TestThreeBrokers starts what docker-compose.cluster.yml says by hand, writes through the front, and takes brokers away:
// each in its turn, and two at once, when there is no ticket to be had.
func TestThreeBrokers(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	h := newByHand(t, "cluster")
	database, err := stack.StartPostgres(ctx)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, database.Close()) })
	url, err := database.CreateDatabase(ctx, "tidemark_cluster")
	require.NoError(t, err)
	cluster := h.cluster(ctx)
	h.run(url)

	requireAcknowledgedByTwo(t, cluster.Brokers())
	inSync(t, cluster.Brokers())

	w := startWriters(h, 8)
	w.goOn(t, 200, "with three brokers")
	nodes := cluster.Nodes()
	for i, k := range nodes {
		require.NoError(t, k.Kill())
		w.goOn(t, 200, fmt.Sprintf("while kafka-%d is down", i+1))
		require.NoError(t, k.Start(ctx))
		w.goOn(t, 200, fmt.Sprintf("while kafka-%d catches up", i+1))
		inSync(t, cluster.Brokers())
	}

	// One broker has every record and may take none: a ticket would stand on one disk.
	survivor := leader(t, cluster.Brokers(), 0) // whoever leads nothing is alone with nothing to take
	var killed []*stack.Kafka
	for _, k := range nodes {
		if k.Brokers()[0] != survivor {
			require.NoError(t, k.Kill())
			killed = append(killed, k)
		}
	}
	require.Len(t, killed, 2)
	alone := time.Now()
	replicated := highWatermarks(t, survivor)
	time.Sleep(8 * time.Second) // in which it may take nothing: some deadlines and retries of the publishers
	together := time.Now()      // it may take writes before it is known to listen
	require.NoError(t, killed[1].Start(ctx))
	w.goOn(t, 200, "with two brokers again")
	require.NoError(t, killed[0].Start(ctx))
	inSync(t, cluster.Brokers())
	w.goOn(t, 200, "with three again")
	w.close()
	require.NoError(t, w.failed)
	for _, a := range w.answers {
		if !a.accepted() || a.at.Before(alone) || a.at.After(together) {
			continue
		}
		// What two had before the second one died may be told later: a flight lands as a whole.
		at, err := position.Parse(a.position)
		require.NoError(t, err)
		if end, ok := replicated[at.Partition]; ok {
			require.Less(t, at.Offset, end, "a ticket for what one broker alone had: %+v", a)
		}
	}

	// An unknown one is sent again under its key, and then it is there.
	for i, a := range w.answers {
		if a.kind != "/problems/outcome-unknown" {
			continue
		}
		await.Until(t, func() bool {
			again, err := h.stamp(a.key)
			require.NoError(t, err)
			w.answers[i] = again
			return again.accepted()
		})
	}
	log, err := story.OpenLog(cluster.Brokers()) // a client that has seen none of it
	require.NoError(t, err)
	t.Cleanup(func() { _ = log.Close() })
	var records []story.Record
	var ends story.Vector
	require.NoError(t, story.Eventually(ctx, "read the log", func(ctx context.Context) (err error) {
		records, ends, err = log.Read(ctx, nil)
		return err
	}))
	keyAt, places := map[string]string{}, map[string]int{}
	for _, r := range records {
		keyAt[r.Position()] = string(r.Key)
		places[string(r.Key)]++
	}
	kinds := map[string]int{}
	for _, a := range w.answers {
		switch {
		case a.accepted():
			kinds["accepted"]++
			require.Equal(t, a.key, keyAt[a.position], "no ticket without its record: %+v", a)
		default:
			kinds[a.kind]++
			require.Equal(t, http.StatusServiceUnavailable, a.status, "%+v", a)
			require.Zero(t, places[a.key], "nothing was to be written, and there it is: %+v", a)
		}
	}
	t.Log(kinds, len(records), "records")

	// And every one of them becomes its row, by two consumers, and is read through the front.
	expected := story.Expect(records, story.Rules{})
	db := connect(t, url)
	require.NoError(t, story.Eventually(ctx, "the projection", func(ctx context.Context) error {
		var rows int
		if err := db.QueryRowContext(ctx, "SELECT count(*) FROM public.timestamp_records").Scan(&rows); err != nil {
			return err
		}
		if rows < expected.Count {
			return fmt.Errorf("%d rows of %d", rows, expected.Count)
		}
		return nil
	}))
	d, err := story.Timestamps.ReadDump(ctx, db)
	require.NoError(t, err)
	expected.Require(t, ends, d)
	require.NoError(t, story.Timestamps.CleanAudit(ctx, db))
	held := 0
	for _, name := range []string{"consumer-service", "consumer-service-2"} {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, h.services[name].URL()+"/metrics", nil)
		require.NoError(t, err)
		req.Header.Set("Authorization", "Bearer "+h.key)
		a := ask(t, req)
		require.Equal(t, 200, a.Status)
		n := strings.Count(string(a.Body), `projection="timestamps"`)
		require.Positive(t, n, "%s holds no partition", name)
		held += n
	}
	require.GreaterOrEqual(t, held, 12)
	h.requireFront(w.answers[len(w.answers)-1])
}

// requireFront asks through the front what each of the services answers there.
func (h *byHand) requireFront(last answer) {
	h.t.Helper()
	for _, c := range []struct {
		method, path, key string
		status            int
	}{
		{http.MethodGet, "/api/v1/timestamp/" + last.key, h.key, http.StatusOK},
		{http.MethodGet, "/api/v1/timestamp/" + last.key, "", http.StatusUnauthorized},
		{http.MethodPost, "/api/v1/timestamp", "", http.StatusUnauthorized},
		{http.MethodPost, "/app", h.key, http.StatusOK},
		{http.MethodGet, "/api/v1/timestamps", h.key, http.StatusOK},
		{http.MethodGet, "/api/v1/projections/timestamps/generations", h.key, http.StatusOK},
		{http.MethodPost, "/api/v1/projections/timestamps/audit", h.key, http.StatusOK},
		{http.MethodPost, "/api/v1/rebuilds", "", http.StatusUnauthorized},
		{http.MethodGet, "/metrics", h.key, http.StatusNotFound},
		{http.MethodGet, "/health", "", http.StatusOK},
	} {
		a, err := h.do(c.method, c.path, c.key)
		require.NoError(h.t, err)
		require.Equal(h.t, c.status, a.Status, "%s %s: %s", c.method, c.path, a)
	}
	a, err := h.do(http.MethodPost, "/api/v1/timestamp", h.key)
	require.NoError(h.t, err)
	require.True(h.t, strings.HasPrefix(a.Header.Get("Location"), h.front+"/api/v1/tickets/"), "it leads to the front: %s", a.Header.Get("Location"))
}

package app

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/query-service/internal/testdb"
	"github.com/tidemark/tidemark/shared/await"
	"github.com/tidemark/tidemark/shared/position"
)

// fakeLog is a log in memory with a consumer behind it: what is appended gets a position at once, and
// becomes rows some milliseconds later, a batch and its progress in one transaction.
type fakeLog struct {
	mu      sync.Mutex
	records [testdb.Partitions][]testdb.Row
	arrived [testdb.Partitions]chan struct{}
}

func newFakeLog() *fakeLog {
	l := &fakeLog{}
	for p := range l.arrived {
		l.arrived[p] = make(chan struct{}, 1)
	}
	return l
}

func (l *fakeLog) append(id uuid.UUID) position.Position {
	p := rand.IntN(testdb.Partitions)
	l.mu.Lock()
	l.records[p] = append(l.records[p], testdb.Row{ID: id, Stamp: stamp})
	at := testdb.At(int32(p), int64(len(l.records[p])-1))
	l.mu.Unlock()
	select {
	case l.arrived[p] <- struct{}{}:
	default: // it knows already
	}
	return at
}

// project reads on from what the database says, until ctx ends. started is held while an epoch begins.
func (l *fakeLog) project(ctx context.Context, db *testdb.DB, p int32, started *sync.RWMutex) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-l.arrived[p]:
		case <-time.After(20 * time.Millisecond):
		}
		started.RLock()
		var next int64
		err := db.Get(&next, `SELECT next_offset FROM projection_progress WHERE partition = $1`, p)
		if err == nil {
			l.mu.Lock()
			end := min(int64(len(l.records[p])), next+500)
			batch := l.records[p][next:end]
			l.mu.Unlock()
			if len(batch) > 0 {
				err = db.Project(context.WithoutCancel(ctx), p, batch...)
			}
		}
		started.RUnlock()
		if err != nil {
			return err
		}
	}
}

// Three thousand reads, each with the position of a record that was accepted a moment ago, while the
// projection is started over now and then: every answer has the record.
func TestReadYourWritesIsNeverStale(t *testing.T) {
	t.Parallel()
	db, s := setup(t)
	l := newFakeLog()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var started sync.RWMutex
	var background sync.WaitGroup
	for p := range int32(testdb.Partitions) {
		background.Go(func() {
			if err := l.project(ctx, db, p, &started); err != nil {
				t.Error(err)
			}
		})
	}
	restarts := 0
	background.Go(func() {
		for range 5 {
			select {
			case <-ctx.Done():
				return
			case <-time.After(500 * time.Millisecond):
			}
			started.Lock() // one writer: the consumer's fence is not what is tested here
			err := db.StartOver(context.WithoutCancel(ctx))
			started.Unlock()
			if err != nil {
				t.Error(err)
			}
			restarts++
		}
	})

	const readers, each = 50, 60
	var stale, ok atomic.Int64
	var work sync.WaitGroup
	for r := range readers {
		work.Go(func() {
			for i := range each {
				id := uuid.Must(uuid.NewV7())
				at := l.append(id)
				path := "/api/v1/timestamp/" + id.String()
				if (r+i)%3 == 0 {
					path = "/api/v1/tickets/" + id.String()
				}
				a, err := s.do(t.Context(), http.MethodGet, path+"?wait=30s", "", position.Header, at.String())
				switch {
				case err != nil:
					t.Error(err)
				case a.status == http.StatusOK && (r+i)%3 == 0 && !strings.Contains(a.body, `"state":"applied"`):
					stale.Add(1)
					t.Errorf("stale ticket: %s", a.body)
				case a.status == http.StatusOK:
					ok.Add(1)
				default:
					stale.Add(1)
					t.Errorf("%s at %s: %d %s", id, at, a.status, a.body)
				}
			}
		})
	}
	work.Wait()
	cancel()
	background.Wait()
	require.Zero(t, stale.Load())
	require.EqualValues(t, readers*each, ok.Load())
	require.Positive(t, restarts)
}

// proxy stands before the database and can cut it off.
type proxy struct {
	net.Listener
	target string
	mu     sync.Mutex
	cut    bool
	conns  []net.Conn
	wg     sync.WaitGroup
}

func newProxy(t *testing.T, db *testdb.DB) (*proxy, string) {
	t.Helper()
	u, err := url.Parse(db.URL)
	require.NoError(t, err)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	p := &proxy{Listener: listener, target: u.Host}
	p.wg.Go(p.serve)
	t.Cleanup(func() { require.NoError(t, p.Close()); p.set(true); p.wg.Wait() })
	u.Host = listener.Addr().String()
	return p, u.String()
}

func (p *proxy) serve() {
	for {
		client, err := p.Accept()
		if err != nil {
			return
		}
		p.mu.Lock()
		server, err := net.Dial("tcp", p.target)
		if p.cut || err != nil {
			_ = client.Close()
			if err == nil {
				_ = server.Close()
			}
			p.mu.Unlock()
			continue
		}
		p.conns = append(p.conns, client, server)
		p.wg.Go(func() { _, _ = io.Copy(server, client); _ = server.Close() })
		p.wg.Go(func() { _, _ = io.Copy(client, server); _ = client.Close() })
		p.mu.Unlock()
	}
}

func (p *proxy) set(cut bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cut = cut
	if cut {
		for _, c := range p.conns {
			_ = c.Close()
		}
		p.conns = nil
	}
}

func TestADatabaseThatIsDownIsReportedAndWaitedFor(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	p, through := newProxy(t, db)
	s := start(t, through, nil)
	s.awaitReady(t)
	id := uuid.New()
	require.NoError(t, db.Project(t.Context(), 0, testdb.Row{ID: id, Stamp: stamp}))
	path := "/api/v1/timestamp/" + id.String()
	require.Equal(t, 200, s.get(t, path).status)

	p.set(true)
	a := s.get(t, path)
	require.Equal(t, 503, a.status, a.body)
	require.NotEmpty(t, a.header.Get("Retry-After"))
	require.Equal(t, "application/problem+json", a.header.Get("Content-Type"))
	require.Equal(t, "/problems/database-down", a.object(t)["type"])
	require.NotContains(t, a.body, "127.0.0.1", "no internal text")
	await.Until(t, func() bool { return s.get(t, "/ready").status == 503 })
	require.Equal(t, 200, s.get(t, "/health").status)
	page := s.get(t, "/")
	require.Equal(t, 200, page.status)
	require.Contains(t, page.body, "The projections cannot be read.")
	require.Equal(t, 503, s.get(t, "/records").status)

	// A read that has patience gets its answer when the database is back.
	done := make(chan error, 1)
	go func() {
		a, err := s.do(context.WithoutCancel(t.Context()), http.MethodGet, path+"?wait=10s&position=timestamp.command.v1/0@1", "")
		if err == nil && a.status != http.StatusOK {
			err = errors.New(fmt.Sprint(a.status, a.body))
		}
		done <- err
	}()
	time.Sleep(300 * time.Millisecond) // the read tries in vain; the answer is the same where it comes later
	p.set(false)
	require.NoError(t, db.Project(t.Context(), 0, testdb.Row{ID: uuid.New(), Stamp: stamp}))
	require.NoError(t, <-done)
	s.awaitReady(t)
	require.Equal(t, 200, s.get(t, path).status)
}

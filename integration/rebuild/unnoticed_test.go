package rebuild_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/integration/story"
	"github.com/tidemark/tidemark/shared/await"
)

// users write and read their writes, and look whether anything goes back in time, until they are told to
// stop. The first thing that is not as it should be ends up in failed.
type users struct {
	*story.Client
	command, query string

	writes, reads atomic.Int64
	slowest       atomic.Int64 // a read without a wait, in nanoseconds
	failed        chan error
	stop          context.CancelFunc
	busy          sync.WaitGroup
}

// writesASecond, by writers that take turns.
const (
	writesASecond = 500
	writers       = 20
)

func startUsers(ctx context.Context, command, query string) *users {
	ctx, stop := context.WithCancel(ctx)
	u := &users{Client: story.NewClient(time.Minute), command: command, query: query, failed: make(chan error, writers+2), stop: stop}
	for w := range writers {
		u.busy.Go(func() {
			tick := time.NewTicker(time.Second * writers / writesASecond)
			defer tick.Stop()
			for i := 0; ; i++ {
				select {
				case <-ctx.Done():
					return
				case <-tick.C:
				}
				at := time.Date(2012, 1, 1, 0, 0, 0, 0, time.UTC).Add(time.Duration(i*writers+w) * time.Second).Format(time.RFC3339)
				if err := u.writeAndRead(ctx, at, i%2 == 0); err != nil && ctx.Err() == nil {
					u.failed <- err
					return
				}
			}
		})
	}
	u.busy.Go(func() {
		last := map[string]int64{}
		for ctx.Err() == nil {
			if err := u.forward(ctx, last); err != nil && ctx.Err() == nil {
				u.failed <- err
				return
			}
		}
	})
	return u
}

func (u *users) writeAndRead(ctx context.Context, at string, read bool) error {
	ticket, err := u.StampOnce(ctx, u.command, at)
	if err != nil {
		return err
	}
	u.writes.Add(1)
	if !read {
		return nil
	}
	a, err := u.Get(ctx, u.query+"/api/v1/timestamp/"+ticket.ID+"?wait=30s", "Tidemark-Position", ticket.Position)
	if err != nil {
		return err
	}
	if a.Status != http.StatusOK || a.Text("event_timestamp") != at {
		return fmt.Errorf("the read of %s at %s, stamped %s, was answered %s", ticket.ID, ticket.Position, at, a)
	}
	u.reads.Add(1)
	return nil
}

// forward looks at the projection once more: no partition may be behind what was seen of it before.
func (u *users) forward(ctx context.Context, last map[string]int64) error {
	start := time.Now()
	a, err := u.Get(ctx, u.query+"/api/v1/projections/timestamps")
	if err != nil {
		return err
	}
	if a.Status != http.StatusOK {
		return fmt.Errorf("the projection was answered %s", a)
	}
	u.slowest.Store(max(u.slowest.Load(), int64(time.Since(start))))
	u.reads.Add(1)
	var status struct {
		CaughtUpAt *string `json:"caught_up_at"`
		Partitions []struct {
			Partition int32
			Next      int64 `json:"next_offset"`
		}
	}
	if err := json.Unmarshal(a.Body, &status); err != nil {
		return err
	}
	now := map[string]int64{}
	for _, p := range status.Partitions {
		now[fmt.Sprint("partition ", p.Partition)] = p.Next
	}
	if status.CaughtUpAt != nil {
		at, err := time.Parse(time.RFC3339Nano, *status.CaughtUpAt)
		if err != nil {
			return err
		}
		now["caught up"] = at.UnixNano()
	}
	for what, was := range last {
		if now[what] < was {
			return fmt.Errorf("%s went back from %d to %d: %s", what, was, now[what], a)
		}
	}
	for what, is := range now {
		last[what] = is
	}
	return nil
}

func (u *users) end(t *testing.T) {
	t.Helper()
	u.stop()
	u.busy.Wait()
	u.Close()
	select {
	case err := <-u.failed:
		require.NoError(t, err, "somebody noticed")
	default:
	}
	require.Positive(t, u.writes.Load())
	require.Positive(t, u.reads.Load())
}

// A rebuild runs and swaps while others write and read their writes: no error, nobody who is told to come again, no stale answer,
// nothing that goes back in time. So does a rollback, after more records, two swaps in a row, and a swap while somebody
// holds a transaction. No read waits for a table longer than a swap may hold readers up: the server's log tells.
func TestNobodyNotices(t *testing.T) {
	rows := size(t, "TEST_REBUILD_ROWS", 100_000)
	s := story.New(t)
	door, consumer := s.Door(), s.Consumer("")
	query := s.Reader()
	fill(t, s.Log, rows)
	before := s.RequireProjected(s.DB)
	upTo, err := before.UpTo()
	require.NoError(t, err)
	op := api{t, s.Client, consumer}

	u := startUsers(t.Context(), door.URL(), query.URL())
	g := op.start("")
	require.Equal(t, "filling", g.State)
	require.Equal(t, s.Group+fmt.Sprintf(".g%d", g.Generation), g.Group)
	op.untilServes(g.Generation)
	standby := op.untilState(0, "standby")
	require.Equal(t, "timestamps_g0", standby.Schema)
	t.Logf("swapped after %d writes and %d reads, the slowest look took %s", u.writes.Load(), u.reads.Load(), time.Duration(u.slowest.Load()))
	u.end(t)

	after := s.RequireProjected(s.DB)
	below, err := after.Below(upTo)
	require.NoError(t, err)
	below.Outcomes = before.Outcomes // the users' records are counted as well, and all of them are rows
	story.RequireSame(t, before, below)
	s.RequireCleanAudit(s.DB)

	fill(t, s.Log, 10_000)
	u = startUsers(t.Context(), door.URL(), query.URL())
	op.swap(0)
	op.untilServes(0) // a rollback
	op.untilState(g.Generation, "standby")
	op.swap(g.Generation)
	op.untilServes(g.Generation)
	op.swap(0)
	op.untilServes(0)
	u.end(t)
	s.RequireProjected(s.DB)

	u = startUsers(t.Context(), door.URL(), query.URL())
	givenUp := swapsGivenUp(t, op)
	tx, err := s.DB.BeginTx(t.Context(), &sql.TxOptions{ReadOnly: true})
	require.NoError(t, err)
	var n int
	require.NoError(t, tx.QueryRowContext(t.Context(), `SELECT count(*) FROM (SELECT FROM public.timestamp_records LIMIT 1) t`).Scan(&n))
	op.swap(g.Generation)
	began := u.reads.Load()
	await.Until(t, func() bool { return swapsGivenUp(t, op) >= givenUp+3 }, "the swap tries, and gives way to the reader")
	t.Logf("%d reads while a transaction was held, the slowest look took %s", u.reads.Load()-began, time.Duration(u.slowest.Load()))
	require.Greater(t, u.reads.Load(), began)
	require.Equal(t, 0, op.all(t.Context())[0].Generation, "the reader still holds the tables")
	require.NoError(t, tx.Rollback())
	op.untilServes(g.Generation)
	u.end(t)
	require.Empty(t, s.Postgres.ReadsHeldUp(database(t, s.DB)), "nobody waited for a table longer than a swap may hold readers up")
	s.RequireProjected(s.DB)
	s.RequireCleanAudit(s.DB)

	op.drop(0)
	op.untilGone(0)
	await.Until(t, func() bool { return traces(t, s) == "" }, "%s", traces(t, s))
}

func database(t *testing.T, db *sql.DB) (name string) {
	t.Helper()
	require.NoError(t, db.QueryRowContext(t.Context(), `SELECT current_database()`).Scan(&name))
	return name
}

func swapsGivenUp(t *testing.T, op api) (n int) {
	t.Helper()
	_, body := op.do(http.MethodGet, "/metrics", "")
	for line := range strings.Lines(string(body)) {
		if _, err := fmt.Sscanf(line, `tidemark_rebuild_swaps_total{outcome="given_up",projection="timestamps"} %d`, &n); err == nil {
			return n
		}
	}
	return 0
}

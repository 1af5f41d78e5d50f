package integration_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/integration/stack"
	"github.com/tidemark/tidemark/integration/story"
)

// One DB_URL names a primary and its replica. The primary dies, the replica is promoted, and the services go on by
// themselves: every command that was accepted has its row, and every offset its outcome.
func TestServicesFollowThePromotedReplica(t *testing.T) {
	for name, lost := range map[string]int{"the replica has everything": 0, "the replica lost what came last": 100} {
		t.Run(name, func(t *testing.T) {
			f := newFailover(t)
			t.Log("stamp 200 times, and wait until the replica has them")
			f.stamp(200)
			f.RequireProjected(f.DB)
			f.awaitReplica()
			was, epoch := f.progress(), f.Epoch(f.DB)

			if lost > 0 {
				t.Logf("cut the replication, stamp %d times, and wait until their receipts are out", lost)
				f.replica.Link.Cut()
				f.stamp(lost)
				f.RequireProjected(f.DB)
				f.awaitReceipts()
			}
			t.Log("kill the primary; commands are accepted all the same")
			require.NoError(t, f.primary.Signal(os.Kill))
			<-f.primary.Done()
			f.stamp(50)

			t.Log("promote the replica")
			require.NoError(t, f.replica.Promote(t.Context()))
			f.DB = f.Connect(on(t, f.replica.Postgres, "one"))
			f.RequireProjected(f.DB)
			for _, s := range []*stack.Service{f.consumer, f.reader} {
				f.Ready(s)
			}
			f.RequireCleanAudit(f.DB)
			f.stamp(50) // each is read with its position
			f.RequireProjected(f.DB)
			f.awaitReceipts()
			f.requireReceipts(was, epoch, lost > 0)
		})
	}
}

type failover struct {
	*story.Story
	t                      *testing.T
	primary                *stack.Postgres
	replica                *stack.Replica
	door, consumer, reader *stack.Service
}

func newFailover(t *testing.T) *failover {
	f := &failover{Story: story.NewOnKafka(t, "a failover of the database concerns no broker"), t: t}
	var err error
	t.Log("start a primary and its replica, and the services on both")
	f.primary, err = stack.StartPostgres(t.Context())
	require.NoError(t, err)
	t.Cleanup(func() { _ = f.primary.Close() }) // it was killed
	_, err = f.primary.CreateDatabase(t.Context(), "one")
	require.NoError(t, err)
	f.replica, err = f.primary.StartReplica(t.Context())
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, f.replica.Close()) })
	f.DB = f.Connect(on(t, f.primary, "one"))
	u, err := url.Parse(on(t, f.primary, "one"))
	require.NoError(t, err)
	u.Host = f.replica.Address() + "," + f.primary.Address() // the standby first: it is passed over
	f.DBURL = u.String()
	f.door, f.consumer, f.reader = f.Door(), f.Consumer(""), f.Reader()
	return f
}

func on(t *testing.T, server *stack.Postgres, database string) string {
	t.Helper()
	u, err := url.Parse(server.URL())
	require.NoError(t, err)
	u.Path = "/" + database
	return u.String()
}

// stamp writes n commands. While a database is there, the last of them is read by its position.
func (f *failover) stamp(n int) {
	f.t.Helper()
	var last story.Ticket
	for range n {
		var err error
		last, err = f.Client.StampOnce(f.t.Context(), f.door.URL(), "")
		require.NoError(f.t, err)
	}
	select {
	case <-f.primary.Done():
		if f.DB.PingContext(f.t.Context()) != nil {
			return // nothing can be read yet
		}
	default:
	}
	ctx, cancel := context.WithTimeout(f.t.Context(), story.Patience)
	defer cancel()
	_, err := f.Client.Until(ctx, http.StatusOK, f.reader.URL()+"/api/v1/timestamp/"+last.ID, "Tidemark-Position", last.Position)
	require.NoError(f.t, err)
}

func (f *failover) progress() story.Vector {
	f.t.Helper()
	v, err := f.Projection.Progress(f.t.Context(), f.DB)
	require.NoError(f.t, err)
	return v
}

func (f *failover) eventually(what string, try func(context.Context) error) {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(f.t.Context(), story.Patience)
	defer cancel()
	require.NoError(f.t, story.Eventually(ctx, what, try))
}

func (f *failover) awaitReplica() {
	f.t.Helper()
	f.eventually("wait for the replica", func(ctx context.Context) error {
		there, err := f.replica.CaughtUp(ctx, f.primary)
		if err == nil && !there {
			err = fmt.Errorf("it is behind")
		}
		return err
	})
}

// awaitReceipts waits until all that was decided on is told.
func (f *failover) awaitReceipts() {
	f.t.Helper()
	f.eventually("wait for the outbox", func(ctx context.Context) error {
		var left int // but for what idle partitions tell again and again
		err := f.DB.QueryRowContext(ctx, "SELECT count(*) FROM public.projection_receipt_outbox WHERE next_offset > from_offset").Scan(&left)
		if err == nil && left > 0 {
			err = fmt.Errorf("%d receipts are left", left)
		}
		return err
	})
}

// requireReceipts requires an outcome of every offset. What the replica had not got is told twice, and the one with the
// later decided_at is of a later epoch.
func (f *failover) requireReceipts(kept story.Vector, before int64, lost bool) {
	f.t.Helper()
	type receipt struct {
		Topic     string    `json:"topic"`
		Epoch     int64     `json:"epoch"`
		Partition int32     `json:"partition"`
		From      int64     `json:"from"`
		Next      int64     `json:"next"`
		DecidedAt time.Time `json:"decided_at"`
	}
	records, _, err := f.Log.On(story.ReceiptTopic).Read(f.t.Context(), nil)
	require.NoError(f.t, err)
	told := map[int32]map[int64][]receipt{}
	seen := map[string]bool{}
	for _, r := range records {
		var one receipt
		require.NoError(f.t, json.Unmarshal(r.Value, &one))
		if one.Topic != f.Projection.Topic || seen[string(r.Value)] {
			continue
		}
		seen[string(r.Value)] = true
		if told[one.Partition] == nil {
			told[one.Partition] = map[int64][]receipt{}
		}
		for at := one.From; at < one.Next; at++ {
			told[one.Partition][at] = append(told[one.Partition][at], one)
		}
	}
	twice := 0
	for partition, end := range f.progress() {
		for at := range end {
			of := told[partition][at]
			require.NotEmpty(f.t, of, "no receipt tells of offset %d of partition %d", at, partition)
			if len(of) == 1 {
				continue
			}
			twice++
			require.GreaterOrEqual(f.t, at, kept[partition], "what the replica had is decided once")
			require.Len(f.t, of, 2)
			require.Equal(f.t, before, of[0].Epoch)
			require.Greater(f.t, of[1].Epoch, before, "no epoch is drawn twice")
			require.True(f.t, of[1].DecidedAt.After(of[0].DecidedAt))
		}
	}
	if lost {
		require.Equal(f.t, 100, twice, "of all that was lost there are two receipts")
	} else {
		require.Zero(f.t, twice)
	}
	f.t.Logf("%d offsets were told twice", twice)
}

package fault_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"flag"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/integration/story"
)

var receiptFaultsFlag = flag.Int("receipt-faults", 15, "how many random faults the receipts go through")

// publishLock is what consumer-service's publisher of receipts holds in the database while it publishes.
const publishLock = 0x7469_6465_7265_6370

// receipt is one as any client reads it.
type receipt struct {
	Group      string `json:"group"`
	Generation int    `json:"generation"`
	Epoch      int64  `json:"epoch"`
	Topic      string `json:"topic"`
	Partition  int32  `json:"partition"`
	From       int64  `json:"from"`
	Next       int64  `json:"next"`
	Outcomes   []struct {
		Outcome string `json:"outcome"`
		Count   int64  `json:"count"`
	} `json:"outcomes"`
	DecidedAt time.Time `json:"decided_at"`
}

// Whatever happens to the consumers, their log and their database while receipts are on their way, the receipts in the
// log cover every offset of every partition, and what came twice is the same bytes.
func TestReceiptsCoverEveryOffset(t *testing.T) {
	s := onKafka(t)
	seed := *seedFlag
	if seed == 0 {
		seed = rand.Uint64N(1_000_000)
	}
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 7))
	door := s.Service("command-service", map[string]string{"KAFKA_BROKERS": s.Kafka.Proxy("command").Address()})
	s.Ready(door)
	l := newLane(t, s, 2) // many small batches
	log, err := story.OpenLog(s.Broker.Brokers())
	require.NoError(t, err)
	w := startWriters(t.Context(), seed, door, s.Client, log)
	t.Cleanup(func() {
		w.close()
		_ = log.Close() // the broker may be down when the test failed
	})
	for range *receiptFaultsFlag {
		f := drawLaneFault(r, l)
		if r.IntN(3) == 0 {
			f = loseAcknowledgements(r, l)
		}
		t.Log(f.what)
		ctx, cancel := context.WithTimeout(t.Context(), story.Patience)
		require.NoError(t, f.do(ctx), f.what)
		cancel()
	}
	repeatSome(t, l, log, r)

	w.close()
	ends, err := log.Ends()
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 2*story.Patience)
	defer cancel()
	require.NoError(t, l.settle(ctx, ends, w.tickets()))
	require.NoError(t, story.Eventually(ctx, "wait for the outbox", func(ctx context.Context) error {
		var left int
		if err := l.db.QueryRowContext(ctx, "SELECT count(*) FROM public.receipt_outbox").Scan(&left); err != nil || left == 0 {
			return err
		}
		return fmt.Errorf("%d receipts are left", left)
	}))
	at, err := l.progress(ctx)
	require.NoError(t, err)
	read, repeats := readReceipts(t, log, l.group)
	t.Logf("%d receipts, %d repeats", len(read), repeats)
	require.Positive(t, repeats, "an acknowledgement was lost, so a receipt came twice")
	requireCovered(t, l.db, read, at)
}

// loseAcknowledgements lets what is published be written and nobody hear of it, for longer than it is repeated.
func loseAcknowledgements(r *rand.Rand, l *lane) fault {
	m, at, d := l.pick(r), between(r, 0, 300*time.Millisecond), between(r, time.Second, 4*time.Second)
	return fault{fmt.Sprintf("lose Kafka's replies to %s after %s for %s", m.name, at, d), func(ctx context.Context) error {
		pause(ctx, at)
		m.kafka.HangReplies()
		pause(ctx, d)
		m.kafka.Reset()
		m.kafka.Pass()
		return nil
	}}
}

// repeatSome makes sure that some receipts come twice: nobody may publish until there are some, and then nobody hears
// that they were taken.
func repeatSome(t *testing.T, l *lane, log *story.Log, r *rand.Rand) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), story.Patience)
	defer cancel()
	require.NoError(t, l.serving(ctx))
	conn, err := l.db.Conn(ctx)
	require.NoError(t, err)
	defer func() { _ = conn.Close() }() // and with it the lock, if it is still held
	_, err = conn.ExecContext(ctx, "SELECT pg_advisory_lock($1)", int64(publishLock))
	require.NoError(t, err)
	_, err = log.Write(anything(r, 20)...)
	require.NoError(t, err)
	require.NoError(t, story.Eventually(ctx, "wait for receipts", func(ctx context.Context) error {
		var n int
		if err := l.db.QueryRowContext(ctx, "SELECT count(*) FROM public.receipt_outbox").Scan(&n); err != nil || n > 5 {
			return err
		}
		return fmt.Errorf("%d receipts wait", n)
	}))
	for _, m := range l.members {
		m.kafka.HangReplies()
	}
	_, err = conn.ExecContext(ctx, "SELECT pg_advisory_unlock($1)", int64(publishLock))
	require.NoError(t, err)
	pause(ctx, 5*time.Second)
	for _, m := range l.members {
		m.kafka.Reset()
		m.kafka.Pass()
	}
}

// readReceipts returns a group's receipts, each once, and how many came again, the same.
func readReceipts(t *testing.T, log *story.Log, group string) (read []receipt, repeats int) {
	t.Helper()
	records, _, err := log.On(story.ReceiptTopic).Read(t.Context(), nil)
	require.NoError(t, err)
	type place struct {
		epoch     int64
		partition int32
		from      int64
	}
	seen := map[place]string{}
	for _, record := range records {
		var one receipt
		require.NoError(t, json.Unmarshal(record.Value, &one), string(record.Value))
		if one.Group != group {
			continue
		}
		require.Equal(t, fmt.Sprintf("%s/%d", one.Topic, one.Partition), string(record.Key))
		at := place{one.Epoch, one.Partition, one.From}
		if had, ok := seen[at]; ok {
			require.Equal(t, had, string(record.Value), "what comes again is the same")
			repeats++
			continue
		}
		seen[at] = string(record.Value)
		read = append(read, one)
	}
	return read, repeats
}

// requireCovered requires that the receipts of the serving epoch cover each partition up to the progress, once, and that
// their outcomes add up to it.
func requireCovered(t *testing.T, db *sql.DB, read []receipt, upTo story.Vector) {
	t.Helper()
	var epoch int64
	require.NoError(t, db.QueryRowContext(t.Context(), "SELECT epoch FROM public.generations WHERE state = 'serving'").Scan(&epoch))
	next := map[int32]map[int64]receipt{} // by partition and beginning
	for _, one := range read {
		if one.Epoch == epoch {
			if next[one.Partition] == nil {
				next[one.Partition] = map[int64]receipt{}
			}
			next[one.Partition][one.From] = one
		}
	}
	rows, err := db.QueryContext(t.Context(), "SELECT partition, applied + duplicate, rejected, skipped FROM public.projection_progress")
	require.NoError(t, err)
	defer func() { _ = rows.Close() }() // Err tells
	for rows.Next() {
		var p int32
		var kept, rejected, skipped int64
		require.NoError(t, rows.Scan(&p, &kept, &rejected, &skipped))
		sums := map[string]int64{}
		at, count := int64(0), 0
		for ; at < upTo[p]; count++ {
			one, ok := next[p][at]
			require.True(t, ok, "no receipt of partition %d begins at %d", p, at)
			require.Equal(t, story.Topic, one.Topic)
			var sum int64
			for _, run := range one.Outcomes {
				require.Positive(t, run.Count)
				sums[run.Outcome] += run.Count
				sum += run.Count
			}
			require.Equal(t, one.Next-one.From, sum)
			at = one.Next
		}
		require.Equal(t, upTo[p], at, "partition %d", p)
		require.Len(t, next[p], count, "every receipt of partition %d has its place", p)
		require.Equal(t, map[string]int64{"kept": kept, "rejected": rejected, "skipped": skipped},
			map[string]int64{"kept": sums["applied"] + sums["duplicate"], "rejected": sums["rejected"], "skipped": sums["skipped"]}, "partition %d", p)
	}
	require.NoError(t, rows.Err())
}

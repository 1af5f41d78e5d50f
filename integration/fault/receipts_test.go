package fault_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/integration/story"
)

// publishLock is what consumer-service's publisher of receipts of timestamps holds in the database while it publishes.
const publishLock = `hashtextextended('tidemark receipts timestamps', 0)`

// receipt is one as any client reads it.
type receipt struct {
	Group      string `json:"group"`
	Generation int    `json:"generation"`
	Epoch      int64  `json:"epoch"`
	Served     bool   `json:"served"`
	Topic      string `json:"topic"`
	Partition  int32  `json:"partition"`
	From       int64  `json:"from"`
	Next       int64  `json:"next"`
	Outcomes   []struct {
		Outcome string `json:"outcome"`
		Count   int64  `json:"count"`
	} `json:"outcomes"`
	CaughtUpAt *time.Time `json:"caught_up_at"` // of one without offsets: the partition is idle
	DecidedAt  time.Time  `json:"decided_at"`
}

// receipted requires that the receipts in the log cover every offset of every partition of each projection, and that
// what came twice is the same bytes. Nobody writes any more.
func (w *world) receipted(t *testing.T, r *rand.Rand) error {
	repeatSome(t, w.deployments[0], w.writers.log, r)
	ctx, cancel := context.WithTimeout(t.Context(), 2*story.Patience)
	defer cancel()
	if err := w.settle(ctx); err != nil {
		return err
	}
	for _, l := range w.deployments {
		if err := story.Eventually(ctx, "wait for the outbox", func(ctx context.Context) error {
			var left int // but for what idle partitions tell again and again
			if err := l.db.QueryRowContext(ctx, "SELECT count(*) FROM public.projection_receipt_outbox WHERE next_offset > from_offset").Scan(&left); err != nil || left == 0 {
				return err
			}
			return fmt.Errorf("%d receipts are left", left)
		}); err != nil {
			return fmt.Errorf("deployment %s: %w", l.name, err)
		}
	}
	receipts, err := readReceipts(ctx, w.writers.log)
	if err != nil {
		return err
	}
	for _, l := range w.deployments {
		for _, j := range l.judges() {
			of := receipts[j.group]
			if of == nil {
				return fmt.Errorf("deployment %s: there are no receipts of group %s", l.name, j.group)
			}
			t.Logf("deployment %s: %d receipts of %s, %d repeats, %d of idle partitions", l.name, len(of.read), j.Name, of.repeats, of.idle)
			at, err := j.Progress(ctx, l.db)
			if err == nil {
				err = j.covered(ctx, of.read, at)
			}
			if err != nil {
				return fmt.Errorf("deployment %s, %s: %w", l.name, j.Name, err)
			}
		}
	}
	if receipts[w.deployments[0].group].repeats == 0 {
		return errors.New("an acknowledgement was lost, and no receipt came twice")
	}
	return nil
}

// repeatSome makes sure that some receipts of a deployment come twice: it lets receipts be written of which nobody hears, until
// some were. A try is in vain where no publisher is connected just then.
func repeatSome(t *testing.T, l *deployment, log *story.Log, r *rand.Rand) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*story.Patience)
	defer cancel()
	require.NoError(t, l.serving(ctx))
	for !publishUnheard(ctx, t, l, log, r) {
		t.Log("no receipt came to the log while nobody could hear of it: once more")
	}
}

const (
	publishFor  = 15 * time.Second // longer than a publisher waits before it tries again
	repeatedFor = 6 * time.Second  // longer than a publisher repeats one flight, which the broker would recognise
)

// publishUnheard lets nobody publish until there are receipts, and then lets nobody hear that they were taken. It reports
// whether some were.
func publishUnheard(ctx context.Context, t *testing.T, l *deployment, log *story.Log, r *rand.Rand) bool {
	t.Helper()
	conn, err := l.db.Conn(ctx)
	require.NoError(t, err)
	defer func() { _ = conn.Close() }() // and with it the lock, if it is still held
	_, err = conn.ExecContext(ctx, "SELECT pg_advisory_lock("+publishLock+")")
	require.NoError(t, err)
	_, err = log.Write(anything(r, 20)...)
	require.NoError(t, err)
	require.NoError(t, story.Eventually(ctx, "wait for receipts", func(ctx context.Context) error {
		var n int
		if err := l.db.QueryRowContext(ctx, "SELECT count(*) FROM public.projection_receipt_outbox WHERE projection = 'timestamps' AND next_offset > from_offset").Scan(&n); err != nil || n > 5 {
			return err
		}
		return fmt.Errorf("%d receipts wait", n)
	}))
	receipts := log.On(story.ReceiptTopic)
	before, err := receipts.Ends()
	require.NoError(t, err)
	for _, m := range l.members {
		m.kafka.HangReplies()
	}
	_, err = conn.ExecContext(ctx, "SELECT pg_advisory_unlock("+publishLock+")")
	require.NoError(t, err)
	trying, cancel := context.WithTimeout(ctx, publishFor)
	defer cancel()
	err = story.Eventually(trying, "wait for a receipt in the log", func(ctx context.Context) error {
		ends, err := receipts.Ends()
		if err != nil {
			return err
		}
		records, err := receipts.ReadFrom(ctx, before, ends)
		if err != nil {
			return err
		}
		for _, record := range records {
			var one receipt
			if err := json.Unmarshal(record.Value, &one); err == nil && one.Group == l.group && one.Next > one.From {
				return nil
			}
		}
		return fmt.Errorf("%d receipts of others came", len(records))
	})
	if err == nil {
		pause(ctx, repeatedFor)
	}
	require.NoError(t, ctx.Err())
	for _, m := range l.members {
		m.kafka.Reset()
		m.kafka.Pass()
	}
	return err == nil
}

// groupReceipts are the receipts of one group that have offsets, each once, and how many came again, the same; and how many
// only told that a partition was idle.
type groupReceipts struct {
	read    []receipt
	repeats int
	idle    int
	seen    map[receiptPlace]string
}

type receiptPlace struct {
	epoch     int64
	partition int32
	from      int64
}

func readReceipts(ctx context.Context, log *story.Log) (map[string]*groupReceipts, error) {
	records, _, err := log.On(story.ReceiptTopic).Read(ctx, nil)
	if err != nil {
		return nil, err
	}
	groups := map[string]*groupReceipts{}
	for _, record := range records {
		var one receipt
		if err := json.Unmarshal(record.Value, &one); err != nil {
			return nil, fmt.Errorf("%s: %w", record.Value, err)
		}
		if key := fmt.Sprintf("%s/%d", one.Topic, one.Partition); one.Topic != story.Topic && one.Topic != story.EndpointTopic || string(record.Key) != key {
			return nil, fmt.Errorf("a receipt has the key %s: %s", record.Key, record.Value)
		}
		g := groups[one.Group]
		if g == nil {
			g = &groupReceipts{seen: map[receiptPlace]string{}}
			groups[one.Group] = g
		}
		if !one.Served {
			return nil, fmt.Errorf("nothing but what served was written, and a receipt denies it: %s", record.Value)
		}
		if (one.Next == one.From) != (one.CaughtUpAt != nil) || one.CaughtUpAt != nil && one.CaughtUpAt.After(one.DecidedAt) {
			return nil, fmt.Errorf("a receipt has either offsets or the time up to which its partition was caught up: %s", record.Value)
		}
		if one.Next == one.From {
			g.idle++
			continue
		}
		at := receiptPlace{one.Epoch, one.Partition, one.From}
		had, ok := g.seen[at]
		switch {
		case !ok:
			g.seen[at] = string(record.Value)
			g.read = append(g.read, one)
		case had != string(record.Value):
			return nil, fmt.Errorf("what came again is not the same: %s and %s", had, record.Value)
		default:
			g.repeats++
		}
	}
	return groups, nil
}

// covered is an error unless the receipts of the serving epoch cover each partition up to the progress, once, and their
// outcomes add up to it.
func (j *judge) covered(ctx context.Context, read []receipt, upTo story.Vector) error {
	var epoch int64
	if err := j.db.QueryRowContext(ctx, "SELECT epoch FROM public.projection_generations WHERE projection = $1 AND state = 'serving'", j.Name).Scan(&epoch); err != nil {
		return err
	}
	next := map[int32]map[int64]receipt{} // by partition and beginning
	for _, one := range read {
		if one.Epoch == epoch {
			if next[one.Partition] == nil {
				next[one.Partition] = map[int64]receipt{}
			}
			next[one.Partition][one.From] = one
		}
	}
	rows, err := j.db.QueryContext(ctx, "SELECT partition, applied + duplicate, rejected, skipped FROM "+j.Schema+".projection_progress")
	if err != nil {
		return err
	}
	defer func() { _ = rows.Close() }() // Err tells
	for rows.Next() {
		var p int32
		var kept, rejected, skipped int64
		if err := rows.Scan(&p, &kept, &rejected, &skipped); err != nil {
			return err
		}
		sums := map[string]int64{}
		at, count := int64(0), 0
		for ; at < upTo[p]; count++ {
			one, ok := next[p][at]
			if !ok {
				return fmt.Errorf("no receipt of partition %d begins at %d", p, at)
			}
			var sum int64
			for _, run := range one.Outcomes {
				if run.Count <= 0 {
					return fmt.Errorf("a run of %d in %+v", run.Count, one)
				}
				sums[run.Outcome] += run.Count
				sum += run.Count
			}
			if one.Next-one.From != sum {
				return fmt.Errorf("%d outcomes in %+v", sum, one)
			}
			at = one.Next
		}
		if at != upTo[p] || len(next[p]) != count {
			return fmt.Errorf("partition %d: %d receipts cover it up to %d, there are %d and the progress is %d", p, count, at, len(next[p]), upTo[p])
		}
		if sums["applied"]+sums["duplicate"] != kept || sums["rejected"] != rejected || sums["skipped"] != skipped {
			return fmt.Errorf("partition %d: the receipts say %v, the progress %d kept, %d rejected, %d skipped", p, sums, kept, rejected, skipped)
		}
	}
	return rows.Err()
}

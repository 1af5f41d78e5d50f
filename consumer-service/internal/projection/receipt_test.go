package projection

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/shared/event"
	"github.com/tidemark/tidemark/shared/kafka"
)

// receipts returns the outbox, partition by partition, as from..next: outcomes.
func (b *bundle) receipts(t *testing.T) []string {
	t.Helper()
	var out []string
	require.NoError(t, b.DB.SelectContext(t.Context(), &out, `
SELECT concat(group_name, ' ', generation, ' ', epoch, ' ', partition, ': ', from_offset, '..', next_offset, ' ', outcomes) FROM projection_receipt_outbox ORDER BY partition, receipt_id`))
	return out
}

// covered requires that the receipts of an epoch cover every offset of each partition once, and that their outcomes add
// up to the progress where no row was taken from its record later.
func (b *bundle) covered(t *testing.T, epoch int64, exact bool) {
	t.Helper()
	var rows []struct {
		Partition  int32
		From, Next int64
		Outcomes   string
	}
	require.NoError(t, b.DB.SelectContext(t.Context(), &rows, `
SELECT partition, from_offset AS from, next_offset AS next, outcomes FROM projection_receipt_outbox WHERE epoch = $1 ORDER BY receipt_id`, epoch))
	at, sums := map[int32]int64{}, map[int32]map[event.Outcome]int64{}
	for _, r := range rows {
		require.Equal(t, at[r.Partition], r.From, "partition %d", r.Partition)
		at[r.Partition] = r.Next
		runs, err := event.DecodeRuns([]byte(r.Outcomes), r.Next-r.From)
		require.NoError(t, err)
		if sums[r.Partition] == nil {
			sums[r.Partition] = map[event.Outcome]int64{}
		}
		for _, run := range runs {
			sums[r.Partition][run.Outcome] += run.Count
		}
	}
	var progress []struct {
		Partition                                   int32
		Next, Applied, Duplicate, Rejected, Skipped int64
	}
	require.NoError(t, b.DB.SelectContext(t.Context(), &progress, `
SELECT partition, next_offset AS next, applied, duplicate, rejected, skipped FROM public.projection_progress`))
	for _, p := range progress {
		require.Equal(t, p.Next, at[p.Partition], "partition %d", p.Partition)
		s := sums[p.Partition]
		require.Equal(t, []int64{p.Rejected, p.Skipped}, []int64{s[event.Rejected], s[event.Skipped]}, "partition %d", p.Partition)
		if exact {
			require.Equal(t, []int64{p.Applied, p.Duplicate}, []int64{s[event.Applied], s[event.Duplicate]}, "partition %d", p.Partition)
		}
	}
}

func TestABatchHasItsReceiptWhicheverWayItGoes(t *testing.T) {
	t.Parallel()
	b := setup(t, 2)
	require.NoError(t, b.join(t))
	id := uuid.New()
	b.log.Add(0, day, value(id, day))
	b.log.Add(0, day, `poison`)
	b.log.Add(0, day, `poison`)
	b.log.Add(0, day, value(uuid.New(), day))
	require.NoError(t, b.read(t.Context(), 0, b.log.Records[0])) // the fast way
	b.log.Add(0, day, value(uuid.New(), day))
	b.log.Add(0, day, value(id, day)) // a duplicate
	b.log.Add(0, day, `poison`)
	twice := uuid.New()
	b.log.Add(0, day, value(twice, day))
	b.log.Add(0, day, value(twice, day))
	require.NoError(t, b.read(t.Context(), 0, b.log.Records[0])) // the slow way
	require.NoError(t, b.store.skip(t.Context(), b.epoch(), 1, 0, 3))
	head := fmt.Sprintf("group-1 0 %d ", b.epoch())
	require.Equal(t, []string{
		head + `0: 0..4 [{"outcome":"applied","count":1},{"outcome":"rejected","count":2},{"outcome":"applied","count":1}]`,
		head + `0: 4..9 [{"outcome":"applied","count":1},{"outcome":"duplicate","count":1},{"outcome":"rejected","count":1},{"outcome":"applied","count":1},{"outcome":"duplicate","count":1}]`,
		head + `1: 0..3 [{"outcome":"skipped","count":3}]`,
	}, b.receipts(t))

	// No fence, no receipt.
	batch := b.Definition.prepare(0, 0, b.log.Records[0])
	_, err := b.store.writeFast(t.Context(), b.epoch(), batch, nil)
	require.ErrorIs(t, err, errFenced)
	_, err = b.store.writeSlow(t.Context(), b.epoch(), batch, false, &window{}, nil)
	require.ErrorIs(t, err, errFenced)
	require.ErrorIs(t, b.store.skip(t.Context(), b.epoch(), 1, 0, 3), errFenced)
	require.Len(t, b.receipts(t), 3)
}

// Records that Postgres refuses are found under savepoints, where sets are placed more than once.
func TestTheReceiptOfACarefulBatchSaysWhatBecameOfEachRecord(t *testing.T) {
	t.Parallel()
	b := setup(t, 1)
	_, err := b.DB.Exec(`ALTER TABLE timestamp_records ADD CONSTRAINT no_past CHECK (event_timestamp >= '2026-01-01T00:00:00Z')`)
	require.NoError(t, err)
	require.NoError(t, b.join(t))
	id := uuid.New()
	want := ""
	for i := range 40 {
		at := day
		switch i {
		case 7, 8, 30:
			at = day.AddDate(-30, 0, 0)
			want += "r"
		case 3, 20:
			b.log.Add(0, day, value(id, day))
			want += map[bool]string{true: "a", false: "d"}[i == 3]
			continue
		default:
			want += "a"
		}
		b.log.Add(0, day, value(uuid.New(), at))
	}
	require.NoError(t, b.read(t.Context(), 0, b.log.Records[0]))
	var outcomes string
	require.NoError(t, b.DB.GetContext(t.Context(), &outcomes, `SELECT outcomes FROM projection_receipt_outbox`))
	runs, err := event.DecodeRuns([]byte(outcomes), 40)
	require.NoError(t, err)
	got := ""
	for _, r := range runs {
		for range r.Count {
			got += string(r.Outcome[0])
		}
	}
	require.Equal(t, want, got)
	b.covered(t, b.epoch(), true)
}

// In whatever cuts the log is read, and how often it is started over, the receipts of an epoch cover every offset once.
func TestReceiptsCoverEveryOffsetOfAnEpoch(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 1))
	b := setup(t, 3)
	ids := make([]uuid.UUID, 40)
	for i := range ids {
		ids[i] = uuid.New()
	}
	for range 300 {
		p := int32(random.IntN(3))
		v := value(ids[random.IntN(len(ids))], day)
		if random.IntN(10) == 0 {
			v = "poison"
		}
		b.log.Add(p, day.Add(time.Duration(len(b.log.Records[p]))*time.Millisecond), v)
	}
	b.decided.make(1, 7, event.Discard)
	for round := range 3 {
		b = consumer(t, b.url, b.DB, b.log, fmt.Sprint("round-", round), 3)
		b.decided.make(1, 7, event.Discard)
		require.NoError(t, b.join(t))
		for p, records := range b.log.Records {
			for at := 0; at < len(records); {
				n := min(len(records)-at, 1+random.IntN(30))
				require.NoError(t, b.read(t.Context(), p, records[at:at+n]))
				at += n
			}
		}
		b.covered(t, b.epoch(), false)
	}
}

func TestADecidedRecordIsRejectedWhicheverWayItGoes(t *testing.T) {
	t.Parallel()
	b := setup(t, 1)
	first, second := uuid.New(), uuid.New()
	b.log.Add(0, day, value(first, day))
	b.log.Add(0, day, `poison`)
	b.log.Add(0, day, value(second, day))
	b.log.Add(0, day, value(first, day))
	b.decided.make(0, 0, event.Redrive)
	b.decided.make(0, 1, event.Discard)
	require.NoError(t, b.join(t))
	require.NoError(t, b.read(t.Context(), 0, b.log.Records[0][:3])) // fast
	require.NoError(t, b.read(t.Context(), 0, b.log.Records[0]))     // and of the two with one id, the later one
	var letters []struct {
		Offset int64
		Code   string
		Reason string
	}
	require.NoError(t, b.DB.SelectContext(t.Context(), &letters, `SELECT "offset", reason_code AS code, reason FROM public.dead_letters ORDER BY 1`))
	require.Len(t, letters, 2)
	require.Equal(t, []any{int64(0), "decided", "the record was redriven as a new command"}, []any{letters[0].Offset, letters[0].Code, letters[0].Reason})
	require.Equal(t, "decode", letters[1].Code, "what still cannot be read says why")
	require.Equal(t, 2, b.count(t, "timestamp_records"))
	b.clean(t)
	live := b.dump(t)

	again := consumer(t, b.url, b.DB, b.log, "group-2", 1)
	again.decided = b.decided
	again.Decisions = b.decided
	_, err := b.DB.Exec(`TRUNCATE timestamp_records`)
	require.NoError(t, err)
	require.NoError(t, again.join(t))
	require.NoError(t, again.read(t.Context(), 0, b.log.Records[0])) // the slow way: one id, twice
	require.Equal(t, live, again.dump(t))
	again.clean(t)
}

// Nothing is projected, and no epoch begun, before every decision is known.
func TestASessionBeginsWithEveryDecisionKnown(t *testing.T) {
	t.Parallel()
	b := setup(t, 1)
	b.decided.away = context.DeadlineExceeded
	require.ErrorIs(t, b.join(t), context.DeadlineExceeded)
	require.Nil(t, b.of(0))
	require.Zero(t, b.count(t, "projection_progress"))
	b.decided.away = nil
	require.NoError(t, b.join(t))
}

// A gap has no record of its own, and a receipt all the same.
func TestAReceiptCountsWhatIsSkipped(t *testing.T) {
	t.Parallel()
	records := []kafka.Record{{Offset: 2, Value: []byte("poison")}, {Offset: 3, Value: []byte(value(uuid.New(), day))}, {Offset: 6, Value: []byte(value(uuid.New(), day))}}
	b := stamps(1).prepare(0, 0, records)
	require.Equal(t, `[{"outcome":"skipped","count":2},{"outcome":"rejected","count":1},{"outcome":"applied","count":1},{"outcome":"skipped","count":2},{"outcome":"applied","count":1}]`, b.fastReceipt())
}

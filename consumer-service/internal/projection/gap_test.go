package projection

import (
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/shared/kafka"
)

// gaps is how many offsets of a kind were counted as passed over.
func (b *bundle) gaps(kind string) float64 {
	return testutil.ToFloat64(b.Metrics.all.gaps.WithLabelValues("timestamps", kind))
}

// Between two records that are delivered may stand markers, aborted records or nothing. Each offset is booked as skipped and
// counted by what stands there.
func TestAGapIsCountedByWhatStandsInIt(t *testing.T) {
	t.Parallel()
	b := setup(t, 1)
	require.NoError(t, b.join(t))
	grow(b.log, 2)
	b.log.Pass(0, kafka.Gap{Aborted: 3, Markers: 1, Missing: 2})
	grow(b.log, 1)
	b.readAll(t)
	require.Equal(t, []float64{1, 3, 2}, []float64{b.gaps("marker"), b.gaps("aborted"), b.gaps("missing")})
	require.Equal(t, map[string]int64{"next_offset": 9, "applied": 3, "skipped": 6}, b.progressOf(t, 0))
	b.clean(t)
	b.covered(t, b.epoch(), true)
}

// A committed record that was not delivered may never be booked as skipped: the session ends, so that it is read again.
func TestARecordThatWasNotDeliveredIsNotPassedOver(t *testing.T) {
	t.Parallel()
	b := setup(t, 1)
	require.NoError(t, b.join(t))
	grow(b.log, 5)
	all := b.log.Records[0]
	before := b.dump(t)
	err := b.read(t.Context(), 0, []kafka.Record{all[0], all[1], all[4]})
	require.ErrorIs(t, err, errUndelivered)
	require.ErrorContains(t, err, "2 in [2, 4) of partition 0")
	require.Equal(t, before, b.dump(t))
	require.NoError(t, b.join(t))
	b.readAll(t)
	b.matches(t, expect(b.log))
	b.clean(t)
}

// At the log's end only markers and aborted records are booked. A hole there is told when the record after it comes.
func TestAHoleAtTheEndOfTheLogIsNotBooked(t *testing.T) {
	t.Parallel()
	b := setup(t, 1)
	require.NoError(t, b.join(t))
	grow(b.log, 2)
	b.readAll(t)
	b.log.Pass(0, kafka.Gap{Missing: 1})
	looks := &watch{tails: map[int32]int64{}}
	for range 3 {
		require.NoError(t, b.look(t.Context(), looks))
	}
	require.Equal(t, map[string]int64{"next_offset": 2, "applied": 2, "skipped": 0}, b.progressOf(t, 0))
	grow(b.log, 1)
	require.NoError(t, b.read(t.Context(), 0, b.log.Records[0][2:]))
	require.Equal(t, map[string]int64{"next_offset": 4, "applied": 3, "skipped": 1}, b.progressOf(t, 0))
	require.Equal(t, 1.0, b.gaps("missing"))
	b.clean(t)
}

func (b *bundle) progressOf(t *testing.T, partition int32) map[string]int64 {
	t.Helper()
	var next, applied, skipped int64
	require.NoError(t, b.DB.QueryRow(`SELECT next_offset, applied, skipped FROM projection_progress WHERE partition = $1`, partition).Scan(&next, &applied, &skipped))
	return map[string]int64{"next_offset": next, "applied": applied, "skipped": skipped}
}

// A receipt without offsets says that a partition is caught up. One that is behind the log's end writes none, however idle.
func TestOnlyAPartitionThatIsCaughtUpTellsThatItIsIdle(t *testing.T) {
	t.Parallel()
	b := setup(t, 2)
	require.NoError(t, b.join(t))
	grow(b.log, 2)
	b.readAll(t)
	looks := &watch{tails: map[int32]int64{}}
	require.NoError(t, b.look(t.Context(), looks))
	grow(b.log, 1) // partition 0 was caught up once, and is behind now
	for p := range int32(2) {
		b.of(p).wrote = time.Now().Add(-idleEvery)
	}
	require.NoError(t, b.look(t.Context(), looks))
	var idle []int32
	require.NoError(t, b.DB.Select(&idle, `SELECT partition FROM projection_receipt_outbox WHERE from_offset = next_offset`))
	require.Equal(t, []int32{1}, idle)
}

// A row may bear an offset that its partition has not counted yet: an earlier release could not read the record that takes it
// now. Nothing is taken from the counts then.
func TestARowIsTakenFromARecordThatIsStillToBeRead(t *testing.T) {
	t.Parallel()
	b := setup(t, 2)
	require.NoError(t, b.join(t))
	id := uuid.New()
	b.log.Add(0, day.Add(time.Second), value(id, day))
	b.log.Add(1, day, value(id, day.Add(time.Hour)))
	_, err := b.DB.Exec(`INSERT INTO timestamp_records (id, event_timestamp, created_at, partition, "offset") VALUES ($1, $2, $3, 0, 0)`, id, day, day.Add(time.Second))
	require.NoError(t, err)
	require.NoError(t, b.read(t.Context(), 1, b.log.Records[1]))
	require.Equal(t, map[string]int64{"next_offset": 0, "applied": 0, "skipped": 0}, b.progressOf(t, 0))
	require.NoError(t, b.read(t.Context(), 0, b.log.Records[0]))
	b.matches(t, expect(b.log))
	b.clean(t)
}

// forgetful is a session whose commits never reach the group.
type forgetful struct{ *heldSession }

func (forgetful) Commit() {}

// Sarama reports no error of a commit. Nothing is consumed before the epoch's mark is seen in the group: a reset by Kafka's own
// tool could not be told from what an earlier epoch left there.
func TestASessionWaitsUntilItsMarkIsInTheGroup(t *testing.T) {
	t.Parallel()
	b := setup(t, 1)
	s := &heldSession{ctx: t.Context(), log: b.log, own: []int32{0}, seeks: map[int32]kafka.Committed{}}
	require.ErrorContains(t, b.enter(t.Context(), forgetful{s}), "the group's committed offset for timestamp.command.v1/0 is -1")
	require.False(t, b.InSession())
	require.NoError(t, b.enter(t.Context(), s))
	require.True(t, b.InSession())
}

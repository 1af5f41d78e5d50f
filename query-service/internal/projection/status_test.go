package projection

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/shared/pace"
)

var noon = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

func part(number int32, next, end int64, level time.Duration) Partition {
	at := noon.Add(-level)
	polled := noon.Add(-time.Second)
	return Partition{Topic: "t", Partition: number, Epoch: 7, NextOffset: next, Applied: next, LogEnd: &end, LogEndAt: &polled, CaughtUpAt: &at}
}

func TestLagAndCatchingUp(t *testing.T) {
	t.Parallel()
	never := part(0, 5, 9, 0)
	never.CaughtUpAt = nil
	unknownEnd := part(0, 5, 9, 0)
	unknownEnd.LogEnd = nil
	for _, tc := range []struct {
		what       string
		parts      []Partition
		lag        any
		catchingUp bool
		level      any // age of CaughtUpAt
	}{
		{"nothing known", nil, nil, false, nil},
		{"level", []Partition{part(0, 9, 9, 0), part(1, 3, 3, 2*time.Second)}, int64(0), false, 2 * time.Second},
		{"caught up long ago, and no partition was written since", []Partition{part(0, 9, 9, time.Hour)}, int64(0), false, time.Hour},
		{"busy but level a second ago", []Partition{part(0, 8, 9, time.Second)}, int64(1), false, time.Second},
		{"behind", []Partition{part(0, 8, 9, time.Minute), part(1, 9, 9, 0)}, int64(1), true, time.Minute},
		{"ahead of the last look at the end", []Partition{part(0, 12, 9, 0)}, int64(0), false, time.Duration(0)},
		{"never level", []Partition{never, part(1, 9, 9, 0)}, int64(4), true, nil},
		{"end unknown", []Partition{unknownEnd, part(1, 9, 9, 0)}, nil, false, time.Duration(0)},
	} {
		s := Status{ReadAt: noon, Partitions: tc.parts}
		if lag := s.Totals().Lag; tc.lag == nil {
			require.Nil(t, lag, tc.what)
		} else {
			require.Equal(t, tc.lag, *lag, tc.what)
		}
		require.Equal(t, tc.catchingUp, s.CatchingUp(), tc.what)
		if level := s.CaughtUpAt(); tc.level == nil {
			require.Nil(t, level, tc.what)
		} else {
			require.Equal(t, tc.level, noon.Sub(*level), tc.what)
		}
	}
}

// A figure is as old as the log end that it is made from, by the database's clock.
func TestALagWhoseLogEndIsOldIsUnknown(t *testing.T) {
	t.Parallel()
	s := Status{ReadAt: noon, Running: true, Partitions: []Partition{part(0, 9, 9, 2*time.Second), part(1, 3, 5, 2*time.Second)}}
	require.Equal(t, int64(2), *s.Totals().Lag)
	require.Nil(t, s.Totals().LagUnknownSince)
	require.Equal(t, Serving, s.State())

	old := noon.Add(-FreshFor - time.Second)
	s.Partitions[1].LogEndAt = &old
	require.Nil(t, s.Totals().Lag, "one partition whose lag nobody knows")
	require.Equal(t, old, *s.Totals().LagUnknownSince)
	require.Equal(t, Serving, s.State(), "it has caught up within the time")
	s.Partitions[1].CaughtUpAt = &old
	require.Equal(t, CatchingUp, s.State())

	older := old.Add(-time.Minute)
	s.Partitions[0].LogEndAt = &older
	require.Equal(t, older, *s.Totals().LagUnknownSince)
	require.Equal(t, Down, s.State(), "nobody has read any end of the log")
	s.Running = false
	require.Equal(t, Down, s.State())
	s.Partitions[0].LogEndAt, s.Partitions[1].LogEndAt, s.Partitions[0].CaughtUpAt, s.Partitions[1].CaughtUpAt = nil, nil, nil, nil
	require.Equal(t, Off, s.State(), "never begun")
	require.Nil(t, s.Totals().LagUnknownSince)
}

func TestReplayTellsHowFarAndHowLong(t *testing.T) {
	t.Parallel()
	s := Status{ReadAt: noon, Partitions: []Partition{part(0, 250, 1000, time.Hour), part(1, 1000, 1000, 0)}}
	s.Partitions[1].FirstOffset = 500
	r := s.Replay()
	require.Equal(t, int64(750), r.Done)
	require.Equal(t, int64(1500), *r.Total)
	require.InDelta(t, 50, *r.Percent, 0.001)
	require.Nil(t, r.Rate)
	require.Nil(t, r.ETA)

	rate, eta := 100., 10*time.Second
	s.Pace = pace.Measure{Rate: &rate, ETA: &eta}
	r = s.Replay()
	require.InDelta(t, 100, *r.Rate, 0.001)
	require.Equal(t, 10*time.Second, *r.ETA)
	s.Pace = pace.Measure{Rate: &rate, Stuck: true}
	require.True(t, s.Replay().Stuck)

	s.ReadAt = noon.Add(FreshFor)
	r = s.Replay()
	require.Equal(t, []any{int64(750), (*int64)(nil), (*time.Duration)(nil), false}, []any{r.Done, r.Total, r.ETA, r.Stuck}, "the log's end was read too long ago")

	s = Status{ReadAt: noon, Partitions: []Partition{part(0, 0, 0, 0)}}
	require.InDelta(t, 100, *s.Replay().Percent, 0)
	require.Zero(t, *s.Replay().ETA)
	s.Partitions[0].LogEnd = nil
	require.Nil(t, s.Replay().Total)
}

func TestAuditsCountOnlyInTheirEpoch(t *testing.T) {
	t.Parallel()
	audit := func(number int32, epoch int64, ok bool, age time.Duration) Audit {
		return Audit{Topic: "t", Partition: number, Epoch: epoch, OK: ok, AuditedAt: noon.Add(-age)}
	}
	parts := []Partition{part(0, 1, 1, 0), part(1, 1, 1, 0)}
	yes, no := true, false
	for _, tc := range []struct {
		what    string
		audits  []Audit
		ok      *bool
		missing int
	}{
		{"none", nil, nil, 2},
		{"all agree", []Audit{audit(0, 7, true, 5), audit(1, 7, true, 1)}, &yes, 0},
		{"one is missing", []Audit{audit(0, 7, true, 1)}, nil, 1},
		{"one disagrees", []Audit{audit(0, 7, true, 1), audit(1, 7, false, 1)}, &no, 0},
		{"one disagrees, one is missing", []Audit{audit(1, 7, false, 1)}, &no, 1},
		{"of an earlier epoch", []Audit{audit(0, 6, false, 1), audit(1, 7, true, 1)}, nil, 1},
	} {
		sum := Status{Partitions: parts, Audits: tc.audits}.Audited()
		require.Equal(t, tc.ok, sum.OK, tc.what)
		require.Equal(t, tc.missing, sum.Missing, tc.what)
		if len(tc.audits) > 0 {
			require.Equal(t, noon.Add(-1), *sum.LastRun, tc.what)
		}
	}
	require.Nil(t, Status{}.Audited().OK)

	s := Status{Partitions: parts, Audits: []Audit{audit(0, 7, true, 5), audit(1, 7, true, 1)}}
	s.Partitions[1].CaughtUpAt = nil
	require.Nil(t, s.Audited().OK, "what agrees is a part while the log is still being read")
	s.Audits[0].OK = false
	require.Equal(t, &no, s.Audited().OK, "what disagrees is wrong all the same")
}

func TestAReadingOfAnotherEpochOrClockIsMeasuredAnew(t *testing.T) {
	t.Parallel()
	p := &series{}
	add := func(seconds int, epoch, done, lag int64) {
		p.add(sample{At: noon.Add(time.Duration(seconds) * time.Second), Epoch: epoch, Done: done, Lag: &lag, Partitions: []reading{{Place{"t", 0}, done, &lag}}})
	}
	add(0, 1, 1000, 5000)
	require.Nil(t, p.pace().Rate)
	add(5, 1, 2000, 4700)
	require.InDelta(t, 200, *p.pace().Rate, 0)
	add(61, 2, 0, 6100)
	require.Nil(t, p.pace().Rate, "a new epoch")
	add(66, 2, 10, 6000)
	require.NotNil(t, p.pace().Rate)
	add(60, 2, 20, 6000)
	require.Nil(t, p.pace().Rate, "a clock that was set back")
}

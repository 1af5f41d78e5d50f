package projection

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

var noon = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

func part(number int32, next, end int64, level time.Duration) Partition {
	at := noon.Add(-level)
	return Partition{Topic: "t", Partition: number, Epoch: 7, NextOffset: next, Applied: next, LogEnd: &end, CaughtUpAt: &at}
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
		{"caught up long ago and nothing since, as when the consumer is down", []Partition{part(0, 9, 9, time.Hour)}, int64(0), false, time.Hour},
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

	s.Pace = Pace{Known: true, Done: 100, Shrink: 75} // 25 a second come in meanwhile
	r = s.Replay()
	require.InDelta(t, 100, *r.Rate, 0.001)
	require.Equal(t, 10*time.Second, *r.ETA)

	s.Pace.Shrink = -1
	require.Nil(t, s.Replay().ETA, "a lag that grows has no end")

	s = Status{Partitions: []Partition{part(0, 0, 0, 0)}}
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
}

func TestPaceIsMeasuredBetweenTwoReadings(t *testing.T) {
	t.Parallel()
	p := &series{}
	at := func(seconds int, epoch, done, lag int64) sample {
		return sample{At: noon.Add(time.Duration(seconds) * time.Second), Epoch: epoch, Done: done, Lag: lag, Partitions: []reading{{Place{"t", 0}, done, lag}}}
	}
	p.add(at(0, 1, 1000, 5000))
	require.False(t, p.pace().Known)
	p.add(at(2, 1, 1400, 4700))
	require.Equal(t, Pace{true, 200, 150}, p.pace())
	for i := 3; i <= 60; i++ {
		p.add(at(i, 1, 1400, 4700))
	}
	require.Equal(t, Pace{true, 0, 0}, p.pace(), "what is older than the window is forgotten")
	p.add(at(61, 2, 0, 6100))
	require.False(t, p.pace().Known, "a new epoch is measured anew")
	p.add(at(60, 2, 10, 6000))
	require.False(t, p.pace().Known, "so is what a clock that was set back says")
}

package pace_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/shared/pace"
)

// each is one reading a second, of done and lag; a lag below 0 is not known.
func each(pairs ...[2]int64) []pace.Reading {
	noon := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	readings := make([]pace.Reading, len(pairs))
	for i, p := range pairs {
		readings[i] = pace.Reading{At: noon.Add(time.Duration(i) * time.Second), Done: p[0]}
		if p[1] >= 0 {
			readings[i].Lag = &p[1]
		}
	}
	return readings
}

// steady is n readings of something that is done at a rate while more comes in.
func steady(n int, done, lag, rate, shrinks int64) [][2]int64 {
	pairs := make([][2]int64, n)
	for i := range pairs {
		pairs[i] = [2]int64{done + int64(i)*rate, lag - int64(i)*shrinks}
	}
	return pairs
}

func TestMeasure(t *testing.T) {
	t.Parallel()
	f := func(v float64) *float64 { return &v }
	d := func(v time.Duration) *time.Duration { return &v }
	idle := steady(8, 500, 0, 0, 0)
	for _, tc := range []struct {
		what  string
		pairs [][2]int64
		want  pace.Measure
	}{
		{"nothing was read", nil, pace.Measure{}},
		{"the first seconds are a warm-up", steady(4, 0, 1000, 100, 100), pace.Measure{}},
		{"then there is a rate and an estimate", steady(5, 0, 1000, 100, 100), pace.Measure{Rate: f(100), ETA: d(6 * time.Second)}},
		{"what comes in meanwhile has to be done as well", steady(6, 0, 1000, 100, 20), pace.Measure{Rate: f(100), ETA: d(45 * time.Second)}},
		{"a lag that stays is stuck", steady(6, 0, 1000, 100, 0), pace.Measure{Rate: f(100), Stuck: true}},
		{"a lag that grows is stuck", steady(6, 0, 1000, 100, -50), pace.Measure{Rate: f(100), Stuck: true}},
		{"nothing moves", steady(12, 7, 1000, 0, 0), pace.Measure{Rate: f(0), Stuck: true}},
		{"nothing is left", steady(12, 7, 0, 0, 0), pace.Measure{Rate: f(0), ETA: d(0)}},
		{"nothing is left, during the warm-up", steady(2, 7, 0, 0, 0), pace.Measure{ETA: d(0)}},
		{"a burst after an idle time begins with a warm-up of its own", append(idle[:8:8], steady(3, 600, 9000, 1000, 1000)...), pace.Measure{}},
		{"and is measured from where it began", append(idle[:8:8], steady(6, 500, 9000, 1000, 1000)...), pace.Measure{Rate: f(1000), ETA: d(4 * time.Second)}},
		{"workers that begin late do not lower the rate", append(steady(6, 0, 9000, 0, 0), steady(6, 0, 9000, 1000, 1000)...), pace.Measure{Rate: f(1000), ETA: d(4 * time.Second)}},
		{"a lag that was not known at first", append(steady(3, 0, -1, 100, 0), steady(5, 300, 900, 100, 100)...), pace.Measure{Rate: f(100), ETA: d(5 * time.Second)}},
		{"a lag that is not known any more", append(steady(7, 0, 900, 100, 100), [2]int64{700, -1}), pace.Measure{Rate: f(100)}},
		{"it has grown, and shrinks now", append(steady(6, 0, 1000, 100, -500), steady(3, 600, 3400, 100, 100)...), pace.Measure{Rate: f(100)}},
		{"what is older than the window is forgotten", append(steady(10, 0, 90000, 1000, 1000), steady(12, 9000, 81000, 10, 10)...), pace.Measure{Rate: f(10), ETA: d(8089 * time.Second)}},
	} {
		got := pace.Of(each(tc.pairs...))
		require.Equal(t, tc.want, got, tc.what)
	}
}

package web

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// However few hours have letters, a bar is an hour among others; however many, all of them fit.
func TestBarsOfLettersOverTime(t *testing.T) {
	t.Parallel()
	last := time.Date(2026, 11, 26, 22, 0, 0, 0, time.UTC)
	for name, c := range map[string]struct {
		hours map[time.Time]int64
		bars  int
		each  string
		from  time.Time
	}{
		"one hour":   {map[time.Time]int64{last: 3}, 1, "1 hour", last.Add(-11 * time.Hour)},
		"two apart":  {map[time.Time]int64{last: 3, last.Add(-20 * time.Hour): 1}, 2, "1 hour", last.Add(-20 * time.Hour)},
		"two months": {map[time.Time]int64{last: 3, last.Add(-1439 * time.Hour): 1}, 2, "30 hours", last.Add(-1439 * time.Hour)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var l letterCounts
			l.draw(c.hours)
			require.Len(t, l.Bars, c.bars)
			require.Equal(t, c.each, l.Each)
			require.Equal(t, c.from, l.From)
			require.Equal(t, last.Add(time.Hour), l.To)
			require.EqualValues(t, 3, l.Peak)
			for _, b := range l.Bars {
				require.LessOrEqual(t, b.Width, float64(chartWidth)/leastBars)
				require.LessOrEqual(t, b.X+b.Width, float64(chartWidth))
			}
		})
	}
}

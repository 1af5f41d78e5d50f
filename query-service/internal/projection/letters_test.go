package projection

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// A count is repeated at each letter and decision while that is cheap. A slow one holds for twenty times as long as it took, but
// never into another generation or epoch.
func TestHowLongACountOfDecidedLettersHolds(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 11, 26, 22, 0, 0, 0, time.UTC)
	const fast, slow = slowCount - 1, 600 * time.Millisecond
	for name, c := range map[string]struct {
		took, later time.Duration
		mark        []int64
		holds       bool
	}{
		"nothing has come":                 {fast, time.Hour, []int64{1, 7, 3, 4}, true},
		"a decision has come":              {fast, time.Millisecond, []int64{1, 7, 4, 4}, false},
		"a slow one, a letter":             {slow, 11 * time.Second, []int64{1, 7, 3, 5}, true},
		"a slow one, a while later":        {slow, 12 * time.Second, []int64{1, 7, 3, 5}, false},
		"a slow one of another epoch":      {slow, time.Millisecond, []int64{1, 8, 3, 4}, false},
		"a slow one of another generation": {slow, time.Millisecond, []int64{2, 7, 3, 4}, false},
	} {
		last := decidedCount{mark: []int64{1, 7, 3, 4}, at: at, took: c.took}
		require.Equal(t, c.holds, last.holds(c.mark, at.Add(c.later)), name)
	}
	require.False(t, decidedCount{}.holds([]int64{1, 7, 0}, at), "none was counted yet")
}

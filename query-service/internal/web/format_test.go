package web

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestATimeHasItsDateWhereTheDayDiffers(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 26, 0, 30, 0, 0, time.UTC)
	require.Equal(t, "00:29:59 UTC", timeOfDay(now.Add(-time.Second), now, "15:04:05 UTC"))
	require.Equal(t, "25 November 2026, 23:30:00 UTC", timeOfDay(now.Add(-time.Hour), now, "15:04:05 UTC"))
	require.Equal(t, "26 November 2024, 00:30:00 UTC", timeOfDay(now.AddDate(-2, 0, 0), now.In(time.FixedZone("", -3600)), "15:04:05 UTC"))
}

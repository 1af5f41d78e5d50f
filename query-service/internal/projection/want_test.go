package projection

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestParseWant(t *testing.T) {
	t.Parallel()
	at := offset(42)
	at.Partition = 3
	const place = "timestamp.command.v1/3@42"
	for _, tc := range []struct {
		header, query, wait string
		want                Want
		err                 string
	}{
		{"", "", "", Want{Wait: time.Minute}, ""},
		{place, "", "", Want{at, time.Minute}, ""},
		{"", place, "500ms", Want{at, 500 * time.Millisecond}, ""},
		{place, " " + place, "5", Want{at, 5 * time.Second}, ""},
		{place, "", "0", Want{at, 0}, ""},
		{place, "", "0.25", Want{at, 250 * time.Millisecond}, ""},
		{place, "", "30s", Want{at, 30 * time.Second}, ""},
		{place, "timestamp.command.v1/3@43", "", Want{}, "two places"},
		{place, "", "30.1s", Want{}, "from 0s to 30s"},
		{place, "", "31", Want{}, "from 0s to 30s"},
		{place, "", "-1s", Want{}, "from 0s to 30s"},
		{place, "", "NaN", Want{}, "from 0s to 30s"},
		{place, "", "soon", Want{}, `wait="soon" is not accepted`},
		{"", "", "soon", Want{}, `wait="soon" is not accepted`},
		{"42", "", "", Want{}, "topic/partition@offset"},
	} {
		got, err := ParseWant(tc.header, tc.query, tc.wait, time.Minute)
		if tc.err != "" {
			var refused *WantError
			require.ErrorAs(t, err, &refused)
			require.ErrorContains(t, err, tc.err)
			continue
		}
		require.NoError(t, err)
		require.Equal(t, tc.want, got)
	}
}

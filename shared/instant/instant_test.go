package instant

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestParse(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"2009-09-28T19:03:12Z":             "2009-09-28T19:03:12Z",
		"2009-09-28T21:03:12+02:00":        "2009-09-28T19:03:12Z",
		"2009-09-28t19:03:12z":             "2009-09-28T19:03:12Z",
		"2009-09-28T19:03:12.1234567899Z":  "2009-09-28T19:03:12.123456Z",
		"2009-09-28T19:03:12.100-00:00":    "2009-09-28T19:03:12.1Z",
		"0001-01-01T00:00:00Z":             "0001-01-01T00:00:00Z",
		"9999-12-31T23:59:59.999999Z":      "9999-12-31T23:59:59.999999Z",
		"9999-12-31T23:59:59.999999+00:01": "9999-12-31T23:58:59.999999Z",
		"0000-12-31T23:59:59-00:01":        "0001-01-01T00:00:59Z",
		"2024-02-29T00:00:00Z":             "2024-02-29T00:00:00Z",
	} {
		got, err := Parse(in)
		require.NoError(t, err, in)
		require.Equal(t, want, Format(got), in)
	}
}

func TestParseRefusesWithTheValueTheRuleAndAnExample(t *testing.T) {
	t.Parallel()
	for in, rule := range map[string]string{
		"":                             "empty",
		"yesterday":                    "no RFC 3339 instant",
		"0001-01-01T00:00:00+01:00":    "year in UTC is 0",
		"9999-12-31T23:59:59-00:01":    "year in UTC is 10000",
		"2016-12-31T23:59:60Z":         "leap second",
		"2023-02-29T00:00:00Z":         "day out of range",
		"2009-09-28 19:03:12Z":         "no RFC 3339 instant",
		"2009-09-28T19:03:12":          "no RFC 3339 instant",
		"2009-09-28T9:03:12Z":          "no RFC 3339 instant",
		"2009-09-28T19:03:12,5Z":       "no RFC 3339 instant",
		"2009-09-28T19:03:12+24:00":    "no RFC 3339 instant",
		"12009-09-28T19:03:12Z":        "no RFC 3339 instant",
		"2009-09-28T19:03:12.Z":        "no RFC 3339 instant",
		" 2009-09-28T19:03:12Z":        "no RFC 3339 instant",
		"2009-09-28T19:03:12Z\x00drop": "no RFC 3339 instant",
	} {
		_, err := Parse(in)
		var refused *Error
		require.ErrorAs(t, err, &refused, in)
		require.Contains(t, err.Error(), rule, in)
		require.Contains(t, err.Error(), Example)
	}
}

func FuzzParse(f *testing.F) {
	f.Add("2009-09-28T19:03:12.123456789+02:00")
	f.Add("0001-01-01t00:00:00z")
	f.Fuzz(func(t *testing.T, s string) {
		got, err := Parse(s)
		if err != nil {
			_, ok := ParseUTC([]byte(s))
			require.False(t, ok)
			return
		}
		again, err := Parse(Format(got))
		fast, ok := ParseUTC([]byte(s))
		require.True(t, !ok || fast.Equal(got))
		fast, ok = ParseUTC([]byte(Format(got)))
		require.True(t, ok && fast.Equal(got))
		require.NoError(t, err)
		require.True(t, again.Equal(got))
		require.Equal(t, time.UTC, got.Location())
		require.True(t, got.Year() >= 1 && got.Year() <= 9999)
	})
}

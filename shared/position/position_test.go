package position

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestParseReadsWhatStringPrints(t *testing.T) {
	t.Parallel()
	p, err := Parse("timestamp.command.v1/11@9223372036854775807")
	require.NoError(t, err)
	require.Equal(t, Position{Topic: "timestamp.command.v1", Partition: 11, Offset: 1<<63 - 1}, p)
	require.Equal(t, "timestamp.command.v1/11@9223372036854775807", p.String())
}

func TestParseRefuses(t *testing.T) {
	t.Parallel()
	for _, s := range []string{
		"", "a", "a/1", "/1@1", "a/@1", "a/1@", "a/-1@1", "a/1@-1", "a/+1@1", "a/1@1 ", "a b/1@1", "a/2147483648@1",
		"a/1@9223372036854775808", "a/b/1@1", strings.Repeat("a", 250) + "/1@1",
	} {
		_, err := Parse(s)
		require.ErrorContains(t, err, "topic/partition@offset", s)
	}
}

func FuzzParse(f *testing.F) {
	f.Add("timestamp.command.v1/3@42")
	f.Fuzz(func(t *testing.T, s string) {
		p, err := Parse(s)
		if err != nil {
			return
		}
		again, err := Parse(p.String())
		require.NoError(t, err)
		require.Equal(t, p, again)
	})
}

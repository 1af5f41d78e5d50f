package event

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
)

func TestTimestampCommandGolden(t *testing.T) {
	t.Parallel()
	commands := []TimestampCommand{
		{uuid.MustParse("01920b5c-7d4e-7cc3-98c4-dc0c0c07398f"), time.Date(2009, 9, 28, 19, 3, 12, 0, time.UTC)},
		{uuid.MustParse("01920b5c-7d4e-7cc3-98c4-dc0c0c073990"), time.Date(2026, 1, 2, 3, 4, 5, 678_901_000, time.UTC)},
		{uuid.MustParse("ffffffff-ffff-8fff-bfff-ffffffffffff"), time.Date(1, 1, 1, 0, 0, 0, 0, time.UTC)},
		{uuid.MustParse("00000000-0000-0000-0000-000000000000"), time.Date(9999, 12, 31, 23, 59, 59, 999_999_000, time.UTC)},
	}
	golden, err := os.ReadFile(filepath.Join("testdata", "timestamp.command.v1.golden"))
	require.NoError(t, err)
	lines := strings.Split(strings.TrimSpace(string(golden)), "\n")
	require.Len(t, lines, len(commands))
	for i, c := range commands {
		require.Equal(t, lines[i], string(AppendTimestampCommand(nil, c)))
		got, err := DecodeTimestampCommand([]byte(lines[i]))
		require.NoError(t, err)
		require.Equal(t, c, got)
	}
}

func TestDecodeTimestampCommandOfOtherProducers(t *testing.T) {
	t.Parallel()
	want := TimestampCommand{uuid.MustParse("01920b5c-7d4e-7cc3-98c4-dc0c0c07398f"), time.Date(2009, 9, 28, 19, 3, 12, 0, time.UTC)}
	for _, value := range []string{
		`{"command_id": "01920B5C-7D4E-7CC3-98C4-DC0C0C07398F", "event_timestamp": "2009-09-28T21:03:12+02:00"}`,
		`{"event_timestamp":"2009-09-28T19:03:12Z","command_id":"01920b5c-7d4e-7cc3-98c4-dc0c0c07398f","more":[1]}`,
		`{"command_id":"01920b5c-7d4e-7cc3-98c4-dc0c0c07398f","event_timestamp":"2009-09-28T19:03:12.0000009Z"}`,
		"\n" + `{"command_id":"\u00301920b5c-7d4e-7cc3-98c4-dc0c0c07398f","event_timestamp":"2009-09-28T19:03:12Z"} `,
	} {
		got, err := DecodeTimestampCommand([]byte(value))
		require.NoError(t, err, value)
		require.Equal(t, want, got, value)
	}
}

func TestDecodeTimestampCommandRefuses(t *testing.T) {
	t.Parallel()
	for value, reason := range map[string]string{
		``:     "the value: expected a JSON object, found no JSON: unexpected end of JSON input",
		`null`: "command_id: expected a UUID, found nothing",
		`[]`:   "the value: expected a JSON object, found a list",
		`{"command_id":7,"event_timestamp":"2009-09-28T19:03:12Z"}`:                                               "command_id: expected a text, found a number",
		`{"event_timestamp":"2009-09-28T19:03:12Z"}`:                                                              "command_id: expected a UUID, found nothing",
		`{"command_id":"01920b5c-7d4e-7cc3-98c4-dc0c0c07398f"}`:                                                   "event_timestamp: expected an RFC 3339 instant, found nothing",
		`{"command_id":"01920b5c-7d4e-7cc3-98c4-dc0c0c07398f","event_timestamp":{"at":1}}`:                        "event_timestamp: expected a text, found an object",
		`{"command_id":"01920b5c7d4e7cc398c4dc0c0c07398f","event_timestamp":"2009-09-28T19:03:12Z"}`:              "is no ticket",
		`{"command_id":"01920b5c-7d4e-7cc3-98c4-dc0c0c07398f","event_timestamp":"2009-09-28"}`:                    "event_timestamp",
		`{"command_id":"01920b5c-7d4e-7cc3-98c4-dc0c0c07398f","event_timestamp":"0000-09-28T19:03:12Z"}`:          "year in UTC is 0",
		`{"command_id":"01920b5c-7d4e-7cc3-98c4-dc0c0c07398f","event_timestamp":"2009-09-28T19:03:12Z"}{"a":"b"}`: "found no JSON: invalid character '{' after top-level value",
		`{"more":` + strings.Repeat("[", 1<<20):                                                                   "exceeded max depth",
	} {
		_, err := DecodeTimestampCommand([]byte(value))
		require.ErrorContains(t, err, reason, value)
	}
	_, err := DecodeTimestampCommand(nil)
	require.ErrorContains(t, err, "no value")
}

// The fast way may take only what the general way takes, with the same meaning.
func FuzzDecodeTimestampCommand(f *testing.F) {
	f.Add([]byte(`{"command_id":"01920b5c-7d4e-7cc3-98c4-dc0c0c07398f","event_timestamp":"2009-09-28T19:03:12.1234567Z"}`))
	f.Add([]byte(`{"command_id":"01920b5c-7d4e-7cc3-98c4-dc0c0c07398f","event_timestamp":"2009-09-28T19:03:12Z","event_timestamp":"2010-09-28T19:03:12Z"}`))
	f.Fuzz(func(t *testing.T, value []byte) {
		fast, ok := decodeCanonical(value)
		if ok {
			var raw struct {
				CommandID      string    `json:"command_id"`
				EventTimestamp time.Time `json:"event_timestamp"`
			}
			require.NoError(t, json.Unmarshal(value, &raw))
			require.Equal(t, uuid.MustParse(raw.CommandID), fast.CommandID)
			require.True(t, raw.EventTimestamp.Truncate(time.Microsecond).Equal(fast.EventTimestamp))
		}
		c, err := DecodeTimestampCommand(value)
		if err != nil {
			return
		}
		again, err := DecodeTimestampCommand(AppendTimestampCommand(nil, c))
		require.NoError(t, err)
		require.Equal(t, c, again)
	})
}

func BenchmarkDecodeTimestampCommand(b *testing.B) {
	value := []byte(`{"command_id":"01920b5c-7d4e-7cc3-98c4-dc0c0c07398f","event_timestamp":"2026-01-02T03:04:05.678901Z"}`)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := DecodeTimestampCommand(value); err != nil {
			b.Fatal(err)
		}
	}
}

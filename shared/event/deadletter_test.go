package event

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/shared/position"
	"github.com/tidemark/tidemark/shared/topic"
)

// golden returns the lines of a file that freezes an encoding.
func golden(t *testing.T, topic string) []string {
	t.Helper()
	content, err := os.ReadFile(filepath.Join("testdata", topic+".golden"))
	require.NoError(t, err)
	return strings.Split(strings.TrimSpace(string(content)), "\n")
}

func TestDeadLetterCommandGolden(t *testing.T) {
	t.Parallel()
	at := func(partition int32, offset int64) position.Position {
		return position.Position{Topic: topic.TimestampCommand.Name, Partition: partition, Offset: offset}
	}
	commands := []DeadLetterCommand{
		{Position: at(3, 17), Decision: Redrive, CommandID: uuid.MustParse("01920b5c-7d4e-7cc3-98c4-dc0c0c07398f"), Note: "typo in the year", By: "ops-1"},
		{Position: at(0, 0), Decision: Discard},
		{Position: at(11, 9223372036854775807), Decision: Discard, Note: "<\"é\u2028\n>", By: "a&b"},
		{Position: at(3, 18), Decision: Redrive, CommandID: uuid.MustParse("01920b5c-7d4e-7cc3-98c4-dc0c0c07398f"), RequestID: uuid.MustParse("6f2b8a0e-58cf-8d63-9a0d-0d1f3c1f3a55")},
	}
	lines := golden(t, topic.DeadLetterCommand.Name)
	require.Len(t, lines, len(commands))
	for i, c := range commands {
		require.Equal(t, lines[i], string(AppendDeadLetterCommand(nil, c)))
		got, err := DecodeDeadLetterCommand([]byte(lines[i]))
		require.NoError(t, err)
		require.Equal(t, c, got)
	}
}

func TestDecodeDeadLetterCommandRefuses(t *testing.T) {
	t.Parallel()
	for value, reason := range map[string]string{
		``:                       "no JSON object",
		`[]`:                     "no JSON object",
		`null`:                   "no position",
		`{"decision":"discard"}`: "no position",
		`{"position":"a/0@1"}`:   "no decision",
		`{"position":"a/0@1","decision":"retry"}`:                       "neither redrive nor discard",
		`{"position":"a/0","decision":"discard"}`:                       "is no position",
		`{"position":"a/0@1","decision":"redrive"}`:                     "without a command_id",
		`{"position":"a/0@1","decision":"redrive","command_id":"7"}`:    "is no ticket",
		`{"position":"a/0@1","decision":"discard","note":7}`:            "no JSON object",
		`{"position":"a/0@1","decision":"discard"}{"position":"b/0@1"}`: "no JSON object",
	} {
		_, err := DecodeDeadLetterCommand([]byte(value))
		require.ErrorContains(t, err, reason, value)
	}
	_, err := DecodeDeadLetterCommand(nil)
	require.ErrorContains(t, err, "no value")
	_, err = DecodeDeadLetterCommand([]byte(`{"position":"a/0@1","decision":"discard","since":"tomorrow"}`))
	require.NoError(t, err, "a newer producer may add members")
}

func TestReceiptGolden(t *testing.T) {
	t.Parallel()
	caughtUpAt := time.Date(2026, 11, 21, 10, 24, 25, 500_000_000, time.UTC)
	receipts := []Receipt{
		{
			Group: "timestamp-consumer-service-1", Epoch: 1, Served: true, Topic: topic.TimestampCommand.Name, Partition: 3, From: 17, Next: 20,
			Outcomes: []Run{{Applied, 3}}, DecidedAt: time.Date(2026, 11, 21, 10, 24, 21, 59_000_000, time.UTC),
		},
		{
			Group: "<g>", Generation: 7, Epoch: 9223372036854775807, Topic: topic.TimestampCommand.Name, Next: 12,
			Outcomes:  []Run{{Applied, 4}, {Duplicate, 3}, {Rejected, 2}, {Expired, 2}, {Skipped, 1}},
			DecidedAt: time.Date(2026, 11, 21, 10, 24, 21, 1000, time.UTC),
		},
		{
			Group: "timestamp-consumer-service-1.endpoints", Epoch: 1, Served: true, Topic: topic.EndpointCommand.Name, Partition: 47, From: 20, Next: 20,
			CaughtUpAt: &caughtUpAt, DecidedAt: time.Date(2026, 11, 21, 10, 24, 26, 0, time.UTC),
		},
	}
	lines := golden(t, topic.ProjectionReceipt.Name)
	require.Len(t, lines, len(receipts))
	for i, r := range receipts {
		require.Equal(t, lines[i], string(AppendReceipt(nil, r)))
		got, err := DecodeReceipt([]byte(lines[i]))
		require.NoError(t, err)
		require.Equal(t, r, got)
		runs, err := DecodeRuns(AppendRuns(nil, r.Outcomes), r.Next-r.From)
		require.NoError(t, err)
		require.Equal(t, r.Outcomes, runs)
	}
	require.Equal(t, "timestamp.command.v1/3", receipts[0].Key())
}

func TestDecodeReceiptRefuses(t *testing.T) {
	t.Parallel()
	good := golden(t, topic.ProjectionReceipt.Name)[0]
	for part, instead := range map[string]string{
		`"next":20`: `"next":21`,
		`"from":17`: `"from":20`,
		`"from":17,"next":20,"outcomes":[{"outcome":"applied","count":3}]`: `"from":17,"next":17,"outcomes":[]`,
		`,"decided_at"`:            `,"caught_up_at":"2026-11-21T10:24:21Z","decided_at"`,
		`"topic":"timestamp.comma`: `"topic":"","x":"`,
		`"count":3`:                `"count":0`,
		`"applied"`:                `"lost"`,
		`2026-11-21T`:              `2026-11-41T`,
		`"partition":3`:            `"partition":-3`,
		`{"group"`:                 `["group"`,
		`"count":3}`:               `"count":9223372036854775807},{"outcome":"applied","count":9223372036854775807},{"outcome":"applied","count":5}`,
	} {
		require.Contains(t, good, part)
		_, err := DecodeReceipt([]byte(strings.Replace(good, part, instead, 1)))
		require.Error(t, err, instead)
	}
}

func FuzzDecodeDeadLetterCommand(f *testing.F) {
	f.Add([]byte(`{"position":"timestamp.command.v1/3@17","decision":"redrive","command_id":"01920b5c-7d4e-7cc3-98c4-dc0c0c07398f","note":"\ud800","by":""}`))
	f.Add([]byte(`{"position":"timestamp.command.v1/3@17","decision":"discard","command_id":"7","request_id":7}`))
	f.Fuzz(func(t *testing.T, value []byte) {
		c, err := DecodeDeadLetterCommand(value)
		if err != nil {
			return
		}
		again, err := DecodeDeadLetterCommand(AppendDeadLetterCommand(nil, c))
		require.NoError(t, err)
		require.Equal(t, c, again)
	})
}

func FuzzDecodeReceipt(f *testing.F) {
	for _, line := range []string{
		`{"group":"g","generation":0,"epoch":1,"served":true,"topic":"t","partition":3,"from":17,"next":20,"outcomes":[{"outcome":"applied","count":3}],"decided_at":"2026-11-21T10:24:21.059Z"}`,
		`{"group":"g","epoch":1,"topic":"t","partition":3,"from":17,"next":17,"outcomes":[],"caught_up_at":"2026-11-21T10:24:21.059Z","decided_at":"2026-11-21T10:24:21.059Z"}`,
	} {
		f.Add([]byte(line))
	}
	f.Fuzz(func(t *testing.T, value []byte) {
		r, err := DecodeReceipt(value)
		if err != nil {
			return
		}
		again, err := DecodeReceipt(AppendReceipt(nil, r))
		require.NoError(t, err)
		require.Equal(t, r, again)
	})
}

package projection

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/lib/pq"
	"github.com/lib/pq/pqerror"
	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/shared/kafka"
	"github.com/tidemark/tidemark/shared/position"
	"github.com/tidemark/tidemark/shared/topic"
)

func TestJudgeName(t *testing.T) {
	t.Parallel()
	name := func(s string) *string { return &s }
	for _, tc := range []struct {
		on     *string
		served bool
		want   naming
		err    string
	}{
		{nil, false, firstName, ""},
		{name("mine"), true, sameName, ""},
		{name("old"), false, newName, ""},
		{name("newer"), true, 0, `"mine" served this database before and was replaced by "newer"`},
	} {
		got, err := judgeName(generation{GroupName: tc.on}, "mine", tc.served)
		if tc.err != "" {
			require.ErrorContains(t, err, tc.err)
			require.ErrorContains(t, err, "fresh name")
			continue
		}
		require.NoError(t, err)
		require.Equal(t, tc.want, got)
	}
}

func TestJudgeCommitted(t *testing.T) {
	t.Parallel()
	g := generation{Database: uuid.MustParse("01920b5c-7d4e-7cc3-98c4-dc0c0c07398f"), Epoch: 7}
	at := position.Position{Topic: topic.TimestampCommand.Name, Partition: 3}
	require.Equal(t, "tidemark 01920b5c-7d4e-7cc3-98c4-dc0c0c07398f 7", g.metadata())
	for name, tc := range map[string]struct {
		offset   int64
		metadata string
		was      committed
		err      string
	}{
		"never committed":                  {offset: -1},
		"ours and equal":                   {offset: 100, metadata: g.metadata()},
		"ours and behind":                  {offset: 5, metadata: g.metadata()},
		"ours and ahead: a backup":         {offset: 500, metadata: g.metadata(), was: committedAhead},
		"ours of a later epoch: a backup":  {offset: 5, metadata: "tidemark 01920b5c-7d4e-7cc3-98c4-dc0c0c07398f 8", was: committedAhead},
		"ours of an earlier epoch, ahead":  {offset: 500, metadata: "tidemark 01920b5c-7d4e-7cc3-98c4-dc0c0c07398f 6"},
		"ours of an earlier epoch":         {offset: 5, metadata: "tidemark 01920b5c-7d4e-7cc3-98c4-dc0c0c07398f 6"},
		"another database's":               {offset: 100, metadata: "tidemark 01920b5c-7d4e-7cc3-98c4-000000000000 7", err: "committed for another database"},
		"reset to earliest":                {offset: 0, was: committedReset},
		"reset to the middle":              {offset: 99, was: committedReset},
		"reset to where the projection is": {offset: 100},
		"reset ahead":                      {offset: 101, err: "would skip 1 records"},
		"someone else's metadata, behind":  {offset: 0, metadata: "x", was: committedReset},
	} {
		was, err := judgeCommitted(g, at, kafka.Committed{Offset: tc.offset, Metadata: tc.metadata}, 100)
		if tc.err != "" {
			require.ErrorContains(t, err, tc.err, name)
			continue
		}
		require.NoError(t, err, name)
		require.Equal(t, tc.was, was, name)
	}
}

func TestJudgeBounds(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		next, start, end, accepted int64
		startsOver                 bool
		err                        string
	}{
		"empty":                              {0, 0, 0, 0, false, ""},
		"in the middle":                      {5, 0, 10, 0, false, ""},
		"at the end":                         {10, 0, 10, 0, false, ""},
		"past the end":                       {11, 0, 10, 0, false, "ends at offset 10 and the projection has read up to 11"},
		"past the end, starting over":        {11, 0, 10, 0, true, "ends at offset 10 and the projection has read up to 11"},
		"records deleted":                    {5, 3, 10, 0, false, "ACCEPT_LOG_START=timestamp.command.v1/2@3"},
		"records deleted, starting over":     {5, 3, 10, 0, true, "ACCEPT_LOG_START=timestamp.command.v1/2@3"},
		"records deleted, accepted":          {5, 3, 10, 3, false, ""},
		"more deleted than accepted":         {5, 4, 10, 3, false, "starts at offset 4, not at 3"},
		"less deleted than accepted":         {5, 2, 10, 3, false, "ACCEPT_LOG_START names 3: going on there would skip 1 records"},
		"nothing deleted, but accepted":      {0, 0, 10, 3, true, "ACCEPT_LOG_START names 3: going on there would skip 3 records"},
		"deleted past the projection":        {2, 3, 10, 3, false, "the records between are gone"},
		"deleted past it, and starting over": {2, 3, 10, 3, true, ""},
	} {
		err := judgeBounds(topic.TimestampCommand, progress{Partition: 2, NextOffset: tc.next}, kafka.Bounds{Start: tc.start, Stable: tc.end}, tc.accepted, tc.startsOver)
		if tc.err == "" {
			require.NoError(t, err, name)
			continue
		}
		require.ErrorContains(t, err, tc.err, name)
	}
}

func TestJudgeLast(t *testing.T) {
	t.Parallel()
	r := kafka.Record{Offset: 41, Timestamp: day, Key: []byte("k"), Value: []byte("v")}
	offset, at, hash := int64(41), day, recordHash(r)
	p := progress{Partition: 2, LastOffset: &offset, LastCreatedAt: &at, LastHash: &hash}
	require.NoError(t, judgeLast(topic.TimestampCommand, p, r, true))
	compacted := topic.TimestampCommand
	compacted.Kept = topic.Compacted
	require.NoError(t, judgeLast(compacted, p, kafka.Record{}, false), "compaction may have taken it")
	require.ErrorContains(t, judgeLast(topic.TimestampCommand, p, kafka.Record{}, false), "timestamp.command.v1/2@41 of 2026-01-02T03:04:05Z, is not in the log")
	for _, other := range []kafka.Record{
		{Offset: 41, Timestamp: day.Add(time.Millisecond), Key: []byte("k"), Value: []byte("v")},
		{Offset: 41, Timestamp: day, Key: []byte("kv"), Value: nil},
		{Offset: 41, Timestamp: day, Key: []byte("k"), Value: []byte("w")},
	} {
		require.ErrorContains(t, judgeLast(topic.TimestampCommand, p, other, true), "is another than the one that was projected")
	}
}

func TestRemedyFor(t *testing.T) {
	t.Parallel()
	for state, want := range map[string]remedy{
		"23505": decideRows, "22008": findRecord, "23502": findRecord, "54000": findRecord, "54001": findRecord, "40001": repeatAtOnce, "40P01": repeatAtOnce, "42P01": rereadState, "0A000": rereadState, "55P03": rereadState,
		"53100": waitForDatabase, "25006": waitForDatabase, "57P01": waitForDatabase, "57014": waitForDatabase, "08006": waitForDatabase, "42501": waitForDatabase,
	} {
		require.Equal(t, want, remedyFor(fmt.Errorf("write: %w", &pq.Error{Code: pqerror.Code(state)})), state)
	}
	require.Equal(t, findRecord, remedyFor(&pq.Error{Code: "23514", Constraint: "mine"}))
	require.Equal(t, makeDay, remedyFor(&pq.Error{Code: "23514"}), "no partition for a row is no record's fault")
	require.Equal(t, waitForDatabase, remedyFor(errors.New("connection reset")))
}

func TestWindow(t *testing.T) {
	t.Parallel()
	var w window
	for i := range 100 {
		require.False(t, w.add(true), i)
	}
	for range 900 {
		require.False(t, w.add(false))
	}
	require.False(t, w.add(true), "the oldest refusal has left")
	for range 899 {
		require.False(t, w.add(false))
	}
	broken := false
	for range 101 {
		broken = w.add(true)
	}
	require.True(t, broken, "101 of the last 1,000")
}

func TestPrepareSortsByIDAndCountsGaps(t *testing.T) {
	t.Parallel()
	a, b := uuid.MustParse("00000000-0000-7000-8000-00000000000a"), uuid.MustParse("00000000-0000-7000-8000-00000000000b")
	records := []kafka.Record{
		{Offset: 12, Timestamp: day, Value: []byte(value(b, day))},
		{Offset: 13, Timestamp: day, Value: []byte(`{}`)},
		{Offset: 15, Timestamp: day, Value: []byte(value(a, day))},
		{Offset: 16, Timestamp: day, Value: []byte(value(b, day))},
	}
	got := stamps(3).prepare(2, 10, records)
	require.Equal(t, []int64{15, 12, 16}, []int64{got.of(0).Offset, got.of(1).Offset, got.of(2).Offset})
	require.True(t, got.repeats())
	require.Equal(t, int64(17), got.next)
	require.Equal(t, int64(3), got.skipped, "10, 11 and 14")
	require.Len(t, got.letters, 1)
	require.Equal(t, 2, below(records, 15))
}

func TestHeadersKeepTheirOrderAndAnyBytes(t *testing.T) {
	t.Parallel()
	require.Equal(t, `[]`, headersJSON(nil))
	require.Equal(t, `[{"key":"a","value":"1"},{"key":"a","value":""},{"key":"n","value_base64":"AGE="},{"key_base64":"/w==","value":"x"}]`,
		headersJSON([]kafka.Header{{Key: []byte("a"), Value: []byte("1")}, {Key: []byte("a")}, {Key: []byte("n"), Value: []byte("\x00a")}, {Key: []byte("\xff"), Value: []byte("x")}}))
}

func TestFindingText(t *testing.T) {
	t.Parallel()
	end := int64(10)
	ok := finding{Known: true, NextOffset: 10, Applied: 6, Duplicate: 2, Rejected: 1, Skipped: 1, LogEnd: &end, Rows: 6, Letters: 1}
	require.Empty(t, ok.text())
	for want, change := range map[string]func(*finding){
		"2 rows are missing":           func(f *finding) { f.Rows = 4 },
		"1 rows are too many":          func(f *finding) { f.Rows = 7 },
		"1 dead letters are missing":   func(f *finding) { f.Letters = 0 },
		"1 dead letters are too many":  func(f *finding) { f.Letters = 2 },
		"10 offsets and 9 outcomes":    func(f *finding) { f.Duplicate = 1 },
		"that the log does not have":   func(f *finding) { f.Ahead = 1 },
		"that the topic does not have": func(f *finding) { f.Known = false },
	} {
		f := ok
		change(&f)
		require.Contains(t, f.text(), want)
	}
	replaying := ok
	further := int64(20)
	replaying.Ahead, replaying.LogEnd = 5, &further
	require.Empty(t, replaying.text(), "rows of an earlier epoch wait to be recognised")
}

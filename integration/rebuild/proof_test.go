package rebuild_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/integration/story"
)

// A row that somebody changed in either schema makes the proof fail: it names the row, and nothing is swapped.
// Once it is as it was, the same generation is swapped in. (All the ways to change one are in consumer-service.)
func TestTheProofIsReal(t *testing.T) {
	s := story.New(t)
	op, g := readyToSwap(t, s, 5_000)

	for _, schema := range []string{"public", g.Schema} {
		var id string
		require.NoError(t, s.DB.QueryRowContext(t.Context(), `
UPDATE `+schema+`.timestamp_records SET event_timestamp = event_timestamp + interval '1 day'
WHERE id = (SELECT id FROM public.timestamp_records ORDER BY id LIMIT 1 OFFSET 1234) RETURNING id`).Scan(&id))
		op.swap(g.Generation)
		proved := op.untilProved(g.Generation)
		require.False(t, proved.Proof.OK, schema)
		require.Contains(t, proved.Proof.Finding, id)
		require.Len(t, proved.Proof.Differences, 1)
		d := proved.Proof.Differences[0]
		require.Equal(t, "timestamp_records", d.Table)
		require.Equal(t, id, d.Key)
		require.NotEqual(t, d.Serving, d.Candidate)
		require.False(t, proved.SwapWanted)
		require.Equal(t, "ready", proved.State)
		require.Zero(t, op.all(t.Context())[0].Generation, "nothing was swapped")
		_, err := s.DB.ExecContext(t.Context(), `UPDATE `+schema+`.timestamp_records SET event_timestamp = event_timestamp - interval '1 day' WHERE id = $1`, id)
		require.NoError(t, err)
	}
	op.swap(g.Generation)
	op.untilServes(g.Generation)
	s.RequireProjected(s.DB)
	s.RequireCleanAudit(s.DB)

	status, body := op.do(http.MethodPost, "/api/v1/projections/timestamps/audit", "")
	require.Equal(t, http.StatusOK, status, string(body))
	var audit struct {
		OK         bool
		Partitions []struct {
			Partition int32
			Applied   int64
			Found     int64 `json:"rows_found"`
		}
	}
	require.NoError(t, json.Unmarshal(body, &audit))
	require.True(t, audit.OK)
	require.Len(t, audit.Partitions, 12)
	_, err := s.DB.ExecContext(t.Context(), `DELETE FROM timestamp_records WHERE partition = 3 AND "offset" = 1`)
	require.NoError(t, err)
	_, body = op.do(http.MethodPost, "/api/v1/projections/timestamps/audit", "")
	require.NoError(t, json.Unmarshal(body, &audit))
	require.False(t, audit.OK)
	require.Equal(t, audit.Partitions[3].Applied-1, audit.Partitions[3].Found)
}

// A rebuild to a time or a position holds what the log held then, while what serves goes on.
func TestToAPoint(t *testing.T) {
	s := story.New(t)
	consumer := s.Consumer("")
	var written []story.Record
	for range 5 {
		fill(t, s.Log, 600)
		time.Sleep(20 * time.Millisecond) // so that log times differ
	}
	ends, err := s.Log.Ends()
	require.NoError(t, err)
	written, _, err = s.Log.Read(t.Context(), ends)
	require.NoError(t, err)
	s.RequireProjected(s.DB)
	op := api{t, s.Client, consumer}

	times := map[int64]bool{}
	for _, r := range written {
		times[r.Time.UnixMilli()] = true
	}
	all := slices.Sorted(maps.Keys(times))
	middle := time.UnixMilli(all[len(all)/2]).UTC()
	var at story.Record
	for _, r := range written {
		if r.Time.Equal(middle) && r.Offset > at.Offset {
			at = r
		}
	}
	for name, to := range map[string]struct {
		body  string
		holds func(story.Record) bool
	}{
		"a time": {`{"time":"` + middle.Format(time.RFC3339Nano) + `"}`, func(r story.Record) bool { return !r.Time.After(middle) }},
		"now":    {`{"time":"` + time.Now().UTC().Format(time.RFC3339Nano) + `"}`, func(story.Record) bool { return true }},
		"a position": {`{"position":"` + at.Position() + `"}`, func(r story.Record) bool {
			if r.Partition == at.Partition {
				return r.Offset <= at.Offset
			}
			return !r.Time.After(middle)
		}},
	} {
		var held []story.Record
		for _, r := range written {
			if to.holds(r) {
				held = append(held, r)
			}
		}
		g := op.start(`{"to":` + to.body + `}`)
		g = op.untilState(g.Generation, "held")
		require.EqualValues(t, len(held), g.Progress.Done, name)
		require.EqualValues(t, len(held), g.Progress.Total, name)
		expected := story.Expect(held, story.Rules{})
		var found string
		require.NoError(t, s.DB.QueryRowContext(t.Context(), `
SELECT coalesce(string_agg(id || ' ' || partition || ' ' || "offset", E'\n' ORDER BY id), '') FROM `+g.Schema+`.timestamp_records`).Scan(&found))
		var wanted string
		require.NoError(t, s.DB.QueryRowContext(t.Context(), `
SELECT string_agg(id || ' ' || partition || ' ' || "offset", E'\n' ORDER BY id) FROM public.timestamp_records WHERE (partition, "offset") IN (
	SELECT partition, "offset" FROM unnest($1::text::integer[], $2::text::bigint[]) AS r (partition, "offset"))`, partitionsOf(held), offsetsOf(held)).Scan(&wanted))
		require.Equal(t, wanted, found, name)
		var letters int
		require.NoError(t, s.DB.QueryRowContext(t.Context(), `SELECT count(*) FROM `+g.Schema+`.dead_letters`).Scan(&letters))
		require.Len(t, expected.DeadLetters, letters, name)

		status, body := op.do(http.MethodPost, fmt.Sprintf("/api/v1/projections/timestamps/generations/%d/swap", g.Generation), "")
		require.Equal(t, http.StatusConflict, status, string(body))
		op.drop(g.Generation)
		op.untilGone(g.Generation)
		require.Empty(t, traces(t, s))
	}
}

func partitionsOf(records []story.Record) string {
	return array(records, func(r story.Record) any { return r.Partition })
}

func offsetsOf(records []story.Record) string {
	return array(records, func(r story.Record) any { return r.Offset })
}

func array(records []story.Record, of func(story.Record) any) string {
	text := "{"
	for i, r := range records {
		if i > 0 {
			text += ","
		}
		text += fmt.Sprint(of(r))
	}
	return text + "}"
}

// What the API refuses: with which status, and in words that say what to do.
func TestWhatIsRefused(t *testing.T) {
	s := story.New(t)
	consumer := s.Consumer("")
	fill(t, s.Log, 1200)
	s.RequireProjected(s.DB)
	op := api{t, s.Client, consumer}
	refused := func(status int, words, method, path, body string) {
		t.Helper()
		got, answer := op.do(method, path, body)
		require.Equal(t, status, got, string(answer))
		var p struct{ Type, Title, Detail string }
		require.NoError(t, json.Unmarshal(answer, &p))
		require.Contains(t, p.Detail, words)
	}
	const path = "/api/v1/projections/timestamps/generations"
	for _, tc := range []struct {
		status             int
		words              string
		method, path, body string
	}{
		{400, "the body", http.MethodPost, path, `{"swap":"yes"}`},
		{400, "the body", http.MethodPost, path, `{"sawp":false}`},
		{400, "rate_limit", http.MethodPost, path, `{"rate_limit":0}`},
		{400, "", http.MethodGet, path + "/first", ""},
		{404, "there is no such generation", http.MethodGet, path + "/7", ""},
		{404, "there is no such generation", http.MethodDelete, path + "/7", ""},
		{404, "there is no such generation", http.MethodPost, path + "/7/swap", ""},
		{404, "there is no such generation", http.MethodPost, path + "/7/proof", ""},
		{405, "", http.MethodPut, path, ""},
		{409, "generation 0 serves: swap another one in first", http.MethodDelete, path + "/0", ""},
		{409, "generation 0 serves already", http.MethodPost, path + "/0/swap", ""},
		{422, "lies in the future", http.MethodPost, path, `{"to":{"time":"2999-01-01T00:00:00Z"}}`},
		{422, "begins later", http.MethodPost, path, `{"to":{"time":"1999-01-01T00:00:00Z"}}`},
		{422, "to.time", http.MethodPost, path, `{"to":{"time":"yesterday"}}`},
		{422, "is outside the log", http.MethodPost, path, `{"to":{"position":"timestamp.command.v1/0@999"}}`},
		{422, "is no partition of", http.MethodPost, path, `{"to":{"position":"timestamp.command.v1/12@0"}}`},
		{422, "is no partition of", http.MethodPost, path, `{"to":{"position":"other/0@0"}}`},
		{422, "one of the two", http.MethodPost, path, `{"to":{}}`},
		{422, "never swaps", http.MethodPost, path, `{"swap":true,"to":{"time":"2020-01-01T00:00:00Z"}}`},
	} {
		refused(tc.status, tc.words, tc.method, tc.path, tc.body)
	}
	g := op.start(`{"swap":false,"rate_limit":12}`) // it will not be done while this test looks
	refused(409, fmt.Sprintf("generation %d is filling: one rebuild at a time, cancel it first", g.Generation), http.MethodPost, path, "")
	refused(409, "cannot be verified yet: it is still filling", http.MethodPost, fmt.Sprintf("%s/%d/swap", path, g.Generation), "")
	refused(409, "cannot be verified yet: it is still filling", http.MethodPost, fmt.Sprintf("%s/%d/proof", path, g.Generation), "")
	op.until("wait until the bottleneck is named", func(all []generation) bool { return all[1].Progress.Bottleneck == "throttle" })
	op.drop(g.Generation)
	op.untilGone(g.Generation)
	require.Empty(t, traces(t, s))
}

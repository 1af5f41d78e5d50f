package app

import (
	"fmt"
	"net/url"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/query-service/internal/testdb"
)

const oneLetter = "/api/v1/deadletters/timestamp.command.v1%2F"

// decide plays the consumer, which has read one more decision of a partition.
func decide(t *testing.T, db *testdb.DB, letter, decision string, command any) {
	t.Helper()
	var partition, offset int
	_, err := fmt.Sscanf(letter, "%d@%d", &partition, &offset)
	require.NoError(t, err)
	db.Must(t, `WITH at AS (
			INSERT INTO decision_progress VALUES (5, 1) ON CONFLICT (partition) DO UPDATE SET next_offset = decision_progress.next_offset + 1 RETURNING next_offset - 1 AS o
		) INSERT INTO dead_letter_decisions SELECT 'timestamp.command.v1', $1, $2, $3, $4, 'why', 'ops-1', '2026-01-03T00:00:00Z', 5, o FROM at`,
		partition, offset, decision, command)
}

func TestDeadLettersAreFound(t *testing.T) {
	t.Parallel()
	db, s := setup(t)
	for i := range 4 {
		db.Reject(t, 1, fmt.Appendf(nil, "broken %d", i), `[{"key":"producer","value":"x"}]`, fmt.Sprint("The reason is ", i)) // 1@0 to 1@3
	}
	db.Reject(t, 2, []byte{0, 255, 'x'}, `[]`, "no text") // 2@0
	db.Reject(t, 2, nil, `[]`, "no value")                // 2@1
	db.Must(t, `UPDATE dead_letters SET reason_code = 'refused' WHERE partition = 1 AND "offset" = 3`)
	ticket := uuid.New()
	decide(t, db, "1@1", "redrive", ticket)
	decide(t, db, "1@2", "discard", nil)
	decide(t, db, "3@7", "discard", nil) // of no letter at all

	found := func(query string) (positions []string, next string) {
		t.Helper()
		if !strings.Contains(query, "order=") {
			query = "?order=position&" + strings.TrimPrefix(query, "?")
		}
		a := s.get(t, "/api/v1/deadletters"+query)
		require.Equal(t, 200, a.status, a.body)
		o := a.object(t)
		for _, item := range o["items"].([]any) {
			positions = append(positions, strings.TrimPrefix(item.(map[string]any)["position"].(string), "timestamp.command.v1/"))
		}
		next, _ = o["next"].(string)
		return positions, next
	}
	for query, want := range map[string][]string{
		"":                         {"1@0", "1@3", "2@0", "2@1"},
		"?state=open":              {"1@0", "1@3", "2@0", "2@1"},
		"?state=redriven":          {"1@1"},
		"?state=discarded":         {"1@2"},
		"?state=all":               {"1@0", "1@1", "1@2", "1@3", "2@0", "2@1"},
		"?state=all&partition=2":   {"2@0", "2@1"},
		"?state=all&partition=3":   nil,
		"?reason_code=refused":     {"1@3"},
		"?state=all&q=broken+2":    {"1@2"},
		"?state=all&q=Broken+2":    nil, // payloads are bytes
		"?state=all&q=REASON+IS+1": {"1@1"},
		"?state=all&q=x":           {"2@0"},
		"?state=all&q=%25":         nil, // no pattern
		"?state=open&q=broken":     {"1@0", "1@3"},
		"?state=all&after=" + url.QueryEscape("timestamp.command.v1/1@2"):                {"1@3", "2@0", "2@1"},
		"?state=all&partition=2&after=" + url.QueryEscape("timestamp.command.v1/2@0"):    {"2@1"},
		"?state=all&partition=1&after=" + url.QueryEscape("timestamp.command.v1/2@0"):    nil,
		"?state=all&partition=1&after=" + url.QueryEscape("timestamp.command.v1/0@1000"): {"1@0", "1@1", "1@2", "1@3"},
	} {
		got, next := found(query)
		require.Equal(t, want, got, query)
		require.Empty(t, next, query)
	}
	for _, query := range []string{"?state=open", "?state=all&q=o", "?reason_code=decode&partition=1&state=all", "?order=newest&state=all", "?order=newest&state=open&q=o"} {
		want, _ := found(query)
		var got []string
		pages := 0
		for next := query + "&limit=1"; next != ""; pages++ {
			require.Less(t, pages, 10)
			var page []string
			page, next = found(next)
			require.LessOrEqual(t, len(page), 1)
			got = append(got, page...)
			next = strings.TrimPrefix(next, "/api/v1/deadletters")
		}
		require.Equal(t, want, got, query)
		require.Equal(t, len(want), pages, query)
	}
	db.Must(t, `UPDATE dead_letters SET first_seen_at = '2026-01-02T03:04:06Z' WHERE partition = 1 AND "offset" IN (0, 3)`)
	for query, want := range map[string][]string{
		"?order=newest":                                                      {"1@3", "1@0", "2@1", "2@0"},
		"?order=newest&state=all":                                            {"1@3", "1@0", "2@1", "2@0", "1@2", "1@1"},
		"?order=newest&state=all&partition=1":                                {"1@3", "1@0", "1@2", "1@1"},
		"?order=newest&state=all&q=broken":                                   {"1@3", "1@0", "1@2", "1@1"},
		"?order=newest&reason_code=refused":                                  {"1@3"},
		"?order=newest&state=discarded":                                      {"1@2"},
		"?order=newest&after=" + url.QueryEscape("timestamp.command.v1/2@1"): {"2@0"},
	} {
		got, next := found(query)
		require.Equal(t, want, got, query)
		require.Empty(t, next, query)
	}
	require.Contains(t, s.get(t, "/api/v1/deadletters?limit=1").object(t)["items"].([]any)[0].(map[string]any)["position"], "/1@3", "newest first unless asked otherwise")
	require.Equal(t, 400, s.get(t, "/api/v1/deadletters?after=timestamp.command.v1/2@9").status, "there is no letter to go on after")
	for path, words := range map[string]string{
		"?state=lost": `"state"`, "?q=%00": "no text", "?q=%ff": "no text", "?partition=-1": `"partition"`, "?reason_code=A": `"reason_code"`, "?after=x": "after: ", "?limit=501": `"limit"`,
	} {
		a := s.get(t, "/api/v1/deadletters"+path)
		require.Equal(t, 400, a.status, path+a.body)
		require.Contains(t, a.object(t)["detail"], words, path)
	}

	a := s.get(t, oneLetter+"1@1")
	require.Equal(t, 200, a.status, a.body)
	o := a.object(t)
	require.Equal(t, "redriven", o["state"])
	require.Equal(t, map[string]any{
		"decision": "redrive", "ticket": ticket.String(), "note": "why", "by": "ops-1", "position": "deadletter.command.v1/5@0", "decided_at": "2026-01-03T00:00:00Z",
	}, o["decision"])
	o = s.get(t, oneLetter+"1%402").object(t)
	require.Equal(t, "discarded", o["state"])
	require.NotContains(t, o["decision"], "ticket")
	o = s.get(t, oneLetter+"2@0").object(t)
	require.Equal(t, []any{"open", "base64", "AP94", nil}, []any{o["state"], o["payload_encoding"], o["payload"], o["decision"]})
	require.Nil(t, s.get(t, oneLetter+"2@1").object(t)["payload"])
	require.Equal(t, 404, s.get(t, oneLetter+"3@7").status)
	require.Equal(t, 400, s.get(t, "/api/v1/deadletters/42").status)
}

// A list shows the beginning of a large payload; who wants to mend it needs all of it.
func TestOneDeadLetterIsWhole(t *testing.T) {
	t.Parallel()
	db, s := setup(t)
	payload := strings.Repeat("0123456789abcdef", 60_000)
	db.Reject(t, 0, []byte(payload), `[]`, "large")
	item := s.get(t, "/api/v1/deadletters").object(t)["items"].([]any)[0].(map[string]any)
	require.Equal(t, payload[:16<<10], item["payload"])
	require.Equal(t, true, item["payload_truncated"])
	o := s.get(t, oneLetter+"0@0").object(t)
	require.Equal(t, payload, o["payload"])
	require.Equal(t, false, o["payload_truncated"])
}

// A search looks at a bounded number of letters a page, and comes to the rare one all the same.
func TestASearchForWhatIsRareGoesOnOverPages(t *testing.T) {
	t.Parallel()
	db, s := setup(t)
	db.Must(t, `INSERT INTO dead_letters SELECT 'timestamp.command.v1', n % 4, n, 'common', '[]', 'decode', 'it is broken', now() FROM generate_series(0, 24999) n`)
	db.Must(t, `UPDATE dead_letters SET payload = 'a needle' WHERE partition = 3 AND "offset" = 20003`)
	var got []any
	pages := 0
	for _, order := range []string{"newest", "position"} {
		got, pages = nil, 0
		for path := "/api/v1/deadletters?q=needle&order=" + order; path != ""; pages++ {
			require.Less(t, pages, 10)
			o := s.get(t, path).object(t)
			got = append(got, o["items"].([]any)...)
			path, _ = o["next"].(string)
		}
		require.Len(t, got, 1)
		require.Equal(t, 3, pages)
	}
}

// An operator sees what is wrong most: letters are counted by reason, producer and hour, as a search narrows them.
func TestDeadLettersAreCountedByReasonProducerAndHour(t *testing.T) {
	t.Parallel()
	db, s := setup(t)
	for range 3 {
		db.Reject(t, 1, []byte("{"), `[{"key":"correlationId","value":"c"},{"key":"producer","value":"shop/1"}]`, "broken") // 1@0 to 1@2
	}
	db.Reject(t, 2, []byte("{"), `[]`, "broken") // 2@0
	db.Must(t, `UPDATE dead_letters SET first_seen_at = '2026-01-02T05:59:59Z', reason_code = 'refused' WHERE partition = 1 AND "offset" = 2`)
	decide(t, db, "1@0", "discard", nil)
	counted := func(query string) (groups []string) {
		t.Helper()
		o := s.get(t, "/api/v1/deadletters/summary"+query).object(t)
		require.Equal(t, false, o["bounded"])
		for _, item := range o["groups"].([]any) {
			g := item.(map[string]any)
			groups = append(groups, fmt.Sprint(g["hour"], " ", g["reason_code"], " ", g["producer"], " ", g["letters"]))
		}
		return groups
	}
	refused := "2026-01-02T05:00:00Z refused shop/1 1"
	require.Equal(t, []string{refused, "2026-01-02T03:00:00Z decode  1", "2026-01-02T03:00:00Z decode shop/1 1"}, counted(""))
	require.Equal(t, []string{refused, "2026-01-02T03:00:00Z decode shop/1 2", "2026-01-02T03:00:00Z decode  1"}, counted("?state=all"))
	require.Equal(t, []string{refused}, counted("?reason_code=refused"))
	require.Equal(t, []string{"2026-01-02T03:00:00Z decode  1"}, counted("?partition=2"))
	require.Empty(t, counted("?projection=endpoints"))
	require.Empty(t, counted("?q=nowhere"))

	page := s.page(t, "/dead-letters?reason_code=refused").body
	for _, words := range []string{`<option value="refused" selected>refused (1)</option>`, "decode (2)", "<code>shop/1</code>", `class="hour"`, "2026-01-02 05:00 UTC: 1"} {
		require.Contains(t, page, words)
	}
	// What is counted is bounded, and says so.
	db.Must(t, `INSERT INTO dead_letters SELECT 'timestamp.command.v1', 3, n, '', '[]', 'decode', 'it is broken', now() FROM generate_series(0, 10999) n`)
	o := s.get(t, "/api/v1/deadletters/summary").object(t)
	require.Equal(t, true, o["bounded"])
	letters := 0.0
	for _, g := range o["groups"].([]any) {
		letters += g.(map[string]any)["letters"].(float64)
	}
	require.EqualValues(t, 10_000, letters)
	require.Contains(t, s.page(t, "/dead-letters").body, "of the newest 10,000 of each projection")
}

func TestAReadWaitsForADecision(t *testing.T) {
	t.Parallel()
	db, s := setup(t)
	db.Reject(t, 1, []byte("{"), `[]`, "broken")
	db.Must(t, `INSERT INTO decision_progress VALUES (4, 100), (6, 100)`) // other partitions are further
	const at = "&position=deadletter.command.v1/5@0"
	for _, path := range []string{"/api/v1/deadletters?wait=30ms", oneLetter + "1@0?wait=30ms", "/api/v1/projections/timestamps?wait=0"} {
		a := s.get(t, path+at)
		require.Equal(t, 504, a.status, a.body)
		require.Equal(t, "none", a.object(t)["reached"])
	}
	o := s.getWhile(t, oneLetter+"1@0?wait=10s"+at, func() { decide(t, db, "1@0", "discard", nil) }).object(t)
	require.Equal(t, "discarded", o["state"])
	a := s.get(t, "/api/v1/deadletters?wait=0&position=deadletter.command.v1/5@1")
	require.Equal(t, "deadletter.command.v1/5@0", a.object(t)["reached"])
}

func TestTheTicketOfADeadLetterThatWasRedriven(t *testing.T) {
	t.Parallel()
	db, s := setup(t)
	db.Reject(t, 1, []byte("{"), `[]`, "broken")
	same, other := uuid.New(), uuid.New()
	ticket := func() map[string]any {
		t.Helper()
		a := s.get(t, "/api/v1/tickets/"+same.String()+"?position=timestamp.command.v1/1@0")
		require.Equal(t, 200, a.status, a.body)
		return a.object(t)
	}
	require.Equal(t, []any{"rejected", "open", nil}, []any{ticket()["state"], ticket()["dead_letter"], ticket()["redriven_as"]})

	decide(t, db, "1@0", "redrive", other)
	require.Equal(t, []any{"rejected", "redriven", other.String()}, []any{ticket()["state"], ticket()["dead_letter"], ticket()["redriven_as"]})

	db.Must(t, `UPDATE dead_letter_decisions SET command_id = $1`, same)
	require.Equal(t, []any{"rejected", "redriven", same.String()}, []any{ticket()["state"], ticket()["dead_letter"], ticket()["redriven_as"]})
	require.NoError(t, db.Project(t.Context(), 2, testdb.Row{ID: same, Stamp: stamp}))
	o := ticket()
	require.Equal(t, []any{"applied", "timestamp.command.v1/2@0", "2009-09-28T19:03:12.123456Z"}, []any{o["state"], o["position"], o["event_timestamp"]})
	require.Contains(t, o["reason"], "has been redriven")

	db.Must(t, `UPDATE dead_letter_decisions SET decision = 'discard', command_id = NULL`)
	require.Equal(t, []any{"rejected", "discarded", nil}, []any{ticket()["state"], ticket()["dead_letter"], ticket()["redriven_as"]})
	// A position of decisions is waited for, and is no command's.
	require.Equal(t, "applied", s.get(t, "/api/v1/tickets/"+same.String()+"?position=deadletter.command.v1/5@0").object(t)["state"])
}

// An operator has to see what is left to do: letters that were dealt with are counted apart, wherever they are counted.
func TestOpenAndDecidedLettersAreCountedApart(t *testing.T) {
	t.Parallel()
	db, s := setup(t)
	counted := func(open, decided int) {
		t.Helper()
		at := fmt.Sprintf("%d open, %d decided", open, decided)
		for path, of := range map[string]func(map[string]any) map[string]any{
			"/api/v1/projections/timestamps": func(o map[string]any) map[string]any { return o["totals"].(map[string]any) },
			"/api/v1/projections": func(o map[string]any) map[string]any {
				for _, p := range o["projections"].([]any) {
					if p.(map[string]any)["projection"] == "timestamps" {
						return p.(map[string]any)
					}
				}
				return nil
			},
		} {
			o := of(s.get(t, path).object(t))
			require.EqualValues(t, open, o["dead_letters_open"], "%s: %s", path, at)
			require.EqualValues(t, decided, o["dead_letters_decided"], "%s: %s", path, at)
		}
		partitions := 0
		for _, p := range s.get(t, "/api/v1/projections/timestamps").object(t)["partitions"].([]any) {
			partitions += int(p.(map[string]any)["dead_letters_open"].(float64))
		}
		require.Equal(t, open, partitions, at)
		metrics := s.get(t, "/metrics").body
		require.Contains(t, metrics, fmt.Sprintf(`tidemark_query_dead_letters{projection="timestamps",state="open"} %d`, open))
		require.Contains(t, metrics, fmt.Sprintf(`tidemark_query_dead_letters{projection="timestamps",state="decided"} %d`, decided))
		require.Contains(t, metrics, `tidemark_query_dead_letters{projection="endpoints",state="open"} 0`)
		if open+decided > 0 {
			words := strings.TrimSuffix(at, ", 0 decided")
			for _, page := range []string{"/", "/projections", "/projections/timestamps"} {
				require.Contains(t, s.page(t, page).body, words, page)
			}
		}
	}
	counted(0, 0)
	for range 3 {
		db.Reject(t, 1, []byte("{"), `[]`, "broken") // 1@0 to 1@2
	}
	db.Reject(t, 2, []byte("{"), `[]`, "broken") // 2@0
	counted(4, 0)
	decide(t, db, "1@0", "discard", nil)
	decide(t, db, "2@0", "redrive", uuid.New())
	decide(t, db, "3@7", "discard", nil) // of no letter at all
	counted(2, 2)
	db.Reject(t, 3, []byte("{"), `[]`, "broken")
	counted(3, 2)

	// A projection that is started over counts what it has read again: the letters of before are in the table still.
	require.NoError(t, db.StartOver(t.Context()))
	counted(0, 0)
	db.Must(t, `UPDATE projection_progress SET next_offset = 2, rejected = 2 WHERE partition = 1`)
	counted(1, 1)
}

// A person pastes a position as it is printed, a client escapes it: every route that has one takes both.
func TestAPositionInAPathIsTakenRawAndEscaped(t *testing.T) {
	t.Parallel()
	db, s := setup(t)
	db.Reject(t, 0, []byte(broken), `[]`, "no instant")
	for _, route := range []string{"/api/v1/deadletters/", "/dead-letters/"} {
		for _, written := range []string{"timestamp.command.v1/0@0", "timestamp.command.v1%2F0@0", "timestamp.command.v1%2f0%400", "timestamp.command.v1/0%400"} {
			a := s.get(t, route+written)
			require.Equal(t, 200, a.status, "%s%s: %s", route, written, a.body)
			require.Contains(t, a.body, "timestamp.command.v1/0@0")
			a = s.get(t, route+written+"?no=such")
			require.Equal(t, 400, a.status, "%s%s: what is not read is refused", route, written)
		}
		for _, written := range []string{"timestamp.command.v1/0@1", "timestamp.command.v1%2F0@1"} {
			require.Equal(t, 404, s.get(t, route+written).status, route+written)
		}
	}
	require.Equal(t, 400, s.get(t, "/api/v1/deadletters/timestamp.command.v1%2F0").status, "no position at all")
}

package integration_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/integration/story"
)

// letters is a client of the routes of dead letters.
type letters struct {
	*story.Story
	t              *testing.T
	command, query string
}

type letter struct {
	Position string  `json:"position"`
	Payload  string  `json:"payload"`
	State    string  `json:"state"`
	Decision *result `json:"decision"`
}

type result struct {
	Position string `json:"position"`
	Ticket   string `json:"ticket"`
	Command  string `json:"command"`
	Decision string `json:"decision"`
	Note     string `json:"note"`
}

// list reads all pages of a search. at is a position that must have been passed.
func (l letters) list(query, at string) []letter {
	l.t.Helper()
	var all []letter
	for path := "/api/v1/deadletters?limit=300&" + query; path != ""; {
		a, err := l.Client.Get(l.t.Context(), l.query+path+"&wait=30s", "Tidemark-Position", at)
		require.NoError(l.t, err)
		require.Equal(l.t, http.StatusOK, a.Status, a)
		var page struct {
			Items []letter `json:"items"`
			Next  string   `json:"next"`
		}
		require.NoError(l.t, json.Unmarshal(a.Body, &page))
		all = append(all, page.Items...)
		path = page.Next
	}
	return all
}

// decide posts one request and returns its results and the position of the last decision.
func (l letters) decide(what string, body any) ([]result, string) {
	l.t.Helper()
	text, err := json.Marshal(body)
	require.NoError(l.t, err)
	a, err := l.Client.Send(l.t.Context(), http.MethodPost, l.command+"/api/v1/deadletters/"+what, string(text), "Content-Type", "application/json")
	require.NoError(l.t, err)
	require.Equal(l.t, http.StatusOK, a.Status, a)
	var answer struct {
		Results []result `json:"results"`
	}
	require.NoError(l.t, json.Unmarshal(a.Body, &answer))
	return answer.Results, a.Header.Get("Tidemark-Position")
}

// A thousand records that nobody could read: 990 are mended and issued again in one request, 10 discarded. All land, no
// offset moves, and a rebuild by another name, and one from nothing, give the same bytes, decisions included. So do two
// records that the code can read by now, and that stay as they were decided.
func TestAThousandDeadLettersAreDealtWithAndARebuildKeepsThem(t *testing.T) {
	const bad, mended = 1000, 990
	s := story.New(t)
	stack := up(t, s)
	l := letters{s, t, stack.command, stack.query}

	var messages []story.Message
	for i := range bad {
		id := uuid.NewString()
		value := fmt.Sprintf(`{"command_id":%q,"event_timestamp":"2009-02-30T00:00:%02dZ"}`, id, i%60) // no such day
		if i%4 == 0 {
			value = fmt.Sprintf(`{"event_timestamp":"2009-02-30T00:00:%02dZ","number":%d}`, i%60, i) // and no ticket
		}
		messages = append(messages, story.Message{Partition: story.AnyPartition, Key: id, Value: []byte(value)})
	}
	written, err := s.Log.Write(messages...)
	require.NoError(t, err)
	_, err = s.Client.Stamp(t.Context(), stack.command, "2020-01-01T00:00:00Z") // one that is fine, between
	require.NoError(t, err)
	before := s.RequireProjected(s.DB)
	require.Equal(t, bad, lines(before.DeadLetters))

	open := l.list("state=open", "")
	require.Len(t, open, bad)
	require.Len(t, l.list("state=open&q=number", ""), bad/4)

	type reissued struct {
		Position string `json:"position"`
		Payload  string `json:"payload"`
	}
	var again []reissued
	for _, one := range open[:mended] {
		again = append(again, reissued{one.Position, strings.Replace(one.Payload, "2009-02-30T", "2009-03-02T", 1)})
	}
	var discarded []string
	for _, one := range open[mended:] {
		discarded = append(discarded, one.Position)
	}
	results, _ := l.decide("redrive", map[string]any{"letters": again, "note": "no such day"})
	require.Len(t, results, mended)
	gone, _ := l.decide("discard", map[string]any{"positions": discarded, "note": "nobody's"})
	once, _ := l.decide("redrive", map[string]any{"letters": again[:100], "note": "a retry"}) // as after an answer that was lost
	late, _ := l.decide("discard", map[string]any{"positions": []string{again[0].Position}, "note": "too late"})

	// What they stand for is there, under the ticket that its client has.
	for _, r := range append(append(gone, once...), late...) { // partitions are read without any order
		l.list("partition=3&q=nothing", r.Decision)
	}
	expected, upTo := s.Expected()
	s.Passed(s.DB, upTo)
	for i, r := range results {
		require.Equal(t, again[i].Position, r.Position)
		for n, query := range map[int]string{0: r.Ticket + "?position=" + url.QueryEscape(r.Command), 1: r.Ticket + "?wait=30s&position=" + url.QueryEscape(r.Decision)} {
			if i%100 > 0 && n == 0 {
				continue
			}
			a, err := s.Client.Get(t.Context(), stack.query+"/api/v1/tickets/"+query)
			require.NoError(t, err)
			require.Equal(t, "applied", a.Text("state"), a)
		}
	}
	for i, r := range once {
		require.Equal(t, results[i].Ticket, r.Ticket)
		require.NotEqual(t, results[i].Command, r.Command)
	}
	require.Empty(t, l.list("state=open", ""))
	require.Len(t, l.list("state=redriven", ""), mended)
	require.Len(t, l.list("state=discarded", ""), bad-mended)
	for _, one := range l.list("state=redriven&partition=3", "") {
		require.Equal(t, "no such day", one.Decision.Note, "the first decision is the decision")
	}
	require.Equal(t, mended+1, expected.Count)
	live := s.Dump(s.DB)
	expected.Require(t, upTo, live)
	require.Equal(t, before.DeadLetters, live.DeadLetters, "nothing becomes of the letters themselves")
	require.Equal(t, bad, lines(live.Decisions))
	commands := redriven(t, s, upTo)
	require.Len(t, commands, mended+len(once))
	for i, r := range results {
		require.Equal(t, again[i].Position, commands[r.Command])
	}

	s.RequireCleanAudit(s.DB)
	s.Consumer("story-letters-again")
	s.Passed(s.DB, upTo)
	story.RequireSame(t, live, s.Dump(s.DB))

	db, address := s.Database()
	s.Service("consumer-service", map[string]string{"DB_URL": address, "KAFKA_GROUP_ID": "story-letters-from-nothing"})
	s.Passed(db, upTo)
	story.RequireSame(t, live, s.Dump(db))
	s.RequireCleanAudit(db)
	require.Len(t, written, bad)
}

// redriven returns which commands name a dead letter, by their positions.
func redriven(t *testing.T, s *story.Story, upTo story.Vector) map[string]string {
	t.Helper()
	records, _, err := s.Log.Read(t.Context(), upTo)
	require.NoError(t, err)
	found := map[string]string{}
	for _, r := range records {
		if of, ok := r.Headers["redriveOf"]; ok {
			found[r.Position()] = of
		}
	}
	return found
}

// What was decided on is rejected, though it could be read: in a batch that goes the fast way, in one that goes the slow
// way, and in every rebuild. Decisions are read before anything else, also by a process that starts with both behind it.
func TestADecidedRecordStaysRejected(t *testing.T) {
	s := story.New(t)
	door := s.Door()
	consumer := s.Consumer("")
	s.Stop(consumer)
	const partition = 5
	twice := uuid.NewString()
	var messages []story.Message
	value := func(id string) []byte {
		return fmt.Appendf(nil, `{"command_id":%q,"event_timestamp":"2009-09-28T19:03:12Z"}`, id)
	}
	for range 20 {
		messages = append(messages, story.Message{Partition: partition, Value: value(uuid.NewString())})
	}
	messages = append(messages, story.Message{Partition: partition + 1, Value: value(twice)}, story.Message{Partition: partition + 1, Value: value(twice)},
		story.Message{Partition: partition + 1, Value: value(twice)})
	_, err := s.Log.Write(messages...)
	require.NoError(t, err)
	decided := map[string]bool{}
	var positions []string
	for _, at := range []string{"5@3", "5@4", "5@19", "6@0"} {
		positions = append(positions, story.Topic+"/"+at)
		decided[story.Topic+"/"+at] = true
	}
	l := letters{s, t, door.URL(), ""}
	text, err := json.Marshal(map[string]any{"positions": positions})
	require.NoError(t, err)
	refused, err := s.Client.Do(t.Context(), http.MethodPost, door.URL()+"/api/v1/deadletters/discard", string(text), "Content-Type", "application/json")
	require.NoError(t, err)
	require.Equal(t, http.StatusUnprocessableEntity, refused.Status, "they can be read: %s", refused)
	_, last := l.decide("discard", map[string]any{"positions": positions, "note": "", "readable": true})

	require.NoError(t, consumer.Start(t.Context(), nil))
	records, upTo, err := s.Log.Read(t.Context(), nil)
	require.NoError(t, err)
	expected := story.Expect(records, story.Rules{Decided: func(position string) bool { return decided[position] }})
	s.Passed(s.DB, upTo)
	live := s.Dump(s.DB)
	expected.Require(t, upTo, live)
	require.Equal(t, 18, expected.Count) // of the three with one id, the second is the row
	require.Equal(t, 4, strings.Count(live.DeadLetters, "\tdecided\tthe record was discarded\t"))
	s.RequireCleanAudit(s.DB)

	// A process that is up hears of it, too.
	ctx, cancel := context.WithTimeout(t.Context(), story.Patience)
	defer cancel()
	reader := s.Reader()
	_, err = s.Client.Until(ctx, http.StatusOK, reader.URL()+"/api/v1/deadletters?position="+url.QueryEscape(last))
	require.NoError(t, err)

	s.Stop(consumer)
	s.Consumer("story-decided-again")
	s.Passed(s.DB, upTo)
	story.RequireSame(t, live, s.Dump(s.DB))
}

package httpapi

import (
	"encoding/json"
	"fmt"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/shared/event"
	"github.com/tidemark/tidemark/shared/kafka"
	"github.com/tidemark/tidemark/shared/topic"
)

const redrive, discard = "/api/v1/deadletters/redrive", "/api/v1/deadletters/discard"

// letters writes a redrive's body: position, payload, position, payload…
func letters(t *testing.T, parts ...string) string {
	t.Helper()
	list := []map[string]string{}
	for i := 0; i < len(parts); i += 2 {
		list = append(list, map[string]string{"position": parts[i], "payload": parts[i+1]})
	}
	body, err := json.Marshal(map[string]any{"letters": list, "note": "why"})
	require.NoError(t, err)
	return string(body)
}

// messages returns what was sent, the newest n.
func (b *bundle) messages() []*message.Message {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]*message.Message(nil), b.sent...)
}

func TestCommandsComeBeforeTheDecisionsThatNameThem(t *testing.T) {
	t.Parallel()
	b := setup(t)
	const n = 1000
	var parts []string
	for i := range n {
		parts = append(parts, fmt.Sprintf("timestamp.command.v1/%d@%d", i%12, i/12), fmt.Sprintf(`{"command_id":%q,"event_timestamp":"2009-09-28T19:03:12Z"}`, uuid.New()))
	}
	w := b.post(redrive, letters(t, parts...))
	require.Equal(t, 200, w.Code, w.Body)
	require.Len(t, decode(t, w)["results"], n)
	sent := b.messages()
	require.Len(t, sent, 2*n)
	for i, m := range sent {
		require.Equal(t, i < n, m.Metadata["redriveOf"] != "", "record %d", i)
	}
}

func TestATicketThatIsOneIsKeptAndAnyOtherIsMadeTheSameEachTime(t *testing.T) {
	t.Parallel()
	b := setup(t)
	const at = "timestamp.command.v1/3@7"
	id := uuid.NewString()
	ticket := func(position, payload string) uuid.UUID {
		t.Helper()
		w := b.post(redrive, letters(t, position, payload))
		require.Equal(t, 200, w.Code, w.Body)
		r := decode(t, w)["results"].([]any)[0].(map[string]any)
		got, err := uuid.Parse(r["ticket"].(string))
		require.NoError(t, err)
		sent := b.messages()
		d, err := event.DecodeDeadLetterCommand(sent[len(sent)-1].Payload)
		require.NoError(t, err)
		require.Equal(t, got, d.CommandID)
		require.Equal(t, position, d.Position.String())
		require.Equal(t, "why", d.Note)
		c, err := event.DecodeTimestampCommand(sent[len(sent)-2].Payload)
		require.NoError(t, err)
		require.Equal(t, got, c.CommandID)
		b.forgetDecisions()
		return got
	}
	require.Equal(t, id, ticket(at, `{"command_id":"`+strings.ToUpper(id)+`","event_timestamp":"2009-09-28T19:03:12Z"}`).String())

	made := ticket(at, `{"event_timestamp":"2009-09-28T19:03:12Z"}`)
	require.EqualValues(t, 8, made.Version())
	for _, payload := range []string{
		`{"event_timestamp":"2009-09-28T21:03:12+02:00"}`, `{"command_id":7,"event_timestamp":"2009-09-28T19:03:12Z"}`,
		`{"command_id":null,"event_timestamp":"2009-09-28T19:03:12Z"}`, `{"command_id":"","event_timestamp":"2009-09-28T19:03:12Z"}`,
		`{"command_id":"00000000-0000-0000-0000-000000000000","event_timestamp":"2009-09-28T19:03:12Z","more":1}`,
	} {
		require.Equal(t, made, ticket(at, payload), payload)
	}
	require.NotEqual(t, made, ticket("timestamp.command.v1/3@8", `{"event_timestamp":"2009-09-28T19:03:12Z"}`))
	require.NotEqual(t, made, ticket(at, `{"event_timestamp":"2009-09-28T19:03:13Z"}`))
}

func TestEachBrokenLetterIsNamedAndNothingIsWritten(t *testing.T) {
	t.Parallel()
	b := setup(t)
	const good = `{"event_timestamp":"2009-09-28T19:03:12Z"}`
	w := b.post(redrive, letters(t,
		"timestamp.command.v1/3@1", good,
		"timestamp.command.v1/3@2", `{"event_timestamp":"yesterday"}`,
		"timestamp.command.v1/3@3", `{"command_id":"x"}`,
		"timestamp.command.v1/3@4", `{"event_timestamp":7}`,
		"timestamp.command.v1/3@5", `poison`,
		"timestamp.command.v1/3@1", good,
		"timestamp.command.v1/12@1", good,
		"timestamp.command.v1/3@100", good,
		"elsewhere/3@1", good,
		"3@1", good,
	))
	require.Equal(t, 422, w.Code, w.Body)
	require.Equal(t, "application/problem+json", w.Header().Get("Content-Type"))
	p := decode(t, w)
	require.Equal(t, "/problems/broken-letters", p["type"])
	found := p["errors"].([]any)
	for i, want := range [][2]string{
		{"timestamp.command.v1/3@2", "event_timestamp"}, {"timestamp.command.v1/3@3", "no event_timestamp"},
		{"timestamp.command.v1/3@4", "no JSON object"}, {"timestamp.command.v1/3@5", "no JSON object"},
		{"timestamp.command.v1/3@1", "twice"}, {"timestamp.command.v1/12@1", "12 partitions"},
		{"timestamp.command.v1/3@100", "ends at offset 100"}, {"elsewhere/3@1", "only in timestamp.command.v1, endpoint.command.v1"}, {"3@1", "is no position"},
	} {
		e := found[i].(map[string]any)
		require.Equal(t, want[0], e["position"])
		require.Contains(t, e["reason"], want[1])
	}
	require.Len(t, found, 9)
	w = b.post(discard, `{"positions":["timestamp.command.v1/3@1","timestamp.command.v1/3@100"]}`)
	require.Equal(t, 422, w.Code, w.Body)
	require.Empty(t, b.messages())

	for path, body := range map[string]string{
		redrive: `{"letters":[]}`, discard: `{"positions":[]}`, redrive + "?": `{"letters":[{"position":"timestamp.command.v1/3@1"}]}`,
		discard + "?": `{"positions":["timestamp.command.v1/3@1"],"nota":"x"}`, redrive + "?a": "",
	} {
		require.Equal(t, 400, b.post(path, body).Code, body)
	}
	require.Empty(t, b.messages())
}

// A position that was mistyped names a record that everybody can read: a decision on it would take it away in the next rebuild.
func TestARecordThatCanBeReadIsDecidedOnByThoseWhoKnowOnly(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.readable(7)
	const payload = `{"event_timestamp":"2009-09-28T19:03:12Z"}`
	w := b.post(redrive, letters(t, "timestamp.command.v1/3@6", payload, "timestamp.command.v1/3@7", payload, "timestamp.command.v1/3@99", payload))
	require.Equal(t, 422, w.Code, w.Body)
	found := decode(t, w)["errors"].([]any)
	require.Len(t, found, 2)
	require.Equal(t, "timestamp.command.v1/3@7", found[0].(map[string]any)["position"])
	require.Contains(t, found[0].(map[string]any)["reason"], `"readable": true`)
	require.Contains(t, found[1].(map[string]any)["reason"], "no record at this offset")
	require.Equal(t, 422, b.post(discard, `{"positions":["timestamp.command.v1/3@7"],"readable":false}`).Code)
	require.Empty(t, b.messages())
	require.Equal(t, 200, b.post(discard, `{"positions":["timestamp.command.v1/3@7"],"readable":true}`).Code)
	require.Len(t, b.messages(), 1)

	b.fail(fmt.Errorf("no answer"))
	require.Equal(t, "/problems/log-down", decode(t, b.post(discard, `{"positions":["timestamp.command.v1/3@6"]}`))["type"])
}

func TestARedriveTellsTheTruthAboutALogThatDoesNotAnswer(t *testing.T) {
	t.Parallel()
	b := setup(t)
	body := letters(t, "timestamp.command.v1/3@1", `{"event_timestamp":"2009-09-28T19:03:12Z"}`)
	b.failTopics(map[string]error{topic.TimestampCommand.Name: kafka.ErrNotSent})
	w := b.post(redrive, body)
	require.Equal(t, 503, w.Code)
	require.Equal(t, "/problems/log-down", decode(t, w)["type"])
	for _, failing := range []map[string]error{
		{topic.TimestampCommand.Name: fmt.Errorf("no answer")},
		{topic.DeadLetterCommand.Name: fmt.Errorf("no answer")},
		{topic.DeadLetterCommand.Name: kafka.ErrNotSent}, // the command is in the log
	} {
		b.failTopics(failing)
		w := b.post(redrive, body)
		require.Equal(t, 503, w.Code)
		p := decode(t, w)
		require.Equal(t, "/problems/outcome-unknown", p["type"], failing)
		require.Contains(t, p["detail"], "0 of 1 letters are decided on")
		require.Contains(t, p["detail"], "Idempotency-Key "+p["retry_key"].(string))
		require.NotEmpty(t, w.Header().Get("Retry-After"))
	}
	b.failTopics(map[string]error{topic.DeadLetterCommand.Name: kafka.ErrNotSent})
	require.Equal(t, "/problems/log-down", decode(t, b.post(discard, `{"positions":["timestamp.command.v1/3@1"]}`))["type"], "nothing of it was written")

	b.failTopics(nil)
	b.decisions.Shut(fmt.Errorf("the topic could expire"))
	n := len(b.messages())
	p := decode(t, b.post(redrive, body))
	require.Equal(t, "/problems/log-unsafe", p["type"])
	require.Len(t, b.messages(), n, "no command without its decision")
}

// A letter is decided once: whoever comes later, by whichever route, is told what was decided and when, and nothing is written. Who
// sends the very same request again, since its answer was lost, is answered as before.
func TestALetterIsDecidedOnce(t *testing.T) {
	t.Parallel()
	b := setup(t)
	const key, otherKey = "6f2b8a0e-58cf-4d63-9a0d-0d1f3c1f3a55", "01920b5c-7d4e-7cc3-98c4-dc0c0c07398f"
	const payload = `{"event_timestamp":"2009-09-28T19:03:12Z"}`
	const first, second, third = "timestamp.command.v1/3@1", "timestamp.command.v1/5@2", "timestamp.command.v1/3@3"
	both := letters(t, first, payload, second, payload)
	w := b.post(redrive, both, "Idempotency-Key", key)
	require.Equal(t, 200, w.Code, w.Body)
	results := decode(t, w)["results"].([]any)
	id := results[0].(map[string]any)["ticket"].(string)
	require.Len(t, b.messages(), 4)

	w = b.post(redrive, both, "Idempotency-Key", key)
	require.Equal(t, 200, w.Code, w.Body)
	for i, r := range decode(t, w)["results"].([]any) {
		want := results[i].(map[string]any)
		delete(want, "command") // it is in the log, and its place was in the answer that was lost
		require.Equal(t, want, r)
	}
	require.Len(t, b.messages(), 4, "nothing is written again")

	for what, again := range map[string]func() *httptest.ResponseRecorder{
		"without a key": func() *httptest.ResponseRecorder { return b.post(redrive, both) },
		"another key":   func() *httptest.ResponseRecorder { return b.post(redrive, both, "Idempotency-Key", otherKey) },
		"another payload": func() *httptest.ResponseRecorder {
			return b.post(redrive, letters(t, first, `{"event_timestamp":"2009-09-28T19:03:13Z"}`), "Idempotency-Key", key)
		},
		"the other decision": func() *httptest.ResponseRecorder {
			return b.post(discard, `{"positions":["`+first+`"]}`, "Idempotency-Key", key)
		},
		"one of several": func() *httptest.ResponseRecorder { return b.post(redrive, letters(t, third, payload, first, payload)) },
	} {
		w := again()
		require.Equal(t, 409, w.Code, "%s: %s", what, w.Body)
		p := decode(t, w)
		require.Equal(t, "/problems/already-decided", p["type"], what)
		require.Contains(t, p["detail"], "nothing was written", what)
		errs := p["errors"].([]any)
		e := errs[0].(map[string]any)
		require.Equal(t, first, e["position"], what)
		require.Contains(t, e["reason"], "it was redriven at 20", what)
		require.Contains(t, e["reason"], "as ticket "+id, what)
		decided := e["decided"].(map[string]any)
		require.Equal(t, "redrive", decided["decision"], what)
		require.Equal(t, id, decided["ticket"], what)
		require.Equal(t, results[0].(map[string]any)["decision"], decided["position"], what)
		require.NotEmpty(t, decided["decided_at"], what)
		require.Len(t, b.messages(), 4, "%s: nothing is written", what)
	}

	// A retry decides the letters that its first try did not come to.
	b.failTopics(map[string]error{topic.DeadLetterCommand.Name: fmt.Errorf("no answer")})
	w = b.post(redrive, letters(t, third, payload))
	require.Equal(t, 503, w.Code)
	retry := decode(t, w)["retry_key"].(string)
	b.failTopics(nil)
	w = b.post(redrive, letters(t, third, payload), "Idempotency-Key", retry)
	require.Equal(t, 200, w.Code, w.Body)
	require.Equal(t, 200, b.post(redrive, letters(t, third, payload), "Idempotency-Key", retry).Code)
	w = b.post(discard, `{"positions":["`+third+`"]}`, "Idempotency-Key", "no key")
	require.Equal(t, "/problems/bad-idempotency-key", decode(t, w)["type"])
}

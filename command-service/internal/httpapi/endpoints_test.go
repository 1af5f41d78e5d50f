package httpapi

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/gin-gonic/gin"
	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/command-service/internal/endpoint"
	"github.com/tidemark/tidemark/shared/auth"
	"github.com/tidemark/tidemark/shared/event"
	"github.com/tidemark/tidemark/shared/kafka"
	"github.com/tidemark/tidemark/shared/ticket"
	"github.com/tidemark/tidemark/shared/topic"
)

const (
	endpoints   = "/api/v1/endpoints"
	someKey     = "6f2b8a0e-58cf-4d63-9a0d-0d1f3c1f3a55"
	someV7      = "01920b5c-7d4e-7cc3-98c4-dc0c0c07398f"
	twoInAList  = `[{"url":"https://example.org/a"},{"url":"https://example.org/a"}]`
	anEndpoint  = "/api/v1/endpoints/6f2b8a0e-58cf-8d63-9a0d-0d1f3c1f3a55"
	endpointsID = "6f2b8a0e-58cf-8d63-9a0d-0d1f3c1f3a55"
)

// send is post with any method; its first two headers may be a Content-Type.
func (b *bundle) send(method, path, body string, header ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	r.Header.Set("Content-Type", "application/json")
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	b.engine.ServeHTTP(w, r)
	return w
}

// commands are the endpoint commands that were sent, the newest last.
func (b *bundle) commands(t *testing.T) []event.EndpointCommand {
	t.Helper()
	var all []event.EndpointCommand
	for _, m := range b.messages() {
		c, err := event.DecodeEndpointCommand(m.Payload)
		require.NoError(t, err)
		require.Equal(t, c.EndpointID.String(), m.UUID, "the key is the endpoint's id")
		require.Less(t, len(m.Payload), 64<<10)
		all = append(all, c)
	}
	return all
}

// results decodes the answer to a list.
func results(t *testing.T, w *httptest.ResponseRecorder) []map[string]any {
	t.Helper()
	var all []map[string]any
	require.NoError(t, json.Unmarshal(w.Body.Bytes(), &all), w.Body)
	return all
}

func TestAnEndpointHasATicketAPlaceAndAnID(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"application/json", "application/yaml"} {
		b := setup(t)
		body := `{"url":"https://example.org/", "more":[1.50], "interval":"30s"}` // YAML as well
		w := b.send("POST", endpoints, body, "Content-Type", kind, "correlationId", "mine 1")
		require.Equal(t, 202, w.Code, w.Body)
		c := b.commands(t)[0]
		require.Equal(t, event.EndpointPut, c.Kind)
		require.Empty(t, c.SentBy)
		require.Equal(t, `{"url":"https://example.org/","name":"example.org","group":"","tags":[],"interval":"30s","enabled":true,"more":[1.50]}`, string(c.Document))
		require.EqualValues(t, 7, c.CommandID.Version())
		require.Equal(t, endpoint.Of(c.CommandID), c.EndpointID)
		require.Equal(t, map[string]any{"id": c.CommandID.String(), "endpoint_id": c.EndpointID.String()}, decode(t, w))
		place := b.placeOf(t, topic.EndpointCommand, c.EndpointID)
		require.Equal(t, place, w.Header().Get("Tidemark-Position"))
		require.Equal(t, "http://read.example:7082/api/v1/tickets/"+c.CommandID.String()+"?position="+place, w.Header().Get("Location"))
		require.Equal(t, "mine 1", b.messages()[0].Metadata["correlationId"])

		w = b.send("PUT", anEndpoint, body, "Content-Type", kind)
		require.Equal(t, 202, w.Code, w.Body)
		require.Equal(t, endpointsID, decode(t, w)["endpoint_id"])
		require.Equal(t, b.placeOf(t, topic.EndpointCommand, uuid.MustParse(endpointsID)), w.Header().Get("Tidemark-Position"))
		w = b.send("DELETE", anEndpoint, "")
		require.Equal(t, 202, w.Code, w.Body)
		require.Equal(t, endpointsID, decode(t, w)["endpoint_id"])
		sent := b.commands(t)
		require.Equal(t, c.Document, sent[1].Document)
		require.Equal(t, event.EndpointDelete, sent[2].Kind)
		require.Equal(t, decode(t, w)["id"], sent[2].CommandID.String())
		require.NotEqual(t, sent[1].CommandID, sent[2].CommandID)
	}
}

func TestThreeWrongFieldsAreOneProblemWithThreePaths(t *testing.T) {
	t.Parallel()
	b := setup(t)
	wrong := `{"url":"example.org","interval":30,"tags":["a",""]}`
	for _, request := range [][4]string{
		{"POST", endpoints, wrong, ""}, {"PUT", anEndpoint, wrong, ""}, {"POST", endpoints, `[{"url":"https://example.org"},` + wrong + `]`, "[1]."},
	} {
		w := b.send(request[0], request[1], request[2])
		require.Equal(t, 400, w.Code)
		require.Equal(t, "application/problem+json", w.Header().Get("Content-Type"))
		p := decode(t, w)
		require.Equal(t, "/problems/bad-endpoint", p["type"])
		require.Contains(t, p["detail"], "nothing was written")
		require.Equal(t, []any{
			map[string]any{"path": request[3] + "url", "message": `expected an absolute http or https URL with a host, found "example.org"`},
			map[string]any{"path": request[3] + "tags[1]", "message": "expected a text, found an empty one"},
			map[string]any{"path": request[3] + "interval", "message": "expected a duration such as 30s, found a number"},
		}, p["errors"])
	}
	require.Empty(t, b.messages())
}

func TestWhatIsNoEndpointIsRefusedInWords(t *testing.T) {
	t.Parallel()
	b := setup(t)
	good := `{"url":"https://example.org"}`
	for _, tc := range []struct {
		method, path, body string
		header             []string
		status             int
	}{
		{"POST", endpoints, "", nil, 400},
		{"POST", endpoints, "a: [", []string{"Content-Type", "application/yaml"}, 400},
		{"POST", endpoints, good, []string{"Content-Type", "text/plain"}, 415},
		{"POST", endpoints, good, []string{"Idempotency-Key", "word"}, 400},
		{"POST", endpoints, `[{"url":"https://example.org","id":"word"}]`, nil, 400},
		{"POST", endpoints, strings.Repeat(" ", 9<<20), nil, 413},
		{"PUT", "/api/v1/endpoints/7", good, nil, 400},
		{"PUT", anEndpoint, "[" + good + "]", nil, 400},
		{"PUT", anEndpoint, strings.Repeat(" ", 1<<20), nil, 413},
		{"DELETE", "/api/v1/endpoints/7", "", nil, 400},
		{"PATCH", anEndpoint, good, nil, 405},
	} {
		w := b.send(tc.method, tc.path, tc.body, tc.header...)
		require.Equal(t, tc.status, w.Code, "%s %s %.80s: %s", tc.method, tc.path, tc.body, w.Body)
		require.NotEmpty(t, decode(t, w)["detail"])
	}
	require.Empty(t, b.messages())
}

// A retry makes no second endpoint: the same key gives the same tickets, and these the same ids.
func TestAListThatIsSentAgainMakesNoSecondEndpoint(t *testing.T) {
	t.Parallel()
	for _, key := range []string{someKey, someV7} {
		b := setup(t)
		first := b.send("POST", endpoints, twoInAList, "Idempotency-Key", key)
		require.Equal(t, 202, first.Code, first.Body)
		answers := results(t, first)
		for _, answer := range answers {
			require.Equal(t, b.placeOf(t, topic.EndpointCommand, uuid.MustParse(answer["endpoint_id"].(string))), answer["position"])
		}
		require.NotEqual(t, answers[0]["endpoint_id"], answers[1]["endpoint_id"], "the place counts")
		again := results(t, b.send("POST", endpoints, "- url: \"https://example.org/a\"\n- {interval: 60s, url: https://example.org/a}\n",
			"Content-Type", "application/yaml", "Idempotency-Key", key))
		sent := b.commands(t)
		require.Len(t, sent, 4)
		for i := range answers {
			require.Equal(t, answers[i]["id"], again[i]["id"])
			require.Equal(t, answers[i]["endpoint_id"], again[i]["endpoint_id"])
			require.Equal(t, sent[i], sent[2+i], "the very same record, so it counts as a duplicate")
			require.EqualValues(t, 8, sent[i].CommandID.Version())
		}
		other := results(t, b.send("POST", endpoints, twoInAList, "Idempotency-Key", uuid.NewString()))
		require.NotEqual(t, answers[0]["endpoint_id"], other[0]["endpoint_id"])
		changed := results(t, b.send("POST", endpoints, strings.ReplaceAll(twoInAList, "/a", "/b"), "Idempotency-Key", key))
		require.NotEqual(t, answers[0]["endpoint_id"], changed[0]["endpoint_id"])
	}
}

func TestAnItemsOwnIDWins(t *testing.T) {
	t.Parallel()
	b := setup(t)
	list := fmt.Sprintf(`[{"url":"https://example.org/a","id":%q},{"url":"https://example.org/b","id":%q},{"url":"https://example.org/c"}]`, someV7, someKey)
	answers := results(t, b.send("POST", endpoints, list, "Idempotency-Key", uuid.NewString()))
	require.Equal(t, someV7, answers[0]["id"])
	for _, c := range b.commands(t) {
		require.NotContains(t, string(c.Document), `"id"`)
	}
	alone := decode(t, b.send("POST", endpoints, fmt.Sprintf(`{"id":%q,"url":"https://example.org/b"}`, someKey)))
	require.Equal(t, answers[1]["id"], alone["id"], "wherever it stands")
	byHeader := decode(t, b.send("POST", endpoints, `{"url":"https://example.org/b"}`, "Idempotency-Key", someKey))
	require.Equal(t, answers[1]["endpoint_id"], byHeader["endpoint_id"])

	n := len(b.messages())
	w := b.send("POST", endpoints, fmt.Sprintf(`[{"url":"https://example.org/a","id":%q},{"url":"https://example.org/b","id":%[1]q}]`, someV7))
	require.Equal(t, 400, w.Code)
	require.Equal(t, "[1].id", decode(t, w)["errors"].([]any)[0].(map[string]any)["path"])
	require.Len(t, b.messages(), n)
}

func TestAKeyIsBoundToTheEndpointAndToWhatIsWanted(t *testing.T) {
	t.Parallel()
	b := setup(t)
	seen := map[any]string{}
	for _, r := range [][3]string{
		{"PUT", anEndpoint, `{"url":"https://example.org"}`}, {"PUT", anEndpoint, `{"url":"https://example.org","enabled":false}`},
		{"PUT", "/api/v1/endpoints/" + someKey, `{"url":"https://example.org"}`}, {"DELETE", anEndpoint, ""}, {"POST", endpoints, `{"url":"https://example.org"}`},
	} {
		id := decode(t, b.send(r[0], r[1], r[2], "Idempotency-Key", someKey))["id"]
		require.Empty(t, seen[id], r)
		seen[id] = r[0]
		require.Equal(t, id, decode(t, b.send(r[0], r[1], r[2], "Idempotency-Key", strings.ToUpper(someKey)))["id"], "a retry")
	}
}

func TestWhoSentItIsTheNameOfTheKey(t *testing.T) {
	t.Parallel()
	b := setup(t)
	caller := auth.Caller{ID: "k3v5oq2mda", Name: `ops "1"`, Scopes: []auth.Scope{auth.Write}}
	handler := b.engine
	b.engine = gin.New()
	b.engine.NoRoute(func(c *gin.Context) {
		handler.ServeHTTP(c.Writer, c.Request.WithContext(auth.WithCaller(c.Request.Context(), caller)))
	})
	mine := b.send("POST", endpoints, `{"url":"https://example.org"}`, "Idempotency-Key", "a word")
	require.Equal(t, 202, mine.Code, mine.Body)
	require.Equal(t, 202, b.send("DELETE", anEndpoint, "").Code)
	for _, c := range b.commands(t) {
		require.Equal(t, `ops "1"`, c.SentBy)
	}
	caller.ID = "another"
	theirs := b.send("POST", endpoints, `{"url":"https://example.org"}`, "Idempotency-Key", "a word")
	require.NotEqual(t, decode(t, mine)["id"], decode(t, theirs)["id"])
}

func TestEachOfAListHearsTheTruth(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.fail(kafka.ErrNotSent)
	w := b.send("POST", endpoints, twoInAList)
	require.Equal(t, 503, w.Code)
	require.Equal(t, "/problems/log-down", decode(t, w)["type"], "nothing was written, and one problem says so")
	require.NotEmpty(t, w.Header().Get("Retry-After"))

	b.fail(errors.New("connection reset"))
	w = b.send("POST", endpoints, twoInAList)
	require.Equal(t, http.StatusMultiStatus, w.Code)
	for _, answer := range results(t, w) {
		require.Nil(t, answer["position"])
		p := answer["error"].(map[string]any)
		require.Equal(t, "/problems/outcome-unknown", p["type"])
		require.Equal(t, answer["id"], p["retry_key"], "the ticket is a UUIDv7, and as the item's id it is this very command")
	}
	w = b.send("POST", endpoints, `{"url":"https://example.org"}`, "Idempotency-Key", someKey)
	require.Equal(t, 503, w.Code)
	require.Equal(t, someKey, decode(t, w)["retry_key"])

	b.fail(nil)
	b.doors.Endpoints.Shut(errors.New("retention.ms must be -1"))
	require.Equal(t, "/problems/log-unsafe", decode(t, b.send("POST", endpoints, twoInAList))["type"])
	require.Equal(t, 202, b.post("/api/v1/timestamp", "").Code, "the other door is open")
}

func TestLettersOfEndpointsAreRedrivenToTheirTopic(t *testing.T) {
	t.Parallel()
	b := setup(t)
	payload := `{"endpoint_id":"` + endpointsID + `","kind":"put","sent_by":"forged","endpoint":{"url":"https://example.org","name":"n","group":"","tags":[],"interval":"1m","enabled":true}}`
	w := b.post(redrive, letters(t, "endpoint.command.v1/47@3", payload, "timestamp.command.v1/3@4", `{"event_timestamp":"2009-09-28T19:03:12Z"}`))
	require.Equal(t, 200, w.Code, w.Body)
	sent := b.messages()
	require.Len(t, sent, 4)
	stamped, err := event.DecodeTimestampCommand(sent[0].Payload)
	require.NoError(t, err)
	c, err := event.DecodeEndpointCommand(sent[1].Payload)
	require.NoError(t, err)
	require.Equal(t, endpointsID, sent[1].UUID)
	require.Equal(t, "endpoint.command.v1/47@3", sent[1].Metadata["redriveOf"])
	require.Empty(t, c.SentBy, "who sends it is the caller, whatever the payload says")
	answers := decode(t, w)["results"].([]any)
	for i, id := range []uuid.UUID{c.CommandID, stamped.CommandID} {
		answer := answers[i].(map[string]any)
		require.Equal(t, id.String(), answer["ticket"], "answers stand in the order of the letters")
		require.True(t, strings.HasPrefix(answer["command"].(string), strings.Split(answer["position"].(string), "/")[0]+"/"))
		d, err := event.DecodeDeadLetterCommand(sent[2+i].Payload)
		require.NoError(t, err)
		require.Equal(t, id, d.CommandID)
	}
	b.forgetDecisions()
	require.Equal(t, 200, b.post(redrive, letters(t, "endpoint.command.v1/47@3", payload)).Code)
	require.Equal(t, sent[1].Payload, b.messages()[4].Payload, "a retry is the same command")

	n := len(b.messages())
	w = b.post(redrive, letters(t,
		"endpoint.command.v1/47@4", `{"event_timestamp":"2009-09-28T19:03:12Z"}`,
		"endpoint.command.v1/48@4", payload,
		"projection.receipt.v1/3@4", payload,
		"deadletter.command.v1/3@4", payload,
	))
	require.Equal(t, 422, w.Code, w.Body)
	for i, reason := range []string{"endpoint_id: expected a UUID, found nothing", "has 48 partitions", "command-service does not write projection.receipt.v1", "there are no dead letters in this topic"} {
		require.Contains(t, decode(t, w)["errors"].([]any)[i].(map[string]any)["reason"], reason)
	}
	b.forgetDecisions()
	require.Len(t, b.messages(), n)
	w = b.post(discard, `{"positions":["projection.receipt.v1/3@4","endpoint.command.v1/47@3"]}`)
	require.Equal(t, 200, w.Code, w.Body)
	require.Len(t, b.messages(), n+2)
}

// Whether a record can be read is asked of the decoder of its own topic.
func TestARecordIsReadAsItsTopicSays(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.readable(7) // a timestamp, wherever it stands
	require.Equal(t, 422, b.post(discard, `{"positions":["timestamp.command.v1/3@7"]}`).Code)
	require.Equal(t, 200, b.post(discard, `{"positions":["endpoint.command.v1/3@7"]}`).Code)
	b.failTopics(map[string]error{topic.EndpointCommand.Name: kafka.ErrNotSent})
	document := `{"url":"https://example.org","name":"n","group":"","tags":[],"interval":"1m","enabled":true}`
	w := b.post(redrive, letters(t, "endpoint.command.v1/3@8", `{"endpoint_id":"`+ticket.Derived("x").String()+`","kind":"put","endpoint":`+document+`}`,
		"timestamp.command.v1/3@8", `{"event_timestamp":"2009-09-28T19:03:12Z"}`))
	require.Equal(t, 503, w.Code, w.Body)
	require.Contains(t, decode(t, w)["detail"], "1 of 2 letters are decided on")
}

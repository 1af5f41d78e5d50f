package endpoint

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/shared/event"
)

// fields returns what an error of this package names.
func fields(t *testing.T, err error) []event.FieldError {
	t.Helper()
	var wrong *InvalidError
	require.ErrorAs(t, err, &wrong)
	return wrong.Fields
}

func TestADocumentIsCompleteAndKeepsWhatItDoesNotKnow(t *testing.T) {
	t.Parallel()
	for body, document := range map[string]string{
		`{"url":"https://example.org"}`:      `{"url":"https://example.org","name":"example.org","group":"","tags":[],"interval":"1m","enabled":true}`,
		`{"url":"http://e.org:81/a%20b/?c"}`: `{"url":"http://e.org:81/a%20b/?c","name":"e.org:81/a%20b","group":"","tags":[],"interval":"1m","enabled":true}`,
		` { "conditions" : [ {"status": 2e2} ], "interval":"0.5m", "url":"https:\/\/example.org", "group":"<g>", "Name":"other", "enabled":false, "tags":["b","a"], "name":"\u00e9"} `: `{"url":"https://example.org","name":"é","group":"<g>","tags":["b","a"],"interval":"30s","enabled":false,"conditions":[ {"status": 2e2} ],"Name":"other"}`,
		`{"url":"https://example.org/` + strings.Repeat("ö", 300) + `"}`: `{"url":"https://example.org/` + strings.Repeat("ö", 300) + `","name":"example.org/` + strings.Repeat("%C3%B6", 31) + `%C","group":"","tags":[],"interval":"1m","enabled":true}`,
	} {
		items, list, err := Parse([]byte(body))
		require.NoError(t, err, body)
		require.False(t, list)
		require.Equal(t, []Item{{Document: []byte(document)}}, items)
		_, wrong := event.ParseEndpoint(items[0].Document)
		require.Empty(t, wrong)
		again, _, err := Parse(items[0].Document)
		require.NoError(t, err)
		require.Equal(t, items, again, "a document is its own document")
	}
}

func TestEverythingWrongIsNamedAtOnce(t *testing.T) {
	t.Parallel()
	for body, paths := range map[string][]string{
		``: {""}, ` `: {""}, `{`: {""}, `7`: {""}, `[]`: {""}, `{} {}`: {""}, "{\"url\":\"http://\xff\"}": {""},
		`{}`:                       {"url"},
		`[7,{"url":"http://e"},0]`: {"[0]", "[2]"},
		`{"url":7,"interval":"1s","tags":["a",7,""]}`:                                         {"url", "tags[1]", "tags[2]", "interval"},
		`[{"url":"http://e"},{"url":"/e","name":"","enabled":0}]`:                             {"[1].url", "[1].name", "[1].enabled"},
		`[[{"a":` + strings.Repeat("[", 40) + strings.Repeat("]", 40) + `}]]`:                 {"[0][0].a" + strings.Repeat("[0]", 30)},
		`{"url":"http://e","url":"http://f","url":"http://g"}`:                                {"url"},
		`{"url":"http://e","id":7}`:                                                           {"id"},
		`{"url":"http://e","id":""}`:                                                          {"id"},
		`{"url":"http://e","id":"a","id":"b","group":null}`:                                   {"id", "group"},
		`{"url":"http://e","more":` + strings.Repeat("[", 40) + strings.Repeat("]", 40) + `}`: {"more" + strings.Repeat("[0]", 31)},
		`{"url":"http://e","more":"\u0000"}`:                                                  {"more"},
		`{"url":"http://e","more":"` + strings.Repeat("x", 64<<10) + `"}`:                     {""},
		`[` + strings.Repeat(`{"url":"http://e"},`, 1000) + `{"url":"http://e"}]`:             {""},
	} {
		_, _, err := Parse([]byte(body))
		var found []string
		for _, e := range fields(t, err) {
			found = append(found, e.Path)
			require.Contains(t, e.Message, "expected", "%.80s", body)
		}
		require.Equal(t, paths, found, "%.80s", body)
	}
	_, list, err := Parse([]byte(`[` + strings.Repeat(`{"url":"http://e"},`, 999) + `{"url":"http://e"}]`))
	require.NoError(t, err)
	require.True(t, list)
}

func TestAPutIsOneEndpointWithThePathsID(t *testing.T) {
	t.Parallel()
	id := uuid.MustParse("6f2b8a0e-58cf-8d63-9a0d-0d1f3c1f3a55")
	document, err := ParsePut([]byte(`{"id":"6F2B8A0E-58cf-8d63-9a0d-0d1f3c1f3a55","url":"https://example.org"}`), id)
	require.NoError(t, err)
	require.NotContains(t, string(document), "id")
	_, err = ParsePut([]byte(`{"id":"another","url":"https://example.org"}`), id)
	require.Equal(t, "id", fields(t, err)[0].Path)
	_, err = ParsePut([]byte(`[{"url":"https://example.org"}]`), id)
	require.Contains(t, fields(t, err)[0].Message, "found a list")
}

func TestYAMLMeansWhatItsJSONMeans(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"url: https://example.org\nenabled: false\ntags: [a, \"7\"]\n":                                                                  `{"url":"https://example.org","enabled":false,"tags":["a","7"]}`,
		"# several\n- url: http://e\n  interval: 30s\n- {url: http://f, since: 2026-01-02, more: {b: ~, a: 0x10, c: 1.50, d: \"é\"}}\n": `[{"url":"http://e","interval":"30s"},{"url":"http://f","since":"2026-01-02","more":{"b":null,"a":16,"c":1.50,"d":"é"}}]`,
		"{\"url\":\"http://e\"}": `{"url":"http://e"}`,
		"":                       ``,
	} {
		got, err := FromYAML([]byte(text))
		require.NoError(t, err, text)
		require.Equal(t, want, string(got))
	}
	for text, path := range map[string]string{
		"url: [": "", "a: &x 1\nb: *x\n": "b", "a: .nan": "a", "? [a]\n: b": "", "7: b": "", "a: {b: !!binary aGk=}": "a.b", "a: 1\n---\nb: 2": "",
		"a: !!int x": "a", "m:\n  <<: {a: 1}\n": "m", "a: " + strings.Repeat("[", 5000) + strings.Repeat("]", 5000): "a" + strings.Repeat("[0]", 33),
	} {
		_, err := FromYAML([]byte(text))
		require.Equal(t, path, fields(t, err)[0].Path, "%.80s", text)
	}
}

// The golden values of this test and the next freeze their rules: a retry may come a year after the first attempt.
func TestAnEndpointsIDDerivesFromItsTicket(t *testing.T) {
	t.Parallel()
	require.Equal(t, "f0595b76-84e4-822c-ac55-eb6126c2e9ee", Of(uuid.MustParse("01920b5c-7d4e-7cc3-98c4-dc0c0c07398f")).String())
}

func TestTheCanonicalFormDoesNotDependOnTheWriting(t *testing.T) {
	t.Parallel()
	require.Equal(t, `{"a":1e2,"b":{"c":"é","d":[1,null]}}`, Canonical([]byte(`{"b": {"d":[1, null],"c":"\u00e9"},"a":1e2}`)))
	require.NotEqual(t, Canonical([]byte(`{"a":9007199254740993}`)), Canonical([]byte(`{"a":9007199254740992}`)))
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"url":"https://example.org","more":[1,{"a":"\ud800"}],"id":"x"}`), false)
	f.Add([]byte("- url: http://e\n  more: {a: .inf}\n"), true)
	f.Fuzz(func(t *testing.T, body []byte, isYAML bool) {
		if isYAML {
			text, err := FromYAML(body)
			if err != nil {
				require.ErrorAs(t, err, new(*InvalidError))
				return
			}
			require.True(t, len(text) == 0 || json.Valid(text), "%s", text)
			body = text
		}
		items, _, err := Parse(body)
		if err != nil {
			require.NotEmpty(t, fields(t, err))
			return
		}
		for _, item := range items {
			_, wrong := event.ParseEndpoint(item.Document)
			require.Empty(t, wrong)
			again, _, err := Parse(item.Document)
			require.NoError(t, err)
			require.Equal(t, item.Document, again[0].Document)
		}
	})
}

func TestAPayloadOfADeadLetterNeedsAllButItsTicketAndSender(t *testing.T) {
	t.Parallel()
	const id, endpoint = "01920b5c-7d4e-7cc3-98c4-dc0c0c07398f", "6f2b8a0e-58cf-8d63-9a0d-0d1f3c1f3a55"
	document := `{"url":"https://example.org","name":"<n>","group":"","tags":[],"interval":"1m","enabled":true,"more": 1}`
	for payload, command := range map[string]uuid.UUID{
		`{"command_id":"` + id + `","sent_by":"somebody","endpoint_id":"` + endpoint + `","kind":"put","endpoint":` + document + `}`: uuid.MustParse(id),
		`{"command_id":7,"endpoint_id":"` + endpoint + `","kind":"put","endpoint":` + document + `}`:                                 uuid.Nil,
		`{"endpoint_id":"` + endpoint + `","kind":"put","endpoint":` + document + `,"sent_by":7}`:                                    uuid.Nil,
	} {
		c, err := ReadRedriven([]byte(payload), "ops")
		require.NoError(t, err)
		require.Equal(t, command, c.CommandID)
		require.Equal(t, endpoint, c.EndpointID.String())
		require.Equal(t, "ops", c.SentBy)
		require.Equal(t, document, string(c.Document), "as it came")
	}
	for payload, reason := range map[string]string{
		``: "found nothing", `[]`: "found a list", `{"endpoint_id":"7"}`: `endpoint_id: expected a UUID, found "7"`,
		`{"endpoint_id":"` + endpoint + `","kind":"put","endpoint":{"url":7}}`:                                                       "endpoint.url: expected",
		`{"endpoint_id":"` + endpoint + `","kind":"put","endpoint":{"x":"` + strings.Repeat("x", 64<<10) + `",` + document[1:] + `}`: fmt.Sprintf("at most %d bytes", 63<<10),
	} {
		_, err := ReadRedriven([]byte(payload), "ops")
		require.ErrorContains(t, err, reason)
	}
}

package event

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/shared/topic"
)

func TestEndpointCommandGolden(t *testing.T) {
	t.Parallel()
	id := uuid.MustParse("01920b5c-7d4e-8cc3-98c4-dc0c0c07398f")
	home := Endpoint{URL: "https://example.org/", Name: "Home", Tags: []string{"web", "öffentlich"}, Interval: 30 * time.Second, Enabled: true}
	least := Endpoint{URL: "http://[::1]:8080/a?b=c&d", Name: `a "quoted" <name>`, Group: "staging", Interval: 24 * time.Hour}
	commands := []EndpointCommand{
		{CommandID: uuid.MustParse("01920b5c-7d4e-7cc3-98c4-dc0c0c073990"), EndpointID: id, Kind: EndpointPut, SentBy: "ops", Endpoint: home, Document: AppendEndpoint(nil, home)},
		{CommandID: uuid.MustParse("01920b5c-7d4e-7cc3-98c4-dc0c0c073991"), EndpointID: id, Kind: EndpointPut, Endpoint: least, Document: AppendEndpoint(nil, least)},
		{
			CommandID: uuid.MustParse("01920b5c-7d4e-7cc3-98c4-dc0c0c073992"), EndpointID: id, Kind: EndpointPut, SentBy: "a&b", Endpoint: home,
			Document: []byte(`{"conditions": [{"status": 2e2}], "enabled":true,"url":"https:\/\/example.org/","name":"Home","group":"","tags":["web","\u00f6ffentlich"],"interval":"0.5m"}`),
		},
		{CommandID: uuid.MustParse("01920b5c-7d4e-7cc3-98c4-dc0c0c073993"), EndpointID: id, Kind: EndpointDelete, SentBy: "ops"},
	}
	lines := golden(t, topic.EndpointCommand.Name)
	require.Len(t, lines, len(commands))
	for i, c := range commands {
		require.Equal(t, lines[i], string(AppendEndpointCommand(nil, c)))
		got, err := DecodeEndpointCommand([]byte(lines[i]))
		require.NoError(t, err)
		require.Equal(t, c, got)
	}
}

const goodEndpoint = `{"url":"https://example.org","name":"n","group":"g","tags":["t"],"interval":"1h30m","enabled":false}`

func TestDecodeEndpointCommandNamesEveryPath(t *testing.T) {
	t.Parallel()
	const ids = `"command_id":"01920b5c-7d4e-7cc3-98c4-dc0c0c07398f","endpoint_id":"01920b5c-7d4e-7cc3-98c4-dc0c0c07398f"`
	put := func(endpoint string) string {
		return `{` + ids + `,"kind":"put","sent_by":"","endpoint":` + endpoint + `}`
	}
	for value, reason := range map[string]string{
		``:       "the value: expected more JSON, found its end",
		`[{}]`:   "the value: expected a JSON object, found a list",
		`"a`:     "the value: expected more JSON, found its end",
		`{} {}`:  `the value: expected one JSON object, found '{' behind it`,
		`{"a":}`: `a: expected JSON, found '}' at byte 5`,
		`{}`: `command_id: expected a UUID, found nothing; endpoint_id: expected a UUID, found nothing; ` +
			`sent_by: expected a text, found nothing; kind: expected "put" or "delete", found nothing`,
		`{"command_id":7,"endpoint_id":"7","kind":"patch","sent_by":null}`: `command_id: expected a UUID, found a number; endpoint_id: expected a UUID, found "7"; ` +
			`sent_by: expected a text, found null; kind: expected "put" or "delete", found "patch"`,
		`{` + ids + `,"kind":"put","sent_by":""}`:                                "endpoint: expected a JSON object, found nothing",
		put(`"https://example.org"`):                                             "endpoint: expected a JSON object, found a text",
		put(strings.Replace(goodEndpoint, `"1h30m"`, `30`, 1)):                   "endpoint.interval: expected a duration such as 30s, found a number",
		put(strings.Replace(goodEndpoint, `"t"`, `"t",true`, 1)):                 "endpoint.tags[1]: expected a text, found true",
		put(`{"a":` + strings.Repeat("[", 1<<20)):                                "endpoint.a" + strings.Repeat("[0]", 31) + ": expected at most 33 levels of nesting, found more",
		put(`{"a":` + strings.Repeat("[", 32) + strings.Repeat("]", 32) + `}`):   "endpoint.a" + strings.Repeat("[0]", 31) + ": expected at most 33 levels of nesting, found more",
		put(`{"` + strings.Repeat("é", 1000) + `":}`):                            "endpoint." + strings.Repeat("é", 32) + `…: expected JSON`,
		put(strings.Replace(goodEndpoint, `"g"`, "\"\x00\"", 1)):                 "endpoint.group: expected a text without NUL characters",
		put(strings.Replace(goodEndpoint, `"g"`, `"\u0000"`, 1)):                 "endpoint.group: expected a text without NUL characters",
		put(strings.Replace(goodEndpoint, `"g"`, `"g","more":["a\u0000"]`, 1)):   "endpoint.more[0]: expected a text without NUL characters",
		put(strings.Replace(goodEndpoint, `"g"`, "\"\xff\"", 1)):                 "the value: expected UTF-8",
		put(strings.Replace(goodEndpoint, `"g"`, `"g","group":"h"`, 1)):          "endpoint.group: expected once, found twice",
		put(strings.NewReplacer(`"n"`, `7`, `"g"`, `{}`).Replace(goodEndpoint)):  "endpoint.name: expected a text, found a number; endpoint.group: expected a text, found an object",
		strings.Replace(put(goodEndpoint), `"sent_by":""`, `"sent_by":["a"]`, 1): "sent_by: expected a text, found a list",
	} {
		_, err := DecodeEndpointCommand([]byte(value))
		require.ErrorContains(t, err, reason, "%.200s", value)
	}
	_, err := DecodeEndpointCommand(nil)
	require.ErrorContains(t, err, "no value")
	c, err := DecodeEndpointCommand([]byte(put(`{"a":` + strings.Repeat("[", 31) + strings.Repeat("]", 31) + `,` + goodEndpoint[1:])))
	require.NoError(t, err, "32 levels are taken")
	require.Equal(t, Endpoint{URL: "https://example.org", Name: "n", Group: "g", Tags: []string{"t"}, Interval: 90 * time.Minute}, c.Endpoint)
}

func TestParseEndpointReturnsAllThatIsWrong(t *testing.T) {
	t.Parallel()
	_, wrong := ParseEndpoint([]byte(`{"url":"ftp://example.org","name":"","group":"` + strings.Repeat("ö", 101) + `","tags":["",7],"interval":"4s","enabled":"yes"}`))
	require.Equal(t, []FieldError{
		{"url", `expected an absolute http or https URL with a host, found "ftp://example.org"`},
		{"name", "expected a text, found an empty one"},
		{"group", "expected at most 100 characters, found 101"},
		{"tags[0]", "expected a text, found an empty one"},
		{"tags[1]", "expected a text, found a number"},
		{"interval", `expected whole seconds from 5s to 24h, found "4s"`},
		{"enabled", "expected true or false, found a text"},
	}, wrong)
	_, wrong = ParseEndpoint([]byte(`{}`))
	require.Len(t, wrong, 6, "every member must be there")
	for part, instead := range map[string]string{
		`"https://example.org"`: `"https://` + strings.Repeat("a", 2041) + `"`,
		`"n"`:                   `"` + strings.Repeat("n", 201) + `"`,
		`["t"]`:                 `["t"` + strings.Repeat(`,"t"`, 20) + `]`,
		`"t"`:                   `"` + strings.Repeat("t", 51) + `"`,
		`"1h30m"`:               `"24h1s"`,
		`"1h30m`:                `"90.5s`,
		`https://`:              `/`,
		`example.org`:           `:80`,
	} {
		require.Contains(t, goodEndpoint, part)
		_, wrong := ParseEndpoint([]byte(strings.Replace(goodEndpoint, part, instead, 1)))
		require.Len(t, wrong, 1, instead)
	}
}

func TestIntervalsArePrintedShort(t *testing.T) {
	t.Parallel()
	for d, text := range map[time.Duration]string{
		5 * time.Second: "5s", time.Minute: "1m", 90 * time.Second: "1m30s", 10 * time.Minute: "10m", time.Hour: "1h", 24 * time.Hour: "24h",
		time.Hour + 10*time.Minute: "1h10m", time.Hour + time.Second: "1h0m1s",
	} {
		require.Equal(t, text, shortDuration(d))
		again, err := time.ParseDuration(text)
		require.NoError(t, err)
		require.Equal(t, d, again)
	}
}

// The scanner is as strict as encoding/json, and what is read once is read again the same.
func FuzzDecodeEndpointCommand(f *testing.F) {
	f.Add([]byte(`{"command_id":"01920b5c-7d4e-7cc3-98c4-dc0c0c07398f","endpoint_id":"01920b5c-7d4e-8cc3-98c4-dc0c0c07398f","kind":"put","sent_by":"\ud800","endpoint":` + goodEndpoint + `}`))
	f.Add([]byte(`{"command_id":"01920b5c-7d4e-7cc3-98c4-dc0c0c07398f","endpoint_id":"01920b5c-7d4e-8cc3-98c4-dc0c0c07398f","kind":"delete","sent_by":""}`))
	f.Add([]byte(`{"a":[1,-0.5e+7,true,null,"\"\\\/\b\f\n\r\t\u00e9"],"b":{}}`))
	f.Fuzz(func(t *testing.T, value []byte) {
		if members(value, documentLevels, func([]byte, []byte) {}) == nil {
			require.True(t, json.Valid(value))
		}
		c, err := DecodeEndpointCommand(value)
		if err != nil {
			return
		}
		var raw struct {
			SentBy string `json:"sent_by"`
		}
		require.NoError(t, json.Unmarshal(value, &raw))
		again, err := DecodeEndpointCommand(AppendEndpointCommand(nil, c))
		require.NoError(t, err)
		require.Equal(t, c, again)
	})
}

func FuzzScannerTakesWhatJSONTakes(f *testing.F) {
	f.Add([]byte(`{"a":[1,-0.5e+7,true,null,"\"\\\/\b\f\n\r\t\u00e9"],"b":{}}`))
	f.Fuzz(func(t *testing.T, value []byte) {
		var wanted map[string]json.RawMessage
		if json.Unmarshal(value, &wanted) != nil || wanted == nil {
			return
		}
		found := map[string]json.RawMessage{}
		wrong := members(value, documentLevels, func(name, value []byte) { found[string(name)] = value })
		if wrong != nil { // only for what it promises to refuse
			require.Regexp(t, "NUL|UTF-8|levels", wrong.Message)
			return
		}
		require.Equal(t, wanted, found)
	})
}

func BenchmarkDecodeEndpointCommand(b *testing.B) {
	value := []byte(`{"command_id":"01920b5c-7d4e-7cc3-98c4-dc0c0c07398f","endpoint_id":"01920b5c-7d4e-8cc3-98c4-dc0c0c07398f","kind":"put","sent_by":"ops","endpoint":` + goodEndpoint + `}`)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := DecodeEndpointCommand(value); err != nil {
			b.Fatal(err)
		}
	}
}

package httpapi

import (
	"net/http"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/command-service/internal/door"
)

// keyedStream sends a whole stream under a key and returns its answers.
func (b *bundle) keyedStream(t *testing.T, url, key, query, body string) []said {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url+"/api/v1/timestamps"+query, strings.NewReader(body))
	require.NoError(t, err)
	r.Header.Set("Content-Type", "application/x-ndjson")
	r.Header.Set("Idempotency-Key", key)
	res, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(r)
	require.NoError(t, err)
	defer func() { require.NoError(t, res.Body.Close()) }()
	require.Equal(t, 200, res.StatusCode)
	return answers(t, res.Body)
}

func ids(all []said) (out []string) {
	for _, a := range all {
		out = append(out, a.ID)
	}
	return out
}

func TestAStreamSentAgainUnderItsKeyHasTheSameTickets(t *testing.T) {
	t.Parallel()
	b := setup(t)
	url := b.serve(t)
	const v4, v7, own = "6f2b8a0e-58cf-4d63-9a0d-0d1f3c1f3a55", "01920b5c-7d4e-7cc3-98c4-dc0c0c07398f", "01920b5c-7d4e-7cc3-98c4-dc0c0c073990"
	first := "\"2009-09-28T19:03:12Z\"\n\n{}\n{\"event_timestamp\":\"2009-09-28T19:03:12Z\"}\n{\"id\":\"" + own + "\"}\nnonsense\n{}\n"
	// The same lines as another program writes them.
	again := "{ \"event_timestamp\" : \"2009-09-28T21:03:12.000+02:00\" }\r\n\n { } \n\"2009-09-28T19:03:12.0000000Z\"\n{\"id\":\"" + own + "\"}\nnonsense\n{}"
	golden := map[string][]string{ // a ticket that changed would make a retry count twice
		v4: {"7866a51c-cf51-8275-8952-5392f98d880d", "", "5b4013fd-8ea6-83de-a1ad-b66af9eabc35", "feeab92d-076b-8e66-b353-e30a1896bf53", own, "", "0c915acd-64ad-84cc-bf9d-31f57aa66f2f"},
		v7: {"d2e0a869-8fa2-8cc6-953f-036c442860ca", "", "1eee66b0-76ea-82a2-a74f-d08f3852647b", "30b68d23-2c13-8f63-9dd7-c191a69a6ccb", own, "", "956e887f-f4d9-823a-994f-3e847a7f95a1"},
	}
	for key, want := range golden {
		answered := b.keyedStream(t, url, key, "", first)
		require.Equal(t, want, ids(answered), key)
		require.Equal(t, want, ids(b.keyedStream(t, url, `"`+strings.ToUpper(key)+`"`, "", again)))
		require.Equal(t, want[4], own, "a line's own id wins")

		rest := strings.SplitAfterN(first, "\n", 4)[3] // from the fourth line on
		continued := b.keyedStream(t, url, key, "?from_line=4", rest)
		require.Equal(t, want[3:], ids(continued))
		require.EqualValues(t, 4, continued[0].Line)

		seen := map[string]bool{}
		for _, id := range want {
			require.False(t, seen[id] && id != "", "every line has a ticket of its own")
			seen[id] = true
		}
		for i, id := range want {
			if i != 4 && id != "" {
				require.EqualValues(t, 8, uuid.MustParse(id).Version())
			}
		}
	}
	require.NotEqual(t, golden[v4], golden[v7])
}

func TestAKeyThatIsNotTakenRefusesTheStreamAsAWhole(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for path, key := range map[string]string{"": "a word", "?from_line=0": "6f2b8a0e-58cf-4d63-9a0d-0d1f3c1f3a55", "?from_line=x": "6f2b8a0e-58cf-4d63-9a0d-0d1f3c1f3a55"} {
		w := b.send("POST", "/api/v1/timestamps"+path, "{}\n", "Content-Type", "application/x-ndjson", "Idempotency-Key", key)
		require.Equal(t, 400, w.Code, w.Body)
	}
	require.Equal(t, 400, b.send("POST", "/api/v1/timestamps", "{}\n", "Content-Type", "application/x-ndjson", "Idempotency-Key", "").Code)
	require.Empty(t, b.records(t))
}

func TestALineWhoseOutcomeIsUnknownSaysHowItsStreamGoesOn(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.fail(door.ErrUnknown)
	const key = "6f2b8a0e-58cf-4d63-9a0d-0d1f3c1f3a55"
	a := b.keyedStream(t, b.serve(t), key, "?from_line=7", "{}\n")[0]
	require.Equal(t, 503, a.Error.Status)
	require.Contains(t, a.Error.Detail, "from_line=7")
	require.Equal(t, key, a.Error.RetryKey)
}

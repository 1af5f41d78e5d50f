package app

import (
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"golang.org/x/net/html"

	"github.com/tidemark/tidemark/query-service/internal/testdb"
)

// postForms are the addresses that the forms of a page are posted to, but for the log-out.
func postForms(t *testing.T, body string) []string {
	t.Helper()
	var found []string
	for z := html.NewTokenizer(strings.NewReader(body)); ; {
		kind := z.Next()
		if kind == html.ErrorToken {
			return found
		}
		token := z.Token()
		if kind != html.StartTagToken {
			continue
		}
		attribute := map[string]string{}
		for _, at := range token.Attr {
			attribute[at.Key] = at.Val
		}
		switch {
		case token.Data == "form" && attribute["method"] == "post" && attribute["action"] != "/logout":
			found = append(found, attribute["action"])
		case attribute["formaction"] != "":
			found = append(found, attribute["formaction"])
		}
	}
}

// keysUp is a service that asks for keys, with rows, a dead letter, a standby and an endpoint: every form there is can be
// offered. It returns the path of the endpoint too.
func keysUp(t *testing.T) (s *running, keys map[string]string, endpoint string) {
	t.Helper()
	db := testdb.New(t)
	db.Reject(t, 0, []byte("{"), `[]`, "broken")
	setGenerations(t, db, aGeneration{number: 1, state: "serving"}, aGeneration{number: 0, state: "standby"})
	id := uuid.New()
	db.BeginEndpoints(t)
	db.PutEndpoint(t, id, aDocument("a", "", "", "5m"), "ops")
	s, keys, _ = lockedUpOn(t, db)
	return s, keys, "/endpoints/" + id.String()
}

// What a key may not do is not offered, and who is logged in is shown.
func TestPagesOfferWhatTheKeyMayDo(t *testing.T) {
	t.Parallel()
	s, keys, endpoint := keysUp(t)
	offered := map[string]int{}
	for _, path := range []string{"/", "/endpoints", endpoint, "/projections/timestamps", "/projections/timestamps/rebuild"} {
		for scope, key := range keys {
			if scope == "write" {
				continue // it may not read the pages
			}
			page := s.get(t, path, "Cookie", "tidemark_key="+key, "Accept", browser)
			requireSound(t, path, page)
			require.Contains(t, page.body, "Key <strong>the &lt;"+scope+"&gt; key</strong>, scope "+scope)
			forms := postForms(t, page.body)
			offered[scope] += len(forms)
			for _, action := range forms {
				a := s.post(t, action, nil, "Cookie", "tidemark_key="+key, "Accept", browser)
				require.NotEqual(t, http.StatusForbidden, a.status, "%s offers %s to a key of scope %s", path, action, scope)
			}
			if scope == "read" {
				require.Contains(t, page.body, "Not with this key: this key has scope read, ")
			}
		}
	}
	require.Zero(t, offered["read"])
	require.Positive(t, offered["admin"])
}

// A form that is refused comes again, with what was typed and the reason, on the page that it stands on.
func TestAFormThatIsRefusedComesAgain(t *testing.T) {
	t.Parallel()
	s, keys, endpoint := keysUp(t)
	_, open := setup(t)
	for path, tc := range map[string]struct {
		form url.Values
		page string // words of the page
		kept string
	}{
		"/stamp":                                 {url.Values{"event_timestamp": {"2009-09-28T19:03:12Z"}}, "What is running", `value="2009-09-28T19:03:12Z"`},
		"/endpoints":                             {url.Values{"url": {"https://kept.example/"}}, "Add an endpoint", `value="https://kept.example/"`},
		endpoint:                                 {url.Values{"url": {"https://kept.example/"}}, "History", `value="https://kept.example/"`},
		endpoint + "/delete":                     {nil, "History", ""},
		"/projections/timestamps/audit":          {nil, "Partitions", ""},
		"/projections/timestamps/rebuild":        {url.Values{"kind": {"point"}, "point": {"2026-11-03T00:00:00Z"}}, "Start a rebuild", `value="2026-11-03T00:00:00Z"`},
		"/projections/timestamps/rebuild/verify": {url.Values{"generation": {"0"}}, "Start a rebuild", ""},
		"/projections/timestamps/rebuild/swap":   {url.Values{"generation": {"0"}}, "Start a rebuild", ""},
		"/projections/timestamps/rebuild/drop":   {url.Values{"generation": {"0"}}, "Start a rebuild", ""},
	} {
		a := s.post(t, path, tc.form, "Cookie", "tidemark_key="+keys["read"], "Accept", browser)
		requireSound(t, path, a)
		require.Equal(t, 403, a.status, path)
		require.Contains(t, a.body, "this key has scope read, ", path)
		require.Contains(t, a.body, tc.page, path)

		a = s.post(t, path, tc.form, "Cookie", "tidemark_key="+keys["admin"], "Accept", browser, "Sec-Fetch-Site", "cross-site")
		requireSound(t, path, a)
		require.Equal(t, 403, a.status, path)
		require.Contains(t, a.body, "another site", path)
		require.Contains(t, a.body, tc.page, path)
		require.Contains(t, a.body, tc.kept, path)

		for _, key := range []string{"", keys["write"]} {
			a = s.post(t, path, tc.form, "Cookie", "tidemark_key="+key, "Accept", browser, "Sec-Fetch-Site", "cross-site")
			require.Equal(t, 403, a.status, path)
			require.NotContains(t, a.body, tc.page, "%s: whoever may not read sees no page", path)
		}
		if !strings.HasPrefix(path, "/endpoints/") {
			a = open.post(t, path, tc.form, "Accept", browser, "Sec-Fetch-Site", "cross-site")
			require.Contains(t, a.body, tc.page, path)
			require.Contains(t, a.body, tc.kept, path)
		}
	}
}

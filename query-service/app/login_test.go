package app

import (
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/query-service/internal/testdb"
	"github.com/tidemark/tidemark/shared/auth"
)

const browser = "text/html,application/xhtml+xml,*/*;q=0.8"

// lockedUp is a service that asks for keys, with a key of each scope and a command-service.
func lockedUp(t *testing.T) (*running, map[string]string, *theDoor) {
	t.Helper()
	return lockedUpOn(t, testdb.New(t))
}

func lockedUpOn(t *testing.T, db *testdb.DB) (*running, map[string]string, *theDoor) {
	t.Helper()
	file, keys := filepath.Join(t.TempDir(), "keys"), map[string]string{}
	for _, scope := range []string{"read", "write", "admin"} {
		_, key, err := auth.Create(file, "the <"+scope+"> key", []string{scope}, time.Time{}, time.Now())
		require.NoError(t, err)
		keys[scope] = key
	}
	d := &theDoor{requests: make(chan *http.Request, 10), answer: func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Tidemark-Position", "timestamp.command.v1/1@0")
		w.WriteHeader(http.StatusAccepted)
		_, _ = io.WriteString(w, `{"id":"`+r.Header.Get("Idempotency-Key")+`"}`)
	}}
	others := httptest.NewServer(http.HandlerFunc(d.serve))
	t.Cleanup(others.Close)
	s := startWith(t, db.URL, others.URL, map[string]string{"API_KEYS_FILE": file})
	s.awaitReady(t)
	return s, keys, d
}

func cookieOf(t *testing.T, a answer) *http.Cookie {
	t.Helper()
	set, err := http.ParseSetCookie(a.header.Get("Set-Cookie"))
	require.NoError(t, err)
	require.Equal(t, "tidemark_key", set.Name)
	require.True(t, set.HttpOnly)
	require.Equal(t, http.SameSiteStrictMode, set.SameSite)
	return set
}

func TestPagesNeedALogin(t *testing.T) {
	t.Parallel()
	s, keys, d := lockedUp(t)
	a := s.get(t, "/records?before=01920b5c-7d4e-7cc3-98c4-dc0c0c07398f", "Accept", browser)
	require.Equal(t, 303, a.status)
	login := a.header.Get("Location")
	require.Equal(t, "/login?next=%2Frecords%3Fbefore%3D01920b5c-7d4e-7cc3-98c4-dc0c0c07398f", login)
	a = s.get(t, "/records")
	require.Equal(t, 401, a.status, "whoever reads no pages gets a problem")
	require.Equal(t, "application/problem+json", a.header.Get("Content-Type"))
	require.Equal(t, 401, s.get(t, "/api/v1/timestamps", "Accept", browser).status)
	require.Equal(t, 303, s.post(t, "/stamp", nil, "Accept", browser).status)
	require.Empty(t, d.requests)

	page := s.get(t, login)
	require.Equal(t, 200, page.status)
	require.Contains(t, page.body, `name="next" value="/records?before=01920b5c-7d4e-7cc3-98c4-dc0c0c07398f"`)
	require.NotContains(t, page.body, "Log out")
	a = s.post(t, "/login", url.Values{"key": {keys["write"][:30]}, "next": {"/records"}})
	require.Equal(t, 422, a.status)
	require.Contains(t, a.body, "Unknown, expired or revoked key.")
	require.Empty(t, a.header.Get("Set-Cookie"))

	a = s.post(t, "/login", url.Values{"key": {" " + keys["read"] + " "}, "next": {"/records"}})
	require.Equal(t, 303, a.status)
	require.Equal(t, "/records", a.header.Get("Location"))
	set := cookieOf(t, a)
	require.False(t, set.Secure)
	cookie := []string{"Cookie", set.Name + "=" + set.Value}
	page = s.get(t, "/records", cookie...)
	require.Equal(t, 200, page.status)
	require.Contains(t, page.body, "Log out")
	require.Contains(t, page.body, "the &lt;read&gt; key")
	require.NotContains(t, page.body, keys["read"])
	a = s.post(t, "/stamp", nil, append(cookie, "Accept", browser)...)
	require.Equal(t, 403, a.status, "the key may read only")
	require.Contains(t, a.header.Get("Content-Type"), "text/html")
	require.Contains(t, a.body, "this key has scope read, write is needed")
	require.Empty(t, d.requests)

	require.True(t, cookieOf(t, s.post(t, "/login", url.Values{"key": {keys["read"]}}, "X-Forwarded-Proto", "https")).Secure)
	a = s.post(t, "/logout", nil, cookie...)
	require.Equal(t, 303, a.status)
	require.Negative(t, cookieOf(t, a).MaxAge)
}

func TestTheCallersKeyGoesOnToTheDoor(t *testing.T) {
	t.Parallel()
	s, keys, d := lockedUp(t)
	for _, header := range [][]string{{"Cookie", "tidemark_key=" + keys["admin"]}, {"Authorization", "Bearer " + keys["admin"]}} {
		require.Equal(t, 303, s.post(t, "/stamp", nil, header...).status)
		require.Equal(t, "Bearer "+keys["admin"], (<-d.requests).Header.Get("Authorization"))
	}
	a := s.post(t, "/stamp", nil, "Cookie", "tidemark_key="+keys["admin"], "Sec-Fetch-Site", "cross-site")
	require.Equal(t, 403, a.status)
	require.Empty(t, d.requests)
}

func TestALoginLeadsNowhereElse(t *testing.T) {
	t.Parallel()
	s, keys, _ := lockedUp(t)
	for next, want := range map[string]string{
		"/records": "/records", "": "/", "records": "/", "//evil.example/x": "/", "https://evil.example": "/", `/\evil.example`: "/", "javascript:alert(1)": "/",
		"/tickets/x?position=a/1@2": "/tickets/x?position=a/1@2", "///evil.example": "/", "/%2F/evil": "/",
	} {
		a := s.post(t, "/login", url.Values{"key": {keys["read"]}, "next": {next}})
		require.Equal(t, 303, a.status)
		require.Equal(t, want, a.header.Get("Location"), next)
	}
}

func TestWrongKeysAtTheLoginAreLimited(t *testing.T) {
	t.Parallel()
	s, keys, _ := lockedUp(t)
	var last answer
	for range 25 {
		last = s.post(t, "/login", url.Values{"key": {strings.Repeat("x", 40)}})
	}
	require.Equal(t, 429, last.status)
	require.NotEmpty(t, last.header.Get("Retry-After"))
	require.Equal(t, 303, s.post(t, "/login", url.Values{"key": {keys["read"]}}).status)
}

func TestWithoutKeysThereIsNoLogin(t *testing.T) {
	t.Parallel()
	_, s := setup(t)
	require.Equal(t, "/records", s.get(t, "/login?next=/records").header.Get("Location"))
	require.NotContains(t, s.get(t, "/").body, "Log out")
	a := s.post(t, "/login", url.Values{"key": {"tmk_a_b"}})
	require.Equal(t, 303, a.status)
	require.Empty(t, a.header.Get("Set-Cookie"))
}

// What a key may not do is offered on no page: none has a form that posts, but for the one to log out.
func TestPagesOfferNothingThatTheKeyMayNotDo(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	s, keys, _ := lockedUpOn(t, db)
	db.BeginEndpoints(t)
	id := uuid.New()
	db.PutEndpoint(t, id, `{"url":"https://example.org/","name":"example","group":"","tags":[],"interval":"30s","enabled":true}`, "")
	db.Reject(t, 0, []byte("short"), "[]", "wrong")
	for _, path := range []string{
		"/", "/tickets", "/records", "/endpoints", "/endpoints/" + id.String(), "/projections", "/projections/timestamps", "/projections/timestamps/rebuild",
		"/dead-letters", "/dead-letters/timestamp.command.v1/0@0", "/glossary", "/nothing-here",
	} {
		page := s.get(t, path, "Cookie", "tidemark_key="+keys["read"], "Accept", browser)
		require.NotEqual(t, 303, page.status, path)
		for _, form := range regexp.MustCompile(`<form[^>]*method="post"[^>]*>`).FindAllString(page.body, -1) {
			require.Contains(t, form, `action="/logout"`, path)
		}
		for _, word := range []string{`formaction=`, `type="checkbox"`, "Redrive or discard"} {
			require.NotContains(t, page.body, word, path)
		}
	}
	page := s.get(t, "/dead-letters", "Cookie", "tidemark_key="+keys["admin"])
	require.Contains(t, page.body, "Redrive or discard")
	require.Contains(t, page.body, `formaction="/dead-letters/discard"`)
}

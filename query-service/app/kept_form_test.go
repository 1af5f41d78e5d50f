package app

import (
	"html"
	"net/url"
	"regexp"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
)

var keptForm = regexp.MustCompile(`name="form" value="([^"]*)"`)

// The key of a form's sender is not in force any more: revoked, expired, or the cookie is gone.
func TestWhatWasTypedComesAgainAfterALogin(t *testing.T) {
	t.Parallel()
	s, keys, endpoint := keysUp(t)
	for _, r := range formRoutes(t, s) {
		form := r.filled()
		if r.path == "/login" || len(form) == 0 {
			continue
		}
		path := r.address(t, endpoint)
		a := s.post(t, path, form, "Cookie", "tidemark_key=tmk_gone_gone", "Accept", browser)
		requireSound(t, path, a)
		require.Equal(t, 401, a.status, path)
		kept := keptForm.FindStringSubmatch(a.body)
		require.NotNil(t, kept, path)
		login := url.Values{"key": {keys["admin"][:30]}, "next": {path}, "form": {html.UnescapeString(kept[1])}}

		if r.path == "/stamp" { // wrong keys are limited
			a = s.post(t, "/login", login, "Accept", browser)
			require.Equal(t, 422, a.status)
			require.Contains(t, a.body, kept[0], "a wrong key costs nothing")
			require.NotContains(t, a.body, keys["admin"][:30])
		}

		login.Set("key", keys["admin"])
		a = s.post(t, "/login", login, "Accept", browser)
		requireSound(t, path, a)
		require.Equal(t, 200, a.status, path)
		require.Equal(t, keys["admin"], cookieOf(t, a).Value)
		require.Contains(t, a.body, "what you typed is here again, and nothing was sent", path)
		require.NotContains(t, a.body, keys["admin"])
		for _, name := range typed {
			if form.Has(name) {
				require.Contains(t, a.body, "kept-"+name, path)
			}
		}
		if form.Has("key") && r.path != "/dead-letters/review" {
			require.Contains(t, a.body, `name="key" value="kept-key"`, "%s: a command of which nobody knows keeps its key", path)
		}

		login.Set("key", keys["write"])
		a = s.post(t, "/login", login, "Accept", browser)
		require.Equal(t, 303, a.status, "%s: whoever may not read sees no page", path)
		require.Equal(t, "/", a.header.Get("Location"))
	}

	// What is too large to be carried along, or was no form, leads to the login as a page does.
	for _, form := range []url.Values{nil, {"event_timestamp": {strings.Repeat("x", 300<<10)}}} {
		a := s.post(t, "/stamp", form, "Accept", browser)
		require.Equal(t, 303, a.status)
		require.Equal(t, "/login?next=%2F", a.header.Get("Location"))
	}
	for _, form := range []string{"a=%zz", "event_timestamp=x"} {
		a := s.post(t, "/login", url.Values{"key": {keys["admin"]}, "next": {"/nowhere"}, "form": {form}})
		require.Equal(t, 303, a.status)
		require.Equal(t, "/", a.header.Get("Location"))
	}
}

// The services behind read their own keys file, and may know of a revoked key before this one does.
func TestWhatWasTypedIsKeptWhereAServiceBehindDoesNotKnowTheKey(t *testing.T) {
	t.Parallel()
	db, s, o := withOthers(t)
	db.Reject(t, 0, []byte("{"), `[]`, "broken")
	db.BeginEndpoints(t)
	id := uuid.New()
	db.PutEndpoint(t, id, aDocument("a", "", "", "5m"), "ops")
	setGenerations(t, db, aGeneration{number: 1, state: "serving"})
	o.will(401, `{"status":401,"detail":"unknown, expired or revoked key"}`)
	for _, r := range formRoutes(t, s) {
		form := r.filled()
		if r.path == "/login" || r.path == "/dead-letters/review" { // nobody else is asked
			continue
		}
		if form.Has("interval") { // what is checked here before anybody is asked
			form.Set("interval", "5s")
			form.Set("url", "https://kept-url.example/")
			form.Del("version")
		}
		if form.Has("point") {
			form.Set("rate_limit", "7")
			form.Del("replace_standby")
		}
		if form.Has("payload") {
			form.Set("applied_find", form.Get("find"))
			form.Set("applied_replace", form.Get("replace"))
		}
		if form.Has("key") {
			form.Set("key", uuid.NewString())
		}
		path := r.address(t, "/endpoints/"+id.String())
		a := s.post(t, path, form, "Accept", browser)
		requireSound(t, path, a)
		require.Equal(t, 401, a.status, path)
		require.Contains(t, a.body, "wants an API key", path)
		for _, name := range typed {
			if strings.HasPrefix(form.Get(name), "kept-") {
				require.Contains(t, a.body, "kept-"+name, path)
			}
		}
	}
}

package app

import (
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"golang.org/x/net/html"
)

// formRoute is a route that a form is posted to, and whether each of its fields may be there more than once.
type formRoute struct {
	path   string
	fields map[string]bool
}

// formRoutes are all of them, as the service says: one that the specification does not list keeps it from starting.
func formRoutes(t *testing.T, s *running) (routes []formRoute) {
	t.Helper()
	doc, err := openapi3.NewLoader().LoadFromData([]byte(s.get(t, "/openapi.yaml").body))
	require.NoError(t, err)
	for path, item := range doc.Paths.Map() {
		if item.Post == nil || item.Post.RequestBody == nil {
			continue
		}
		form := item.Post.RequestBody.Value.Content["application/x-www-form-urlencoded"]
		require.NotNil(t, form, "%s is posted to, and takes no form", path)
		r := formRoute{path, map[string]bool{}}
		for name, field := range form.Schema.Value.Properties {
			r.fields[name] = field.Value.Type.Is("array")
		}
		routes = append(routes, r)
	}
	require.NotEmpty(t, routes)
	return routes
}

// matches reports whether an address is one of the route.
func (r formRoute) matches(address string) bool {
	is, want := strings.Split(address, "/"), strings.Split(r.path, "/")
	return slices.EqualFunc(is, want, func(part, pattern string) bool { return part == pattern || strings.HasPrefix(pattern, "{") })
}

// address is a path of the route that leads to something.
func (r formRoute) address(t *testing.T, endpoint string) string {
	t.Helper()
	path := strings.NewReplacer("/endpoints/{id}", endpoint, "{name}", "timestamps").Replace(r.path)
	require.NotContains(t, path, "{")
	return path
}

// filled is a form of the route whose every field holds something.
func (r formRoute) filled() url.Values {
	form := url.Values{}
	for name := range r.fields {
		form.Set(name, "kept-"+name)
	}
	for name, value := range map[string]string{"position": "timestamp.command.v1/0@0", "generation": "0", "kind": "point", "search_projection": "timestamps", "search_partition": "0", "search_state": "open"} {
		if form.Has(name) {
			form.Set(name, value)
		}
	}
	form.Del("single") // the page of one letter has other fields, and so has the list
	form.Del("all")
	return form
}

// typed are the fields that somebody types into; the others say which button was pressed, or where.
var typed = []string{"event_timestamp", "url", "name", "group", "tags", "interval", "point", "rate_limit", "note", "payload", "find", "replace", "search_q"}

func TestEveryFormRefusesWhatItDoesNotReadAndKeepsWhatWasTyped(t *testing.T) {
	t.Parallel()
	s, keys, endpoint := keysUp(t)
	admin := []string{"Cookie", "tidemark_key=" + keys["admin"], "Accept", browser}
	for _, r := range formRoutes(t, s) {
		path := r.address(t, endpoint)
		unknown := r.filled()
		unknown.Set("unheard_of", "1")
		tries := map[string]url.Values{"form field &#34;unheard_of&#34; is not known here: this takes ": unknown}
		for name, repeated := range r.fields {
			if !repeated && name != "single" && name != "all" {
				twice := r.filled()
				twice.Add(name, twice.Get(name))
				tries["form field &#34;"+name+"&#34; is there 2 times: keep one"] = twice
			}
		}
		for words, form := range tries {
			a := s.post(t, path, form, admin...)
			requireSound(t, path, a)
			require.Equal(t, 400, a.status, "%s: %s", path, words)
			require.Contains(t, a.body, words, path)
			if r.path == "/login" {
				require.NotContains(t, a.body, "kept-key", "a secret is not kept")
				continue
			}
			for _, name := range typed {
				if form.Has(name) {
					require.Contains(t, a.body, "kept-"+name, "%s: %s", path, words)
				}
			}
		}
	}
}

func TestAFormThatIsNoFormIsRefused(t *testing.T) {
	t.Parallel()
	_, s := setup(t)
	for kind, status := range map[string]int{"multipart/form-data; boundary=x": 415, "application/json": 415, "": 415, "application/x-www-form-urlencoded": 400} {
		a, err := s.do(t.Context(), http.MethodPost, "/stamp", "event_timestamp=%zz", "Content-Type", kind, "Accept", browser)
		require.NoError(t, err)
		require.Equal(t, status, a.status, kind)
	}
}

// sentForm is a form of a page: the names of its fields, and every address that a button of it posts them to.
type sentForm struct{ to, names []string }

func sentForms(body string) (forms []*sentForm) {
	in := &sentForm{} // what is in no form, and forms that only search
	for z := html.NewTokenizer(strings.NewReader(body)); ; {
		switch z.Next() {
		case html.ErrorToken:
			return forms
		case html.StartTagToken, html.SelfClosingTagToken:
		default:
			continue
		}
		token := z.Token()
		attribute := map[string]string{}
		for _, at := range token.Attr {
			attribute[at.Key] = at.Val
		}
		if token.Data == "form" {
			if in = (&sentForm{to: []string{attribute["action"]}}); attribute["method"] == "post" {
				forms = append(forms, in)
			}
		}
		if at := attribute["formaction"]; at != "" {
			in.to = append(in.to, at)
		}
		if name := attribute["name"]; name != "" {
			in.names = append(in.names, name)
		}
	}
}

// A button sends every field of its form, and its route must read each.
func TestFormsSendOnlyWhatTheirRoutesRead(t *testing.T) {
	t.Parallel()
	s, keys, endpoint := keysUp(t)
	admin := []string{"Cookie", "tidemark_key=" + keys["admin"], "Accept", browser}
	var pages []answer
	for _, path := range []string{"/", "/login", "/endpoints", endpoint, "/projections/timestamps", "/projections/timestamps/rebuild", "/dead-letters", "/dead-letters/timestamp.command.v1/0@0"} {
		pages = append(pages, s.get(t, path, admin...))
	}
	letter := url.Values{"position": {"timestamp.command.v1/0@0"}}
	pages = append(pages,
		s.post(t, "/dead-letters/review", letter, admin...), s.post(t, "/dead-letters/discard", letter, admin...),
		s.post(t, "/projections/timestamps/rebuild", url.Values{"kind": {"swap"}, "replace_standby": {"1"}}, admin...),
		s.post(t, "/stamp", url.Values{"event_timestamp": {"x"}, "y": {"z"}}, admin...))
	routes := formRoutes(t, s)
	met := map[string]bool{}
	for _, page := range pages {
		for _, form := range sentForms(page.body) {
			if form.to[0] == "/logout" {
				require.Empty(t, form.names)
				continue
			}
			for _, address := range form.to {
				i := slices.IndexFunc(routes, func(r formRoute) bool { return r.matches(address) })
				require.GreaterOrEqual(t, i, 0, address)
				met[routes[i].path] = true
				for _, name := range form.names {
					require.Contains(t, routes[i].fields, name, "a form sends %s to %s", name, address)
				}
			}
		}
	}
	for _, r := range routes {
		require.True(t, met[r.path], "no page has a form for %s", r.path)
	}
}

func TestWhatWasTypedAndTickedAmongDeadLettersIsKept(t *testing.T) {
	t.Parallel()
	db, s := setup(t)
	db.Reject(t, 0, []byte("<first>"), `[]`, "broken")
	db.Reject(t, 0, []byte("<second>"), `[]`, "broken")
	list := url.Values{"position": {"timestamp.command.v1/0@1"}, "note": {"kept-note"}, "search_q": {"brok"}}
	list.Set("unheard_of", "1")
	a := s.post(t, "/dead-letters/review", list, "Accept", browser)
	require.Equal(t, 400, a.status)
	for _, kept := range []string{`value="brok"`, `value="kept-note"`, `id="pick-timestamp.command.v1/0@1" checked`} {
		require.Contains(t, a.body, kept)
	}
	require.NotContains(t, a.body, `id="pick-timestamp.command.v1/0@0" checked`)
	require.NotContains(t, a.body, `data-live="letters"`, "a live update would take it away")
	require.Contains(t, s.page(t, "/dead-letters").body, `data-live="letters"`)
	list = url.Values{"note": {"kept-note"}, "search_q": {"brok"}}
	a = s.post(t, "/dead-letters/review", list, "Accept", browser)
	require.Equal(t, 400, a.status)
	for _, kept := range []string{"no dead letter is chosen", `value="brok"`, `value="kept-note"`} {
		require.Contains(t, a.body, kept)
	}

	// A preview replaces in what was edited.
	edited := url.Values{"position": {"timestamp.command.v1/0@1", "timestamp.command.v1/0@0"}, "payload": {"a second, edited", "a first"}, "find": {"a "}, "replace": {"the "}, "applied_find": {""}, "applied_replace": {""}}
	for _, path := range []string{"/dead-letters/review", "/dead-letters/redrive"} {
		a = s.post(t, path, edited, "Accept", browser)
		require.Equal(t, 200, a.status)
		for _, kept := range []string{">the second, edited</textarea>", ">the first</textarea>", "It changes 2 of 2."} {
			require.Contains(t, a.body, kept, path)
		}
	}
	edited["applied_find"], edited["applied_replace"] = edited["find"], edited["replace"]
	a = s.post(t, "/dead-letters/review", edited, "Accept", browser)
	require.Contains(t, a.body, ">a second, edited</textarea>", "what was replaced already is not replaced again")
}

func TestWhatWasTypedAboutAnEndpointThatIsDeletedMeanwhileIsKept(t *testing.T) {
	t.Parallel()
	db, s := setup(t)
	id := uuid.New()
	db.BeginEndpoints(t)
	version := db.PutEndpoint(t, id, aDocument("a", "", "", "5m"), "ops")
	db.DeleteEndpoint(t, id, "somebody")
	a := s.post(t, "/endpoints/"+id.String(), url.Values{"url": {"https://kept.example/"}, "name": {"kept-name"}, "version": {version.String()}}, "Accept", browser)
	requireSound(t, "deleted", a)
	require.Equal(t, 409, a.status)
	for _, words := range []string{"the endpoint was deleted since you opened its page", "Add an endpoint", `value="https://kept.example/"`, `value="kept-name"`} {
		require.Contains(t, a.body, words)
	}
}

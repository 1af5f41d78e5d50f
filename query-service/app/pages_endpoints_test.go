package app

import (
	"encoding/json"
	"net/url"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
)

// sent is the body of the one request that came, which must begin like this.
func (o *theOthers) sent(t *testing.T, begins string) map[string]any {
	t.Helper()
	o.mu.Lock()
	defer o.mu.Unlock()
	require.Len(t, o.asked, 1)
	body, is := strings.CutPrefix(o.asked[0], begins)
	require.True(t, is, o.asked[0])
	var m map[string]any
	require.NoError(t, json.Unmarshal([]byte(body), &m))
	return m
}

func TestThePageOfEndpoints(t *testing.T) {
	t.Parallel()
	db, s, o := withOthers(t)
	page := s.page(t, "/endpoints")
	require.Equal(t, 503, page.status)
	require.Contains(t, page.body, "No list is shown")
	require.Contains(t, page.body, refresh)
	db.BeginEndpoints(t)
	page = s.page(t, "/endpoints")
	require.Equal(t, 200, page.status)
	require.Contains(t, page.body, "There is no endpoint yet.")
	require.NotContains(t, page.body, refresh)
	id := uuid.New()
	db.PutEndpoint(t, id, aDocument("a <b>", "shop", `"eu"`, "5m"), "ann <3")
	for range 50 {
		db.PutEndpoint(t, uuid.New(), aDocument("c", "", "", "30s"), "")
	}
	page = s.page(t, "/endpoints")
	for _, words := range []string{`<a href="/endpoints/` + id.String() + `">a &lt;b&gt;</a>`, "5m", `href="/endpoints?group=shop"`, `href="/endpoints?tag=eu"`, "by ann &lt;3"} {
		require.Contains(t, page.body, words)
	}
	next := page.body[strings.Index(page.body, `rel="next" href="`)+len(`rel="next" href="`):]
	page = s.page(t, next[:strings.Index(next, `"`)])
	require.Equal(t, 1, strings.Count(page.body, "<tr>")-1)
	require.Contains(t, s.page(t, "/endpoints?tag=eu").body, "a &lt;b&gt;")
	require.Contains(t, s.page(t, "/endpoints?q=nowhere%00%ff").body, "This search finds none.")
	require.Equal(t, 400, s.page(t, "/endpoints?after=%25").status)

	// What is refused comes back as it was typed, each error at its field.
	form := url.Values{"url": {"ftp://x"}, "name": {"n <x>"}, "tags": {"a, ,b"}, "interval": {"1s"}}
	o.will(400, `{"status":400,"detail":"2 members are not accepted","errors":[{"path":"url","message":"expected <http>"},{"path":"tags[1]","message":"too long"},{"path":"other","message":"is strange"}]}`)
	a := s.post(t, "/endpoints", form)
	requireSound(t, "refused", a)
	require.Equal(t, 400, a.status)
	require.Equal(t, map[string]any{"url": "ftp://x", "name": "n <x>", "tags": []any{"a", "b"}, "interval": "1s", "enabled": false}, o.sent(t, "POST /api/v1/endpoints "))
	for _, words := range []string{
		`value="ftp://x"`, `aria-invalid="true" aria-describedby="wrong-url"`, `<p class="why" id="wrong-url">expected &lt;http&gt;</p>`,
		`<p class="why" id="wrong-tags">too long</p>`, "other: is strange.", `value="n &lt;x&gt;"`, `value="a, ,b"`, `value="1s"`,
	} {
		require.Contains(t, a.body, words)
	}
	require.NotContains(t, a.body, `name="enabled" value="1" checked`)

	key := uuid.Must(uuid.NewV7()).String()
	o.will(503, `{"status":503,"detail":"nobody knows","ticket":"`+key+`","retry_key":"`+key+`"}`)
	a = s.post(t, "/endpoints", url.Values{"url": {"https://x.example/"}})
	requireSound(t, "unknown", a)
	require.Equal(t, 503, a.status)
	require.Contains(t, a.body, `<input type="hidden" name="key" value="`+key+`">`)

	o.will(401, `{}`)
	require.Contains(t, s.post(t, "/endpoints", form).body, "wants an API key")
	o.header.Set("Tidemark-Position", "endpoint.command.v1/0@51")
	o.will(202, `{"id":"`+key+`","endpoint_id":"`+id.String()+`"}`)
	a = s.post(t, "/endpoints", url.Values{"url": {"https://x.example/"}, "enabled": {"1"}})
	require.Equal(t, 303, a.status, a.body)
	require.Equal(t, "/endpoints/"+id.String()+"?done=added&ticket="+key+"&position=endpoint.command.v1/0@51", a.header.Get("Location"))
	require.Equal(t, map[string]any{"url": "https://x.example/", "tags": []any{}, "enabled": true}, o.sent(t, "POST /api/v1/endpoints "))
	require.Equal(t, 403, s.post(t, "/endpoints", form, "Sec-Fetch-Site", "cross-site").status)
}

func TestThePageOfAnEndpoint(t *testing.T) {
	t.Parallel()
	db, s, o := withOthers(t)
	db.BeginEndpoints(t)
	id := uuid.New()
	path := "/endpoints/" + id.String()
	require.Equal(t, 404, s.page(t, path).status)
	require.Equal(t, 400, s.page(t, "/endpoints/42").status)
	first := db.PutEndpoint(t, id, `{"url":"https://a.example/","name":"a <b>","group":"shop","tags":["eu","us"],"interval":"30s","enabled":true,"retries":{"most":3}}`, "ann")
	second := db.PutEndpoint(t, id, `{"url":"https://a.example/","name":"a <b>","group":"shop","tags":["eu","us"],"interval":"5m","enabled":true,"retries":{"most":3}}`, "bob")
	page := s.page(t, path)
	require.Equal(t, 200, page.status)
	for _, words := range []string{
		"a &lt;b&gt;", `<dt>retries</dt><dd><code>{&#34;most&#34;:3}</code></dd>`, `value="eu, us"`, `value="5m"`, "Delete it…",
		`<code>interval: &#34;30s&#34; → &#34;5m&#34;</code>`, "added", "changed", "ann", "bob",
		`href="/tickets/` + first.String() + `?position=endpoint.command.v1%2f0%400"`, `href="/tickets/` + second.String() + `?position=endpoint.command.v1%2f0%401"`,
		`name="version" value="` + second.String() + `"`,
	} {
		require.Contains(t, page.body, words)
	}

	// An edit keeps what the form does not know.
	o.header.Set("Tidemark-Position", "endpoint.command.v1/0@2")
	third := uuid.Must(uuid.NewV7()).String()
	o.will(202, `{"id":"`+third+`","endpoint_id":"`+id.String()+`"}`)
	form := url.Values{"version": {second.String()}, "url": {"https://b.example/"}, "name": {""}, "tags": {"eu"}, "interval": {"1m"}}
	a := s.post(t, path, form)
	require.Equal(t, 303, a.status, a.body)
	require.Equal(t, map[string]any{"url": "https://b.example/", "tags": []any{"eu"}, "interval": "1m", "enabled": false, "retries": map[string]any{"most": 3.0}}, o.sent(t, "PUT /api/v1"+path+" "))
	saved := a.header.Get("Location")
	require.Equal(t, path+"?done=saved&ticket="+third+"&position=endpoint.command.v1/0@2", saved)
	page = s.pageWhile(t, saved, func() { db.PutEndpoint(t, id, aDocument("b", "", "", "1m"), "cid") })
	require.Contains(t, page.body, "The change was saved.", "the page waits for it")
	require.Contains(t, page.body, "https://b.example/")
	require.Contains(t, page.body, `href="/tickets/`+third+`?position=endpoint.command.v1`)

	// One that was changed since is shown before it is overwritten.
	o.will(202, `{}`)
	a = s.post(t, path, form)
	requireSound(t, "conflict", a)
	require.Equal(t, 409, a.status)
	require.Contains(t, a.body, "it was changed since you opened this page")
	require.Contains(t, a.body, `value="https://b.example/"`)
	require.NotContains(t, a.body, `value="`+second.String()+`"`, "the next try is against what is there now")
	o.was(t)

	o.will(202, `{"id":"`+third+`","endpoint_id":"`+id.String()+`"}`)
	a = s.post(t, path+"/delete", nil)
	require.Equal(t, 303, a.status, a.body)
	o.was(t, "DELETE /api/v1"+path)
	db.DeleteEndpoint(t, id, "ann")
	page = s.page(t, path)
	require.Contains(t, page.body, "Deleted endpoint")
	require.Contains(t, page.body, "deleted")
	require.NotContains(t, page.body, `action="`+path+`"`)
	o.will(403, `{"status":403,"detail":"no"}`)
	a = s.post(t, path+"/delete", nil)
	requireSound(t, "not deleted", a)
	require.Equal(t, 403, a.status)

	page = s.page(t, "/tickets/"+second.String()+"?position=endpoint.command.v1/0@1")
	require.Contains(t, page.body, "<dt>kind</dt><dd>put</dd>")
	require.Contains(t, page.body, `href="`+path+`"`, "a ticket leads to what it is about")
}

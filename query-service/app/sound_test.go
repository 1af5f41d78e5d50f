package app

import (
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/net/html"
)

// void elements have no end, by section 13.1.2 of the HTML standard.
var void = []string{"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}

// page gets a page and requires it to be sound: whatever it shows, it is well formed, has nothing that
// its policy forbids, and can be used without seeing it.
func (s *running) page(t *testing.T, path string) answer {
	t.Helper()
	a := s.get(t, path, "Accept", browser)
	requireSound(t, path, a)
	return a
}

func (s *running) pageWhile(t *testing.T, path string, do func()) answer {
	t.Helper()
	a := s.getWhile(t, path, do, "Accept", browser)
	requireSound(t, path, a)
	return a
}

func requireSound(t *testing.T, what string, a answer) {
	t.Helper()
	require.Equal(t, "text/html; charset=utf-8", a.header.Get("Content-Type"), what)
	require.Contains(t, a.header.Get("Content-Security-Policy"), "default-src 'none'")
	require.Equal(t, "no-store", a.header.Get("Cache-Control"))
	var open []string
	ids, labels, fields, described := map[string]bool{}, map[string]bool{}, []string{}, []string{}
	count := map[string]int{}
	inLabel := false
	for z := html.NewTokenizer(strings.NewReader(a.body)); ; {
		kind := z.Next()
		if kind == html.ErrorToken {
			break
		}
		token := z.Token()
		attribute := map[string]string{}
		for _, at := range token.Attr {
			require.NotContains(t, attribute, at.Key, "%s: twice on <%s>", what, token.Data)
			attribute[at.Key] = at.Val
			require.NotEqual(t, "style", at.Key, "%s: the policy allows no inline style", what)
			require.False(t, strings.HasPrefix(at.Key, "on"), "%s: the policy allows no inline script: %s", what, at.Key)
		}
		switch kind {
		case html.StartTagToken, html.SelfClosingTagToken:
			count[token.Data]++
			if id, has := attribute["id"]; has {
				require.False(t, ids[id], "%s: two elements have the id %q", what, id)
				ids[id] = true
			}
			switch token.Data {
			case "script":
				require.NotEmpty(t, attribute["src"], "%s: the policy allows no inline script", what)
			case "img":
				require.Contains(t, attribute, "alt", what)
			case "svg":
				require.True(t, attribute["aria-hidden"] != "" || attribute["aria-label"] != "", "%s: a picture without words", what)
			case "label":
				inLabel = true
				labels[attribute["for"]] = true
			case "form":
				require.Regexp(t, `^/[a-z0-9/_-]*$`, attribute["action"], "%s: every form is sent to this service", what)
				require.Contains(t, []string{"get", "post"}, attribute["method"], what)
			case "input", "textarea":
				if attribute["type"] != "hidden" && !inLabel {
					require.NotEmpty(t, attribute["id"], "%s: a field without a label: %v", what, attribute)
					fields = append(fields, attribute["id"])
				}
				if by := attribute["aria-describedby"]; by != "" {
					described = append(described, by)
				}
			}
			if kind == html.StartTagToken && !slices.Contains(void, token.Data) {
				open = append(open, token.Data)
			}
		case html.EndTagToken:
			if token.Data == "label" {
				inLabel = false
			}
			require.NotEmpty(t, open, "%s: </%s> ends nothing", what, token.Data)
			last := open[len(open)-1]
			require.Equal(t, last, token.Data, "%s: <%s> is ended by </%s>", what, last, token.Data)
			open = open[:len(open)-1]
		}
	}
	require.Empty(t, open, "%s: not ended", what)
	for _, id := range fields {
		require.True(t, labels[id], "%s: no label is for %q", what, id)
	}
	for _, id := range described {
		require.True(t, ids[id], "%s: nothing has the id %q that describes a field", what, id)
	}
	require.Equal(t, 1, count["h1"], "%s: one heading says what the page is", what)
	require.Equal(t, 1, count["main"], what)
	for _, words := range []string{"ZgotmplZ", "&lt;nil&gt;", "0x", "%!"} {
		require.NotContains(t, a.body, words, "%s: a value that could not be printed", what)
	}
}

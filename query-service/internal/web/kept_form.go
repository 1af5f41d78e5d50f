package web

import (
	"net/http"
	"net/url"
	"strings"

	"github.com/gin-gonic/gin"

	"github.com/tidemark/tidemark/query-service/internal/peer"
	"github.com/tidemark/tidemark/shared/auth"
)

// A key may expire while somebody types. The form that they send is then answered with the login, which carries it along in
// a field of its own, so that this service keeps nothing. Once they have logged in, the form comes again, filled. It is not
// sent by that: somebody else may have logged in. Only the forms in Pages.forms are kept. No field of theirs is a secret; the
// login has one, and is not among them.

// mostKept bounds a form that is kept, as it travels: whoever sends it has shown no key. The login's form holds it twice
// encoded, and stays within limits.FormBody.
const mostKept = 256 << 10

// keepForm answers a form that came without a key that is in force with the login, and reports whether it did.
func (p *Pages) keepForm(c *gin.Context) bool {
	r := c.Request
	if _, isForm := p.forms[c.FullPath()]; !isForm || r.Method != http.MethodPost || r.ContentLength < 0 || r.ContentLength > mostKept {
		return false
	}
	if err := r.ParseForm(); err != nil || len(r.PostForm) == 0 {
		return false
	}
	p.render(c, http.StatusUnauthorized, "login", layout{Title: "Log in", Body: loginView{Next: r.URL.EscapedPath(), Form: r.PostForm.Encode()}})
	c.Abort()
	return true
}

// showKeptForm shows the page of the form that the login carried, filled, and reports whether it did: it is shown to
// whoever may read.
func (p *Pages) showKeptForm(c *gin.Context, path, encoded string, caller auth.Caller) bool {
	form, err := url.ParseQuery(encoded)
	f, params, found := p.formAt(path)
	if err != nil || !found || !caller.May(auth.Read) {
		return false
	}
	c.Request = c.Request.WithContext(auth.WithCaller(c.Request.Context(), caller))
	c.Request.PostForm, c.Params = form, params
	f.again(c, &peer.Refusal{Status: http.StatusOK, Key: form.Get("key"), Detail: "what you typed is here again, and nothing was sent: send it once more"})
	return true
}

// formAt returns the form that is posted to an escaped path, and the path's parameters.
func (p *Pages) formAt(path string) (found form, params gin.Params, ok bool) {
	is := strings.Split(path, "/")
	for pattern, f := range p.forms {
		parts := strings.Split(pattern, "/")
		params, ok = nil, len(parts) == len(is)
		for i := 0; ok && i < len(parts); i++ {
			name, parameter := strings.CutPrefix(parts[i], ":")
			if !parameter {
				ok = parts[i] == is[i]
				continue
			}
			value, err := url.PathUnescape(is[i])
			params, ok = append(params, gin.Param{Key: name, Value: value}), err == nil
		}
		if ok {
			return f, params, true
		}
	}
	return form{}, nil, false
}

// logInTo answers a login that succeeded: with the form that it carried, or by leading on.
func (p *Pages) logInTo(c *gin.Context, next string, caller auth.Caller) {
	kept := c.Request.PostForm.Get("form") // gin would remember the login's fields
	switch {
	case kept == "":
		c.Redirect(http.StatusSeeOther, next)
	case !p.showKeptForm(c, next, kept, caller):
		c.Redirect(http.StatusSeeOther, "/") // a form's path leads nowhere
	}
}

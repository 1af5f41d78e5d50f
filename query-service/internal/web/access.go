package web

import (
	"net/http"
	"net/url"
	"strings"

	"github.com/gin-gonic/gin"

	"github.com/tidemark/tidemark/query-service/internal/peer"
	"github.com/tidemark/tidemark/shared/auth"
	sharedhttp "github.com/tidemark/tidemark/shared/httpapi"
	"github.com/tidemark/tidemark/shared/problem"
)

// viewer is who looks at a page: what their key may not do is not offered. Where no keys are asked for, everybody may
// do everything.
type viewer struct {
	caller auth.Caller
	locked bool
}

func (p *Pages) viewer(c *gin.Context) viewer {
	caller, _ := auth.FromContext(c.Request.Context())
	return viewer{caller, p.Engine.Locked()}
}

// May reports whether the viewer may do what needs scope.
func (v viewer) May(scope auth.Scope) bool { return !v.locked || v.caller.May(scope) }

// Lacks says which scope the viewer's key has, and that scope is needed.
func (v viewer) Lacks(scope auth.Scope) string { return v.caller.Lacks(scope) }

// Refuse answers a request that was not let in. Whoever looks at pages is led to the login and back, with the form that
// they sent, gets the form again with the reason, or reads the reason on a page. Everybody else gets the problem.
func (p *Pages) Refuse(c *gin.Context, pr problem.Problem) {
	switch {
	case strings.HasPrefix(c.FullPath(), "/api/") || !sharedhttp.WantsPage(c):
		sharedhttp.Fail(c, pr)
	case pr.Status == http.StatusUnauthorized && p.keepForm(c):
	case pr.Status == http.StatusUnauthorized:
		next := "/"
		if c.Request.Method == http.MethodGet {
			next = c.Request.URL.RequestURI()
		}
		c.Header("Cache-Control", "no-store")
		c.Header("WWW-Authenticate", "")
		c.Redirect(http.StatusSeeOther, "/login?next="+url.QueryEscape(next))
	case (pr.Status == http.StatusForbidden || pr.Status == http.StatusBadRequest) && p.formAgain(c, pr):
	default:
		p.fail(c, pr)
	}
}

// formAgain shows a form that was not let in with what was typed, and reports whether it did. The page of the form has
// what only readers may see, and a post of another site's page is refused before its key was looked at.
func (p *Pages) formAgain(c *gin.Context, pr problem.Problem) bool {
	f, isForm := p.forms[c.FullPath()]
	if !isForm || c.Request.Method != http.MethodPost {
		return false
	}
	if _, known := auth.FromContext(c.Request.Context()); !known && p.Engine.Locked() {
		caller, _, admitted := p.Engine.Admit(c, Key(c))
		if !admitted {
			return false
		}
		c.Request = c.Request.WithContext(auth.WithCaller(c.Request.Context(), caller))
	}
	if !p.viewer(c).May(auth.Read) {
		return false
	}
	if err := c.Request.ParseForm(); err != nil {
		return false
	}
	f.again(c, &peer.Refusal{Status: pr.Status, Detail: pr.Detail, Key: c.PostForm("key")})
	return true
}

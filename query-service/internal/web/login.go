package web

import (
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/tidemark/tidemark/shared/auth"
)

// keyCookie carries the key of whoever has logged in. A browser keeps it from every script and from every
// request that another site causes, and forgets it when it is closed.
const keyCookie = "tidemark_key"

// Key finds the key of a request: its Authorization header, or the cookie of the login.
func Key(c *gin.Context) string {
	if key := auth.Bearer(c.Request); key != "" {
		return key
	}
	cookie, err := c.Request.Cookie(keyCookie)
	if err != nil { // there is none
		return ""
	}
	return cookie.Value
}

type loginView struct {
	Next    string
	Form    string // that is kept, as it was encoded; empty where there is none
	Refused string
}

// login shows the form, where keys are on.
func (p *Pages) login(c *gin.Context) {
	next := localPath(c.Query("next"))
	if !p.Engine.Locked() {
		c.Redirect(http.StatusSeeOther, next)
		return
	}
	p.render(c, http.StatusOK, "login", layout{Title: "Log in", Body: loginView{Next: next}})
}

// logIn takes the key from the form into a cookie. Wrong keys are counted with all others of the address.
func (p *Pages) logIn(c *gin.Context) {
	form := c.Request.PostForm
	next := localPath(form.Get("next"))
	if !p.Engine.Locked() {
		c.Redirect(http.StatusSeeOther, next)
		return
	}
	key := strings.TrimSpace(form.Get("key"))
	caller, wait, ok := p.Engine.Admit(c, key)
	switch {
	case ok:
		p.setKey(c, key, 0)
		p.logInTo(c, next, caller)
	case wait > 0:
		c.Header("Retry-After", strconv.Itoa(int(wait/time.Second)+1))
		p.render(c, http.StatusTooManyRequests, "login", layout{Title: "Log in", Body: loginView{Next: next, Form: form.Get("form"), Refused: "Too many wrong keys came from here. Wait a little."}})
	default:
		p.render(c, http.StatusUnprocessableEntity, "login", layout{Title: "Log in", Body: loginView{Next: next, Form: form.Get("form"), Refused: "Unknown, expired or revoked key."}})
	}
}

func (p *Pages) logOut(c *gin.Context) {
	p.setKey(c, "", -1)
	c.Redirect(http.StatusSeeOther, "/login")
}

func (p *Pages) setKey(c *gin.Context, key string, maxAge int) {
	c.Header("Cache-Control", "no-store")
	http.SetCookie(c.Writer, &http.Cookie{
		Name: keyCookie, Value: key, Path: "/", MaxAge: maxAge, HttpOnly: true, SameSite: http.SameSiteStrictMode,
		// A front that ends TLS sends this header. A client that sends it over plain HTTP only loses its own cookie.
		Secure: c.Request.TLS != nil || strings.EqualFold(c.GetHeader("X-Forwarded-Proto"), "https"),
	})
}

// localPath returns next where it is a path of this site, and / where a browser could take it for another host.
func localPath(next string) string {
	u, err := url.Parse(next)
	if err != nil || u.Scheme != "" || u.Host != "" || !strings.HasPrefix(u.Path, "/") || strings.HasPrefix(u.Path, "//") || strings.ContainsRune(next, '\\') {
		return "/"
	}
	return u.RequestURI()
}

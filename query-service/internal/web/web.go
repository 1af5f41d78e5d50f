// Package web renders the pages of Tidemark: which services run, how far and how complete each projection is, tickets,
// records, endpoints, dead letters with what can be done about them, and rebuilds with their verification. A form stamps
// a time and leads to its ticket.
//
// Pages are rendered here and are complete without script: every form is an ordinary POST to this
// service that ends in a redirect, and a page with something under way renews itself. The little script
// there is listens to /api/v1/events and fetches the parts of a page that are marked as live from the
// same page, so there is one rendering. What a form asks for is left to the other services, which package
// peer calls. Posts from other origins are refused.
package web

import (
	"bytes"
	"context"
	"embed"
	"errors"
	"fmt"
	"html/template"
	"io/fs"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/tidemark/tidemark/query-service/internal/journey"
	"github.com/tidemark/tidemark/query-service/internal/peer"
	"github.com/tidemark/tidemark/query-service/internal/projection"
	"github.com/tidemark/tidemark/query-service/internal/recent"
	"github.com/tidemark/tidemark/query-service/internal/record"
	"github.com/tidemark/tidemark/query-service/internal/ticket"
	"github.com/tidemark/tidemark/shared/auth"
	sharedhttp "github.com/tidemark/tidemark/shared/httpapi"
	"github.com/tidemark/tidemark/shared/problem"
)

//go:embed templates/*.html
var templates embed.FS

//go:embed assets
var assets embed.FS

// Options of the pages. All are required.
type Options struct {
	Catalog  *projection.Catalog   // which projections there are
	Reader   *projection.Reader    // opens snapshots
	Tickets  *ticket.Finder        // says what became of tickets
	Pacer    *projection.Pacer     // how fast projections go
	Peers    *peer.Client          // calls the other services
	Journeys *journey.Book         // when tickets passed each step
	Ready    *sharedhttp.Readiness // this service's own readiness
	Engine   *sharedhttp.Engine    // where the pages are mounted
	Log      *slog.Logger          // where a page that cannot be rendered is logged
	// Problem says which problem an error of reading is.
	Problem func(context.Context, error) problem.Problem
}

// Pages renders them.
type Pages struct {
	Options
	pages  map[string]*template.Template
	newest *recent.Value[[]record.Record]
	forms  map[string]form // by the pattern of the path that each is posted to
}

// form is one form of a page.
type form struct {
	submit gin.HandlerFunc // does what the form asks for, and leads on
	// again shows the page anew, with what was typed and why it was refused at its place.
	again func(c *gin.Context, refused *peer.Refusal)
}

// Mount adds the pages to the engine.
func Mount(o Options) (*Pages, error) {
	p := &Pages{Options: o, pages: map[string]*template.Template{}, newest: newestOf(o.Reader)}
	for _, name := range []string{"overview", "ticket", "tickets", "records", "projections", "projection", "deadletters", "deadletter", "review", "discard", "rebuild", "login", "endpoints", "endpoint", "glossary", "error"} {
		t, err := template.New("layout.html").Funcs(functions).Funcs(template.FuncMap{
			"ago": func(t time.Time) string { return age(o.Pacer.Now().Sub(t)) },
		}).ParseFS(templates, "templates/layout.html", "templates/parts.html", "templates/"+name+".html")
		if err != nil {
			return nil, fmt.Errorf("read the page %s: %w", name, err)
		}
		p.pages[name] = t
	}
	files, err := fs.Sub(assets, "assets")
	if err != nil {
		return nil, err
	}
	serve := http.StripPrefix("/assets/", http.FileServerFS(files))
	missing := problem.Problem{Status: http.StatusNotFound, Detail: "there is no such file"}
	e := o.Engine
	e.GET("/assets/*file", func(c *gin.Context) {
		if info, err := fs.Stat(files, strings.TrimPrefix(c.Param("file"), "/")); err != nil || info.IsDir() {
			p.fail(c, missing)
			return
		}
		c.Header("Cache-Control", "public, max-age=300")
		c.Header("X-Content-Type-Options", "nosniff")
		serve.ServeHTTP(c.Writer, c.Request)
	})
	e.GET("/glossary", p.glossary)
	e.GET("/login", p.login)
	e.POST("/login", p.logIn)
	e.POST("/logout", p.logOut)
	e.GET("/", p.overview)
	e.GET("/stamp", func(c *gin.Context) { c.Redirect(http.StatusSeeOther, "/") })
	e.GET("/tickets", p.lookUp)
	e.GET("/tickets/:id", p.ticket)
	e.GET("/records", p.records)
	e.GET("/endpoints", p.endpoints)
	e.GET("/endpoints/:id", p.endpoint)
	e.GET("/projections", p.projections)
	e.GET("/projections/:name", p.projection)
	e.GET("/projections/:name/rebuild", p.rebuild)
	e.GET("/projection", func(c *gin.Context) { c.Redirect(http.StatusSeeOther, projectionPath(record.Projection)) })
	e.GET("/rebuild", func(c *gin.Context) { c.Redirect(http.StatusSeeOther, rebuildPath(record.Projection)) })
	e.GET("/dead-letters", p.deadLetters)
	e.GET("/dead-letters/:topic/:place", p.deadLetter)
	p.forms = map[string]form{
		"/endpoints":                        {p.addEndpoint, p.addEndpointAgain},
		"/endpoints/:id":                    {p.putEndpoint, p.putEndpointAgain},
		"/endpoints/:id/delete":             {p.deleteEndpoint, p.deleteEndpointAgain},
		"/stamp":                            {p.stamp, p.stampAgain},
		"/projections/:name/audit":          {p.audit, p.auditAgain},
		"/dead-letters/review":              {p.review, p.lettersAgain},
		"/dead-letters/redrive":             {p.redrive, p.lettersAgain},
		"/dead-letters/discard":             {p.discard, p.lettersAgain},
		"/projections/:name/rebuild":        {p.startRebuild, p.startRebuildAgain},
		"/projections/:name/rebuild/verify": {p.onGeneration(p.Peers.Prove), p.onGenerationAgain},
		"/projections/:name/rebuild/swap":   {p.onGeneration(p.Peers.Swap), p.onGenerationAgain},
		"/projections/:name/rebuild/drop":   {p.onGeneration(p.Peers.Drop), p.onGenerationAgain},
	}
	for path, f := range p.forms {
		e.POST(path, f.submit)
	}
	return p, nil
}

type layout struct {
	Title string
	Here  string // the page's path in the navigation
	// Self is the page's own address, where it answers a form that is posted to another one; else empty.
	Self   string
	Caller *auth.Caller // whose key is logged in; nil without one
	// Events is what the page's script listens to; empty where the page does not change by itself.
	Events string
	// Refresh is the seconds after which a browser without script loads the page again; 0 for never.
	Refresh int
	Body    any
}

// render writes a whole page or, where the template fails, none of it.
func (p *Pages) render(c *gin.Context, status int, name string, l layout) {
	var b bytes.Buffer
	if caller, ok := auth.FromContext(c.Request.Context()); ok {
		l.Caller = &caller
	}
	if c.Request.Method == http.MethodPost {
		l.Refresh = 0 // it would take what was typed away
	}
	if err := p.pages[name].Execute(&b, l); err != nil {
		p.Log.ErrorContext(c.Request.Context(), "a page could not be rendered", "page", name, "err", err)
		sharedhttp.Fail(c, problem.Problem{Status: http.StatusInternalServerError, Detail: "the page could not be rendered; the correlation id finds it in the service's log"})
		return
	}
	h := c.Writer.Header()
	h.Set("Cache-Control", "no-store")
	h.Set("Content-Security-Policy", "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "same-origin")
	c.Data(status, "text/html; charset=utf-8", b.Bytes())
}

// fail renders an error as a page. What is not there is a problem for programs.
func (p *Pages) fail(c *gin.Context, pr problem.Problem) {
	if pr.Status == http.StatusNotFound && !sharedhttp.WantsPage(c) {
		sharedhttp.Fail(c, pr)
		return
	}
	if pr.Title == "" {
		pr.Title = http.StatusText(pr.Status)
	}
	p.render(c, pr.Status, "error", layout{Title: pr.Title, Body: pr})
	c.Abort()
}

func (p *Pages) refuse(c *gin.Context, detail string) {
	p.fail(c, problem.Problem{Status: http.StatusBadRequest, Detail: detail})
}

// failed renders err, where there is one, and reports whether there was.
func (p *Pages) failed(c *gin.Context, err error) bool {
	if err == nil {
		return false
	}
	if errors.Is(err, context.Canceled) && c.Request.Context().Err() != nil {
		c.Abort() // the reader has left
		return true
	}
	p.fail(c, p.Problem(c.Request.Context(), err))
	return true
}

// refusal returns the peer's refusal in err. Any other error is one of this service, and is logged.
func (p *Pages) refusal(ctx context.Context, err error) *peer.Refusal {
	if err == nil {
		return nil
	}
	var refused *peer.Refusal
	if errors.As(err, &refused) {
		return refused
	}
	p.Log.ErrorContext(ctx, "a request to another service could not be made", "err", err)
	return &peer.Refusal{Status: http.StatusInternalServerError, Detail: "the request to the other service could not be made; the correlation id finds the reason in this service's log"}
}

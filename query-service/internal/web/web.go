// Package web is the pages of Tidemark as far as reading goes: what is running, how far and how whole
// the projection is, records, dead letters, and a form that stamps a time and shows its ticket becoming
// a row.
//
// Pages are rendered here and are complete without script; the little script there is renews the parts
// of a page that are marked as live, from the same page. A form is posted to this service, which calls
// command-service from its own side, so that a browser needs one address only. Posts from other
// origins are refused.
package web

import (
	"bytes"
	"context"
	"crypto/tls"
	"embed"
	"errors"
	"html/template"
	"io/fs"
	"log/slog"
	"net/http"

	"github.com/gin-gonic/gin"

	"github.com/tidemark/tidemark/query-service/internal/projection"
	"github.com/tidemark/tidemark/shared/auth"
	"github.com/tidemark/tidemark/shared/certs"
	manners "github.com/tidemark/tidemark/shared/httpapi"
	"github.com/tidemark/tidemark/shared/problem"
)

//go:embed templates/*.html
var templates embed.FS

//go:embed assets
var assets embed.FS

// Options of the pages. All are required but CAFile.
type Options struct {
	Reader      *projection.Reader
	Pacer       *projection.Pacer
	Ready       *manners.Readiness // of this service
	CommandURL  string
	ConsumerURL string
	CAFile      string // of the authorities that sign the other services' certificates; the system's where empty
	Log         *slog.Logger
	// Problem says how an error of reading is told.
	Problem func(context.Context, error) problem.Problem
}

// Pages renders them.
type Pages struct {
	Options
	client *http.Client
	origin *http.CrossOriginProtection
	pages  map[string]*template.Template
}

// Mount adds the pages to e. The caller closes what Mount returns when no request is left.
func Mount(e *gin.Engine, o Options) (*Pages, error) {
	transport := &http.Transport{MaxIdleConnsPerHost: 8, MaxConnsPerHost: 64, ForceAttemptHTTP2: true}
	if o.CAFile != "" {
		pool, err := certs.Authorities("SERVICES_CA_FILE", o.CAFile)
		if err != nil {
			return nil, err
		}
		transport.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: pool}
	}
	p := &Pages{
		Options: o,
		client:  &http.Client{Transport: passing{transport}},
		origin:  http.NewCrossOriginProtection(),
		pages:   map[string]*template.Template{},
	}
	for _, name := range []string{"overview", "ticket", "records", "deadletters", "error"} {
		t, err := template.New("layout.html").Funcs(functions).ParseFS(templates, "templates/layout.html", "templates/rows.html", "templates/"+name+".html")
		if err != nil {
			return nil, err
		}
		p.pages[name] = t
	}
	files, err := fs.Sub(assets, "assets")
	if err != nil {
		return nil, err
	}
	serve := http.StripPrefix("/assets/", http.FileServerFS(files))
	e.GET("/assets/*file", func(c *gin.Context) {
		c.Header("Cache-Control", "public, max-age=300")
		c.Header("X-Content-Type-Options", "nosniff")
		serve.ServeHTTP(c.Writer, c.Request)
	})
	e.GET("/", p.overview)
	e.GET("/stamp", func(c *gin.Context) { c.Redirect(http.StatusSeeOther, "/") })
	e.POST("/stamp", p.stamp)
	e.GET("/tickets", p.lookUp)
	e.GET("/tickets/:id", p.ticket)
	e.GET("/records", p.records)
	e.GET("/dead-letters", p.deadLetters)
	return p, nil
}

// passing gives requests to other services the key of the caller that they are made for.
type passing struct{ *http.Transport }

func (t passing) RoundTrip(r *http.Request) (*http.Response, error) {
	if _, ok := auth.FromContext(r.Context()); ok {
		r = r.Clone(r.Context()) // a transport leaves its request as it is
		auth.PassOn(r)
	}
	return t.Transport.RoundTrip(r)
}

// Close ends the idle connections to the other services.
func (p *Pages) Close() { p.client.CloseIdleConnections() }

type layout struct {
	Title string
	Here  string // the page's path in the navigation
	Body  any
}

// render writes a whole page or, where the template fails, none of it.
func (p *Pages) render(c *gin.Context, status int, name string, l layout) {
	var b bytes.Buffer
	if err := p.pages[name].Execute(&b, l); err != nil {
		p.Log.ErrorContext(c.Request.Context(), "a page could not be rendered", "page", name, "err", err)
		manners.Fail(c, problem.Problem{Status: http.StatusInternalServerError, Detail: "the page could not be rendered; the correlation id finds it in the service's log"})
		return
	}
	h := c.Writer.Header()
	h.Set("Cache-Control", "no-store")
	h.Set("Content-Security-Policy", "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "same-origin")
	c.Data(status, "text/html; charset=utf-8", b.Bytes())
}

// fail renders an error as a page.
func (p *Pages) fail(c *gin.Context, pr problem.Problem) {
	if pr.Title == "" {
		pr.Title = http.StatusText(pr.Status)
	}
	p.render(c, pr.Status, "error", layout{Title: pr.Title, Body: pr})
	c.Abort()
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

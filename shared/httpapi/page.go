package httpapi

import (
	"bytes"
	"html/template"
	"strings"

	"github.com/gin-gonic/gin"

	"github.com/tidemark/tidemark/shared/problem"
)

var missingPage = template.Must(template.New("missing").Parse(`<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark"><title>{{.Status}}</title></head>
<body><main><h1>{{.Status}}</h1><p>{{.Detail}}.</p>{{if ne .Status 421}}<p><a href="/docs">What there is</a></p>{{end}}</main></body></html>
`))

// WantsPage reports whether a request is a browser's, which is answered with a page where others get a problem.
func WantsPage(c *gin.Context) bool { return strings.Contains(c.GetHeader("Accept"), "text/html") }

// failAsPage answers a request for which there is no route, or none under its Host: with a plain page where it is a browser's, and else as Fail.
func failAsPage(c *gin.Context, p problem.Problem) {
	var b bytes.Buffer
	if !WantsPage(c) || missingPage.Execute(&b, p) != nil {
		Fail(c, p)
		return
	}
	h := c.Writer.Header()
	h.Set("Cache-Control", "no-store")
	h.Set("Content-Security-Policy", "default-src 'none'; base-uri 'none'; frame-ancestors 'none'")
	h.Set("X-Content-Type-Options", "nosniff")
	c.Data(p.Status, "text/html; charset=utf-8", b.Bytes())
	c.Abort()
}

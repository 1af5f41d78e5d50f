// Package httpapi is the HTTP server that every service shares. It gives each request a correlation id, bounds
// bodies and rates, measures requests, and recovers from panics. Every error is answered with a problem, also those
// of the router. It serves health, readiness, metrics and the specification.
//
// Who may use a route stands in the specification, as the x-scope of its operation, and is enforced here. So is what a
// route reads of a request: whatever else a request asks for, by a query parameter, a header or a body, is refused, in
// words. A route that the specification does not list keeps the service from starting.
//
// What a route does, and which error is which problem, is left to the service.
package httpapi

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"runtime/debug"
	"strconv"
	"sync"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/trace"

	"github.com/tidemark/tidemark/shared/auth"
	"github.com/tidemark/tidemark/shared/certs"
	"github.com/tidemark/tidemark/shared/config"
	"github.com/tidemark/tidemark/shared/limits"
	"github.com/tidemark/tidemark/shared/problem"
	"github.com/tidemark/tidemark/shared/telemetry"
)

// CorrelationHeader carries the correlation id on every answer, and on a request whose client chose
// one. A request may also name it correlationId, as the log's records do.
const CorrelationHeader = "X-Correlation-ID"

// Options of an engine. Log, Registry, Spec and HTTP are required.
type Options struct {
	Log       *slog.Logger         // where panics and the server's own errors are logged
	Registry  *prometheus.Registry // where the metrics of requests are registered, and what /metrics shows
	Spec      []byte               // the OpenAPI document that lists every route with its x-scope
	HTTP      config.HTTP          // keys, certificate, limits and where to listen
	Tracer    trace.Tracer         // makes a span of each request; none unless given
	MaxBody   int64                // most bytes of a request's body; limits.Body unless given
	MaxBodies map[string]int64     // most bytes of a body, for routes with a limit of their own, by route pattern; none unless given

	// Key finds the API key of a request; the bearer token of its Authorization header unless given.
	Key func(*gin.Context) string
	// Refuse answers a request that is not let in; with the problem unless given.
	Refuse func(*gin.Context, problem.Problem)
}

// Engine is a gin engine that knows who may use its routes.
type Engine struct {
	*gin.Engine
	options Options
	access  *access
	keys    *auth.Keyring
	pair    *certs.Pair
}

// NewEngine returns an engine with the shared middleware and no routes. It fails where the specification is not valid or
// an operation of it has no scope, or keys or certificate cannot be used. The context is needed only until it returns.
func NewEngine(ctx context.Context, o Options) (*Engine, error) {
	if o.MaxBody == 0 {
		o.MaxBody = limits.Body
	}
	e := &Engine{options: o}
	doc, err := readSpec(ctx, o.Spec)
	if err != nil {
		return nil, err
	}
	scopes, err := readScopes(doc)
	if err != nil {
		return nil, err
	}
	if o.HTTP.APIKeysFile != "" {
		if e.keys, err = auth.Open(o.HTTP.APIKeysFile, o.Log); err != nil {
			return nil, err
		}
	}
	if files := o.HTTP.Certificate(); files.Set() {
		if e.pair, err = certs.Open(files, o.Log); err != nil {
			return nil, err
		}
	}
	e.access = newAccess(o, scopes, e.keys)
	if e.Engine, err = newGin(o, e.access, readOperations(doc)); err != nil {
		return nil, err
	}
	return e, nil
}

// Locked reports whether callers are asked for a key.
func (e *Engine) Locked() bool { return e.keys != nil }

// Admit judges a key that came another way than Options.Key, by a form for instance. One that is wrong
// counts as a failed attempt of the request's address; wait is above 0 where there were too many of them.
func (e *Engine) Admit(c *gin.Context, key string) (caller auth.Caller, wait time.Duration, ok bool) {
	return e.access.admit(c, key, time.Now())
}

// Watch follows the keys file and the certificate until ctx ends.
func (e *Engine) Watch(ctx context.Context) {
	var both sync.WaitGroup
	if e.keys != nil {
		both.Go(func() { e.keys.Watch(ctx) })
	}
	if e.pair != nil {
		both.Go(func() { e.pair.Watch(ctx) })
	}
	both.Wait()
}

func newGin(o Options, a *access, all *operations) (*gin.Engine, error) {
	gin.SetMode(gin.ReleaseMode)
	e := gin.New()
	e.ContextWithFallback = true // else a handler's context never ends
	e.HandleMethodNotAllowed = true
	e.RedirectTrailingSlash = false
	e.RedirectFixedPath = false
	if err := e.SetTrustedProxies(o.HTTP.TrustedProxies); err != nil {
		return nil, fmt.Errorf("TRUSTED_PROXIES: %w", err)
	}
	e.Use(correlate)
	if o.Tracer != nil {
		e.Use(traced(o.Tracer))
	}
	e.Use(measure(o.Registry), recovered(o.Log), a.requireKnownHost(o.HTTP), endless(all), bounded(o.MaxBody, o.MaxBodies, all, a.refuse), a.serve, validated(all, a.refuse))
	missing := o.Refuse
	if missing == nil {
		missing = failAsPage
	}
	e.NoRoute(func(c *gin.Context) {
		missing(c, problem.Problem{Status: http.StatusNotFound, Detail: fmt.Sprintf("there is nothing at %s: /docs lists what there is", c.Request.URL.Path)})
	})
	e.NoMethod(func(c *gin.Context) {
		missing(c, problem.Problem{Status: http.StatusMethodNotAllowed, Detail: fmt.Sprintf("%s does not take %s: it takes %s", c.Request.URL.Path, c.Request.Method, c.Writer.Header().Get("Allow"))})
	})
	return e, nil
}

// Fail answers with p, names the request's correlation id in it, and ends the handler chain.
func Fail(c *gin.Context, p problem.Problem) {
	if id := telemetry.CorrelationID(c.Request.Context()); id != "" && p.Instance == "" {
		p.Instance = "urn:correlation:" + id
	}
	problem.Write(c.Writer, p)
	c.Abort()
}

// FailBody answers the error of reading a request's body: 413 where it was too large, else 400.
func FailBody(c *gin.Context, err error) {
	var large *http.MaxBytesError
	if errors.As(err, &large) {
		Fail(c, tooLarge(large.Limit))
		return
	}
	Fail(c, problem.Problem{Status: http.StatusBadRequest, Detail: "the body could not be read to its end: send it again"})
}

func tooLarge(limit int64) problem.Problem {
	return problem.Problem{Status: http.StatusRequestEntityTooLarge, Detail: fmt.Sprintf("the body is larger than the %d bytes that are taken here", limit)}
}

func correlate(c *gin.Context) {
	id := c.GetHeader(CorrelationHeader)
	if id == "" {
		id = c.GetHeader("correlationId")
	}
	if !printable(id) {
		id = uuid.NewString()
	}
	c.Header(CorrelationHeader, id)
	c.Request = c.Request.WithContext(telemetry.WithCorrelationID(c.Request.Context(), id))
	c.Next()
}

func printable(id string) bool {
	if id == "" || len(id) > 128 {
		return false
	}
	for _, b := range []byte(id) {
		if b < 0x20 || b > 0x7e {
			return false
		}
	}
	return true
}

// measure counts by route pattern, never by path, so that the labels stay bounded.
func measure(registry *prometheus.Registry) gin.HandlerFunc {
	seconds := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "http_request_duration_seconds", Help: "Time to answer a request, by route pattern and status.",
		Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30},
	}, []string{"method", "route", "status"})
	registry.MustRegister(seconds)
	return func(c *gin.Context) {
		start := time.Now()
		c.Next()
		route, method := c.FullPath(), c.Request.Method
		if route == "" {
			route, method = "none", "any"
		}
		seconds.WithLabelValues(method, route, strconv.Itoa(c.Writer.Status())).Observe(time.Since(start).Seconds())
	}
}

func recovered(log *slog.Logger) gin.HandlerFunc {
	return func(c *gin.Context) {
		defer func() {
			cause := recover()
			if cause == nil {
				return
			}
			if cause == http.ErrAbortHandler { //nolint:errorlint // the sentinel itself, as net/http compares it
				panic(cause)
			}
			log.ErrorContext(c.Request.Context(), "handler panicked", "route", c.FullPath(), "err", fmt.Sprint(cause), "stack", string(debug.Stack()))
			if !c.Writer.Written() {
				Fail(c, problem.Problem{Status: http.StatusInternalServerError, Detail: "something went wrong here; the correlation id finds it in the service's log"})
			}
			c.Abort()
		}()
		c.Next()
	}
}

// bounded stands before the access check, since the answer to a form that is not let in may hold the form.
func bounded(most int64, routes map[string]int64, all *operations, refuse func(*gin.Context, problem.Problem)) gin.HandlerFunc {
	return func(c *gin.Context) {
		if op := all.of(c); op != nil && op.stream {
			c.Next()
			return
		}
		limit, ok := routes[c.FullPath()]
		if !ok {
			limit = most
		}
		if c.Request.ContentLength > limit {
			refuse(c, tooLarge(limit))
			c.Abort()
			return
		}
		if c.Request.Body != nil && c.Request.Body != http.NoBody {
			c.Request.Body = http.MaxBytesReader(c.Writer, c.Request.Body, limit)
		}
		c.Next()
	}
}

// endless has the answer of a stream go out at once, whatever it is: net/http would else wait for the rest of a body
// that its client keeps open while it waits for the answer.
func endless(all *operations) gin.HandlerFunc {
	return func(c *gin.Context) {
		if op := all.of(c); op == nil || !op.stream {
			c.Next()
			return
		}
		control := http.NewResponseController(c.Writer)
		_ = control.EnableFullDuplex() // the handler asks again, and sees the error
		c.Next()
		_ = control.SetReadDeadline(time.Now().Add(time.Second)) // of what net/http still reads of the body then
	}
}

package httpapi_test

import (
	"encoding/json"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/gin-gonic/gin"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/shared/api/command"
	"github.com/tidemark/tidemark/shared/api/consumer"
	"github.com/tidemark/tidemark/shared/api/query"
	"github.com/tidemark/tidemark/shared/config"
	"github.com/tidemark/tidemark/shared/httpapi"
)

// specs are those of all services.
var specs = map[string][]byte{"command": command.Spec, "consumer": consumer.Spec, "query": query.Spec}

// operationOf is one operation of one specification, and a path that leads to it.
type operationOf struct {
	spec, method, path string
	*openapi3.Operation
	parameters openapi3.Parameters
}

func (o operationOf) String() string { return o.spec + ": " + o.method + " " + o.path }

func operationsOf(t *testing.T, name string) (all []operationOf) {
	t.Helper()
	doc, err := openapi3.NewLoader().LoadFromData(specs[name])
	require.NoError(t, err)
	for path, item := range doc.Paths.Map() {
		for method, o := range item.Operations() {
			all = append(all, operationOf{name, method, path, o, slices.Concat(item.Parameters, o.Parameters)})
		}
	}
	require.NotEmpty(t, all)
	return all
}

// target fills the path's parameters with what their schemas allow.
func (o operationOf) target() string {
	path := o.path
	for _, p := range o.parameters {
		if p.Value.In == openapi3.ParameterInPath {
			path = strings.Replace(path, "{"+p.Value.Name+"}", "1", 1)
		}
	}
	return path
}

func (o operationOf) reads(in, name string) bool {
	return slices.ContainsFunc(o.parameters, func(p *openapi3.ParameterRef) bool {
		return p.Value.In == in && strings.EqualFold(p.Value.Name, name)
	})
}

// serve returns an engine of the specification whose every route answers 200 to whatever it is let have.
func serve(t *testing.T, name string) http.Handler {
	t.Helper()
	return serveWith(t, name, config.DefaultHTTP(0))
}

func serveWith(t *testing.T, name string, h config.HTTP) http.Handler {
	t.Helper()
	e, err := httpapi.NewEngine(t.Context(), httpapi.Options{
		Log: slog.New(slog.DiscardHandler), Registry: prometheus.NewRegistry(), Spec: specs[name], HTTP: h,
	})
	require.NoError(t, err)
	for _, o := range operationsOf(t, name) {
		parts := strings.Split(o.path, "/")
		for i, part := range parts {
			if strings.HasPrefix(part, "{") {
				parts[i] = ":" + strings.Trim(part, "{}")
			}
		}
		e.Handle(o.method, strings.Join(parts, "/"), func(c *gin.Context) { c.Status(http.StatusOK) })
	}
	s, err := httpapi.Listen(t.Context(), e, time.Second, func(error) {}) // HEAD is mounted then
	require.NoError(t, err)
	require.NoError(t, s.Stop(t.Context()))
	return e
}

func send(e http.Handler, method, path, body string, header ...string) (status int, detail string) {
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	r.Host = "localhost"
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	e.ServeHTTP(w, r)
	var p struct{ Detail string }
	_ = json.Unmarshal(w.Body.Bytes(), &p)
	return w.Code, p.Detail
}

func TestNoRouteOfAnyServiceDropsWhatItDoesNotRead(t *testing.T) {
	t.Parallel()
	for name := range specs {
		e := serve(t, name)
		for _, o := range operationsOf(t, name) {
			methods := []string{o.method}
			if o.method == http.MethodGet {
				methods = append(methods, http.MethodHead)
			}
			for _, method := range methods {
				status, detail := send(e, method, o.target()+"?limt=3", "")
				require.Equal(t, 400, status, o)
				require.Contains(t, detail, `query parameter "limt" is not known here: this takes `, o)
				for _, p := range o.parameters {
					if p.Value.In != openapi3.ParameterInQuery {
						continue
					}
					require.Contains(t, detail, p.Value.Name, o)
					_, twice := send(e, method, o.target()+"?"+p.Value.Name+"=1&"+p.Value.Name+"=2", "")
					require.Contains(t, twice, "is there 2 times", o)
				}
				status, detail = send(e, method, o.target()+"?a;b", "")
				require.Equal(t, 400, status, o)
				require.Contains(t, detail, "cannot be read", o)
				for _, header := range []string{"Idempotency-Key", "Tidemark-Position"} {
					status, detail = send(e, method, o.target(), "", header, "x")
					if !o.reads(openapi3.ParameterInHeader, header) {
						require.Equal(t, 400, status, o)
						require.Contains(t, detail, "the header "+header+" is not read here", o)
					} else {
						require.NotContains(t, detail, header, o)
					}
				}
				if o.RequestBody == nil {
					status, detail = send(e, method, o.target(), "{}", "Content-Type", "application/json")
					require.Equal(t, 400, status, o)
					require.Contains(t, detail, "takes no body", o)
				}
			}
		}
	}
}

func TestABodyOfUnknownLengthIsSeenWhereNoneIsTaken(t *testing.T) {
	t.Parallel()
	e := serve(t, "command")
	for body, want := range map[string]int{"": 200, "{}": 400} {
		r := httptest.NewRequest(http.MethodPost, "/api/v1/timestamp/2009-09-28T19:03:12Z", strings.NewReader(body))
		r.Host = "localhost"
		r.ContentLength = -1
		w := httptest.NewRecorder()
		e.ServeHTTP(w, r)
		require.Equal(t, want, w.Code, "%q", body)
	}
}

// A header that an operation reads is one that the others refuse; the list of them is kept in the engine.
func TestEveryHeaderThatAnyRouteReadsIsRefusedWhereItIsNotRead(t *testing.T) {
	t.Parallel()
	var all []operationOf
	read := map[string]bool{}
	for name := range specs {
		for _, o := range operationsOf(t, name) {
			all = append(all, o)
			for _, p := range o.parameters {
				if p.Value.In == openapi3.ParameterInHeader {
					read[p.Value.Name] = true
				}
			}
		}
	}
	require.NotEmpty(t, all)
	e := serve(t, "command")
	for header := range maps.Keys(read) {
		status, detail := send(e, http.MethodGet, "/health", "", header, "x")
		require.Equal(t, 400, status, header)
		require.Contains(t, detail, header)
	}
}

// A member that nobody knows must be refused, or kept on purpose: the schema says which.
func TestEveryObjectOfAJSONBodySaysWhatBecomesOfUnknownMembers(t *testing.T) {
	t.Parallel()
	var check func(t *testing.T, where string, s *openapi3.SchemaRef)
	check = func(t *testing.T, where string, s *openapi3.SchemaRef) {
		if s.Value.Type.Is("object") && len(s.Value.Properties) > 0 && !strings.HasSuffix(where, "/allOf") {
			extra := s.Value.AdditionalProperties
			require.True(t, extra.Has != nil || extra.Schema != nil, "%s has no additionalProperties", where)
		}
		for name, p := range s.Value.Properties {
			check(t, where+"/"+name, p)
		}
		if s.Value.Items != nil {
			check(t, where+"/items", s.Value.Items)
		}
		for _, part := range s.Value.OneOf {
			check(t, where+"/oneOf", part)
		}
		stated := false // by one part of the whole
		for _, part := range s.Value.AllOf {
			stated = stated || part.Value.AdditionalProperties.Has != nil
			check(t, where+"/allOf", part)
		}
		require.True(t, stated || len(s.Value.AllOf) == 0, "%s has no additionalProperties in any part", where)
	}
	for name := range specs {
		for _, o := range operationsOf(t, name) {
			if o.RequestBody != nil && o.RequestBody.Value.Content["application/json"] != nil {
				check(t, o.String(), o.RequestBody.Value.Content["application/json"].Schema)
			}
		}
	}
}

func TestHeadIsWhereverGetIsAndEvery405SaysWhatIsAllowed(t *testing.T) {
	t.Parallel()
	for name := range specs {
		e := serve(t, name)
		methods := map[string][]string{} // of each path
		for _, o := range operationsOf(t, name) {
			methods[o.target()] = append(methods[o.target()], o.method)
			if o.method == http.MethodGet {
				methods[o.target()] = append(methods[o.target()], http.MethodHead)
				status, _ := send(e, http.MethodHead, o.target(), "")
				want, _ := send(e, http.MethodGet, o.target(), "")
				require.Equal(t, want, status, o)
				require.NotEqual(t, 405, status, o)
			}
		}
		for path, allowed := range methods {
			w := httptest.NewRecorder()
			r := httptest.NewRequest(http.MethodPatch, path, http.NoBody)
			r.Host = "localhost"
			e.ServeHTTP(w, r)
			require.Equal(t, 405, w.Code, path)
			require.ElementsMatch(t, allowed, strings.Split(w.Header().Get("Allow"), ", "), path)
		}
	}
}

package httpapi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"github.com/gin-gonic/gin"

	"github.com/tidemark/tidemark/shared/position"
	"github.com/tidemark/tidemark/shared/problem"
)

// operation is one operation of the specification, as requests are validated against it.
type operation struct {
	route      *routers.Route
	parameters []string        // names of the path's parameters, in their order
	query      []string        // names of the query's parameters
	repeated   map[string]bool // those of them that may be there more than once
	headers    map[string]bool // the headers that it reads, by canonical name
	stream     bool            // its body is read line by line: see StreamType
	ownBody    bool            // its handler reads and checks the body: see bodyExtension
	bodiless   bool            // it takes no body
	form       map[string]bool // the fields of the form in its body: see formFields
	page       bool            // it is asked for by browsers, whose forms send their empty fields too
}

// operations are those of a specification. A HEAD is validated as a GET.
type operations struct {
	byShape map[string]*operation // by method and shape of the path

	mu      sync.RWMutex
	byRoute map[ginRoute]*operation // what of has found, since a shape is dear to make for every request
}

// ginRoute is one route of the engine, so that there are no more of them than routes.
type ginRoute struct{ method, pattern string }

func readOperations(doc *openapi3.T) *operations {
	found := map[string]*operation{}
	for path, item := range doc.Paths.Map() {
		for method, o := range item.Operations() {
			op := &operation{
				route:    &routers.Route{Spec: doc, Path: path, PathItem: item, Method: method, Operation: o},
				repeated: map[string]bool{}, headers: map[string]bool{},
				stream: isStream(o), ownBody: isStream(o) || isForm(o) || o.Extensions[bodyExtension] == "handler", bodiless: o.RequestBody == nil, form: formFields(o),
				page: slices.Contains(o.Tags, pagesTag),
			}
			for part := range strings.SplitSeq(path, "/") {
				if name, ok := strings.CutPrefix(part, "{"); ok {
					op.parameters = append(op.parameters, strings.TrimSuffix(name, "}"))
				}
			}
			for _, p := range slices.Concat(item.Parameters, o.Parameters) {
				switch p.Value.In {
				case openapi3.ParameterInQuery:
					op.query = append(op.query, p.Value.Name)
					op.repeated[p.Value.Name] = p.Value.Schema != nil && p.Value.Schema.Value.Type.Is("array") && (p.Value.Explode == nil || *p.Value.Explode)
				case openapi3.ParameterInHeader:
					op.headers[http.CanonicalHeaderKey(p.Value.Name)] = true
				}
			}
			found[method+" "+shape(path)] = op
		}
	}
	return &operations{byShape: found, byRoute: map[ginRoute]*operation{}}
}

// of returns the operation of gin's route, or nil.
func (o *operations) of(c *gin.Context) *operation {
	at := ginRoute{c.Request.Method, c.FullPath()}
	if at.pattern == "" { // no route, and a method that may be anything
		return nil
	}
	o.mu.RLock()
	op, known := o.byRoute[at]
	o.mu.RUnlock()
	if !known {
		op = o.byShape[specMethod(at.method)+" "+shape(specPath(at.pattern))]
		o.mu.Lock()
		o.byRoute[at] = op
		o.mu.Unlock()
	}
	return op
}

// validated answers 400 to a request that the specification does not allow: the generated server checks neither required
// members nor lengths. What a request says and its operation does not read is refused too, since the caller meant
// something by it. Two kinds of bodies are left to their handlers: those of streams, and those that the handler can say
// more about (see bodyExtension). Of a form the names of the fields are checked here and what they hold by the handler. Gin has found the route already, so it is looked up by its pattern and
// not matched a second time. Routes that the specification does not list pass; Listen refuses to serve those.
func validated(all *operations, refuse func(*gin.Context, problem.Problem)) gin.HandlerFunc {
	whole := &openapi3filter.Options{AuthenticationFunc: openapi3filter.NoopAuthenticationFunc}
	unread := &openapi3filter.Options{AuthenticationFunc: openapi3filter.NoopAuthenticationFunc, ExcludeRequestBody: true}
	return func(c *gin.Context) {
		op := all.of(c)
		if op == nil {
			c.Next()
			return
		}
		deny := func(p problem.Problem) {
			refuse(c, p)
			c.Abort()
		}
		if op.stream {
			if kind := c.ContentType(); kind != "" && kind != StreamType {
				deny(problem.Problem{Status: http.StatusUnsupportedMediaType, Detail: fmt.Sprintf("the Content-Type is %s: this takes %s", kind, StreamType)})
				return
			}
		}
		query, reason := op.readQuery(c.Request)
		if reason == "" {
			reason = op.findUnread(c.Request)
		}
		if reason != "" {
			deny(problem.Problem{Status: http.StatusBadRequest, Detail: reason})
			return
		}
		if op.form != nil {
			if wrong := op.readForm(c); wrong != nil {
				deny(*wrong)
				return
			}
		}
		params := make(map[string]string, len(c.Params))
		for i, name := range op.parameters {
			params[name] = c.Params[i].Value
		}
		request, options := c.Request, whole
		if op.ownBody {
			copied := *c.Request // the library reads bodies whole, for its check of security requirements too
			copied.Body, copied.ContentLength = http.NoBody, 0
			request, options = &copied, unread
		}
		err := openapi3filter.ValidateRequest(c.Request.Context(), &openapi3filter.RequestValidationInput{
			Request: request, PathParams: params, QueryParams: query, Route: op.route, Options: options,
		})
		if err == nil {
			c.Next()
			return
		}
		var large *http.MaxBytesError
		if errors.As(err, &large) {
			FailBody(c, err)
			return
		}
		deny(problem.Problem{Status: http.StatusBadRequest, Detail: what(err)})
	}
}

// readHeaders are the headers by which a caller asks for something. Other headers are left alone: what stands between
// adds some.
var readHeaders = []string{"Idempotency-Key", position.Header}

// readQuery returns the query's parameters, or what is wrong with them: one that the operation does not read, or more of
// one than it reads.
func (o *operation) readQuery(r *http.Request) (given url.Values, reason string) {
	if r.URL.RawQuery == "" {
		return url.Values{}, ""
	}
	given, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, fmt.Sprintf("the query %.200q cannot be read: parameters are separated by &, and special characters are percent-encoded", r.URL.RawQuery)
	}
	for _, name := range slices.Sorted(maps.Keys(given)) {
		switch values := given[name]; {
		case !slices.Contains(o.query, name) && len(o.query) == 0:
			return nil, fmt.Sprintf("query parameter %.100q is not known here: this takes none", name)
		case !slices.Contains(o.query, name):
			return nil, fmt.Sprintf("query parameter %.100q is not known here: this takes %s", name, strings.Join(o.query, ", "))
		case len(values) > 1 && !o.repeated[name]:
			return nil, fmt.Sprintf("query parameter %q is there %d times: keep one", name, len(values))
		case o.page && values[0] == "":
			delete(given, name)
		}
	}
	return given, ""
}

// findUnread says what else of a request its operation does not read, or "".
func (o *operation) findUnread(r *http.Request) string {
	for _, name := range readHeaders {
		if _, there := r.Header[name]; there && !o.headers[name] {
			return fmt.Sprintf("the header %s is not read here: leave it out", name)
		}
	}
	if o.bodiless && hasBody(r) {
		return "this takes no body, and one was sent: leave it out"
	}
	return ""
}

// hasBody reports whether a byte of a body was sent. It may read that byte.
func hasBody(r *http.Request) bool {
	if r.ContentLength >= 0 || r.Body == nil {
		return r.ContentLength > 0
	}
	n, _ := io.ReadFull(r.Body, make([]byte, 1)) // a body that breaks off is none
	return n > 0
}

// pagesTag is the tag of operations that browsers call.
const pagesTag = "pages"

// bodyExtension says who checks the body of an operation: "handler", or this package where it is missing.
const bodyExtension = "x-body"

// StreamType is the content type by which the specification says that a body is a stream of lines: it may be without
// end, and is read by its handler, line by line.
const StreamType = "application/x-ndjson"

func isStream(o *openapi3.Operation) bool { return takes(o, StreamType) }

func takes(o *openapi3.Operation, kind string) bool {
	return o.RequestBody != nil && o.RequestBody.Value != nil && o.RequestBody.Value.Content[kind] != nil
}

// readSpec reads and checks a specification.
func readSpec(ctx context.Context, spec []byte) (*openapi3.T, error) {
	doc, err := openapi3.NewLoader().LoadFromData(spec)
	if err != nil {
		return nil, fmt.Errorf("read the specification: %w", err)
	}
	if err := doc.Validate(ctx); err != nil {
		return nil, fmt.Errorf("the specification is not valid: %w", err)
	}
	return doc, nil
}

// specPath turns gin's /a/:b/ and /a/*b into the specification's /a/{b}.
func specPath(pattern string) string {
	parts := strings.Split(pattern, "/")
	for i, p := range parts {
		if strings.HasPrefix(p, ":") || strings.HasPrefix(p, "*") {
			parts[i] = "{" + p[1:] + "}"
		}
	}
	path := strings.Join(parts, "/")
	if len(path) > 1 {
		path = strings.TrimSuffix(path, "/")
	}
	return path
}

// what says which part of the request was refused and why, without the schema the library prints.
func what(err error) string {
	var request *openapi3filter.RequestError
	if !errors.As(err, &request) {
		return "the request is not as the specification at /openapi.yaml says"
	}
	part := "the body"
	if request.Parameter != nil {
		part = fmt.Sprintf("%s parameter %q", request.Parameter.In, request.Parameter.Name)
	}
	reason := request.Reason
	var schema *openapi3.SchemaError
	var parse *openapi3filter.ParseError
	switch {
	case errors.As(err, &schema):
		reason = schema.Reason
		if at := strings.Join(schema.JSONPointer(), "/"); at != "" {
			part += " at /" + at
		}
	case errors.As(err, &parse):
		reason = parse.Reason
		if reason == "" {
			reason = "it cannot be read as what its Content-Type says"
		}
	}
	if reason == "" {
		reason = "it is not as the specification at /openapi.yaml says"
	}
	return part + ": " + reason
}

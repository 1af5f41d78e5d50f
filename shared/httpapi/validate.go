package httpapi

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"github.com/gin-gonic/gin"

	"github.com/tidemark/tidemark/shared/problem"
)

// Validated returns a middleware that answers 400 to a request that the specification does not allow: the generated
// server checks neither required members nor lengths. Two kinds of bodies are left to their handlers, unread: that of
// a stream (see StreamType), and that of an operation whose x-body is "handler", since its handler can say more about
// what is wrong. Routes that the specification does not name pass. Gin has found the route already, so it is looked up
// by its pattern and not matched a second time.
func Validated(ctx context.Context, spec []byte) (gin.HandlerFunc, error) {
	doc, err := openapi3.NewLoader().LoadFromData(spec)
	if err != nil {
		return nil, fmt.Errorf("read the specification: %w", err)
	}
	if err := doc.Validate(ctx); err != nil {
		return nil, fmt.Errorf("the specification is not valid: %w", err)
	}
	routes, streams, bodies := map[string]*routers.Route{}, map[*routers.Route]bool{}, map[*routers.Route]bool{}
	for path, item := range doc.Paths.Map() {
		for method, operation := range item.Operations() {
			route := &routers.Route{Spec: doc, Path: path, PathItem: item, Method: method, Operation: operation}
			routes[method+" "+path] = route
			streams[route] = isStream(operation)
			bodies[route] = operation.Extensions[bodyExtension] == "handler"
		}
	}
	whole := &openapi3filter.Options{AuthenticationFunc: openapi3filter.NoopAuthenticationFunc}
	bodiless := &openapi3filter.Options{AuthenticationFunc: openapi3filter.NoopAuthenticationFunc, ExcludeRequestBody: true}
	return func(c *gin.Context) {
		pattern := c.FullPath()
		route := routes[c.Request.Method+" "+specPath(pattern)]
		if route == nil {
			c.Next()
			return
		}
		params := make(map[string]string, len(c.Params))
		for _, p := range c.Params {
			params[p.Key] = p.Value
		}
		request := c.Request
		if streams[route] {
			if kind := c.ContentType(); kind != "" && kind != StreamType {
				Fail(c, problem.Problem{Status: http.StatusUnsupportedMediaType, Detail: fmt.Sprintf("the Content-Type is %s: this takes %s", kind, StreamType)})
				return
			}
		}
		options := whole
		if streams[route] || bodies[route] {
			unread := *c.Request // the library reads bodies whole, for its check of security requirements too
			unread.Body, unread.ContentLength = http.NoBody, 0
			request, options = &unread, bodiless
		}
		err := openapi3filter.ValidateRequest(c.Request.Context(), &openapi3filter.RequestValidationInput{
			Request: request, PathParams: params, Route: route, Options: options,
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
		Fail(c, problem.Problem{Status: http.StatusBadRequest, Detail: what(err)})
	}, nil
}

// bodyExtension says who checks the body of an operation: "handler", or this package where it is missing.
const bodyExtension = "x-body"

// StreamType is the content type by which the specification says that a body is a stream of lines: it may be without
// end, and is read by its handler, line by line.
const StreamType = "application/x-ndjson"

func isStream(o *openapi3.Operation) bool {
	return o.RequestBody != nil && o.RequestBody.Value != nil && o.RequestBody.Value.Content[StreamType] != nil
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

package httpapi

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/gin-gonic/gin"

	"github.com/tidemark/tidemark/shared/auth"
)

// scopeExtension is what each operation of a specification carries.
const scopeExtension = "x-scope"

// scopes are what the routes of a specification need, by method and shape of the path: the names of its
// parameters do not count.
type scopes map[string]auth.Scope

// readScopes finds the scope of every operation. An operation without one is an error, and all of them are
// named at once.
func readScopes(doc *openapi3.T) (scopes, error) {
	found := scopes{}
	var errs []error
	for _, path := range slices.Sorted(maps.Keys(doc.Paths.Map())) {
		for method, operation := range doc.Paths.Value(path).Operations() {
			text, _ := operation.Extensions[scopeExtension].(string)
			s, err := auth.ParseScope(text)
			if err != nil {
				errs = append(errs, fmt.Errorf("%s %s has no %s in the specification: none, read, write or admin", method, path, scopeExtension))
				continue
			}
			found[method+" "+shape(path)] = s
		}
	}
	return found, errors.Join(errs...)
}

// scopeOf returns the scope that gin's route needs.
func (s scopes) scopeOf(method, pattern string) (auth.Scope, bool) {
	scope, ok := s[specMethod(method)+" "+shape(specPath(pattern))]
	return scope, ok
}

// unlisted names the routes that the specification does not have: nobody has said who may use them.
func (s scopes) unlisted(routes gin.RoutesInfo) error {
	var errs []error
	for _, r := range routes {
		if _, ok := s.scopeOf(r.Method, r.Path); !ok {
			errs = append(errs, fmt.Errorf("%s %s is served and is not in the specification: list it there, with its %s", r.Method, r.Path, scopeExtension))
		}
	}
	return errors.Join(errs...)
}

// specMethod is the method that the specification has for a request's: a HEAD is a GET without the body of its answer.
func specMethod(method string) string {
	if method == http.MethodHead {
		return http.MethodGet
	}
	return method
}

// shape takes the names out of a path's parameters.
func shape(path string) string {
	parts := strings.Split(path, "/")
	for i, p := range parts {
		if strings.HasPrefix(p, "{") && strings.HasSuffix(p, "}") {
			parts[i] = "{}"
		}
	}
	return strings.Join(parts, "/")
}

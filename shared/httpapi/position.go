package httpapi

import (
	"net/http"
	"regexp"
	"strings"
)

// positionAtEnd is a path that ends with a position, topic/partition@offset.
var positionAtEnd = regexp.MustCompile(`^(.*/[^/]+?)(?:/|%2[Ff])([0-9]+(?:@|%40)[0-9]+)$`)

// positionsInPaths takes the position at a path's end with its slash raw and as %2F: a person pastes it as it is
// printed, a client escapes it. Routes of the API have it as one parameter, pages as the two segments that it looks like.
func positionsInPaths(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, "@") {
			if m := positionAtEnd.FindStringSubmatch(r.URL.EscapedPath()); m != nil {
				slash := "/"
				if strings.HasPrefix(r.URL.Path, "/api/") {
					slash = "%2F"
				}
				r.URL.RawPath = m[1] + slash + m[2]
			}
		}
		next.ServeHTTP(w, r)
	})
}

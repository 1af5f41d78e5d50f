package security_test

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/integration/stack"
	"github.com/tidemark/tidemark/integration/story"
	"github.com/tidemark/tidemark/shared/auth"
	"github.com/tidemark/tidemark/shared/freeport"
)

// servicesOf starts every service of the repository, each ready, with these changes to its environment. A new service is
// among them by itself.
func servicesOf(t *testing.T, s *story.Story, environ map[string]string) []*stack.Service {
	t.Helper()
	root, err := stack.Root()
	require.NoError(t, err)
	mains, err := filepath.Glob(filepath.Join(root, "*-service", "main.go"))
	require.NoError(t, err)
	require.GreaterOrEqual(t, len(mains), 3)
	environ = maps.Clone(environ)
	if environ == nil {
		environ = map[string]string{}
	}
	names, ports := make([]string, len(mains)), make([]int, len(mains))
	for i, main := range mains { // each knows where the others are, as COMMAND_URL and so on
		names[i] = filepath.Base(filepath.Dir(main))
		ports[i], err = freeport.Find(t.Context())
		require.NoError(t, err)
		environ[strings.ToUpper(strings.TrimSuffix(names[i], "-service"))+"_URL"] = fmt.Sprintf("http://127.0.0.1:%d", ports[i])
	}
	var services []*stack.Service
	for i, name := range names {
		own := maps.Clone(environ)
		own["SERVER_PORT"] = strconv.Itoa(ports[i])
		services = append(services, s.Service(name, own))
	}
	for _, service := range services {
		s.Ready(service)
	}
	return services
}

// route is one operation of a specification.
type route struct {
	method, path string // the path as it is asked for
	scope        auth.Scope
	body         string
	kind         string // of the body
}

// routesOf reads the specification that a service serves.
func routesOf(t *testing.T, service *stack.Service) []route {
	t.Helper()
	status, _, text := send(t.Context(), t, http.DefaultClient, "GET", service.URL()+"/openapi.yaml", "", "")
	require.Equal(t, 200, status)
	doc, err := openapi3.NewLoader().LoadFromData([]byte(text))
	require.NoError(t, err)
	require.NoError(t, doc.Validate(t.Context()))
	var routes []route
	for _, path := range slices.Sorted(maps.Keys(doc.Paths.Map())) {
		operations := doc.Paths.Value(path).Operations()
		for _, method := range slices.Sorted(maps.Keys(operations)) {
			o := operations[method]
			name, _ := o.Extensions["x-scope"].(string)
			scope, err := auth.ParseScope(name)
			require.NoError(t, err, "%s %s", method, path)
			open := o.Security != nil && len(*o.Security) == 0
			require.Equal(t, scope == auth.None, open, "%s %s: security must say [] where x-scope says none, and nothing where it does not", method, path)
			r := route{method: method, path: filled(path, append(slices.Clone(doc.Paths.Value(path).Parameters), o.Parameters...)), scope: scope}
			if o.RequestBody != nil {
				for kind := range o.RequestBody.Value.Content {
					r.kind = kind
				}
				if r.kind == "application/json" {
					r.body = "{}"
				}
			}
			routes = append(routes, r)
		}
	}
	return routes
}

// filled puts values into a path: the examples of its parameters, or what has their form.
func filled(path string, parameters openapi3.Parameters) string {
	for _, p := range parameters {
		if p.Value.In != "path" {
			continue
		}
		value := "01920b5c-7d4e-7cc3-98c4-dc0c0c07398f"
		switch {
		case p.Value.Example != nil:
			value = fmt.Sprint(p.Value.Example)
		case p.Value.Schema != nil && p.Value.Schema.Value.Type.Is("integer"):
			value = "999999"
		}
		path = strings.ReplaceAll(path, "{"+p.Value.Name+"}", strings.ReplaceAll(value, "/", "%2F"))
	}
	return path
}

// TestEveryRouteAsksForItsKey sends every operation of every service's specification with each kind of key and without
// one. What is served and not in the specification needs no row: a service with such a route does not start, with keys or
// without.
func TestEveryRouteAsksForItsKey(t *testing.T) {
	s := story.New(t)
	file, keys := keysFile(t, "read", "write", "admin")
	now := time.Now()
	gone, revoked, err := auth.Create(file, "revoked", []string{"admin"}, time.Time{}, now)
	require.NoError(t, err)
	_, err = auth.Revoke(file, gone.ID, now)
	require.NoError(t, err)
	_, expired, err := auth.Create(file, "expired", []string{"admin"}, now.Add(-time.Hour), now.Add(-2*time.Hour))
	require.NoError(t, err)
	wrong := keys["admin"][:len(keys["admin"])-6] + "aaaaaa"
	refused := map[string]string{"none": "", "wrong": wrong, "strange": "hunter2", "revoked": revoked, "expired": expired, "of another id": "tmk_zzzzzzzzzz_" + strings.Split(keys["admin"], "_")[2]}
	under := map[auth.Scope][]string{auth.Read: {"write"}, auth.Write: {"read"}, auth.Admin: {"read", "write"}}
	over := map[auth.Scope][]string{auth.Read: {"read", "admin"}, auth.Write: {"write", "admin"}, auth.Admin: {"admin"}, auth.None: {"read"}}

	client := visitor(t, "")
	client.Jar = nil
	serial := 0
	ask := func(service *stack.Service, r route, key string) (int, string) {
		serial++
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, r.method, service.URL()+r.path, strings.NewReader(r.body))
		require.NoError(t, err)
		if r.kind != "" {
			req.Header.Set("Content-Type", r.kind)
		}
		if key != "" {
			req.Header.Set("Authorization", "Bearer "+key)
		}
		// Each attempt from an address of its own: wrong keys of one are limited.
		req.Header.Set("X-Forwarded-For", fmt.Sprintf("10.%d.%d.%d", serial>>16&255, serial>>8&255, serial&255))
		res, err := client.Do(req)
		require.NoError(t, err)
		defer res.Body.Close()
		body := make([]byte, 4096)
		n, _ := res.Body.Read(body) // a stream of events has no end, and its beginning is enough
		return res.StatusCode, string(body[:n])
	}
	asked := 0
	for _, service := range servicesOf(t, s, map[string]string{"API_KEYS_FILE": file, "TRUSTED_PROXIES": "127.0.0.1"}) {
		routes := routesOf(t, service)
		require.GreaterOrEqual(t, len(routes), 6)
		for _, r := range routes {
			name := service.Name() + ": " + r.method + " " + r.path
			asked++
			said := map[string]bool{}
			for what, key := range refused {
				status, body := ask(service, r, key)
				if r.scope == auth.None {
					require.NotContains(t, []int{401, 403}, status, "%s with the key %q", name, what)
					continue
				}
				require.Equal(t, 401, status, "%s with the key %q: %s", name, what, body)
				if key != "" { // that none came is no secret
					before, _, _ := strings.Cut(body, "urn:correlation:")
					said[before] = true
				}
			}
			require.LessOrEqual(t, len(said), 1, "%s: no hint which part was wrong", name)
			for _, scope := range under[r.scope] {
				status, body := ask(service, r, keys[scope])
				require.Equal(t, 403, status, "%s with a key to %s: %s", name, scope, body)
			}
			for _, scope := range over[r.scope] {
				status, body := ask(service, r, keys[scope])
				require.NotContains(t, []int{401, 403, 405, 429, 500, 501}, status, "%s with a key to %s: %s", name, scope, body)
				require.NotContains(t, body, "there is nothing at", "%s is in the specification and not served", name)
			}
		}
	}
	t.Logf("%d routes, %d requests", asked, serial)
}

// A page of another site is refused by every service, keys or not: with the cookie of the login, or by nothing but its
// being on this host, a browser would else be made to write here.
func TestAnotherSitesPageIsRefusedEverywhere(t *testing.T) {
	s := story.New(t)
	client := visitor(t, "")
	for _, service := range servicesOf(t, s, nil) {
		for _, r := range routesOf(t, service) {
			if r.method == http.MethodGet {
				continue
			}
			status, _, body := send(t.Context(), t, client, r.method, service.URL()+r.path, "", r.body, "Content-Type", r.kind, "Origin", "https://elsewhere.example", "Sec-Fetch-Site", "cross-site")
			require.Equal(t, 403, status, "%s %s: %s", r.method, r.path, body)
		}
	}
}

func TestRatesAndSizesAreBounded(t *testing.T) {
	s := story.New(t)
	file, keys := keysFile(t, "admin")
	client := visitor(t, "")
	for _, service := range servicesOf(t, s, map[string]string{"API_KEYS_FILE": file, "RATE_LIMIT": "5"}) {
		var limited http.Header
		for range 50 {
			status, header, _ := send(t.Context(), t, client, "GET", service.URL()+"/metrics", keys["admin"], "")
			if status == 429 {
				limited = header
				break
			}
			require.Equal(t, 200, status)
		}
		require.NotNil(t, limited, "%s never said no", service.Name())
		require.Equal(t, "1", limited.Get("Retry-After"))
		status, _, _ := send(t.Context(), t, client, "GET", service.URL()+"/health", "", "")
		require.Equal(t, 200, status)
		status, _, _ = send(t.Context(), t, client, "GET", service.URL()+"/health", "", "", "X-Large", strings.Repeat("x", 100<<10))
		require.Equal(t, 431, status)
	}
	require.NoError(t, os.Remove(file))
}

package httpapi

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/shared/auth"
	"github.com/tidemark/tidemark/shared/certs"
	"github.com/tidemark/tidemark/shared/certs/certstest"
	"github.com/tidemark/tidemark/shared/config"
)

// locked is an engine that asks for keys, and a key of each kind.
func locked(t *testing.T, h config.HTTP) (*Engine, map[string]string) {
	t.Helper()
	h.APIKeysFile = filepath.Join(t.TempDir(), "keys")
	now := time.Now()
	keys := map[string]string{}
	for name, wanted := range map[string]struct {
		scope string
		made  time.Time
		end   time.Time
	}{
		"read": {"read", now, time.Time{}}, "write": {"write", now, time.Time{}}, "admin": {"admin", now, time.Time{}},
		"revoked": {"admin", now, time.Time{}}, "expired": {"admin", now.Add(-2 * time.Hour), now.Add(-time.Hour)},
	} {
		e, key, err := auth.Create(h.APIKeysFile, name, []string{wanted.scope}, wanted.end, wanted.made)
		require.NoError(t, err)
		keys[name] = key
		if name == "revoked" {
			_, err := auth.Revoke(h.APIKeysFile, e.ID, now)
			require.NoError(t, err)
		}
	}
	keys["wrong"] = keys["admin"][:len(keys["admin"])-4] + "aaaa"
	keys["strange"] = "hunter2"
	e, _ := setupWith(t, h)
	return e, keys
}

func TestScopesAreEnforcedFromTheSpecification(t *testing.T) {
	t.Parallel()
	e, keys := locked(t, config.HTTP{BindAddress: "127.0.0.1"})
	refusals := map[bool][]string{} // by whether a key came with the request
	for _, tc := range []struct {
		method, path, key string
		status            int
	}{
		{"GET", "/health", "", 200}, {"GET", "/health", "wrong", 200}, {"GET", "/openapi.yaml", "", 200}, {"GET", "/docs", "", 200},
		{"GET", "/metrics", "", 401}, {"GET", "/metrics", "wrong", 401}, {"GET", "/metrics", "strange", 401}, {"GET", "/metrics", "revoked", 401},
		{"GET", "/metrics", "expired", 401}, {"GET", "/metrics", "write", 403}, {"GET", "/metrics", "read", 200}, {"GET", "/metrics", "admin", 200},
		{"POST", "/echo/x", "", 401}, {"POST", "/echo/x", "read", 403}, {"POST", "/echo/x", "write", 200}, {"POST", "/echo/x/", "write", 200}, {"POST", "/echo/x/", "", 401},
		{"GET", "/panic", "write", 403}, {"GET", "/panic", "admin", 500},
		{"GET", "/nowhere", "", 404}, {"GET", "/echo/x", "", 405},
	} {
		header := []string{"Content-Type", "application/json"}
		if tc.key != "" {
			header = append(header, "Authorization", "Bearer "+keys[tc.key])
		}
		body := ""
		if tc.method == "POST" {
			body = `{"a":"b"}`
		}
		w := call(e, tc.method, tc.path, body, header...)
		require.Equal(t, tc.status, w.Code, "%s %s with %q: %s", tc.method, tc.path, tc.key, w.Body)
		if tc.status == 401 {
			require.Equal(t, `Bearer realm="tidemark"`, w.Header().Get("WWW-Authenticate"))
			var p map[string]any
			require.NoError(t, json.Unmarshal(w.Body.Bytes(), &p))
			delete(p, "instance")
			refusals[tc.key != ""] = append(refusals[tc.key != ""], fmt.Sprint(p))
		}
	}
	require.Contains(t, refusals[false][0], "this needs an API key")
	require.Contains(t, refusals[true][0], "unknown, expired or revoked key")
	for _, of := range refusals {
		for _, r := range of {
			require.Equal(t, of[0], r, "no refusal tells from another what was wrong with a key")
		}
	}
	require.Contains(t, call(e, "GET", "/panic", "", "Authorization", "Bearer "+keys["write"]).Body.String(), "this key has scope write, admin is needed")
	require.Contains(t, call(e, "GET", "/metrics", "", "Authorization", "Bearer "+keys["read"]).Body.String(), `tidemark_http_refused_total{reason="scope"} 4`)
}

func TestTheCallerIsInTheContext(t *testing.T) {
	t.Parallel()
	e, keys := locked(t, config.HTTP{BindAddress: "127.0.0.1"})
	var seen auth.Caller
	e.Use(func(c *gin.Context) { seen, _ = auth.FromContext(c.Request.Context()) })
	e.GET("/caller", func(*gin.Context) {})
	e.access.scopes["GET /caller"] = auth.Read
	require.Equal(t, 200, call(e, "GET", "/caller", "", "Authorization", "Bearer "+keys["read"]).Code)
	require.Equal(t, "read", seen.Name)
}

func TestARouteThatNobodyListedKeepsTheServiceFromStarting(t *testing.T) {
	t.Parallel()
	for _, keys := range []bool{false, true} {
		e, _ := setup(t)
		if keys {
			e, _ = locked(t, config.HTTP{BindAddress: "127.0.0.1"})
		}
		e.DELETE("/echo/:name", func(*gin.Context) {})
		e.GET("/secret", func(c *gin.Context) { c.Status(200) })
		_, err := Listen(t.Context(), e, time.Second, nil)
		require.ErrorContains(t, err, "DELETE /echo/:name is served and is not in the specification")
		require.ErrorContains(t, err, "GET /secret is served")
		if keys {
			require.Equal(t, 401, call(e, "GET", "/secret", "").Code, "and it is closed, should anyone serve it all the same")
		}
	}
	_, err := NewEngine(t.Context(), Options{Registry: prometheus.NewRegistry(), Spec: []byte(strings.ReplaceAll(spec, "x-scope: admin", "x-scope: root"))})
	require.ErrorContains(t, err, "GET /panic has no x-scope")
	_, err = NewEngine(t.Context(), Options{Registry: prometheus.NewRegistry(), Spec: []byte(strings.ReplaceAll(spec, "      x-scope: write\n", ""))})
	require.ErrorContains(t, err, "POST /echo/{name} has no x-scope")
}

// from sends a request as if from an address.
func from(e http.Handler, address, method, path string, header ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, path, nil)
	r.Host = "localhost"
	r.RemoteAddr = address
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	e.ServeHTTP(w, r)
	return w
}

func TestFailedAttemptsAreLimitedByAddress(t *testing.T) {
	t.Parallel()
	e, keys := locked(t, config.HTTP{BindAddress: "127.0.0.1"})
	for range failuresAtOnce {
		require.Equal(t, 401, from(e, "192.0.2.1:5", "GET", "/metrics", "Authorization", "Bearer "+keys["wrong"]).Code)
	}
	w := from(e, "192.0.2.1:6", "GET", "/metrics")
	require.Equal(t, 429, w.Code)
	require.Equal(t, "2", w.Header().Get("Retry-After"))
	require.Equal(t, "application/problem+json", w.Header().Get("Content-Type"))
	require.Equal(t, 401, from(e, "192.0.2.2:6", "GET", "/metrics").Code, "another address is another matter")
	require.Equal(t, 200, from(e, "192.0.2.1:6", "GET", "/metrics", "Authorization", "Bearer "+keys["read"]).Code, "a right key is right: the address may be a proxy's")
	require.Equal(t, 200, from(e, "192.0.2.1:6", "GET", "/health").Code)
}

func TestRatesAreLimitedByCallerAndElseByAddress(t *testing.T) {
	t.Parallel()
	e, keys := locked(t, config.HTTP{BindAddress: "127.0.0.1", RateLimit: 1})
	for range 2 {
		require.Equal(t, 200, from(e, "192.0.2.1:5", "GET", "/metrics", "Authorization", "Bearer "+keys["read"]).Code)
	}
	w := from(e, "192.0.2.2:5", "GET", "/metrics", "Authorization", "Bearer "+keys["read"])
	require.Equal(t, 429, w.Code, "the caller, from wherever")
	require.Equal(t, "1", w.Header().Get("Retry-After"))
	require.Equal(t, 200, from(e, "192.0.2.2:5", "GET", "/metrics", "Authorization", "Bearer "+keys["admin"]).Code)

	e, _ = setupWith(t, config.HTTP{BindAddress: "127.0.0.1", RateLimit: 1, TrustedProxies: []string{"10.0.0.0/8"}})
	status := func(address string, header ...string) int {
		return from(e, address, "GET", "/openapi.yaml", header...).Code
	}
	for range 2 {
		require.Equal(t, 200, status("192.0.2.1:5"))
	}
	require.Equal(t, 429, status("192.0.2.1:5"))
	require.Equal(t, 429, status("192.0.2.1:5", "X-Forwarded-For", "192.0.2.7"), "who is no proxy cannot say who it is")
	require.Equal(t, 200, status("10.0.0.1:5", "X-Forwarded-For", "192.0.2.7"))
	require.Equal(t, 429, status("10.0.0.1:5", "X-Forwarded-For", "192.0.2.1"))
	require.Equal(t, 200, from(e, "192.0.2.1:5", "GET", "/health").Code, "a probe is answered")
	require.Equal(t, 503, from(e, "192.0.2.1:5", "GET", "/ready").Code)
	for range 10 {
		require.Equal(t, 200, status("127.0.0.1:5"), "this host itself")
	}
}

func TestAnotherSitesPageCannotPost(t *testing.T) {
	t.Parallel()
	e, _ := setup(t)
	for _, header := range [][]string{{"Sec-Fetch-Site", "cross-site"}, {"Sec-Fetch-Site", "same-site"}, {"Origin", "https://elsewhere.example"}} {
		w := call(e, "POST", "/echo/x", `{"a":"b"}`, append(header, "Content-Type", "application/json")...)
		require.Equal(t, 403, w.Code)
		require.Contains(t, w.Body.String(), "another site")
	}
	for _, header := range [][]string{{"Sec-Fetch-Site", "same-origin"}, {"Origin", "http://localhost"}, nil} {
		require.Equal(t, 200, call(e, "POST", "/echo/x", `{"a":"b"}`, append(header, "Content-Type", "application/json")...).Code)
	}
	require.Equal(t, 200, call(e, "GET", "/health", "", "Sec-Fetch-Site", "cross-site").Code)
}

func TestHTTPSIsServedAndANewCertificateTakenUp(t *testing.T) {
	t.Parallel()
	ca := certstest.New(t)
	pair := ca.Issue(t)
	e, _ := setupWith(t, config.HTTP{BindAddress: "127.0.0.1", TLSCertFile: pair.Cert, TLSKeyFile: pair.Key})
	s, err := Listen(t.Context(), e, time.Second, func(err error) { t.Error(err) })
	require.NoError(t, err)
	pool, err := certs.Authorities("CA", ca.File)
	require.NoError(t, err)
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, ForceAttemptHTTP2: true, TLSClientConfig: &tls.Config{RootCAs: pool}}}
	res, err := client.Get("https://" + s.Address() + "/health")
	require.NoError(t, err)
	require.NoError(t, res.Body.Close())
	require.Equal(t, 200, res.StatusCode)
	require.Equal(t, 2, res.ProtoMajor)
	require.NoError(t, s.Stop(t.Context()))

	_, err = NewEngine(t.Context(), Options{Registry: prometheus.NewRegistry(), Spec: []byte(spec), HTTP: config.HTTP{TLSCertFile: pair.Cert, TLSKeyFile: ca.Issue(t).Key}})
	require.ErrorContains(t, err, "is not the key of the certificate")
}

package httpapi_test

import (
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/shared/auth"
	"github.com/tidemark/tidemark/shared/config"
	"github.com/tidemark/tidemark/shared/problem"
)

// sendTo sends a request under a Host.
func sendTo(e http.Handler, host, method, path string, header ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, path, http.NoBody)
	r.Host = host
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	e.ServeHTTP(w, r)
	return w
}

// A page of another site whose name points to this machine is answered nothing, by no route of any service.
func TestNoRouteOfAnyServiceAnswersAStrangersHost(t *testing.T) {
	t.Parallel()
	for name := range specs {
		e := serve(t, name)
		all := operationsOf(t, name)
		require.NotEmpty(t, all)
		for _, o := range all {
			for _, accept := range []string{"*/*", "text/html,*/*;q=0.8"} {
				w := sendTo(e, "evil.example:7080", o.method, o.target(), "Accept", accept, "X-Forwarded-Host", "127.0.0.1:7080", "Forwarded", "host=localhost")
				require.Equal(t, http.StatusMisdirectedRequest, w.Code, "%s: %s", name, o)
				if accept == "*/*" {
					require.Equal(t, problem.ContentType, w.Header().Get("Content-Type"), o)
				} else {
					require.Equal(t, "text/html; charset=utf-8", w.Header().Get("Content-Type"), o)
				}
				require.Contains(t, w.Body.String(), "ALLOWED_HOSTS", o)
			}
			require.NotEqual(t, http.StatusMisdirectedRequest, sendTo(e, "localhost:7080", o.method, o.target(), "X-Forwarded-Host", "evil.example").Code, o)
		}
		for _, method := range []string{http.MethodGet, http.MethodOptions, "EVIL"} {
			require.Equal(t, http.StatusMisdirectedRequest, sendTo(e, "evil.example", method, "/nowhere").Code, "%s: what is not there is not told either", name)
		}
	}
}

func TestWhichHostsAreAnsweredOnLoopback(t *testing.T) {
	t.Parallel()
	h := config.DefaultHTTP(0)
	h.AllowedHosts = []string{"Tidemark.test", "10.1.2.3", "fd00::1"}
	e := serveWith(t, "command", h)
	for host, status := range map[string]int{
		"localhost": 200, "localhost:7080": 200, "LOCALHOST.:7080": 200, "127.0.0.1": 200, "127.0.0.1:99": 200, "127.8.8.8:80": 200,
		"[::1]": 200, "[::1]:7080": 200, "[0:0:0:0:0:0:0:1]:7080": 200, "[::ffff:127.0.0.1]:7080": 200,
		"tidemark.test": 200, "tidemark.test:443": 200, "TIDEMARK.test.": 200, "10.1.2.3:7080": 200, "[fd00::1]:7080": 200, "[FD00:0::1]": 200,
		"": 421, ":7080": 421, "evil.example": 421, "evil.example:7080": 421, "localhost.evil.example": 421, "127.0.0.1.evil.example:7080": 421, "evil.localhost": 421,
		"localhost:7080@evil.example": 421, "evil.example#localhost": 421, "tidemark.test.evil.example": 421, "0.0.0.0:7080": 421, "[::]:7080": 421, "10.1.2.4": 421, "2130706433": 421,
	} {
		require.Equal(t, status, sendTo(e, host, "GET", "/health").Code, "%q", host)
	}
}

// With keys a stranger's page has none to send, and off loopback the operator has decided who can reach the service.
func TestHostIsNotLookedAtWithKeysOrOffLoopback(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "keys")
	_, _, err := auth.Create(file, "test", []string{"read"}, time.Time{}, time.Now())
	require.NoError(t, err)
	for _, h := range []config.HTTP{{BindAddress: "127.0.0.1", APIKeysFile: file}, {BindAddress: "0.0.0.0", Auth: "off"}} {
		require.Equal(t, 200, sendTo(serveWith(t, "command", h), "tidemark.example", "GET", "/health").Code)
	}
	for _, h := range []config.HTTP{{BindAddress: "localhost"}, {BindAddress: "127.0.0.1", Auth: "off"}} {
		require.Equal(t, 421, sendTo(serveWith(t, "command", h), "tidemark.example", "GET", "/health").Code)
	}
	for address, loopback := range map[string]bool{"::1": true, "127.0.0.2": true, "0.0.0.0": false, "::": false, "": false, "192.0.2.1": false, "localhost.example": false} {
		require.Equal(t, loopback, config.HTTP{BindAddress: address}.OnLoopback(), address)
	}
}

func TestAllowedHostsAreNames(t *testing.T) {
	t.Parallel()
	h := config.DefaultHTTP(1)
	h.AllowedHosts = []string{"tidemark.test", "10.0.0.1", "fd00::1"}
	require.NoError(t, h.Validate())
	for _, wrong := range []string{"*", "*.example", "http://tidemark.test", "tidemark.test:7080", "[fd00::1]", ""} {
		h.AllowedHosts = []string{wrong}
		require.ErrorContains(t, h.Validate(), "is no host name", wrong)
	}
}

package cli_test

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/shared/certs/certstest"
	"github.com/tidemark/tidemark/tidemark/internal/cli"
)

func with(t *testing.T, environ map[string]string, args ...string) (status int, out, errOut string) {
	t.Helper()
	var stdout, stderr bytes.Buffer
	status = cli.Run(t.Context(), args, cli.Surroundings{Environ: environ, Out: &stdout, Err: &stderr})
	return status, stdout.String(), stderr.String()
}

func TestKeysAreMadeListedAndRevoked(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "keys")
	environ := map[string]string{"API_KEYS_FILE": file}
	status, out, said := with(t, environ, "keys", "create", "--name", "ci", "--scope", "read,write", "--expires", "24h", "-o", "json")
	require.Zero(t, status, said)
	require.Contains(t, said, "cannot be shown again")
	var made struct {
		ID, Key, State string
		Expires        time.Time
		Scopes         []string
	}
	require.NoError(t, json.Unmarshal([]byte(out), &made))
	require.True(t, strings.HasPrefix(made.Key, "tmk_"+made.ID+"_"))
	require.Equal(t, []string{"read", "write"}, made.Scopes)
	require.WithinDuration(t, time.Now().Add(24*time.Hour), made.Expires, time.Minute)
	status, out, said = with(t, nil, "keys", "create", "--file", file, "--name", "second", "--scope", "admin", "--expires", "2999-12-31")
	require.Zero(t, status, said)
	require.Contains(t, out, "3000-01-01T00:00:00Z", "the end of that day")

	status, out, said = with(t, environ, "keys", "revoke", made.ID)
	require.Zero(t, status, said)
	require.Contains(t, out, made.ID)
	status, out, _ = with(t, environ, "keys", "list")
	require.Zero(t, status)
	require.Regexp(t, made.ID+` +revoked +read,write +ci `, out)
	require.Regexp(t, ` active +admin +second `, out)
	content, err := os.ReadFile(file)
	require.NoError(t, err)
	secret := strings.SplitN(made.Key, "_", 3)[2]
	require.NotContains(t, string(content), secret)
	_, out, _ = with(t, environ, "keys", "list", "-o", "json")
	require.NotContains(t, out, secret)
	require.NotContains(t, out, "sha256")

	lines := strings.SplitAfter(string(content), "\n")
	require.NoError(t, os.WriteFile(file, []byte(strings.Join(lines[:len(lines)-2], "")), 0o600)) // cut at a line's end
	status, out, said = with(t, environ, "keys", "list")
	require.Zero(t, status)
	require.Regexp(t, ` lost +second`, out)
	require.Contains(t, said, "has lost 1 of its keys")
	_, out, _ = with(t, environ, "keys", "list", "-o", "json")
	var listed struct{ Lost []struct{ ID, Name string } }
	require.NoError(t, json.Unmarshal([]byte(out), &listed))
	require.Len(t, listed.Lost, 1)
	status, _, said = with(t, environ, "keys", "revoke", listed.Lost[0].ID)
	require.Zero(t, status, said)
	_, out, _ = with(t, environ, "keys", "list")
	require.NotContains(t, out, "lost")

	for _, tc := range []struct {
		args   []string
		status int
		words  string
	}{
		{[]string{"keys", "revoke", "nobody"}, 5, "no key has this id"},
		{[]string{"keys", "create", "--name", "x", "--scope", "root"}, 2, `"root" is no scope`},
		{[]string{"keys", "create", "--name", "x"}, 2, "scope"},
		{[]string{"keys", "create", "--name", "x", "--scope", "read", "--expires", "soon"}, 2, "neither a duration"},
		{[]string{"keys", "create", "--name", "x", "--scope", "read", "--expires", "2009-09-28"}, 2, "would have expired"},
		{[]string{"keys", "create", "--name", "x", "--scope", "read", "--file", "/none/keys"}, 1, "/none/keys"},
		{[]string{"keys", "list", "--file", "/none/keys"}, 1, "/none/keys"},
	} {
		status, _, said := with(t, environ, tc.args...)
		require.Equal(t, tc.status, status, tc.args)
		require.Contains(t, said, tc.words)
	}
	status, _, said = with(t, nil, "keys", "list")
	require.Equal(t, 2, status)
	require.Contains(t, said, "API_KEYS_FILE")
}

func TestTheClientShowsItsKeyAndTrustsItsAuthority(t *testing.T) {
	t.Parallel()
	ca, other := certstest.New(t), certstest.New(t)
	pair := ca.Issue(t)
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.Header.Get("Authorization") {
		case "Bearer tmk_a_b":
			accepted(w, r)
		case "Bearer tmk_slow_down":
			w.Header().Set("Retry-After", "1")
			w.WriteHeader(http.StatusTooManyRequests)
		default:
			w.WriteHeader(http.StatusUnauthorized)
		}
	}))
	server.Config.ErrorLog = log.New(io.Discard, "", 0) // of clients that do not trust it
	server.TLS = tlsOf(t, pair)
	server.StartTLS()
	defer server.Close()
	environ := map[string]string{"COMMAND_URL": server.URL, "TIDEMARK_CA_FILE": ca.File, "TIDEMARK_API_KEY": "tmk_a_b"}
	status, out, said := with(t, environ, "stamp")
	require.Zero(t, status, said)
	require.Contains(t, out, id)

	environ["TIDEMARK_API_KEY"] = "tmk_a_wrong"
	status, _, said = with(t, environ, "stamp")
	require.Equal(t, 3, status)
	require.Contains(t, said, "TIDEMARK_API_KEY")
	require.NotContains(t, said, "tmk_a_wrong")
	environ["TIDEMARK_API_KEY"] = "tmk_slow_down"
	status, _, _ = with(t, environ, "stamp")
	require.Equal(t, 1, status, "sending it again will help")

	environ["TIDEMARK_CA_FILE"] = other.File
	status, _, said = with(t, environ, "stamp")
	require.Equal(t, 1, status, "it was never sent")
	require.Contains(t, said, "not signed by any authority in "+other.File+" (TIDEMARK_CA_FILE)")
	environ["TIDEMARK_CA_FILE"] = "/none/ca.pem"
	status, _, said = with(t, environ, "stamp")
	require.Equal(t, 2, status)
	require.Contains(t, said, "there is no file /none/ca.pem")
}

func tlsOf(t *testing.T, pair certstest.Pair) *tls.Config {
	t.Helper()
	c, err := tls.LoadX509KeyPair(pair.Cert, pair.Key)
	require.NoError(t, err)
	return &tls.Config{Certificates: []tls.Certificate{c}}
}

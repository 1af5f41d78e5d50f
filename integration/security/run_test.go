package security_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/integration/stack"
	"github.com/tidemark/tidemark/integration/story"
	"github.com/tidemark/tidemark/shared/auth"
	"github.com/tidemark/tidemark/shared/await"
	"github.com/tidemark/tidemark/shared/certs"
	"github.com/tidemark/tidemark/shared/certs/certstest"
)

// keysFile is a new one with a key for each of the names, which are its scopes too.
func keysFile(t *testing.T, scopes ...string) (file string, keys map[string]string) {
	t.Helper()
	file, keys = filepath.Join(t.TempDir(), "keys"), map[string]string{}
	for _, scope := range scopes {
		keys[scope] = newKey(t, file, scope)
	}
	return file, keys
}

func newKey(t *testing.T, file string, scopes ...string) string {
	t.Helper()
	_, key, err := auth.Create(file, strings.Join(scopes, " and "), scopes, time.Time{}, time.Now())
	require.NoError(t, err)
	return key
}

func idOf(key string) string { return strings.Split(key, "_")[1] }

// visitor is an HTTP client that trusts an authority and keeps cookies, as a browser does.
func visitor(t *testing.T, caFile string) *http.Client {
	t.Helper()
	jar, err := cookiejar.New(nil)
	require.NoError(t, err)
	transport := &http.Transport{}
	if caFile != "" {
		pool, err := certs.Authorities("CA", caFile)
		require.NoError(t, err)
		transport.TLSClientConfig = &tls.Config{RootCAs: pool}
	}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{
		Transport: transport, Jar: jar, Timeout: time.Minute,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// send sends a request with a key, or without one, and returns status, header and body.
func send(ctx context.Context, t *testing.T, c *http.Client, method, target, key, body string, header ...string) (int, http.Header, string) {
	t.Helper()
	r, err := http.NewRequestWithContext(ctx, method, target, strings.NewReader(body))
	require.NoError(t, err)
	if key != "" {
		r.Header.Set("Authorization", "Bearer "+key)
	}
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	res, err := c.Do(r)
	require.NoError(t, err)
	content, err := io.ReadAll(res.Body)
	require.NoError(t, err)
	require.NoError(t, res.Body.Close())
	return res.StatusCode, res.Header, string(content)
}

// TestAWholeRunUnderLockAndKey has everything at once: HTTPS with keys, Kafka by TLS and SCRAM, Postgres by TLS with its
// certificate verified, at debug level. A command goes from a page to its row, keys come and go while all is running, and
// nothing secret stands in any log.
func TestAWholeRunUnderLockAndKey(t *testing.T) {
	s := story.New(t)
	broker := startSecured(t)
	db := startPostgres(t)
	dbPair := broker.ca.Issue(t)
	require.NoError(t, db.EnableTLS(t.Context(), dbPair.Cert, dbPair.Key))
	dbURL := by(t, db, map[string]string{"sslmode": "verify-full", "sslrootcert": broker.ca.File})
	file, keys := keysFile(t, "read", "write", "admin")
	pair := broker.ca.Issue(t)
	environ := map[string]string{
		"LOG_LEVEL": "debug", "API_KEYS_FILE": file, "TLS_CERT_FILE": pair.Cert, "TLS_KEY_FILE": pair.Key,
		"KAFKA_BROKERS": broker.SecureBrokers()[0], "KAFKA_TLS_CA_FILE": broker.ca.File, "KAFKA_PARTITIONS": "3",
		"KAFKA_SASL_MECHANISM": "SCRAM-SHA-512", "KAFKA_SASL_USERNAME": user, "KAFKA_SASL_PASSWORD": password, "DB_URL": dbURL,
		"SERVICES_CA_FILE": broker.ca.File,
	}
	with := func(changes map[string]string) map[string]string {
		all := map[string]string{}
		for name, value := range environ {
			all[name] = value
		}
		for name, value := range changes {
			all[name] = value
		}
		return all
	}
	consumer := s.Service("consumer-service", with(nil))
	s.Ready(consumer)
	door := s.Service("command-service", with(nil))
	query := s.Service("query-service", with(map[string]string{"COMMAND_URL": door.URL(), "CONSUMER_URL": consumer.URL()}))
	s.Ready(door)
	s.Ready(query)

	browser := visitor(t, broker.ca.File)
	ctx := t.Context()
	status, header, _ := send(ctx, t, browser, "GET", query.URL()+"/", "", "", "Accept", "text/html")
	require.Equal(t, 303, status)
	require.Equal(t, "/login?next=%2F", header.Get("Location"))
	form := []string{"Content-Type", "application/x-www-form-urlencoded", "Accept", "text/html"}
	status, header, _ = send(ctx, t, browser, "POST", query.URL()+"/login", "", url.Values{"key": {keys["write"]}}.Encode(), form...)
	require.Equal(t, 303, status)
	require.Contains(t, header.Get("Set-Cookie"), "Secure")
	status, _, _ = send(ctx, t, browser, "GET", query.URL()+"/", "", "", "Accept", "text/html")
	require.Equal(t, 403, status, "that key only writes")
	both := newKey(t, file, "read", "write")
	await.Until(t, func() bool { // the services have seen the new key
		status, _, _ := send(ctx, t, browser, "POST", query.URL()+"/login", "", url.Values{"key": {both}}.Encode(), form...)
		return status == 303
	})
	var body string
	await.Until(t, func() bool { // a page waits for the others no longer than a moment, which a first handshake may take
		status, _, body = send(ctx, t, browser, "GET", query.URL()+"/", "", "", "Accept", "text/html")
		return status == 200 && !strings.Contains(body, "does not answer")
	}, "the pages trust the other services by SERVICES_CA_FILE")
	var place string
	await.Until(t, func() bool { // the door has seen the new key too
		status, header, body = send(ctx, t, browser, "POST", query.URL()+"/stamp", "", url.Values{"event_timestamp": {"2009-09-28T19:03:12Z"}}.Encode(), form...)
		place = header.Get("Location")
		return status == 303 && strings.HasPrefix(place, "/tickets/")
	}, "%s", body)
	status, _, _ = send(ctx, t, browser, "GET", query.URL()+place, "", "", "Accept", "text/html")
	require.Equal(t, 200, status)
	status, _, body = send(ctx, t, browser, "GET", query.URL()+"/api/v1"+place+"&wait=20s", "", "")
	require.Equal(t, 200, status, body)
	require.Contains(t, body, `"state":"applied"`)

	status, header, body = send(ctx, t, browser, "POST", door.URL()+"/api/v1/timestamp", both, "", "Idempotency-Key", "order 17")
	require.Equal(t, 202, status, body)
	status, _, again := send(ctx, t, browser, "POST", door.URL()+"/api/v1/timestamp", both, "", "Idempotency-Key", "order 17")
	require.Equal(t, 202, status)
	require.Equal(t, body, again, "a caller's own word is its key")
	status, _, theirs := send(ctx, t, browser, "POST", door.URL()+"/api/v1/timestamp", keys["write"], "", "Idempotency-Key", "order 17")
	require.Equal(t, 202, status)
	require.NotEqual(t, body, theirs, "and nobody else's")
	require.NotEmpty(t, header.Get("Tidemark-Position"))

	_, err := auth.Revoke(file, idOf(both), time.Now())
	require.NoError(t, err)
	for _, service := range []*stack.Service{door, query, consumer} {
		await.Until(t, func() bool {
			status, _, _ := send(ctx, t, visitor(t, broker.ca.File), "GET", service.URL()+"/metrics", both, "")
			return status == 401
		}, "a revoked key ends without a restart")
	}
	// Trouble is when libraries talk: the brokers go, the database goes.
	require.NoError(t, broker.Kill())
	require.NoError(t, db.Restart(ctx))
	status, _, _ = send(ctx, t, browser, "POST", door.URL()+"/api/v1/timestamp", keys["write"], "")
	require.Equal(t, 503, status)
	require.NoError(t, broker.Start(ctx))
	s.Ready(door)

	secrets := []string{password, passwordOf(t, dbURL)}
	for _, key := range append([]string{both}, keys["read"], keys["write"], keys["admin"]) {
		secrets = append(secrets, strings.Split(key, "_")[2])
	}
	for _, service := range []*stack.Service{door, query, consumer} {
		s.Stop(service)
		said, err := service.Log()
		require.NoError(t, err)
		require.Contains(t, said, `"level":"DEBUG"`, service.Name())
		for _, secret := range secrets {
			require.NotContains(t, said, secret, service.Name())
		}
		require.NotContains(t, said, "no such host")
	}
}

// Each certificate that cannot be served keeps a service from starting, in words that name the file and the reason.
func TestCertificatesThatCannotBeServedAreRefusedAtTheStart(t *testing.T) {
	s := story.New(t)
	ca := certstest.New(t)
	good, other := ca.Issue(t), ca.Issue(t)
	expired := ca.IssueFor(t, time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour), "localhost")
	for name, tc := range map[string]struct {
		environ map[string]string
		words   []string
	}{
		"expired":    {map[string]string{"TLS_CERT_FILE": expired.Cert, "TLS_KEY_FILE": expired.Key}, []string{"TLS_CERT_FILE", expired.Cert, "has expired on"}},
		"mismatch":   {map[string]string{"TLS_CERT_FILE": good.Cert, "TLS_KEY_FILE": other.Key}, []string{"TLS_KEY_FILE", other.Key, "is not the key of the certificate in " + good.Cert}},
		"missing":    {map[string]string{"TLS_CERT_FILE": "/none/cert.pem", "TLS_KEY_FILE": good.Key}, []string{"TLS_CERT_FILE: there is no file /none/cert.pem"}},
		"half":       {map[string]string{"TLS_CERT_FILE": good.Cert}, []string{"TLS_CERT_FILE is set and TLS_KEY_FILE is not"}},
		"keys":       {map[string]string{"API_KEYS_FILE": "/none/keys"}, []string{"API_KEYS_FILE", "/none/keys", "tidemark keys create"}},
		"open":       {map[string]string{"BIND_ADDRESS": "0.0.0.0"}, []string{"API_KEYS_FILE", "AUTH=off"}},
		"contradict": {map[string]string{"BIND_ADDRESS": "0.0.0.0", "AUTH": "off", "API_KEYS_FILE": "/none/keys"}, []string{"contradict"}},
		"kafka":      {map[string]string{"KAFKA_TLS_CA_FILE": good.Key, "KAFKA_SASL_MECHANISM": "PLAIN"}, []string{"KAFKA_TLS_CA_FILE", good.Key, "no certificate", "needs KAFKA_SASL_USERNAME"}},
	} {
		t.Run(name, func(t *testing.T) {
			service := s.Service("command-service", tc.environ)
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			status, err := service.Exited(ctx)
			require.NoError(t, err)
			require.Equal(t, 1, status)
			said, err := service.Log()
			require.NoError(t, err)
			for _, w := range tc.words {
				require.True(t, bytes.Contains([]byte(said), []byte(w)), "%s in: %s", w, said)
			}
		})
	}
}

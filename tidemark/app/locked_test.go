package app_test

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/shared/auth"
	"github.com/tidemark/tidemark/shared/certs/certstest"
	"github.com/tidemark/tidemark/tidemark/app"
	"github.com/tidemark/tidemark/tidemark/internal/client"
)

// A run is open on loopback, and locked where it is given keys; with a certificate its services meet by HTTPS.
func TestUpHonoursKeysAndACertificate(t *testing.T) {
	t.Parallel()
	ca := certstest.New(t)
	pair := ca.Issue(t)
	file := filepath.Join(t.TempDir(), "keys")
	_, key, err := auth.Create(file, "test", []string{"admin"}, time.Time{}, time.Now())
	require.NoError(t, err)
	o := app.Options{DataDir: t.TempDir(), Ports: freePorts(t), Environ: map[string]string{
		"API_KEYS_FILE": file, "TLS_CERT_FILE": pair.Cert, "TLS_KEY_FILE": pair.Key, "LOG_LEVEL": "warn",
	}}
	u := start(t, o)
	require.Regexp(t, "^https://127.0.0.1:", u.Services["query-service"])
	services := client.Services{URLs: u.Services, CAFile: ca.File}
	stranger := client.New(services)
	defer stranger.Close()
	_, err = stranger.Stamp(t.Context(), "", "")
	var refused *client.Problem
	require.ErrorAs(t, err, &refused)
	require.Equal(t, 401, refused.Status)
	services.APIKey = key
	u.client = client.New(services)
	defer u.client.Close()
	require.Equal(t, "2009-09-28T19:03:12Z", stamp(t, u, "2009-09-28T19:03:12Z").EventTimestamp)

	elsewhere := ca.IssueFor(t, time.Now().Add(-time.Hour), time.Now().Add(time.Hour), "tidemark.example")
	o.Environ = map[string]string{"TLS_CERT_FILE": elsewhere.Cert, "TLS_KEY_FILE": elsewhere.Key}
	require.ErrorContains(t, o.Validate(), "is not for 127.0.0.1, where the services reach each other")
}

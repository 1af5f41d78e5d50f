package security_test

import (
	"net/url"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/integration/stack"
	"github.com/tidemark/tidemark/shared/await"
	"github.com/tidemark/tidemark/shared/certs/certstest"
	"github.com/tidemark/tidemark/shared/config"
	"github.com/tidemark/tidemark/shared/postgres"
)

// startPostgres starts a server for this test alone.
func startPostgres(t *testing.T) *stack.Postgres {
	t.Helper()
	p, err := stack.StartPostgres(t.Context())
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, p.Close()) })
	return p
}

// by returns the server's URL with these settings, and localhost for its host.
func by(t *testing.T, p *stack.Postgres, settings map[string]string) string {
	t.Helper()
	u, err := url.Parse(p.URL())
	require.NoError(t, err)
	q := url.Values{}
	for name, value := range settings {
		q.Set(name, value)
	}
	u.RawQuery = q.Encode()
	return u.String()
}

func connect(t *testing.T, dbURL string) error {
	t.Helper()
	c := config.DefaultPostgres()
	c.URL = dbURL
	db, err := postgres.Open(c, "test", postgres.ReaderLimits)
	require.NoError(t, err)
	defer func() { require.NoError(t, db.Close()) }()
	return db.PingContext(t.Context())
}

func TestTheDatabaseIsReachedByTLSOrTheRefusalSaysWhyNot(t *testing.T) {
	t.Parallel()
	p := startPostgres(t)
	ca, other := certstest.New(t), certstest.New(t)
	full := map[string]string{"sslmode": "verify-full", "sslrootcert": ca.File}
	err := connect(t, by(t, p, full))
	require.Contains(t, postgres.CauseOf(err).Found, "does not speak TLS, which sslmode of DB_URL asks for")

	pair := ca.Issue(t)
	require.NoError(t, p.EnableTLS(t.Context(), pair.Cert, pair.Key))
	require.NoError(t, connect(t, by(t, p, full)))
	require.NoError(t, connect(t, p.URL()), "without TLS as before")
	for _, mode := range []string{"verify-full", "verify-ca"} {
		err = connect(t, by(t, p, map[string]string{"sslmode": mode, "sslrootcert": other.File}))
		require.ErrorContains(t, err, "not signed by any authority in "+other.File+" (sslrootcert of DB_URL)", mode)
		require.NotContains(t, err.Error(), passwordOf(t, p.URL()))
	}
	elsewhere := ca.IssueFor(t, early, late, "db.example")
	require.NoError(t, p.EnableTLS(t.Context(), elsewhere.Cert, elsewhere.Key))
	await.Until(t, func() bool { err = connect(t, by(t, p, full)); return err != nil })
	require.ErrorContains(t, err, "for another host name")

	nonsense := filepath.Join(t.TempDir(), "nonsense.pem")
	require.NoError(t, os.WriteFile(nonsense, []byte("nonsense"), 0o600))
	for _, file := range []string{nonsense, "/none/root.pem"} {
		c := config.DefaultPostgres()
		c.URL = by(t, p, map[string]string{"sslmode": "verify-full", "sslrootcert": file})
		require.ErrorContains(t, c.Validate(), "sslrootcert of DB_URL")
		require.ErrorContains(t, c.Validate(), file)
	}
}

func passwordOf(t *testing.T, dbURL string) string {
	t.Helper()
	u, err := url.Parse(dbURL)
	require.NoError(t, err)
	secret, _ := u.User.Password()
	require.NotEmpty(t, secret)
	return secret
}

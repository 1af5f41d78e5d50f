package security_test

import (
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/integration/stack"
	"github.com/tidemark/tidemark/shared/await"
	"github.com/tidemark/tidemark/shared/config"
	"github.com/tidemark/tidemark/shared/freeport"
	"github.com/tidemark/tidemark/shared/postgres"
	"github.com/tidemark/tidemark/shared/schema"
)

// startPgBouncer starts one before the server, and returns the database's URL by way of it.
func startPgBouncer(t *testing.T, p *stack.Postgres, mode string) string {
	t.Helper()
	port, err := freeport.Find(t.Context())
	require.NoError(t, err)
	u, err := url.Parse(p.URL())
	require.NoError(t, err)
	dir, err := os.MkdirTemp("", "tidemark-pgbouncer-") //nolint:usetesting // another user must read it, and the folder of t.TempDir is closed to others
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	require.NoError(t, os.Chmod(dir, 0o755)) //nolint:gosec // for that user
	file := filepath.Join(dir, "pgbouncer.ini")
	ini := fmt.Sprintf(`[databases]
* = host=127.0.0.1 port=%d user=%s password=%s
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = %d
unix_socket_dir =
auth_type = any
pool_mode = %s
default_pool_size = 20
`, p.Port(), u.User.Username(), passwordOf(t, p.URL()), port, mode)
	require.NoError(t, os.WriteFile(file, []byte(ini), 0o644)) //nolint:gosec // for that user
	args := []string{file}
	if os.Getuid() == 0 { // it refuses to run as root
		args = []string{"-u", "nobody", file}
	}
	log := filepath.Join(t.TempDir(), "log")
	d, err := stack.StartDaemon(t.Context(), log, "pgbouncer", args...)
	require.NoError(t, err)
	t.Cleanup(func() {
		_ = d.Kill()
		if t.Failed() {
			t.Log(d.LogTail())
		}
	})
	u.Host = fmt.Sprintf("127.0.0.1:%d", port)
	await.NoError(t, func() error { return connect(t, u.String()) })
	return u.String()
}

// Tidemark needs sessions of its own: it holds session locks and prepares statements. A pooler that gives each client
// one will do; one that divides sessions by transactions is refused in words before anything is written.
func TestAPoolerMustGiveEachClientItsSession(t *testing.T) {
	t.Parallel()
	p := startPostgres(t)
	for mode, fits := range map[string]bool{"session": true, "transaction": false} {
		c := config.DefaultPostgres()
		c.URL = startPgBouncer(t, p, mode)
		db, err := postgres.Open(c, "test", postgres.WriterLimits)
		require.NoError(t, err)
		err = postgres.CheckFit(t.Context(), db, true)
		if fits {
			require.NoError(t, err)
			require.NoError(t, schema.Apply(t.Context(), db))
			var timeout string
			require.NoError(t, db.GetContext(t.Context(), &timeout, `SELECT current_setting('lock_timeout')`))
			require.Equal(t, "10s", timeout, "set after connecting")
		} else {
			require.ErrorContains(t, err, "a pooler in transaction mode")
			require.Contains(t, postgres.CauseOf(err).Do, "pool_mode = session")
		}
		require.NoError(t, postgres.Close(db))
	}
}

package stack_test

import (
	"context"
	"database/sql"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/integration/stack"
	"github.com/tidemark/tidemark/shared/freeport"
)

func TestServiceIsStartedStoppedAndKilled(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	programs, err := stack.Build(ctx, "query-service")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, programs.Remove()) })
	nobody, err := freeport.Find(ctx)
	require.NoError(t, err)

	s, err := stack.StartService(ctx, stack.ServiceOptions{
		Program: programs.Path("query-service"), Log: filepath.Join(t.TempDir(), "log"),
		Env: map[string]string{"DB_URL": "postgres://nobody@127.0.0.1:" + strconv.Itoa(nobody) + "/none?sslmode=disable"},
	})
	require.NoError(t, err)
	t.Cleanup(func() { _ = s.Kill() }) // it may have ended
	require.Equal(t, "query-service", s.Name())
	require.NoError(t, s.Healthy(ctx))
	require.False(t, s.IsReady(ctx), "without a database")
	soonOver, cancelSoon := context.WithTimeout(ctx, 100*time.Millisecond)
	defer cancelSoon()
	require.ErrorContains(t, s.Ready(soonOver), "listening", "the log tells why")
	require.Error(t, s.Start(ctx, nil), "it is running")

	require.NoError(t, s.Signal(syscall.SIGSTOP))
	require.NoError(t, s.Stop(ctx), "a stopped one is woken to hear it")
	require.False(t, s.Running())

	url := s.URL()
	require.NoError(t, s.Start(ctx, nil))
	require.NoError(t, s.Healthy(ctx))
	require.Equal(t, url, s.URL())
	require.NoError(t, s.Kill())
	require.False(t, s.Running())

	require.NoError(t, s.Start(ctx, map[string]string{"LOG_LEVEL": "loud"}))
	require.ErrorContains(t, s.Ready(ctx), "LOG_LEVEL")
	status, err := s.Exited(ctx)
	require.NoError(t, err)
	require.Equal(t, 1, status)
	require.NoError(t, s.Start(ctx, map[string]string{"LOG_LEVEL": ""}))
	require.NoError(t, s.Healthy(ctx))
}

func TestBuildSaysWhatIsWrong(t *testing.T) {
	t.Parallel()
	_, err := stack.Build(t.Context(), "no-service")
	require.ErrorContains(t, err, "no-service")
}

func TestPostgresThroughAProxy(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	p, err := stack.StartPostgres(ctx)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, p.Close()) })
	url, err := p.CreateDatabase(ctx, "facts")
	require.NoError(t, err)
	proxy := proxied(t, p.Address())
	through, err := stack.Through(proxy, url)
	require.NoError(t, err)

	direct, proxied := open(t, url), open(t, through)
	_, err = direct.ExecContext(ctx, "CREATE TABLE facts (fact text); INSERT INTO facts VALUES ('it stays')")
	require.NoError(t, err)
	require.Equal(t, "it stays", fact(ctx, t, proxied))
	proxy.Cut()
	require.Error(t, proxied.PingContext(ctx))
	require.NoError(t, direct.PingContext(ctx))
	proxy.Pass()
	require.Equal(t, "it stays", fact(ctx, t, proxied))

	require.NoError(t, p.Restart(ctx))
	require.Equal(t, "it stays", fact(ctx, t, open(t, url)))
	require.NoError(t, p.Signal(syscall.SIGKILL))
	<-p.Done()
	require.NoError(t, p.Restart(ctx))
	require.Equal(t, "it stays", fact(ctx, t, open(t, url)))

	require.NoError(t, stack.DropDatabase(ctx, p.URL(), url))
	require.Error(t, open(t, url).PingContext(ctx))
}

func open(t *testing.T, url string) *sql.DB {
	t.Helper()
	db, err := sql.Open("postgres", url)
	require.NoError(t, err)
	t.Cleanup(func() { _ = db.Close() })
	return db
}

func fact(ctx context.Context, t *testing.T, db *sql.DB) (fact string) {
	t.Helper()
	require.NoError(t, db.QueryRowContext(ctx, "SELECT fact FROM facts").Scan(&fact))
	return fact
}

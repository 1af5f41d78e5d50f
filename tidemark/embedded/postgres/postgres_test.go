package postgres_test

import (
	"context"
	"database/sql"
	"fmt"
	"io"
	"log/slog"
	"net"
	neturl "net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	_ "github.com/lib/pq"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/tidemark/tidemark/shared/await"
	"github.com/tidemark/tidemark/tidemark/embedded/postgres"
	"github.com/tidemark/tidemark/tidemark/internal/datadir"
)

// runDirVariable turns the test binary into a process that runs a server until it is killed.
const runDirVariable = "POSTGRES_TEST_RUN_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(runDirVariable); dir != "" {
		s, err := postgres.Start(context.Background(), postgres.Options{DataDir: dir})
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println(s.URL())
		_, _ = io.Copy(io.Discard, os.Stdin) // which the parent holds open
		runtime.KeepAlive(s)                 // and with it the lock of its folder
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

func start(t *testing.T, opts postgres.Options) *postgres.Server {
	t.Helper()
	if opts.DataDir == "" {
		opts.DataDir = t.TempDir()
	}
	opts.Log = slog.New(slog.NewTextHandler(t.Output(), nil))
	s, err := postgres.Start(t.Context(), opts)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	return s
}

func open(t *testing.T, url string) *sql.DB {
	t.Helper()
	db, err := sql.Open("postgres", url)
	require.NoError(t, err)
	t.Cleanup(func() { _ = db.Close() })
	return db
}

func value(t *testing.T, db *sql.DB, query string) string {
	t.Helper()
	var v string
	require.NoError(t, db.QueryRowContext(t.Context(), query).Scan(&v))
	return v
}

func exec1(t *testing.T, db *sql.DB, statement string) {
	t.Helper()
	_, err := db.ExecContext(t.Context(), statement)
	require.NoError(t, err)
}

func TestServerIsAsPromised(t *testing.T) {
	t.Parallel()
	s := start(t, postgres.Options{ExtraSettings: map[string]string{"max_connections": "37"}})
	db := open(t, s.URL())
	for setting, wanted := range map[string]string{
		"server_encoding": "UTF8", "lc_collate": "C", "lc_ctype": "C", "timezone": "UTC", "listen_addresses": "127.0.0.1",
		"fsync": "on", "full_page_writes": "on", "synchronous_commit": "on", "unix_socket_directories": "", "max_connections": "37",
		"port": strconv.Itoa(s.Port()),
	} {
		require.Equal(t, wanted, value(t, db, "SELECT COALESCE((SELECT setting FROM pg_settings WHERE lower(name) = '"+setting+
			"'), (SELECT CASE '"+setting+"' WHEN 'lc_collate' THEN datcollate ELSE datctype END FROM pg_database WHERE datname = current_database()))"), setting)
	}
	require.True(t, strings.HasPrefix(value(t, db, "SHOW server_version"), "18."))
	require.Equal(t, "tidemark", value(t, db, "SELECT current_database()"))
}

func TestWrongPasswordIsRefused(t *testing.T) {
	t.Parallel()
	s := start(t, postgres.Options{})
	wrong := open(t, fmt.Sprintf("postgres://tidemark:wrong@127.0.0.1:%d/tidemark?sslmode=disable", s.Port()))
	require.ErrorContains(t, wrong.PingContext(t.Context()), "password authentication failed")
}

func TestDataPortAndPasswordStayOverARestart(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := start(t, postgres.Options{DataDir: dir})
	exec1(t, open(t, s.URL()), "CREATE TABLE kept AS SELECT 'value' AS v")
	url := s.URL()
	require.NoError(t, s.Close())
	select {
	case <-s.Done():
	default:
		require.Fail(t, "closed, and its process still runs")
	}

	again := start(t, postgres.Options{DataDir: dir})
	require.Equal(t, url, again.URL())
	require.Equal(t, "value", value(t, open(t, url), "SELECT v FROM kept"))
	for _, file := range []string{"server.json"} {
		info, err := os.Stat(filepath.Join(dir, file))
		require.NoError(t, err)
		require.Equal(t, os.FileMode(0o600), info.Mode().Perm())
	}
}

func TestRestartInPlace(t *testing.T) {
	t.Parallel()
	s := start(t, postgres.Options{})
	db := open(t, s.URL())
	exec1(t, db, "CREATE TABLE kept AS SELECT 'value' AS v")

	require.NoError(t, s.Restart(t.Context()))
	require.Equal(t, "value", value(t, db, "SELECT v FROM kept"))

	require.NoError(t, s.Signal(syscall.SIGKILL))
	<-s.Done()
	require.NoError(t, s.Restart(t.Context()))
	require.Equal(t, "value", value(t, db, "SELECT v FROM kept"))

	require.NoError(t, s.Signal(syscall.SIGSTOP))
	require.NoError(t, s.Signal(syscall.SIGCONT))
	require.Equal(t, "value", value(t, db, "SELECT v FROM kept"))
}

// A killed parent takes its server with it, and the next one finds what was committed.
func TestKilledParentLeavesDataAndNoServer(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	ready, w, err := os.Pipe()
	require.NoError(t, err)
	defer ready.Close()
	parent := exec.Command(os.Args[0])
	parent.Env = append(os.Environ(), runDirVariable+"="+dir)
	parent.Stdout, parent.Stderr = w, os.Stderr
	_, err = parent.StdinPipe() // closed by Wait
	require.NoError(t, err)
	require.NoError(t, parent.Start())
	require.NoError(t, w.Close())
	line := make([]byte, 1000)
	n, err := ready.Read(line)
	require.NoError(t, err)
	url := strings.TrimSpace(string(line[:n]))
	db := open(t, url)
	exec1(t, db, "CREATE TABLE kept AS SELECT 'value' AS v")
	postmaster := value(t, db, "SELECT (string_to_array(pg_read_file('postmaster.pid'), E'\\n'))[1]")
	require.NoError(t, db.Close())

	require.NoError(t, parent.Process.Kill())
	_ = parent.Wait()
	if runtime.GOOS == "linux" {
		// Before any next start: a killed parent may be the last one.
		where, err := neturl.Parse(url)
		require.NoError(t, err)
		await.Until(t, func() bool {
			conn, err := net.Dial("tcp", where.Host)
			if err == nil {
				_ = conn.Close()
			}
			return err != nil
		})
	}
	s := start(t, postgres.Options{DataDir: dir})
	require.Equal(t, url, s.URL())
	require.Equal(t, "value", value(t, open(t, url), "SELECT v FROM kept"))
	require.NotEqual(t, postmaster, value(t, open(t, url), "SELECT (string_to_array(pg_read_file('postmaster.pid'), E'\\n'))[1]"))
}

// In a container the number in a stale pid file soon belongs to another process.
func TestPidFileOfAnotherProcessIsNoHindrance(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := start(t, postgres.Options{DataDir: dir})
	exec1(t, open(t, s.URL()), "CREATE TABLE kept AS SELECT 'value' AS v")
	pidFile := filepath.Join(dir, "cluster", "postmaster.pid")
	content, err := os.ReadFile(pidFile)
	require.NoError(t, err)
	require.NoError(t, s.Close())
	_, rest, _ := strings.Cut(string(content), "\n")
	bystander := exec.Command("sleep", "600")
	// PostgreSQL is misled only by a process that its own user could signal.
	cluster, err := os.Stat(filepath.Join(dir, "cluster"))
	require.NoError(t, err)
	if owner := cluster.Sys().(*syscall.Stat_t); os.Geteuid() == 0 {
		bystander.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: owner.Uid, Gid: owner.Gid}}
	}
	require.NoError(t, bystander.Start())
	defer func() {
		_ = bystander.Process.Kill()
		_ = bystander.Wait()
	}()
	require.NoError(t, os.WriteFile(pidFile, fmt.Appendf(nil, "%d\n%s", bystander.Process.Pid, rest), 0o644))

	again := start(t, postgres.Options{DataDir: dir})
	require.Equal(t, "value", value(t, open(t, again.URL()), "SELECT v FROM kept"))
	require.NoError(t, bystander.Process.Signal(syscall.Signal(0)))
}

func TestOneServerADirectory(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	start(t, postgres.Options{DataDir: dir})
	_, err := postgres.Start(t.Context(), postgres.Options{DataDir: dir})
	require.ErrorIs(t, err, datadir.ErrLocked)
}

func TestPortInUseIsAnErrorAndLeavesTheDirectoryFree(t *testing.T) {
	t.Parallel()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer taken.Close()
	dir := t.TempDir()
	port := taken.Addr().(*net.TCPAddr).Port
	_, err = postgres.Start(t.Context(), postgres.Options{DataDir: dir, Port: port})
	require.ErrorContains(t, err, "address already in use")
	require.NoError(t, taken.Close())
	require.Equal(t, port, start(t, postgres.Options{DataDir: dir, Port: port}).Port())
}

// What the server says against its settings reaches whoever made them.
func TestBadSettingIsNamed(t *testing.T) {
	t.Parallel()
	_, err := postgres.Start(t.Context(), postgres.Options{DataDir: t.TempDir(), ExtraSettings: map[string]string{"no_such_setting": "1"}})
	require.ErrorContains(t, err, "no_such_setting")
}

func TestStartEndsWithItsContext(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	<-ctx.Done()
	_, err := postgres.Start(ctx, postgres.Options{DataDir: t.TempDir()})
	require.ErrorIs(t, err, context.DeadlineExceeded)
}

package main_test

import (
	"bytes"
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/integration/stack"
	"github.com/tidemark/tidemark/shared/await"
)

// setup builds the command and gives it a temporary folder of its own, to see what it leaves there.
func setup(t *testing.T) (program, temporary string) {
	t.Helper()
	program, temporary = filepath.Join(t.TempDir(), "servers"), t.TempDir()
	output, err := exec.CommandContext(t.Context(), "go", "build", "-o", program, ".").CombinedOutput()
	require.NoError(t, err, string(output))
	// Postgres runs as somebody else where the test runs as root.
	for dir := temporary; len(dir) > len(os.TempDir()); dir = filepath.Dir(dir) {
		require.NoError(t, os.Chmod(dir, 0o755))
	}
	return program, temporary
}

func command(ctx context.Context, program, temporary string, args ...string) (*exec.Cmd, *bytes.Buffer) {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = append(os.Environ(), "TMPDIR="+temporary)
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	return cmd, &output
}

func requireNothingLeft(t *testing.T, temporary, broker string) {
	t.Helper()
	left, err := os.ReadDir(temporary)
	require.NoError(t, err)
	for _, entry := range left {
		require.Contains(t, entry.Name(), "hsperfdata", "only Java's own folder may stay")
	}
	conn, err := new(net.Dialer).DialContext(t.Context(), "tcp", broker)
	if err == nil {
		_ = conn.Close()
	}
	require.ErrorIs(t, err, syscall.ECONNREFUSED)
}

func TestServersRunAroundACommandAndLeaveNothing(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{stack.ApacheKafka, stack.Embedded} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			program, temporary := setup(t)
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			defer cancel()
			cmd, output := command(ctx, program, temporary, "--broker", kind, "--",
				"sh", "-c", `echo "$TEST_BROKER|$TEST_KAFKA_BROKERS|$TEST_DB_URL"; mktemp >/dev/null; sleep 300 & exit 7`)
			err := cmd.Run()
			var exit *exec.ExitError
			require.ErrorAs(t, err, &exit, output.String())
			require.Equal(t, 7, exit.ExitCode(), output.String())
			said := strings.Split(strings.TrimSpace(output.String()), "|")
			require.Len(t, said, 3, output.String())
			require.Equal(t, kind, said[0])
			require.Regexp(t, regexp.MustCompile(`^127\.0\.0\.1:\d+$`), said[1])
			require.Regexp(t, regexp.MustCompile(`^postgres://.*@127\.0\.0\.1:\d+/`), said[2])
			requireNothingLeft(t, temporary, said[1])
		})
	}
}

func TestServersToldToStopStopTheCommandFirst(t *testing.T) {
	t.Parallel()
	program, temporary := setup(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	ready := filepath.Join(t.TempDir(), "ready")
	cmd, output := command(ctx, program, temporary, "--broker", stack.Embedded, "--",
		"sh", "-c", `trap 'echo told; exit 0' TERM; echo "$TEST_KAFKA_BROKERS" >`+ready+`.new; mv `+ready+`.new `+ready+`; while true; do sleep 0.05; done`)
	require.NoError(t, cmd.Start())
	await.Until(t, func() bool { _, err := os.Stat(ready); return err == nil })
	broker, err := os.ReadFile(ready)
	require.NoError(t, err)
	require.NoError(t, cmd.Process.Signal(syscall.SIGTERM))
	_ = cmd.Wait() // interrupted is no success; what it left behind is the question
	require.Contains(t, output.String(), "told")
	requireNothingLeft(t, temporary, strings.TrimSpace(string(broker)))
}

func TestServersThatAreKilledTakeTheirServersAlong(t *testing.T) {
	t.Parallel()
	if runtime.GOOS != "linux" {
		t.Skip("only Linux kills a child whose parent was killed")
	}
	program, temporary := setup(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	ready := filepath.Join(t.TempDir(), "ready")
	cmd, output := command(ctx, program, temporary, "--",
		"sh", "-c", `echo "$TEST_KAFKA_BROKERS" >`+ready+`.new; mv `+ready+`.new `+ready+`; exec sleep 60`)
	cmd.Stdout, cmd.Stderr = nil, nil // or the test would wait for whoever inherited them
	require.NoError(t, cmd.Start())
	await.Until(t, func() bool { _, err := os.Stat(ready); return err == nil }, output)
	broker, err := os.ReadFile(ready)
	require.NoError(t, err)
	require.NoError(t, cmd.Process.Kill())
	_ = cmd.Wait() // killed
	await.Until(t, func() bool {
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", strings.TrimSpace(string(broker)))
		if err == nil {
			_ = conn.Close()
		}
		return err != nil
	})
}

func TestServersWithoutACommandSaySo(t *testing.T) {
	t.Parallel()
	program, temporary := setup(t)
	cmd, output := command(t.Context(), program, temporary)
	require.Error(t, cmd.Run())
	require.Contains(t, output.String(), "no command to run")
}

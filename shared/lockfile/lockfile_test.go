//go:build unix

package lockfile

import (
	"bufio"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
)

const heldBy = "LOCKFILE_TEST_PATH"

// TestMain is the process that is killed, where it is told what to hold. It holds the lock until its input ends: waiting
// for nothing at all would end it at once, as a deadlock, and a lock that nothing refers to is closed with its file.
func TestMain(m *testing.M) {
	if path := os.Getenv(heldBy); path != "" {
		lock, err := Acquire(path)
		if err != nil {
			panic(err)
		}
		_, _ = os.Stdout.WriteString("held\n")
		_, _ = io.Copy(io.Discard, os.Stdin)
		runtime.KeepAlive(lock)
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func TestTheSecondIsToldWhoHoldsTheLock(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "lock")
	pid, err := Holder(path)
	require.NoError(t, err)
	require.Empty(t, pid)
	require.NoFileExists(t, path, "asking makes nothing")
	first, err := Acquire(path)
	require.NoError(t, err)
	_, err = Acquire(path)
	require.ErrorIs(t, err, ErrHeld)
	require.ErrorContains(t, err, strconv.Itoa(os.Getpid()))
	pid, err = Holder(path)
	require.NoError(t, err)
	require.Equal(t, strconv.Itoa(os.Getpid()), pid)
	require.NoError(t, first.Release())
	pid, err = Holder(path)
	require.NoError(t, err)
	require.Empty(t, pid)
	again, err := Acquire(path)
	require.NoError(t, err)
	require.NoError(t, again.Release())
}

// Children inherit every open file until they run their own program, and with it the lock.
func TestALockThatIsReleasedIsFreeWhileChildrenAreForked(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	var forking sync.WaitGroup
	for range 4 {
		forking.Go(func() {
			for ctx.Err() == nil {
				_ = exec.CommandContext(ctx, "true").Run()
			}
		})
	}
	defer forking.Wait()
	defer cancel()
	path := filepath.Join(t.TempDir(), "lock")
	for range 300 {
		lock, err := Acquire(path)
		require.NoError(t, err)
		require.NoError(t, lock.Release())
	}
}

func TestALockEndsWithItsProcess(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "lock")
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), heldBy+"="+path)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	_, err = cmd.StdinPipe() // closed by Wait
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	said, err := bufio.NewReader(out).ReadString('\n')
	require.NoError(t, err)
	require.Equal(t, "held\n", said)
	_, err = Acquire(path)
	require.ErrorIs(t, err, ErrHeld)
	require.ErrorContains(t, err, strconv.Itoa(cmd.Process.Pid))
	require.NoError(t, cmd.Process.Kill())
	_ = cmd.Wait() // it was killed
	lock, err := Acquire(path)
	require.NoError(t, err)
	require.NoError(t, lock.Release())
}

// Two may not hold the lock on two files of one name, however many remove theirs meanwhile.
func TestOneHoldsTheLockWhileOthersRemoveIt(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "lock")
	var holders, held atomic.Int32
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for held.Load() < 50 {
				lock, err := Acquire(path)
				if errors.Is(err, ErrHeld) {
					continue
				}
				if err != nil {
					t.Error(err)
					return
				}
				if holders.Add(1) != 1 {
					t.Error("two hold the lock")
				}
				held.Add(1)
				runtime.Gosched()
				holders.Add(-1)
				if err := lock.Remove(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	require.NoFileExists(t, path)
}

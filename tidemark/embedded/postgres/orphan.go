package postgres

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/tidemark/tidemark/shared/loop"
)

// endOrphan clears the way for a server on dir, whose lock the caller holds: a server that is still there has lost its
// parent and is ended. A pid file that names somebody else's process is removed, because PostgreSQL, which cannot tell,
// would refuse to start: in a container the same few numbers come back after every restart.
func endOrphan(ctx context.Context, dir string) error {
	file := filepath.Join(dir, "postmaster.pid")
	content, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	first, _, _ := strings.Cut(string(content), "\n")
	pid, err := strconv.Atoi(strings.TrimSpace(first))
	if err != nil || pid <= 1 || !alive(pid) {
		return nil // PostgreSQL itself sees that such a file is stale.
	}
	if !serves(pid, dir) {
		return os.Remove(file)
	}
	for _, sig := range []syscall.Signal{immediateShutdown, syscall.SIGKILL} {
		if err := syscall.Kill(pid, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("end the server that a killed parent left (process %d): %w", pid, err)
		}
		for giveUp := time.Now().Add(immediateStop); time.Now().Before(giveUp); {
			if !alive(pid) || !serves(pid, dir) {
				return nil
			}
			if err := loop.Sleep(ctx, pollEvery); err != nil {
				return err
			}
		}
	}
	return fmt.Errorf("the server that a killed parent left (process %d) does not end", pid)
}

func alive(pid int) bool {
	err := syscall.Kill(pid, 0)
	return err == nil || errors.Is(err, syscall.EPERM)
}

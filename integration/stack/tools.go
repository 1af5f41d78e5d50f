package stack

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// Program finds a program that tests ask for its opinion, such as promtool or nginx: on the PATH, or where `make setup`
// put it.
func Program(name string) (string, error) {
	path, missing := exec.LookPath(name)
	if missing == nil {
		return path, nil
	}
	root, err := Root()
	if err != nil {
		return "", err
	}
	for _, folder := range []string{"bin", "sbin"} {
		path := filepath.Join(root, ".cache", "tools", "usr", folder, name)
		if info, err := os.Stat(path); err == nil && info.Mode()&0o111 != 0 {
			return path, nil
		}
	}
	return "", fmt.Errorf("%w: run `make setup`, which fetches it or says how to", missing)
}

// Daemon is some other program that runs beside a test, such as nginx, and dies with it.
type Daemon struct{ process *process }

// StartDaemon runs a program, found by Program or by its path, with nothing but a PATH in its environment and its
// output in the file log. The context bounds the start only.
func StartDaemon(ctx context.Context, log, program string, args ...string) (*Daemon, error) {
	path, err := Program(program)
	if err != nil {
		return nil, err
	}
	p, err := startProcess(ctx, filepath.Base(program), log, []string{"PATH=" + os.Getenv("PATH")}, path, args...)
	if err != nil {
		return nil, err
	}
	return &Daemon{p}, nil
}

// Kill ends it.
func (d *Daemon) Kill() error { return d.process.kill() }

// LogTail returns the end of what it wrote.
func (d *Daemon) LogTail() string { return tail(d.process.log, 8000) }

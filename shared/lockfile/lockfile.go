// Package lockfile keeps two processes, or two parts of one, from doing the same thing at the same time.
//
// The lock is the kernel's (flock) and ends with its process, however that dies: no lock file that was left behind is ever
// in the way. The file names the process that held it last. What is locked, and how long to wait for it, is left to the
// callers.
package lockfile

import (
	"errors"
	"fmt"
	"os"
	"strings"
)

// ErrHeld says that somebody holds the lock.
var ErrHeld = errors.New("in use by another process")

// Lock is held until it is released or its process ends.
type Lock struct{ file *os.File }

// Acquire takes the lock of the file path, which it makes where it is missing, in a folder that must be there. It fails at
// once, with ErrHeld and the process id of the holder, where somebody holds it.
func Acquire(path string) (*Lock, error) {
	for {
		file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
		if err != nil {
			return nil, fmt.Errorf("open lock file: %w", err)
		}
		held, err := flock(file)
		if err == nil && held {
			err = fmt.Errorf("%s: %w (process %s)", path, ErrHeld, holder(path))
		}
		if err == nil && removed(file, path) {
			_ = file.Close() // its lock keeps nobody out any more
			continue
		}
		if err == nil {
			err = sign(file)
		}
		if err != nil {
			_ = errors.Join(unlock(file), file.Close()) // the first error is the one to tell
			return nil, err
		}
		return &Lock{file}, nil
	}
}

// removed reports whether path is another file by now, or none: whoever held the lock of this one has removed it.
func removed(file *os.File, path string) bool {
	mine, err := file.Stat()
	if err != nil {
		return true
	}
	there, err := os.Stat(path)
	return err != nil || !os.SameFile(mine, there)
}

// sign writes down who holds the lock.
func sign(file *os.File) error {
	err := file.Truncate(0)
	if err == nil {
		_, err = file.WriteAt(fmt.Appendf(nil, "%d\n", os.Getpid()), 0)
	}
	if err != nil {
		return fmt.Errorf("write lock file: %w", err)
	}
	return nil
}

// Release gives the lock back. Its file stays.
func (l *Lock) Release() error { return errors.Join(unlock(l.file), l.file.Close()) }

// Remove gives the lock back and leaves no file.
func (l *Lock) Remove() error {
	return errors.Join(os.Remove(l.file.Name()), unlock(l.file), l.file.Close())
}

// Holder returns the process id of whoever holds the lock of path, or "" when nobody does.
func Holder(path string) (string, error) {
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	lock, err := Acquire(path)
	if errors.Is(err, ErrHeld) {
		return holder(path), nil
	}
	if err != nil {
		return "", err
	}
	return "", lock.Release()
}

func holder(path string) string {
	written, err := os.ReadFile(path)
	if pid := strings.TrimSpace(string(written)); err == nil && pid != "" {
		return pid
	}
	return "unknown" // it is about to write it down
}

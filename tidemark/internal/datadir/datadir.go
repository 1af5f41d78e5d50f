//go:build unix

// Package datadir guards a directory that only one process may write at a time and keeps small facts in it.
//
// It promises that a lock ends with its process, however that dies, and that a fact is either wholly there or not at all.
// What the facts mean is left to the callers.
package datadir

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// ErrLocked says that another living process holds the directory.
var ErrLocked = errors.New("directory is in use by another process")

// Lock is the exclusive hold on a directory; the caller releases it.
type Lock struct{ file *os.File }

// Acquire makes dir where it is missing, for its owner only, and takes its lock, or fails at once with ErrLocked and the process id of the holder.
func Acquire(dir string) (*Lock, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make data directory: %w", err)
	}
	name := filepath.Join(dir, "lock")
	file, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open lock file: %w", err)
	}
	// The kernel drops a flock with its process, so that no lock file of a killed process is ever in the way.
	if err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		holder, _ := os.ReadFile(name)
		_ = file.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("%s: %w (process %s)", dir, ErrLocked, strings.TrimSpace(string(holder)))
		}
		return nil, fmt.Errorf("lock %s: %w", name, err)
	}
	if err := file.Truncate(0); err == nil {
		_, err = file.WriteAt(fmt.Appendf(nil, "%d\n", os.Getpid()), 0)
		if err != nil {
			_ = file.Close()
			return nil, fmt.Errorf("write lock file: %w", err)
		}
	}
	return &Lock{file: file}, nil
}

// Release gives the directory back.
func (l *Lock) Release() error { return l.file.Close() }

// ReadFact reads the JSON file name in dir into fact; one that is not there leaves fact as it is.
func ReadFact(dir, name string, fact any) error {
	raw, err := os.ReadFile(filepath.Join(dir, name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := json.Unmarshal(raw, fact); err != nil {
		return fmt.Errorf("read %s: %w", filepath.Join(dir, name), err)
	}
	return nil
}

// WriteFact replaces the JSON file name in dir, readable by its owner only: a crash leaves the old or the new one.
func WriteFact(dir, name string, fact any) error {
	raw, err := json.MarshalIndent(fact, "", "  ")
	if err != nil {
		return err
	}
	file, err := os.CreateTemp(dir, name+".*")
	if err != nil {
		return err
	}
	defer os.Remove(file.Name())
	_, err = file.Write(append(raw, '\n'))
	err = errors.Join(err, file.Sync(), file.Close())
	if err != nil {
		return err
	}
	return os.Rename(file.Name(), filepath.Join(dir, name))
}

// RemoveFact drops the file name in dir; one that is not there is no error.
func RemoveFact(dir, name string) error {
	err := os.Remove(filepath.Join(dir, name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// Held returns the process id of the holder as it wrote it down, or "" when nobody holds dir.
func Held(dir string) (string, error) {
	if _, err := os.Stat(filepath.Join(dir, "lock")); errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	lock, err := Acquire(dir)
	if errors.Is(err, ErrLocked) {
		holder, err := os.ReadFile(filepath.Join(dir, "lock"))
		return strings.TrimSpace(string(holder)), err
	}
	if err != nil {
		return "", err
	}
	return "", lock.Release()
}

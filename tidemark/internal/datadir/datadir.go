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

	"github.com/tidemark/tidemark/shared/lockfile"
)

// ErrLocked says that another living process holds the directory.
var ErrLocked = lockfile.ErrHeld

// Acquire makes dir where it is missing, for its owner only, and takes its lock, which the caller releases. It fails at once
// with ErrLocked and the process id of the holder where another one has it.
func Acquire(dir string) (*lockfile.Lock, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make data directory: %w", err)
	}
	return lockfile.Acquire(lockOf(dir))
}

// Held returns the process id of the holder, or "" when nobody holds dir.
func Held(dir string) (string, error) { return lockfile.Holder(lockOf(dir)) }

func lockOf(dir string) string { return filepath.Join(dir, "lock") }

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

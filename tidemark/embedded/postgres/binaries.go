package postgres

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/tidemark/tidemark/shared/loop"
	"github.com/tidemark/tidemark/tidemark/internal/datadir"
)

// binaries returns the directory of the server's programs, which it fetches into the cache where they are not there.
// Processes that start together wait for the first one's fetch.
func binaries(ctx context.Context, cache string, user *account, fetching func()) (string, error) {
	cache, err := cacheDir(cache, user)
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cache, "postgres-"+version)
	if complete(dir) {
		return dir, nil
	}
	lock, err := datadir.Acquire(cache)
	for errors.Is(err, datadir.ErrLocked) {
		if err = loop.Sleep(ctx, 5*pollEvery); err == nil {
			lock, err = datadir.Acquire(cache)
		}
	}
	if err != nil {
		return "", fmt.Errorf("wait for the cache of binaries: %w", err)
	}
	defer func() { _ = lock.Release() }() // a lock that cannot be released ends with the process
	if complete(dir) {
		return dir, nil
	}
	if fetching != nil {
		fetching()
	}
	if err := fetch(ctx, repository, cache, dir); err != nil {
		return "", fmt.Errorf("fetch PostgreSQL %s: %w (without a way to Maven Central, set DB_URL to a server of your own)", version, err)
	}
	return dir, nil
}

// cacheDir makes sure of the directory for binaries. Root's own cache is closed to the server's account.
func cacheDir(dir string, user *account) (string, error) {
	if dir == "" && user != nil {
		dir = "/var/cache/tidemark"
	}
	if dir == "" {
		users, err := os.UserCacheDir()
		if err != nil {
			return "", fmt.Errorf("find a cache for binaries: %w", err)
		}
		dir = filepath.Join(users, "tidemark")
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	return dir, os.MkdirAll(dir, 0o755)
}

// complete says whether the binaries are in dir; they arrive there as a whole.
func complete(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, "bin", "postgres"))
	return err == nil
}

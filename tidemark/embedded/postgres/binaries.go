package postgres

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"time"

	embeddedpostgres "github.com/fergusstrange/embedded-postgres"

	"github.com/tidemark/tidemark/shared/loop"
	"github.com/tidemark/tidemark/tidemark/internal/datadir"
)

const version = embeddedpostgres.V18

// binaries returns the directory of the server's programs, which it fetches into the cache where they are not there.
// Processes that start together wait for the first one's fetch.
func binaries(ctx context.Context, cache string, user *account, fetching func()) (string, error) {
	cache, err := cacheDir(cache, user)
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cache, "postgres-"+string(version))
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
	if err := fetch(ctx, cache, dir); err != nil {
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

// fetch downloads and unpacks the binaries beside dir and moves them there. The library that knows where they are cannot
// be told to stop before it starts a server of its own, which has none of the properties that this package promises; so
// it gets a data directory that no call can remove (os.RemoveAll refuses a path that ends in "."), and its failure there
// is the success looked for.
func fetch(ctx context.Context, cache, dir string) error {
	work, err := os.MkdirTemp(cache, "fetch-")
	if err != nil {
		return err
	}
	unpacked := filepath.Join(work, "postgres")
	config := embeddedpostgres.DefaultConfig().
		Version(version).
		Port(0).
		CachePath(filepath.Join(work, "archive")).
		RuntimePath(filepath.Join(work, "runtime")).
		BinariesPath(unpacked).
		DataPath(work + "/.").
		StartTimeout(time.Second).
		Logger(io.Discard)
	fetched := make(chan error, 1)
	go func() {
		defer os.RemoveAll(work)
		started := embeddedpostgres.NewDatabase(config).Start()
		http.DefaultClient.CloseIdleConnections() // which the library used
		if !complete(unpacked) {
			fetched <- started
			return
		}
		fetched <- errors.Join(readable(unpacked), os.Rename(unpacked, dir))
	}()
	select {
	case err := <-fetched:
		return err
	case <-ctx.Done():
		return context.Cause(ctx) // The library takes no context; its download goes on and is used by the next start.
	}
}

// readable opens the unpacked files to the server's account, whatever the umask was.
func readable(dir string) error {
	return filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.Type()&fs.ModeSymlink != 0 {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		mode := info.Mode().Perm() | 0o444
		if entry.IsDir() || mode&0o100 != 0 {
			mode |= 0o111
		}
		return os.Chmod(path, mode)
	})
}

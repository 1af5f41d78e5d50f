package auth

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync/atomic"
	"time"

	"github.com/tidemark/tidemark/shared/loop"
)

// reloadEvery is how soon a change of the keys file takes effect.
const reloadEvery = time.Second

// repeatErrorEvery is how often the error of a keys file that cannot be used is logged again.
const repeatErrorEvery = time.Minute

// Keyring holds the keys of a file and follows its changes. It is safe for concurrent use.
type Keyring struct {
	path string
	log  *slog.Logger
	keys atomic.Pointer[map[string]Entry]

	// The rest is for Open and Watch alone, but for stale.
	content  []byte    // of the last version that was read, good or bad
	failure  string    // why the newest version cannot be used
	loggedAt time.Time // when failure was logged last
	stale    atomic.Bool
}

// Open reads the file for the first time. Without a good first version there is no keyring.
func Open(path string, log *slog.Logger) (*Keyring, error) {
	k := &Keyring{path: path, log: log}
	content, keys, err := k.read()
	if err != nil {
		return nil, fmt.Errorf("API_KEYS_FILE: %w", err)
	}
	k.content = content
	k.keys.Store(&keys)
	if warning := permissions(path); warning != "" {
		log.Warn("the keys file should be closed to others", "path", path, "reason", warning)
	}
	log.Info("API keys are read", "path", path, "keys", len(keys))
	return k, nil
}

// Check judges a key. It says nothing of why a key is not right.
func (k *Keyring) Check(key string, now time.Time) (Caller, bool) {
	id := idOf(key)
	e, known := (*k.keys.Load())[id]
	if !known {
		e.Hash = nobodysHash
	}
	right := sameHash(e.Hash, hashOf(key))
	if !right || !known || id == "" || e.State(now) != "active" {
		return Caller{}, false
	}
	return Caller{ID: e.ID, Name: e.Name, Scopes: e.Scopes, key: key}, true
}

// Stale reports whether the file has changed into something that cannot be used, so that the keys of its last
// good version are still valid.
func (k *Keyring) Stale() bool { return k.stale.Load() }

// Watch follows the file until ctx ends. It compares contents and not times, so it notices an edit in place,
// a rename over the name, and Kubernetes' exchange of the folder behind a link, all alike.
func (k *Keyring) Watch(ctx context.Context) {
	loop.Every(ctx, reloadEvery, func(context.Context) { k.reload(time.Now()) })
}

// reload takes up a new version of the file.
func (k *Keyring) reload(now time.Time) {
	content, keys, err := k.read()
	if err != nil {
		// A broken version must not lock everybody out, and must not pass unnoticed: a key that it was to
		// revoke is still valid.
		if failure := err.Error(); failure != k.failure || now.Sub(k.loggedAt) >= repeatErrorEvery {
			k.failure, k.loggedAt = failure, now
			k.log.Error("the keys file cannot be used: the keys of its last good version stay valid, revoked ones among them", "path", k.path, "err", err)
		}
		k.content = nil // whatever comes next is a change
		k.stale.Store(true)
		return
	}
	k.stale.Store(false)
	if k.failure == "" && bytes.Equal(content, k.content) {
		return
	}
	k.content, k.failure = content, ""
	k.keys.Store(&keys)
	k.log.Info("the keys file has changed: its keys are used from now on", "path", k.path, "keys", len(keys))
	if warning := permissions(k.path); warning != "" {
		k.log.Warn("the keys file should be closed to others", "path", k.path, "reason", warning)
	}
}

func (k *Keyring) read() ([]byte, map[string]Entry, error) {
	content, err := readBounded(k.path)
	if err != nil {
		return nil, nil, err
	}
	entries, err := parseFile(content)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", k.path, err)
	}
	if len(entries) == 0 { // as a file that is just being written looks, too
		return nil, nil, fmt.Errorf("%s holds no key: make one with tidemark keys create", k.path)
	}
	keys := make(map[string]Entry, len(entries))
	for _, e := range entries {
		keys[e.ID] = e
	}
	return content, keys, nil
}

// permissions says who else can get at the file, or "".
func permissions(path string) string {
	info, err := os.Stat(path)
	if err != nil {
		return ""
	}
	switch mode := info.Mode().Perm(); {
	case mode&0o022 != 0:
		return fmt.Sprintf("its mode is %04o: whoever can write it can let anybody in; chmod 600", mode)
	case mode&0o007 != 0:
		return fmt.Sprintf("its mode is %04o: everybody on this machine can read which keys there are; chmod 600", mode)
	}
	return ""
}

// CheckFile reports what keeps a keys file from being used, so that a configuration can be judged before
// anything is started.
func CheckFile(path string) error {
	_, _, err := (&Keyring{path: path}).read()
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%w: make it with tidemark keys create --file %s", err, path)
	}
	return err
}

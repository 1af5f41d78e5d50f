package auth

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"sync/atomic"
	"time"

	"github.com/tidemark/tidemark/shared/filewatch"
	"github.com/tidemark/tidemark/shared/loop"
)

// repeatErrorEvery is how often the error of a keys file that cannot be used is logged again.
const repeatErrorEvery = time.Minute

// Keyring holds the keys of a file and follows its changes. It is safe for concurrent use.
type Keyring struct {
	path string
	log  *slog.Logger
	keys atomic.Pointer[map[string]Entry]

	// The rest is for Open and Watch alone, but for stale and lost.
	versions filewatch.Versions
	content  []byte            // of the last version that was taken up; nil after one that cannot be used
	missing  map[string]string // names of the keys that an earlier version had and the last one has not, by id
	lost     atomic.Int64      // how many those are
	failure  string            // why the newest version cannot be used
	loggedAt time.Time         // when failure was logged last
	stale    atomic.Bool
}

// Open reads the file for the first time. Without a good first version there is no keyring.
func Open(path string, log *slog.Logger) (*Keyring, error) {
	k := &Keyring{path: path, log: log, missing: map[string]string{}}
	content, keys, err := k.read()
	if err != nil {
		return nil, fmt.Errorf("API_KEYS_FILE: %w", err)
	}
	k.content = content
	k.noteLost(content, nil, keys)
	k.versions.Still(time.Time{}, content, nil)
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

// Lost is how many keys the file should have, by its own note or because an earlier version had them since Open, and has not. Keys
// are revoked, not removed, so a file that lost some was perhaps cut.
func (k *Keyring) Lost() int64 { return k.lost.Load() }

// Watch follows the file until ctx ends. A change counts once the file is still: see package filewatch.
func (k *Keyring) Watch(ctx context.Context) {
	loop.Every(ctx, filewatch.LookEvery, func(context.Context) { k.reload(time.Now()) })
}

// reload takes up a new version of the file, once that is still.
func (k *Keyring) reload(now time.Time) {
	content, keys, err := k.read()
	var unreadable []byte // a file that cannot be read is a version too
	if content == nil && err != nil {
		unreadable = []byte(err.Error())
	}
	if !k.versions.Still(now, content, unreadable) {
		return
	}
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
	k.noteLost(content, *k.keys.Swap(&keys), keys)
	k.log.Info("the keys file has changed: its keys are used from now on", "path", k.path, "keys", len(keys))
	if warning := permissions(k.path); warning != "" {
		k.log.Warn("the keys file should be closed to others", "path", k.path, "reason", warning)
	}
}

// noteLost tells of keys that the new version of the file has no more, or should have.
func (k *Keyring) noteLost(content []byte, old, now map[string]Entry) {
	should := noted(content)
	for id, e := range old {
		should[id] = e.Name
	}
	var names []string
	for id, name := range should {
		_, known := k.missing[id]
		if _, there := now[id]; !there && !known {
			k.missing[id] = name
			names = append(names, fmt.Sprintf("%s (%s)", name, id))
		}
	}
	maps.DeleteFunc(k.missing, func(id, _ string) bool { _, there := now[id]; return there })
	k.lost.Store(int64(len(k.missing)))
	if len(names) > 0 {
		slices.Sort(names)
		k.log.Warn("the keys file has lost keys, which are refused from now on: was it cut? revoke keys with tidemark keys revoke, which leaves their entries", "path", k.path, "lost", names)
	}
}

// read returns the content with the error of a version that cannot be used, and none where it cannot be read.
func (k *Keyring) read() ([]byte, map[string]Entry, error) {
	content, err := readBounded(k.path)
	if err != nil {
		return nil, nil, err
	}
	entries, err := parseFile(content)
	if err != nil {
		return content, nil, fmt.Errorf("%s: %w", k.path, err)
	}
	if len(entries) == 0 { // as a file that is just being written looks, too
		return content, nil, fmt.Errorf("%s holds no key: make one with tidemark keys create", k.path)
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

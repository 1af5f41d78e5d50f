package auth

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/tidemark/tidemark/shared/lockfile"
)

// Entry is what the keys file says of one key: a JSON object on a line of its own. The file holds no key,
// only hashes, so who reads it cannot call; who writes it can let anybody in.
type Entry struct {
	ID      string     `json:"id"`                // the part of the key that is no secret
	Name    string     `json:"name"`              // what the key was made for
	Scopes  []Scope    `json:"scopes"`            // what the key may do
	Hash    string     `json:"hash"`              // sha256: and the hash of the whole key in hexadecimal
	Created time.Time  `json:"created"`           // when the key was made
	Expires *time.Time `json:"expires,omitempty"` // when the key ends; never where it is nil
	Revoked *time.Time `json:"revoked,omitempty"` // when the key was revoked; nil where it was not
}

// State is active, expired or revoked.
func (e Entry) State(now time.Time) string {
	switch {
	case e.Revoked != nil:
		return "revoked"
	case e.Expires != nil && !now.Before(*e.Expires):
		return "expired"
	}
	return "active"
}

const (
	maxFile = 4 << 20 // some 20,000 keys
	maxName = 100
)

// parseFile reads the lines of a keys file. Empty lines and those that begin with # say nothing. The error
// names the first line that is wrong.
func parseFile(content []byte) ([]Entry, error) {
	var entries []Entry
	seen := map[string]int{}
	for i, line := range bytes.Split(content, []byte("\n")) {
		line = bytes.TrimSpace(line)
		if len(line) == 0 || line[0] == '#' {
			continue
		}
		e, err := parseEntry(line)
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", i+1, err)
		}
		if first, twice := seen[e.ID]; twice {
			return nil, fmt.Errorf("line %d: the id %s stands in line %d too", i+1, e.ID, first)
		}
		seen[e.ID] = i + 1
		entries = append(entries, e)
	}
	return entries, nil
}

func parseEntry(line []byte) (Entry, error) {
	var raw struct {
		Entry
		Scopes []string `json:"scopes"`
	}
	d := json.NewDecoder(bytes.NewReader(line))
	d.DisallowUnknownFields() // a misspelt "revoked" would leave a key valid
	if err := d.Decode(&raw); err != nil {
		return Entry{}, fmt.Errorf("no JSON object of a key: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return Entry{}, errors.New("something follows the JSON object: one key a line")
	}
	e := raw.Entry
	scopes, err := parseScopes(raw.Scopes)
	if err != nil {
		return Entry{}, err
	}
	e.Scopes = scopes
	if !isID(e.ID) {
		return Entry{}, fmt.Errorf("the id %q is none: up to 32 lower case letters and digits", e.ID)
	}
	sum, named := strings.CutPrefix(e.Hash, hashName)
	if b, err := hex.DecodeString(sum); !named || err != nil || hashName+hex.EncodeToString(b) != e.Hash || len(e.Hash) != len(nobodysHash) {
		return Entry{}, errors.New(`the hash is none: "sha256:" and 64 hexadecimal digits in lower case`)
	}
	return e, nil
}

// idsLine begins the comment in which Create and Revoke note the ids and names of all keys, as a JSON object, before the
// entries: a file that was cut loses its end, and so it is known what was lost.
const idsLine = "# ids: "

// noted returns the names of the keys that the file should have, by id; none where nobody noted them.
func noted(content []byte) map[string]string {
	names := map[string]string{}
	for line := range bytes.Lines(content) {
		if ids, found := bytes.CutPrefix(line, []byte(idsLine)); found && json.Unmarshal(ids, &names) != nil {
			return map[string]string{} // a comment of somebody else's
		}
	}
	return names
}

// LostKey is a key that the file should have and has not.
type LostKey struct {
	ID   string `json:"id"`
	Name string `json:"name"`
}

func lostFrom(content []byte, entries []Entry) []LostKey {
	names := noted(content)
	for _, e := range entries {
		delete(names, e.ID)
	}
	lost := make([]LostKey, 0, len(names))
	for _, id := range slices.Sorted(maps.Keys(names)) {
		lost = append(lost, LostKey{id, names[id]})
	}
	return lost
}

// ReadFile returns the entries of a keys file, and the keys that it has lost. The error names the file and the line.
func ReadFile(path string) ([]Entry, []LostKey, error) {
	content, err := readBounded(path)
	if err != nil {
		return nil, nil, err
	}
	entries, err := parseFile(content)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", path, err)
	}
	return entries, lostFrom(content, entries), nil
}

func readBounded(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err // it names the path
	}
	defer func() { _ = f.Close() }() // only read
	content, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, err
	}
	if len(content) > maxFile {
		return nil, fmt.Errorf("%s is larger than %d bytes", path, maxFile)
	}
	return content, nil
}

// ErrNotMade says that a key cannot be made as it is wanted: its name, its scopes or its end.
var ErrNotMade = errors.New("no such key can be made")

// Create adds a key to the file, which is made where it is missing, and returns the key. It is kept nowhere:
// this is the only time that it can be shown. An expires of zero is never.
func Create(path, name string, scopes []string, expires, now time.Time) (Entry, string, error) {
	parsed, err := parseScopes(scopes)
	if err != nil {
		return Entry{}, "", fmt.Errorf("%w: %w", ErrNotMade, err)
	}
	if strings.TrimSpace(name) == "" || len(name) > maxName {
		return Entry{}, "", fmt.Errorf("%w: a key has a name of 1 to %d bytes, to be known again by", ErrNotMade, maxName)
	}
	now = now.UTC().Truncate(time.Second)
	id, key := newKey()
	e := Entry{ID: id, Name: name, Scopes: parsed, Hash: hashOf(key), Created: now}
	if !expires.IsZero() {
		if !expires.After(now) {
			return Entry{}, "", fmt.Errorf("%w: it would have expired before it is made: %s", ErrNotMade, expires.UTC().Format(time.RFC3339))
		}
		at := expires.UTC().Truncate(time.Second)
		e.Expires = &at
	}
	line, err := json.Marshal(e)
	if err != nil {
		return Entry{}, "", err
	}
	err = change(path, true, func(lines []string, names map[string]string) ([]string, error) {
		names[e.ID] = e.Name
		if len(lines) == 0 {
			lines = []string{"# API keys of Tidemark, one a line: hashes, no keys. tidemark keys create|list|revoke"}
		}
		return append(lines, string(line)), nil
	})
	return e, key, err
}

// ErrNoKey says that no entry has the id.
var ErrNoKey = errors.New("no key has this id")

// Revoke marks the key in the file. It is never removed, so that the list says what there was. A key that
// is revoked already keeps its time. One that the file has lost is not missed any more.
func Revoke(path, id string, now time.Time) (Entry, error) {
	var revoked Entry
	err := change(path, false, func(lines []string, names map[string]string) ([]string, error) {
		for i, line := range lines {
			e, err := parseEntry([]byte(line))
			if err != nil || e.ID != id {
				continue // a comment, or another key: the file was read before
			}
			if e.Revoked == nil {
				at := now.UTC().Truncate(time.Second)
				e.Revoked = &at
			}
			changed, err := json.Marshal(e)
			if err != nil {
				return nil, err
			}
			revoked, lines[i] = e, string(changed)
			return lines, nil
		}
		if name, lost := names[id]; lost {
			at := now.UTC().Truncate(time.Second)
			revoked = Entry{ID: id, Name: name, Revoked: &at}
			delete(names, id)
			return lines, nil
		}
		return nil, fmt.Errorf("%w: %s in %s", ErrNoKey, id, path)
	})
	return revoked, err
}

// change writes a whole new file into the same folder and renames it over the old one. So no reader ever sees a
// part of it, and a crash leaves the old one. A lock file in the same folder keeps two changes apart.
// edit is given the lines without the note of all keys, and that note.
func change(path string, create bool, edit func(lines []string, names map[string]string) ([]string, error)) (err error) {
	// The name may be a link; the file behind it is the one to replace.
	if behind, err := filepath.EvalSymlinks(path); err == nil {
		path = behind
	}
	turn, err := lock(path + ".lock")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, turn.Remove()) }()
	content, err := readBounded(path)
	mode, names := fs.FileMode(0o600), noted(content)
	switch {
	case errors.Is(err, fs.ErrNotExist) && create:
	case err != nil:
		return err
	default:
		entries, err := parseFile(content)
		if err != nil {
			return fmt.Errorf("%s: %w: mend it first", path, err)
		}
		for _, e := range entries {
			names[e.ID] = e.Name
		}
		if info, err := os.Stat(path); err == nil {
			mode = info.Mode().Perm()
		}
	}
	var lines []string
	if text := strings.TrimRight(string(content), "\n"); text != "" {
		lines = strings.Split(text, "\n")
	}
	lines = slices.DeleteFunc(lines, func(line string) bool { return strings.HasPrefix(line, idsLine) })
	if lines, err = edit(lines, names); err != nil {
		return err
	}
	note, err := json.Marshal(names)
	if err != nil {
		return err
	}
	lines = slices.Insert(lines, 0, idsLine+string(note))
	return replace(path, []byte(strings.Join(lines, "\n")+"\n"), mode)
}

func replace(path string, content []byte, mode fs.FileMode) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	_, err = f.Write(content)
	if err == nil {
		err = f.Chmod(mode)
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// lock waits a few seconds for its turn.
func lock(path string) (*lockfile.Lock, error) {
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		l, err := lockfile.Acquire(path)
		if !errors.Is(err, lockfile.ErrHeld) || time.Now().After(end) {
			return l, err
		}
	}
}

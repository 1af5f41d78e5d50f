package auth

import (
	"bytes"
	"fmt"
	"log/slog"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/tidemark/tidemark/shared/filewatch"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// made is a file with one key.
func made(t *testing.T, scopes ...string) (path string, e Entry, key string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "keys")
	e, key, err := Create(path, "test", scopes, time.Time{}, noon)
	require.NoError(t, err)
	return path, e, key
}

func TestOnlyTheWholeKeyIsRight(t *testing.T) {
	t.Parallel()
	path, e, key := made(t, "read", "write")
	require.Regexp(t, `^tmk_[a-z2-7]{10}_[a-z2-7]{26}$`, key)
	k, err := Open(path, quiet())
	require.NoError(t, err)
	caller, ok := k.Check(key, noon)
	require.True(t, ok)
	require.Equal(t, e.ID, caller.ID)
	require.Equal(t, "test", caller.Name)
	for scope, may := range map[Scope]bool{None: true, Read: true, Write: true, Admin: false, "": false} {
		require.Equal(t, may, caller.May(scope), scope)
	}
	_, other, err := Create(filepath.Join(t.TempDir(), "other"), "test", []string{"admin"}, time.Time{}, noon)
	require.NoError(t, err)
	flipped := []byte(key)
	flipped[len(flipped)-1] ^= 1
	for _, wrong := range []string{
		"", "tmk_", "tmk__", "tmk_" + e.ID, "tmk_" + e.ID + "_", key[:len(key)-1], key + "a", string(flipped), strings.ToUpper(key), " " + key,
		other, "tmk_" + e.ID + "_" + strings.SplitN(other, "_", 3)[2], e.Hash, "tmk_" + e.ID + "_" + e.Hash, strings.Repeat("tmk_a_", 1000),
	} {
		_, ok := k.Check(wrong, noon)
		require.False(t, ok, wrong)
	}
	content, err := os.ReadFile(path)
	require.NoError(t, err)
	require.NotContains(t, string(content), strings.SplitN(key, "_", 3)[2], "the file holds no secret")
}

func TestAdminIncludesTheOthers(t *testing.T) {
	t.Parallel()
	require.True(t, Caller{Scopes: []Scope{Admin}}.May(Read))
	require.True(t, Caller{Scopes: []Scope{Admin}}.May(Write))
	require.False(t, Caller{Scopes: []Scope{Write}}.May(Read))
	require.False(t, Caller{}.May(Read))
}

func TestAKeyEndsByItsTimeOrByHand(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "keys")
	e, key, err := Create(path, "short", []string{"read"}, noon.Add(time.Hour), noon)
	require.NoError(t, err)
	k, err := Open(path, quiet())
	require.NoError(t, err)
	_, ok := k.Check(key, noon.Add(time.Hour-time.Second))
	require.True(t, ok)
	_, ok = k.Check(key, noon.Add(time.Hour))
	require.False(t, ok)

	revoked, err := Revoke(path, e.ID, noon.Add(time.Minute))
	require.NoError(t, err)
	require.Equal(t, "revoked", revoked.State(noon))
	k.reload(noon)
	k.reload(noon.Add(filewatch.StillFor))
	_, ok = k.Check(key, noon)
	require.False(t, ok)
	again, err := Revoke(path, e.ID, noon.Add(time.Hour))
	require.NoError(t, err)
	require.Equal(t, revoked, again, "the first end stays")
	_, err = Revoke(path, "nobody", noon)
	require.ErrorIs(t, err, ErrNoKey)
}

func TestKeysThatCannotBeMade(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "keys")
	for _, tc := range []struct {
		name, words string
		scopes      []string
		expires     time.Time
	}{
		{"", "a name of 1 to 100 bytes", []string{"read"}, time.Time{}},
		{strings.Repeat("x", 101), "a name of 1 to 100 bytes", []string{"read"}, time.Time{}},
		{"x", "at least one scope", nil, time.Time{}},
		{"x", `"root" is no scope`, []string{"read", "root"}, time.Time{}},
		{"x", "a key carries read, write or admin", []string{"none"}, time.Time{}},
		{"x", "would have expired", []string{"read"}, noon.Add(-time.Second)},
	} {
		_, _, err := Create(path, tc.name, tc.scopes, tc.expires, noon)
		require.ErrorIs(t, err, ErrNotMade)
		require.ErrorContains(t, err, tc.words)
	}
	require.NoFileExists(t, path)
}

func TestFilesThatAreRefusedNameTheLine(t *testing.T) {
	t.Parallel()
	hash := hashName + strings.Repeat("ab", 32)
	good := `{"id":"a","name":"n","scopes":["read"],"hash":"` + hash + `","created":"2026-03-01T12:00:00Z"}`
	for content, words := range map[string]string{
		"":                  "holds no key",
		"# nothing yet\n\n": "holds no key",
		good + "\n" + good:  "line 2: the id a stands in line 1 too",
		good + "\n{":        "line 2: no JSON object",
		good + " " + good:   "line 1: something follows",
		strings.Replace(good, `"name"`, `"revokd":"2026-03-01T12:00:00Z","name"`, 1): "revokd",
		strings.Replace(good, `["read"]`, `["reed"]`, 1):                             `"reed" is no scope`,
		strings.Replace(good, `["read"]`, `[]`, 1):                                   "at least one scope",
		strings.Replace(good, hash, "sha256:abc", 1):                                 "the hash is none",
		strings.Replace(good, hash, strings.ToUpper(hash), 1):                        "the hash is none",
		strings.Replace(good, hash, strings.TrimPrefix(hash, hashName), 1):           "the hash is none",
		strings.Replace(good, `"id":"a"`, `"id":"A b"`, 1):                           "the id",
	} {
		path := filepath.Join(t.TempDir(), "keys")
		require.NoError(t, os.WriteFile(path, []byte(content), 0o600))
		_, err := Open(path, quiet())
		require.ErrorContains(t, err, words, content)
		require.ErrorContains(t, err, path)
	}
	_, err := Open(filepath.Join(t.TempDir(), "none"), quiet())
	require.ErrorContains(t, err, "API_KEYS_FILE")
	require.ErrorContains(t, CheckFile(filepath.Join(t.TempDir(), "none")), "tidemark keys create")
}

// A change keeps comments, order and mode, and two at once lose nothing.
func TestChangesAreWholeAndKeepTheRest(t *testing.T) {
	t.Parallel()
	path, first, _ := made(t, "read")
	content, err := os.ReadFile(path)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(path, append(content, "# a comment\n"...), 0o600))
	require.NoError(t, os.Chmod(path, 0o640))
	link := filepath.Join(t.TempDir(), "link")
	require.NoError(t, os.Symlink(path, link))
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			if _, _, err := Create(link, fmt.Sprint("key ", i), []string{"read"}, time.Time{}, noon); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	entries, _, err := ReadFile(path)
	require.NoError(t, err)
	require.Len(t, entries, 9)
	require.Equal(t, first, entries[0])
	content, err = os.ReadFile(path)
	require.NoError(t, err)
	require.Contains(t, string(content), "# a comment\n")
	info, err := os.Lstat(path)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o640), info.Mode(), "the file itself was replaced, with its mode")
	info, err = os.Lstat(link)
	require.NoError(t, err)
	require.NotZero(t, info.Mode()&os.ModeSymlink, "the link is still one")
	files, err := os.ReadDir(filepath.Dir(path))
	require.NoError(t, err)
	require.Len(t, files, 1, "nothing is left lying around")

	require.NoError(t, os.WriteFile(path, []byte("{broken\n"), 0o600))
	_, _, err = Create(path, "x", []string{"read"}, time.Time{}, noon)
	require.ErrorContains(t, err, "mend it first")
}

// Each way in which a file comes to be another one is noticed, Kubernetes' exchange of a folder behind a
// link among them.
func TestTheFileIsFollowed(t *testing.T) {
	t.Parallel()
	for name, exchange := range map[string]func(t *testing.T, dir, path string, content []byte){
		"written in place": func(t *testing.T, _, path string, content []byte) {
			require.NoError(t, os.WriteFile(path, content, 0o600))
		},
		"renamed over": func(t *testing.T, dir, path string, content []byte) {
			require.NoError(t, os.WriteFile(filepath.Join(dir, "new"), content, 0o600))
			require.NoError(t, os.Rename(filepath.Join(dir, "new"), path))
		},
		"a folder behind a link": func(t *testing.T, dir, _ string, content []byte) {
			require.NoError(t, os.Mkdir(filepath.Join(dir, "..2"), 0o700))
			require.NoError(t, os.WriteFile(filepath.Join(dir, "..2", "keys"), content, 0o600))
			require.NoError(t, os.Symlink("..2", filepath.Join(dir, "..tmp")))
			require.NoError(t, os.Rename(filepath.Join(dir, "..tmp"), filepath.Join(dir, "..data")))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir() // as Kubernetes mounts a secret: keys → ..data/keys, ..data → ..1
			require.NoError(t, os.Mkdir(filepath.Join(dir, "..1"), 0o700))
			require.NoError(t, os.Symlink("..1", filepath.Join(dir, "..data")))
			path := filepath.Join(dir, "keys")
			require.NoError(t, os.Symlink("..data/keys", path))
			_, old, err := Create(filepath.Join(dir, "..1", "keys"), "old", []string{"read"}, time.Time{}, noon)
			require.NoError(t, err)
			k, err := Open(path, quiet())
			require.NoError(t, err)
			_, ok := k.Check(old, noon)
			require.True(t, ok)

			other := filepath.Join(t.TempDir(), "keys")
			_, fresh, err := Create(other, "fresh", []string{"read"}, time.Time{}, noon)
			require.NoError(t, err)
			content, err := os.ReadFile(other)
			require.NoError(t, err)
			exchange(t, dir, path, content)
			k.reload(noon)
			_, ok = k.Check(fresh, noon)
			require.False(t, ok, "a change counts once the file is still")
			k.reload(noon.Add(filewatch.StillFor))
			_, ok = k.Check(fresh, noon)
			require.True(t, ok)
			_, ok = k.Check(old, noon)
			require.False(t, ok)
		})
	}
}

func TestABrokenVersionKeepsTheOldAndSaysSoLoudly(t *testing.T) {
	t.Parallel()
	path, _, key := made(t, "read")
	good, err := os.ReadFile(path)
	require.NoError(t, err)
	var said bytes.Buffer
	k, err := Open(path, slog.New(slog.NewTextHandler(&said, nil)))
	require.NoError(t, err)
	now := noon
	settle := func() {
		k.reload(now)
		now = now.Add(filewatch.StillFor)
		k.reload(now)
	}
	for what, breakIt := range map[string]func() error{
		"nonsense": func() error { return os.WriteFile(path, []byte("nonsense"), 0o600) },
		"empty":    func() error { return os.WriteFile(path, nil, 0o600) },
		"gone":     func() error { return os.Remove(path) },
	} {
		require.NoError(t, breakIt())
		said.Reset()
		k.reload(now)
		require.Empty(t, said.String(), "it is perhaps being written")
		settle()
		require.True(t, k.Stale())
		require.Contains(t, said.String(), "level=ERROR", what)
		require.Contains(t, said.String(), "stay valid", what)
		said.Reset()
		k.reload(now.Add(30 * time.Second))
		require.Empty(t, said.String(), "once a minute")
		now = now.Add(time.Minute)
		k.reload(now)
		require.Contains(t, said.String(), "level=ERROR", "and again")
		_, ok := k.Check(key, noon)
		require.True(t, ok, what)

		said.Reset()
		require.NoError(t, os.WriteFile(path, good, 0o600))
		settle()
		require.False(t, k.Stale())
		require.Contains(t, said.String(), "are used from now on", "the same content again is reported after a version that could not be used")
		said.Reset()
		settle()
		require.Empty(t, said.String())
	}
}

// A file that is written in place is cut for a moment, and one that stays cut is told of by the names of what it lost.
func TestAFileThatIsCutCountsWhenItIsStillAndItsLossIsTold(t *testing.T) {
	t.Parallel()
	path, _, first := made(t, "read")
	whole, _, err := Create(path, "night operator", []string{"admin"}, time.Time{}, noon)
	require.NoError(t, err)
	_, second, err := Create(path, "third", []string{"admin"}, time.Time{}, noon)
	require.NoError(t, err)
	good, err := os.ReadFile(path)
	require.NoError(t, err)
	cut := good[:bytes.LastIndex(good, []byte(whole.ID))]
	cut = cut[:bytes.LastIndexByte(cut, '\n')+1]
	var said bytes.Buffer
	k, err := Open(path, slog.New(slog.NewTextHandler(&said, nil)))
	require.NoError(t, err)
	said.Reset()

	for now := noon; now.Before(noon.Add(20 * filewatch.StillFor)); now = now.Add(filewatch.StillFor - time.Millisecond) {
		content := cut // a writer that stops short in the middle, again and again
		if (now.Sub(noon)/(filewatch.StillFor-time.Millisecond))%2 == 1 {
			content = good
		}
		require.NoError(t, os.WriteFile(path, content, 0o600))
		k.reload(now)
		_, ok := k.Check(second, noon)
		require.True(t, ok)
	}
	require.Empty(t, said.String())
	require.Zero(t, k.Lost())

	later := noon.Add(time.Hour)
	require.NoError(t, os.WriteFile(path, cut, 0o600))
	k.reload(later)
	k.reload(later.Add(filewatch.StillFor))
	_, ok := k.Check(second, noon)
	require.False(t, ok)
	_, ok = k.Check(first, noon)
	require.True(t, ok)
	require.Contains(t, said.String(), "level=WARN")
	require.Contains(t, said.String(), "night operator ("+whole.ID+")")
	require.EqualValues(t, 2, k.Lost())
	require.NoError(t, os.WriteFile(path, good, 0o600))
	k.reload(later.Add(time.Hour))
	k.reload(later.Add(2 * time.Hour))
	require.Zero(t, k.Lost(), "they are back")

	// A service that starts with the cut file finds out from the file itself.
	require.NoError(t, os.WriteFile(path, cut, 0o600))
	said.Reset()
	k, err = Open(path, slog.New(slog.NewTextHandler(&said, nil)))
	require.NoError(t, err)
	require.EqualValues(t, 2, k.Lost())
	require.Contains(t, said.String(), "night operator ("+whole.ID+")")
	_, lost, err := ReadFile(path)
	require.NoError(t, err)
	require.Len(t, lost, 2)
	_, _, err = Create(path, "fourth", []string{"read"}, time.Time{}, noon)
	require.NoError(t, err)
	_, still, err := ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, lost, still, "a new key does not make them forgotten")
	gone, err := Revoke(path, whole.ID, noon)
	require.NoError(t, err)
	require.Equal(t, "night operator", gone.Name)
	_, still, err = ReadFile(path)
	require.NoError(t, err)
	require.Len(t, still, 1)
}

func TestWatchLooksEachSecond(t *testing.T) {
	t.Parallel()
	path, _, key := made(t, "read")
	synctest.Test(t, func(t *testing.T) {
		k, err := Open(path, quiet())
		require.NoError(t, err)
		go k.Watch(t.Context())
		other := filepath.Join(filepath.Dir(path), "other")
		_, _, err = Create(other, "fresh", []string{"read"}, time.Time{}, noon)
		require.NoError(t, err)
		require.NoError(t, os.Rename(other, path))
		time.Sleep(filewatch.StillFor + 2*filewatch.LookEvery)
		synctest.Wait()
		_, ok := k.Check(key, noon)
		require.False(t, ok)
	})
}

func TestOpenPermissionsAreWarnedAbout(t *testing.T) {
	t.Parallel()
	path, _, _ := made(t, "read")
	for mode, words := range map[os.FileMode]string{0o600: "", 0o640: "", 0o400: "", 0o644: "everybody on this machine", 0o660: "can write it", 0o666: "can write it"} {
		require.NoError(t, os.Chmod(path, mode))
		var said bytes.Buffer
		_, err := Open(path, slog.New(slog.NewTextHandler(&said, nil)))
		require.NoError(t, err)
		require.Equal(t, words != "", strings.Contains(said.String(), "WARN"), mode)
		require.Contains(t, said.String(), words)
	}
}

func TestBucketsAreBoundedAndByName(t *testing.T) {
	t.Parallel()
	l := newLimits(2, 3, 2)
	for range 3 {
		_, ok := l.Take("a", noon)
		require.True(t, ok)
	}
	wait, ok := l.Take("a", noon)
	require.False(t, ok)
	require.Equal(t, 500*time.Millisecond, wait)
	_, ok = l.Take("b", noon)
	require.True(t, ok, "another name has another bucket")
	_, ok = l.Take("a", noon.Add(500*time.Millisecond))
	require.True(t, ok, "who was refused did not pay")
	_, ok = l.Take("c", noon)
	require.True(t, ok)
	require.Equal(t, 2, l.buckets.Len())
	require.NotContains(t, l.buckets.Keys(), "b", "the one that was not asked for longest made room")
}

func TestNetworksOfAddresses(t *testing.T) {
	t.Parallel()
	for address, want := range map[string]string{
		"10.1.2.3": "10.1.2.3", "::ffff:10.1.2.3": "10.1.2.3", "2001:db8:1:2:3:4:5:6": "2001:db8:1:2::/64", "2001:db8:1:2::9": "2001:db8:1:2::/64",
		"fe80::1%eth0": "fe80::/64", "": "", "nonsense": "nonsense",
	} {
		require.Equal(t, want, Network(address))
	}
}

func TestTheCallersKeyIsPassedOn(t *testing.T) {
	t.Parallel()
	path, _, key := made(t, "read")
	k, err := Open(path, quiet())
	require.NoError(t, err)
	caller, ok := k.Check(key, noon)
	require.True(t, ok)
	r := httptest.NewRequest("GET", "/", nil)
	PassOn(r)
	require.Empty(t, r.Header)
	r = r.WithContext(WithCaller(r.Context(), caller))
	PassOn(r)
	require.Equal(t, key, Bearer(r))
	found, ok := FromContext(r.Context())
	require.True(t, ok)
	require.Equal(t, caller, found)
	require.NotContains(t, fmt.Sprintf("%v %+v %#v %s", found, found, found, found), key)
	for _, header := range []string{"", "Basic " + key, key, "Bearer"} {
		r.Header.Set("Authorization", header)
		require.Empty(t, Bearer(r), header)
	}
	r.Header.Set("Authorization", "bearer  "+key)
	require.Equal(t, key, Bearer(r))
}

func FuzzParseFile(f *testing.F) {
	f.Add([]byte(`{"id":"a","name":"n","scopes":["read"],"hash":"sha256:` + strings.Repeat("ab", 32) + `","created":"2026-03-01T12:00:00Z"}` + "\n#\n"))
	f.Add([]byte("{}\n"))
	f.Fuzz(func(t *testing.T, content []byte) {
		entries, err := parseFile(content)
		if err != nil {
			return
		}
		for _, e := range entries {
			require.True(t, isID(e.ID))
			require.NotEmpty(t, e.Scopes)
			require.Len(t, e.Hash, len(nobodysHash))
		}
	})
}

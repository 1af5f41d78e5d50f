package postgres

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/ulikunitz/xz"
)

// The binaries are those that zonky.io builds for tests and publishes on Maven Central: one jar a platform, which holds an
// xz-compressed tar, and a file with the jar's checksum.
const (
	version    = "18.3.0"
	repository = "https://repo1.maven.org/maven2"
	mostBytes  = 256 << 20 // of a jar, and of what it holds; 15 MB and 60 MB are usual
)

// fetch downloads the binaries from repository, unpacks them into another directory and renames that to dir. A fetch that
// ctx ends, or that fails, leaves nothing.
func fetch(ctx context.Context, repository, cache, dir string) (err error) {
	name, err := artifact(runtime.GOOS, runtime.GOARCH, alpine())
	if err != nil {
		return err
	}
	work, err := os.MkdirTemp(cache, "fetch-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }()
	jar, err := download(ctx, fmt.Sprintf("%s/io/zonky/test/postgres/%s/%s/%s-%s.jar", repository, name, version, name, version))
	if err != nil {
		return err
	}
	unpacked := filepath.Join(work, "postgres")
	if err := unpack(jar, unpacked); err != nil {
		return fmt.Errorf("unpack %s: %w", name, err)
	}
	if !complete(unpacked) {
		return fmt.Errorf("%s holds no server", name)
	}
	return os.Rename(unpacked, dir)
}

// artifact is the name under which the binaries of a platform are published.
func artifact(goos, goarch string, alpine bool) (string, error) {
	arch := goarch
	if goarch == "arm64" {
		arch = "arm64v8"
	}
	switch {
	case (goos != "linux" && goos != "darwin") || (goarch != "amd64" && goarch != "arm64"):
		return "", fmt.Errorf("there are no binaries for %s on %s", goos, goarch)
	case alpine:
		arch += "-alpine"
	}
	return "embedded-postgres-binaries-" + goos + "-" + arch, nil
}

// alpine reports whether this is a Linux with the C library that is not the usual one.
func alpine() bool {
	_, err := os.Stat("/etc/alpine-release")
	return err == nil
}

// download returns the file at address, if its checksum is the one that is published with it.
func download(ctx context.Context, address string) ([]byte, error) {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport}
	content, err := get(ctx, client, address)
	if err != nil {
		return nil, err
	}
	wanted, err := get(ctx, client, address+".sha256")
	if err != nil {
		return nil, err
	}
	found := sha256.Sum256(content)
	if first, _, _ := strings.Cut(strings.TrimSpace(string(wanted)), " "); first != hex.EncodeToString(found[:]) {
		return nil, fmt.Errorf("what was downloaded from %s is not what its checksum says", address)
	}
	return content, nil
}

func get(ctx context.Context, client *http.Client, address string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, err
	}
	res, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = res.Body.Close() }() // it was read
	if res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("GET %s: %s", address, res.Status)
	}
	content, err := io.ReadAll(io.LimitReader(res.Body, mostBytes))
	if err != nil {
		return nil, fmt.Errorf("GET %s: %w", address, err)
	}
	return content, nil
}

// unpack writes the tar in a jar to dir, readable to every account, since the server may have one of its own.
func unpack(jar []byte, dir string) error {
	archive, err := zip.NewReader(bytes.NewReader(jar), int64(len(jar)))
	if err != nil {
		return err
	}
	for _, f := range archive.File {
		if !strings.HasSuffix(f.Name, ".txz") {
			continue
		}
		packed, err := f.Open()
		if err != nil {
			return err
		}
		defer func() { _ = packed.Close() }() // it was read
		plain, err := xz.NewReader(packed)
		if err != nil {
			return err
		}
		return untar(tar.NewReader(io.LimitReader(plain, mostBytes)), dir)
	}
	return errors.New("the jar holds no .txz")
}

func untar(from *tar.Reader, dir string) error {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	root, err := os.OpenRoot(dir) // nothing that an archive names lies outside
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }()
	for {
		header, err := from.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil {
			err = place(root, header, from)
		}
		if err != nil {
			return err
		}
	}
}

// place writes one member of an archive. Of other kinds than files, links and folders there are none in ours.
func place(root *os.Root, header *tar.Header, content io.Reader) error {
	name := filepath.Clean(header.Name)
	if err := root.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	switch header.Typeflag {
	case tar.TypeDir:
		return root.MkdirAll(name, 0o755)
	case tar.TypeSymlink:
		return root.Symlink(header.Linkname, name)
	case tar.TypeReg:
		file, err := root.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		_, err = io.Copy(file, content)
		mode := fs.FileMode(0o644) // whatever the umask is
		if header.FileInfo().Mode()&0o100 != 0 {
			mode = 0o755
		}
		return errors.Join(err, file.Chmod(mode), file.Close())
	}
	return nil
}

package stack

import (
	"archive/zip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
)

// axe-core as its makers publish it for Maven, which tests need anyway: the jar holds the one script. To renew: another
// version, and the hash of its axe.min.js.
const (
	axeArtifact = "com.deque.html.axe-core:selenium:4.11.1"
	axeSHA256   = "7dbfabdfc6062936d79c873ddbb5f811a1219fca3928bd8cc9dd81f1e65f4720"
	mavenCopy   = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy"
)

// Axe returns axe-core, a script that finds what keeps people from using a page. The first call of a machine lets Maven
// fetch it (0.2 MB) into the repository's .cache; afterwards no network is needed.
func Axe(ctx context.Context) (script string, err error) {
	root, err := Root()
	if err != nil {
		return "", err
	}
	cache := filepath.Join(root, ".cache")
	file := filepath.Join(cache, "axe-"+axeSHA256[:16]+".js")
	if content, err := os.ReadFile(file); err == nil { //nolint:gosec // a path of this function's own
		return string(content), nil
	}
	content, err := fetchAxe(ctx, cache, file)
	if err != nil {
		return "", fmt.Errorf("fetch axe-core: %w", err)
	}
	return string(content), nil
}

// fetchAxe writes the script beside its place and moves it there whole.
func fetchAxe(ctx context.Context, cache, file string) (content []byte, err error) {
	if err := os.MkdirAll(cache, 0o750); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(cache, "axe-fetch-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	maven, err := exec.LookPath("mvn")
	if err != nil {
		return nil, fmt.Errorf("%w: run `make setup`, which installs Maven or says how to", err)
	}
	output, err := exec.CommandContext(ctx, maven, "--batch-mode", "--no-transfer-progress", mavenCopy,
		"-Dartifact="+axeArtifact, "-DoutputDirectory="+dir, "-Dmdep.stripVersion=true").CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("mvn: %w\n%s", err, output)
	}
	if content, err = readZipped(filepath.Join(dir, "selenium.jar"), "axe.min.js"); err != nil {
		return nil, err
	}
	if sum := sha256.Sum256(content); hex.EncodeToString(sum[:]) != axeSHA256 {
		return nil, fmt.Errorf("the script in %s has the SHA-256 %x, and not %s", axeArtifact, sum, axeSHA256)
	}
	script := filepath.Join(dir, "axe.js")
	if err := os.WriteFile(script, content, 0o600); err != nil {
		return nil, err
	}
	return content, os.Rename(script, file)
}

func readZipped(archive, name string) (_ []byte, err error) {
	z, err := zip.OpenReader(archive)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, z.Close()) }()
	f, err := z.Open(name)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return io.ReadAll(f)
}

package stack

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"hash/fnv"
	"os"
	"os/exec"
	"path/filepath"
)

//go:embed schemathesis/requirements.txt
var requirements []byte

// SchemathesisHooks is a Python module that teaches it what it cannot do by itself.
//
//go:embed schemathesis/hooks.py
var SchemathesisHooks []byte

// Schemathesis returns the Python of a virtual environment that has Schemathesis, which tests an HTTP service against its
// OpenAPI file: run it with -m schemathesis.cli. The first call of a machine lets pip fetch it (20 MB) into the
// repository's .cache; afterwards no network is needed.
func Schemathesis(ctx context.Context) (python string, err error) {
	root, err := Root()
	if err != nil {
		return "", err
	}
	sum := fnv.New64a()
	_, _ = sum.Write(requirements) // a hash never fails
	cache := filepath.Join(root, ".cache")
	environment := filepath.Join(cache, fmt.Sprintf("schemathesis-%016x", sum.Sum64()))
	python = filepath.Join(environment, "bin", "python")
	if _, err := os.Stat(python); err == nil {
		return python, nil
	}
	if err := makeEnvironment(ctx, cache, environment); err != nil {
		return "", fmt.Errorf("fetch Schemathesis: %w", err)
	}
	return python, nil
}

// makeEnvironment fills a virtual environment beside its place and moves it there whole, so that nobody ever sees a part of
// it. Its scripts would name the old place; its Python is asked by -m, which does not mind.
func makeEnvironment(ctx context.Context, cache, environment string) (err error) {
	if err := os.MkdirAll(cache, 0o750); err != nil {
		return err
	}
	dir, err := os.MkdirTemp(cache, "schemathesis-fetch-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	made, list := filepath.Join(dir, "environment"), filepath.Join(dir, "requirements.txt")
	if err := os.WriteFile(list, requirements, 0o600); err != nil {
		return err
	}
	for _, step := range [][]string{
		{"python3", "-m", "venv", made},
		{filepath.Join(made, "bin", "python"), "-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check", "--requirement", list},
	} {
		output, err := exec.CommandContext(ctx, step[0], step[1:]...).CombinedOutput()
		if err != nil {
			return fmt.Errorf("%s %s: %w: run `make setup`, which installs Python with its venv module or says how to\n%s", step[0], step[2], err, output)
		}
	}
	err = os.Rename(made, environment)
	if _, there := os.Stat(environment); there == nil { // another process was faster
		return nil
	}
	return err
}

package stack

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// Program finds a program that tests ask for its opinion, such as promtool or nginx: on the PATH, or where `make setup`
// put it.
func Program(name string) (string, error) {
	path, missing := exec.LookPath(name)
	if missing == nil {
		return path, nil
	}
	root, err := Root()
	if err != nil {
		return "", err
	}
	for _, folder := range []string{"bin", "sbin"} {
		path := filepath.Join(root, ".cache", "tools", "usr", folder, name)
		if info, err := os.Stat(path); err == nil && info.Mode()&0o111 != 0 {
			return path, nil
		}
	}
	return "", fmt.Errorf("%w: run `make setup`, which fetches it or says how to", missing)
}

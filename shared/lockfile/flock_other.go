//go:build !unix

package lockfile

import (
	"errors"
	"fmt"
	"os"
)

// flock needs a Unix. What locks files is the command line, which is for Unix only; the services also build elsewhere.
func flock(file *os.File) (bool, error) {
	return false, fmt.Errorf("lock %s: %w", file.Name(), errors.ErrUnsupported)
}

func unlock(*os.File) error { return nil } // nothing was locked

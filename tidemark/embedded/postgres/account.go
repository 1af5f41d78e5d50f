package postgres

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"
)

// account is the user that the server runs as; nil means the parent's own.
type account struct{ uid, gid int }

// serverAccount chooses the account for the cluster in dir. Only root needs one: the owner of a cluster that is already
// there, else a user whom every system knows. (initdb wants one with a name, so that a bare number will not do.)
func serverAccount(dir string) (*account, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	if info, err := os.Stat(dir); err == nil {
		if owner, ok := info.Sys().(*syscall.Stat_t); ok && owner.Uid != 0 {
			return &account{uid: int(owner.Uid), gid: int(owner.Gid)}, nil
		}
	}
	for _, name := range []string{"postgres", "nobody", "daemon"} {
		found, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, uidErr := strconv.Atoi(found.Uid)
		gid, gidErr := strconv.Atoi(found.Gid)
		if uidErr != nil || gidErr != nil || uid == 0 {
			continue
		}
		a := &account{uid: uid, gid: gid}
		return a, a.own(dir) // A cluster that was copied here by root.
	}
	return nil, errors.New("PostgreSQL does not run as root, and there is neither a user postgres nor nobody to run it as: run tidemark as another user, or set DB_URL to a server of your own")
}

func (a *account) credential() *syscall.Credential {
	if a == nil {
		return nil
	}
	return &syscall.Credential{Uid: uint32(a.uid), Gid: uint32(a.gid)}
}

// own gives path and all below it to the account; a path that is not there is no error.
func (a *account) own(path string) error {
	if a == nil {
		return nil
	}
	err := filepath.WalkDir(path, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, a.uid, a.gid)
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("give %s to the server's user: %w", path, err)
	}
	return nil
}

// path returns the name under which the server finds the directory that the parent has opened for it as file 3. An
// account of its own may be unable to walk there by name (root's home is closed to others, and so is a test's temporary
// directory), but an open directory needs no walking.
func (a *account) path(dir string) string {
	if a == nil || runtime.GOOS != "linux" {
		return dir
	}
	return "/proc/self/fd/3"
}

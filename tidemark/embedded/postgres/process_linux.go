package postgres

import (
	"fmt"
	"os"
	"syscall"
)

// endWithParent has the kernel tell the child when its parent dies, so that a killed parent leaves no server behind.
func endWithParent(attr *syscall.SysProcAttr) { attr.Pdeathsig = immediateShutdown }

// serves says whether process pid is a server of the cluster in dir: servers live in their directory.
func serves(pid int, dir string) bool {
	cwd, err := os.Stat(fmt.Sprintf("/proc/%d/cwd", pid))
	if err != nil {
		return false
	}
	own, err := os.Stat(dir)
	return err == nil && os.SameFile(cwd, own)
}

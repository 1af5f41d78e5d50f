//go:build unix && !linux

package postgres

import (
	"os/exec"
	"strconv"
	"strings"
	"syscall"
)

// endWithParent does nothing here: the next start ends what a killed parent left.
func endWithParent(*syscall.SysProcAttr) {}

// serves says whether process pid is a PostgreSQL server; its directory is not known here.
func serves(pid int, _ string) bool {
	command, err := exec.Command("ps", "-o", "comm=", "-p", strconv.Itoa(pid)).Output()
	return err == nil && strings.Contains(string(command), "postgres")
}

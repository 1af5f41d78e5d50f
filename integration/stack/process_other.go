//go:build !linux

package stack

import "syscall"

// dieWithParent can promise nothing here: only Linux kills a child whose parent was killed.
func dieWithParent() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }

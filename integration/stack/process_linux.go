package stack

import "syscall"

// dieWithParent has the kernel kill the child when its parent is gone. It is given a process group of its own too, so
// that a Ctrl-C at the terminal reaches whoever started it and stops things in order.
func dieWithParent() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
}

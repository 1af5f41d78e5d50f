package postgres

import (
	"bufio"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"
)

// What PostgreSQL's first process makes of signals: end the sessions and write a checkpoint, or leave at once and
// recover at the next start.
const (
	fastShutdown      = syscall.SIGINT
	immediateShutdown = syscall.SIGQUIT
)

// process is a running child. When done is closed, err says how it ended.
type process struct {
	cmd  *exec.Cmd
	done chan struct{}
	err  error

	mu    sync.Mutex
	lines []string // the last things it said
}

// command prepares one of PostgreSQL's programs to work on a cluster directory, under the server's account. The caller
// calls release once the program has started.
func (s *Server) command(program, dir string, args ...string) (cmd *exec.Cmd, release func(), err error) {
	directory, err := os.Open(dir)
	if err != nil {
		return nil, nil, err
	}
	cmd = exec.Command(filepath.Join(s.binaries, "bin", program), append([]string{"-D", s.user.path(dir)}, args...)...) //nolint:noctx // a server outlives the context of its start
	cmd.ExtraFiles = []*os.File{directory}                                                                              // 3
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=/usr/bin:/bin", "LC_ALL=C", "TZ=UTC"}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		// A group of its own: Ctrl-C is for the parent, which stops the server when nothing needs it any more.
		Setpgid:    true,
		Credential: s.user.credential(),
	}
	endWithParent(cmd.SysProcAttr)
	return cmd, func() { _ = directory.Close() }, nil
}

// run starts cmd and passes what it says on to log.
func run(cmd *exec.Cmd, log *slog.Logger) (*process, error) {
	out, in, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	cmd.Stdout, cmd.Stderr = in, in
	p := &process{cmd: cmd, done: make(chan struct{})}
	heard := make(chan struct{})
	started := make(chan error)
	go func() {
		// The signal at the parent's death is bound to the thread that started the child, not to the process.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		_ = in.Close()
		started <- err
		if err != nil {
			return
		}
		p.err = cmd.Wait()
		// What inherited the pipe may outlive the child for a moment, or, stopped by a signal, for long.
		_ = out.SetReadDeadline(time.Now().Add(time.Second))
		<-heard
		close(p.done)
	}()
	if err := <-started; err != nil {
		_ = out.Close()
		return nil, err
	}
	go func() {
		defer close(heard)
		p.listen(out, log)
	}()
	return p, nil
}

// listen keeps the last lines and logs them all.
func (p *process) listen(out io.ReadCloser, log *slog.Logger) {
	defer out.Close()
	scanner := bufio.NewScanner(out)
	scanner.Buffer(nil, 1<<20)
	for scanner.Scan() {
		line := scanner.Text()
		p.mu.Lock()
		p.lines = append(p.lines, line)
		p.lines = p.lines[max(0, len(p.lines)-20):]
		p.mu.Unlock()
		if strings.Contains(line, "PANIC: ") || strings.Contains(line, "FATAL: ") {
			log.Warn("private PostgreSQL", "said", line)
		} else {
			log.Debug("private PostgreSQL", "said", line)
		}
	}
	_, _ = io.Copy(io.Discard, out) // A line too long to scan must not block the server.
}

func (p *process) said() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return strings.Join(p.lines, "\n")
}

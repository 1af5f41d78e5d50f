package stack

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"
	"time"
)

// process is a child with its output in a file. It is made by startProcess and is over when done is closed.
type process struct {
	name string
	cmd  *exec.Cmd
	log  string
	done chan struct{}
	err  error // how it ended; read after done
}

// startProcess runs a program whose output is appended to the file log. The context bounds the start only.
func startProcess(ctx context.Context, name, log string, environ []string, program string, args ...string) (*process, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	output, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	defer func() { _ = output.Close() }() // the child has its own descriptor

	cmd := exec.Command(program, args...) //nolint:noctx // it outlives the context of its start
	cmd.Env = environ
	cmd.Stdout, cmd.Stderr = output, output
	if err := spawn(cmd); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	p := &process{name: name, cmd: cmd, log: log, done: make(chan struct{})}
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

func (p *process) running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

func (p *process) signal(s syscall.Signal) error {
	if err := p.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("send %s to %s: %w", s, p.name, err)
	}
	return nil
}

// kill ends the process with SIGKILL and waits until it is gone.
func (p *process) kill() error {
	err := p.signal(syscall.SIGKILL)
	<-p.done
	return err
}

// stop asks with SIGTERM, wakes a stopped process so that it can hear it, and kills when the context ends first, which
// is an error. A process that ends by itself with another status than 0, or than the signal, is an error too.
func (p *process) stop(ctx context.Context) error {
	if !p.running() {
		return nil
	}
	if err := errors.Join(p.signal(syscall.SIGTERM), p.signal(syscall.SIGCONT)); err != nil {
		return err
	}
	select {
	case <-p.done:
	case <-ctx.Done():
		return errors.Join(fmt.Errorf("%s did not stop when told to: %w", p.name, ctx.Err()), p.kill())
	}
	var exit *exec.ExitError
	if errors.As(p.err, &exit) {
		status, ok := exit.Sys().(syscall.WaitStatus)
		asked := ok && status.Signaled() && status.Signal() == syscall.SIGTERM
		if asked || exit.ExitCode() == 128+int(syscall.SIGTERM) { // the second is how a JVM says it
			return nil
		}
	}
	if p.err != nil {
		return fmt.Errorf("stop %s: %w", p.name, p.err)
	}
	return nil
}

// wait polls ready until it is true. It fails when the process ends or the context does, with the log's tail.
func (p *process) wait(ctx context.Context, what string, ready func(context.Context) bool) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !ready(ctx) {
		select {
		case <-p.done:
			return fmt.Errorf("%s ended before it was %s: %w\n%s", p.name, what, p.err, tail(p.log, 4000))
		case <-ctx.Done():
			return fmt.Errorf("%s is not %s: %w\n%s", p.name, what, ctx.Err(), tail(p.log, 4000))
		case <-tick.C:
		}
	}
	return nil
}

// tail returns the last whole lines of a file, at most limit bytes of them.
func tail(file string, limit int64) string {
	content, err := os.ReadFile(file)
	if err != nil {
		return err.Error()
	}
	if int64(len(content)) > limit {
		content = content[int64(len(content))-limit:]
		if _, rest, ok := bytes.Cut(content, []byte("\n")); ok {
			content = rest
		}
	}
	return string(content)
}

// spawner is the one thread that forks. Linux ends a child with PDEATHSIG when the *thread* that made it ends, so that
// must be one that stays for as long as the process: a goroutine locked to it, which never returns.
var spawner = sync.OnceValue(func() chan<- func() {
	work := make(chan func())
	go workOnOneThread(work)
	return work
})

func workOnOneThread(work <-chan func()) {
	runtime.LockOSThread()
	for f := range work {
		f()
	}
}

// spawn starts cmd so that it dies with this process.
func spawn(cmd *exec.Cmd) error {
	cmd.SysProcAttr = dieWithParent()
	result := make(chan error)
	spawner() <- func() { result <- cmd.Start() }
	return <-result
}

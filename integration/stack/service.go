package stack

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/tidemark/tidemark/shared/freeport"
)

// Binaries is a folder of freshly built programs.
type Binaries struct{ dir string }

// Build compiles the main packages of the named modules of this repository (command-service, tidemark, …) into a
// temporary folder, which the caller removes with Remove.
func Build(ctx context.Context, modules ...string) (_ *Binaries, err error) {
	root, err := Root()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "tidemark-bin-")
	if err != nil {
		return nil, fmt.Errorf("build services: %w", err)
	}
	b := &Binaries{dir: dir}
	args := []string{"build", "-o", dir + string(filepath.Separator)}
	for _, m := range modules {
		args = append(args, "./"+m)
	}
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = root
	if output, err := cmd.CombinedOutput(); err != nil {
		return nil, errors.Join(fmt.Errorf("build %s: %w\n%s", strings.Join(modules, ", "), err, output), b.Remove())
	}
	return b, nil
}

// Path returns the file of one program.
func (b *Binaries) Path(module string) string { return filepath.Join(b.dir, module) }

// Remove deletes the folder.
func (b *Binaries) Remove() error { return os.RemoveAll(b.dir) }

// ServiceOptions say which program to run and how.
type ServiceOptions struct {
	// Program is the file to run; its base name is the service's name.
	Program string
	// Env is the whole environment but for PATH and HOME. SERVER_PORT is added where it is missing.
	Env map[string]string
	// Log gets what the service writes; it is appended to.
	Log string
}

// Service is one of Tidemark's services as a process. Its port stays over restarts.
type Service struct {
	opts    ServiceOptions
	url     string
	client  *http.Client
	mu      sync.Mutex
	process *process
}

// StartService starts a service and returns at once; Ready waits for it. The context bounds the start only.
func StartService(ctx context.Context, opts ServiceOptions) (*Service, error) {
	opts.Env = maps.Clone(opts.Env)
	if opts.Env["SERVER_PORT"] == "" {
		port, err := freeport.Find(ctx)
		if err != nil {
			return nil, err
		}
		opts.Env["SERVER_PORT"] = strconv.Itoa(port)
	}
	transport := &http.Transport{DisableKeepAlives: true}
	s := &Service{
		opts:   opts,
		url:    "http://127.0.0.1:" + opts.Env["SERVER_PORT"],
		client: &http.Client{Timeout: 2 * time.Second, Transport: transport},
	}
	if cert := opts.Env["TLS_CERT_FILE"]; cert != "" {
		s.url = "https" + strings.TrimPrefix(s.url, "http")
		// Whether it is up is all that is asked, and the service shows this very certificate; whether others
		// trust it is for a test to ask.
		transport.TLSClientConfig = &tls.Config{InsecureSkipVerify: true} //nolint:gosec // see above
	}
	return s, s.Start(ctx, nil)
}

// Name returns the service's name: command-service and so on.
func (s *Service) Name() string { return filepath.Base(s.opts.Program) }

// URL returns where the service listens, without a slash at its end.
func (s *Service) URL() string { return s.url }

// Start runs the service again after Stop or Kill, with these changes to its environment from now on: an empty value
// takes a variable away.
func (s *Service) Start(ctx context.Context, changes map[string]string) error {
	if s.Running() {
		return fmt.Errorf("start %s: it is running", s.Name())
	}
	for name, value := range changes {
		if value == "" {
			delete(s.opts.Env, name)
		} else {
			s.opts.Env[name] = value
		}
	}
	environ := []string{"PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME")}
	for _, name := range slices.Sorted(maps.Keys(s.opts.Env)) {
		environ = append(environ, name+"="+s.opts.Env[name])
	}
	p, err := startProcess(ctx, s.Name(), s.opts.Log, environ, s.opts.Program)
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.process = p
	s.mu.Unlock()
	return nil
}

// Running tells whether the process is there, a stopped one included.
func (s *Service) Running() bool {
	p := s.current()
	return p != nil && p.running()
}

// Ready waits until /ready answers 200. It fails with the end of the log when the process ends or the context does.
func (s *Service) Ready(ctx context.Context) error {
	return s.current().wait(ctx, "ready", func(ctx context.Context) bool { return s.answers(ctx, "/ready") })
}

// Healthy waits until /health answers 200.
func (s *Service) Healthy(ctx context.Context) error {
	return s.current().wait(ctx, "healthy", func(ctx context.Context) bool { return s.answers(ctx, "/health") })
}

// IsReady asks /ready once.
func (s *Service) IsReady(ctx context.Context) bool { return s.answers(ctx, "/ready") }

// Exited waits until the process has ended by itself and returns its exit status.
func (s *Service) Exited(ctx context.Context) (int, error) {
	p := s.current()
	select {
	case <-p.done:
		return p.cmd.ProcessState.ExitCode(), nil
	case <-ctx.Done():
		return 0, fmt.Errorf("%s has not ended: %w\n%s", s.Name(), ctx.Err(), tail(p.log, 4000))
	}
}

// Stop ends the service with SIGTERM, and kills it when the context ends first. An exit status other than 0 is an error.
func (s *Service) Stop(ctx context.Context) error { return s.current().stop(ctx) }

// Kill ends the service with SIGKILL.
func (s *Service) Kill() error { return s.current().kill() }

// Signal sends SIGSTOP, SIGCONT or another signal.
func (s *Service) Signal(sig syscall.Signal) error { return s.current().signal(sig) }

// LogTail returns the end of what the service wrote.
func (s *Service) LogTail() string { return tail(s.opts.Log, 8000) }

// Log returns all that the service wrote since its first start.
func (s *Service) Log() (string, error) {
	content, err := os.ReadFile(s.opts.Log)
	return string(content), err
}

func (s *Service) current() *process {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.process
}

func (s *Service) answers(ctx context.Context, path string) bool {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url+path, nil)
	if err != nil {
		return false
	}
	resp, err := s.client.Do(req)
	if err != nil {
		return false
	}
	_, _ = io.Copy(io.Discard, resp.Body) // the status is all that counts
	_ = resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}

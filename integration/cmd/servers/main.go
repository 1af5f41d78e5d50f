// Command servers runs a broker and a private Postgres for as long as another command runs, and tells it where they
// are:
//
//	servers [--broker kafka|embedded] -- go test work
//
// The child finds TEST_KAFKA_BROKERS, TEST_DB_URL and TEST_BROKER in its environment. Whatever way it ends, servers
// ends with its status and leaves no process and no file behind; told to stop, it tells the child first.
//
//	servers --fetch
//
// only fetches what starting them needs, so that a later start needs no network.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/tidemark/tidemark/integration/stack"
)

const (
	startLimit = 5 * time.Minute // the first start fetches jars and binaries
	stopLimit  = 15 * time.Second
)

func main() { os.Exit(run(os.Args[1:], os.Stderr)) }

func run(args []string, stderr io.Writer) int {
	flags := flag.NewFlagSet("servers", flag.ContinueOnError)
	flags.SetOutput(stderr)
	kind := flags.String("broker", stack.ApacheKafka, "kind of broker: kafka or embedded")
	fetch := flags.Bool("fetch", false, "only fetch what starting the servers needs")
	if err := flags.Parse(args); err != nil {
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()

	if *fetch {
		if err := fetchOnly(ctx); err != nil {
			_, _ = fmt.Fprintln(stderr, "servers:", err)
			return 1
		}
		return 0
	}
	command := flags.Args()
	if len(command) == 0 {
		_, _ = fmt.Fprintln(stderr, "servers: no command to run: servers [--broker kafka|embedded] -- COMMAND…")
		return 2
	}
	status, err := around(ctx, *kind, command)
	if err != nil {
		_, _ = fmt.Fprintln(stderr, "servers:", err)
	}
	return status
}

// fetchOnly gets Kafka's jars, Schemathesis, axe-core and, by starting it once, Postgres.
func fetchOnly(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	if _, err := stack.Classpath(ctx); err != nil {
		return err
	}
	if _, err := stack.Schemathesis(ctx); err != nil {
		return err
	}
	if _, err := stack.Axe(ctx); err != nil {
		return err
	}
	database, err := stack.StartPostgres(ctx)
	if err != nil {
		return err
	}
	return database.Close()
}

// around runs the command with servers around it and returns its exit status.
func around(ctx context.Context, kind string, command []string) (status int, err error) {
	starting, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	broker, err := stack.StartBroker(starting, kind)
	if err != nil {
		return 1, err
	}
	// The child's end is no reason to fail the cleanup, nor is a signal: it has a limit of its own.
	defer func() {
		stopping, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopLimit)
		defer cancel()
		err = errors.Join(err, broker.Close(stopping))
	}()
	database, err := stack.StartPostgres(starting)
	if err != nil {
		return 1, err
	}
	defer func() { err = errors.Join(err, database.Close()) }()

	// What the child leaves in its temporary folder goes with it. The servers' unprivileged user must be able to enter.
	temporary, err := os.MkdirTemp("", "tidemark-servers-")
	if err != nil {
		return 1, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(temporary)) }()
	if err := os.Chmod(temporary, 0o755); err != nil {
		return 1, err
	}

	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(),
		"TMPDIR="+temporary,
		"TEST_BROKER="+kind,
		"TEST_KAFKA_BROKERS="+strings.Join(broker.Brokers(), ","),
		"TEST_DB_URL="+database.URL())
	// A group of its own: whatever the child has started is told too, and killed when it does not listen.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = stopLimit
	err = cmd.Run()
	if cmd.Process != nil {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // usually nobody is left
	}
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0, nil
	case errors.As(err, &exit) && exit.ExitCode() > 0:
		return exit.ExitCode(), nil // the child has said why
	default:
		return 1, err
	}
}

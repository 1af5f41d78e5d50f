// Package service is what every service begins with. Main is the main function of its program: configuration from the
// environment, signals, a logger, an exit status. Run is the frame of its app: telemetry, readiness, the HTTP engine, and
// a stop in the right order. What the service does stands in its app package, which hands Run a function that wires it.
package service

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/tidemark/tidemark/shared/config"
	"github.com/tidemark/tidemark/shared/telemetry"
)

// Main loads the environment into c, whose defaults are set, and runs until SIGINT or SIGTERM. With
// --check it validates and prints the configuration instead; with --healthcheck it asks the service of the
// same environment whether it is alive, for containers that hold no other program to ask with. It returns
// the exit status: 0 for a clean stop, 1 for a failure, 2 for wrong arguments.
func Main[C Listens](name string, c *C, level func(*C) string, run func(context.Context, *slog.Logger) error) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()

	mode := ""
	if len(os.Args) == 2 {
		mode = os.Args[1]
	}
	if len(os.Args) > 2 || mode != "" && mode != "--check" && mode != "--healthcheck" {
		fmt.Fprintf(os.Stderr, "usage: %s [--check | --healthcheck]\nIt is configured by its environment; --check validates and prints it, --healthcheck asks a running one.\n", name)
		return 2
	}
	if err := config.Load(c, config.Environ(os.Environ())); err != nil { //nolint:forbidigo // this is every service's main
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if mode == "--healthcheck" {
		if err := healthy(ctx, *c); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return 0
	}
	if mode == "--check" {
		for _, s := range config.Settings(c) {
			fmt.Printf("%s=%s\n", s.Name, s.Value)
		}
		return 0
	}
	log, err := telemetry.NewLogger(os.Stderr, name, level(c), config.Secrets(c)...)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if err := run(ctx, log); err != nil {
		log.Error("stopped", "err", err)
		return 1
	}
	return 0
}

// Command command-service takes commands over HTTP and writes them to the log.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/tidemark/tidemark/command-service/app"
	"github.com/tidemark/tidemark/shared/config"
	"github.com/tidemark/tidemark/shared/telemetry"
)

func main() { os.Exit(run()) }

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()

	c := app.DefaultConfig()
	if err := config.Load(&c, config.Environ(os.Environ())); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if len(os.Args) > 1 {
		if len(os.Args) > 2 || os.Args[1] != "--check" {
			fmt.Fprintf(os.Stderr, "usage: %s [--check]\nIt is configured by its environment; --check validates and prints it.\n", app.Name)
			return 2
		}
		for _, s := range config.Settings(&c) {
			fmt.Printf("%s=%s\n", s.Name, s.Value)
		}
		return 0
	}
	log, err := telemetry.NewLogger(os.Stderr, app.Name, c.Level)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if os.Getenv("GOGC") == "" {
		// The live heap is a few megabytes, and at the default a busy door collects it all the time: a
		// tenth of its work (measured).
		debug.SetGCPercent(400)
	}
	if err := app.Run(ctx, app.Options{Config: c, Log: log}); err != nil {
		log.Error("stopped", "err", err)
		return 1
	}
	return 0
}

// Command tidemark runs every service in one process (tidemark up) and is their command-line client.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/term"

	"github.com/tidemark/tidemark/shared/config"
	"github.com/tidemark/tidemark/tidemark/internal/cli"
)

func main() { os.Exit(run()) }

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// The first signal stops cleanly; a second one, while that goes on, ends the process.
	context.AfterFunc(ctx, stop)
	terminal := term.IsTerminal(int(os.Stderr.Fd()))
	return cli.Run(ctx, os.Args[1:], cli.Surroundings{
		Environ:     config.Environ(os.Environ()),
		In:          os.Stdin,
		Out:         os.Stdout,
		Err:         os.Stderr,
		Terminal:    terminal,
		Interactive: terminal && term.IsTerminal(int(os.Stdin.Fd())),
	})
}

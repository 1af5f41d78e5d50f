// Command command-service takes commands over HTTP and writes them to the log.
package main

import (
	"context"
	"log/slog"
	"os"
	"runtime/debug"

	"github.com/tidemark/tidemark/command-service/app"
	"github.com/tidemark/tidemark/shared/service"
)

func main() { os.Exit(run()) }

func run() int {
	c := app.DefaultConfig()
	if os.Getenv("GOGC") == "" {
		// The live heap is a few megabytes, and at the default a busy door collects it all the time: a
		// tenth of its work (measured).
		debug.SetGCPercent(400)
	}
	return service.Main(app.Name, &c, func(c *app.Config) string { return c.Level }, func(ctx context.Context, log *slog.Logger) error {
		return app.Run(ctx, app.Options{Config: c, Log: log})
	})
}

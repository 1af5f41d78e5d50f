// Command consumer-service reads the log and writes the projection.
package main

import (
	"context"
	"log/slog"
	"os"
	"runtime/debug"

	"github.com/tidemark/tidemark/consumer-service/app"
	"github.com/tidemark/tidemark/shared/service"
)

func main() { os.Exit(run()) }

func run() int {
	// A replay makes garbage at some hundred megabytes a second and keeps little of it. Collecting at a
	// bound, and not whenever the heap has doubled, costs a third of the processor time less and holds
	// the process under 200 MB. GOGC and GOMEMLIMIT still win.
	if os.Getenv("GOGC") == "" && os.Getenv("GOMEMLIMIT") == "" { //nolint:forbidigo // the runtime's own settings
		debug.SetGCPercent(400)
		debug.SetMemoryLimit(140 << 20)
	}
	c := app.DefaultConfig()
	return service.Main(app.Name, &c, func(c *app.Config) string { return c.Level }, func(ctx context.Context, log *slog.Logger) error {
		return app.Run(ctx, app.Options{Config: c, Log: log})
	})
}

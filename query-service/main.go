// Command query-service answers reads from the projection, as JSON and as web pages.
package main

import (
	"context"
	"log/slog"
	"os"

	"github.com/tidemark/tidemark/query-service/app"
	"github.com/tidemark/tidemark/shared/service"
)

func main() { os.Exit(run()) }

func run() int {
	c := app.DefaultConfig()
	return service.Main(app.Name, &c, func(c *app.Config) string { return c.Level }, func(ctx context.Context, log *slog.Logger) error {
		return app.Run(ctx, app.Options{Config: c, Log: log})
	})
}

package app

import (
	"context"
	"log/slog"

	command "github.com/tidemark/tidemark/command-service/app"
	consumer "github.com/tidemark/tidemark/consumer-service/app"
	query "github.com/tidemark/tidemark/query-service/app"
	"github.com/tidemark/tidemark/shared/service"
)

// Service is a row of the table of services together with its app, which shared cannot import.
type Service struct {
	service.Spec
	// Config points to its configuration, filled with its defaults.
	Config any
	// Run is its app, run by what Config points to at that moment.
	Run func(ctx context.Context, log *slog.Logger) error
}

// Services returns every service of the table, in its order. Each call makes configurations of its own.
func Services() []Service {
	return []Service{
		serviceOf(service.Command, command.DefaultConfig(), func(ctx context.Context, c command.Config, log *slog.Logger) error {
			return command.Run(ctx, command.Options{Config: c, Log: log})
		}),
		serviceOf(service.Consumer, consumer.DefaultConfig(), func(ctx context.Context, c consumer.Config, log *slog.Logger) error {
			return consumer.Run(ctx, consumer.Options{Config: c, Log: log})
		}),
		serviceOf(service.Query, query.DefaultConfig(), func(ctx context.Context, c query.Config, log *slog.Logger) error {
			return query.Run(ctx, query.Options{Config: c, Log: log})
		}),
	}
}

func serviceOf[C any](s service.Spec, c C, run func(context.Context, C, *slog.Logger) error) Service {
	return Service{Spec: s, Config: &c, Run: func(ctx context.Context, log *slog.Logger) error { return run(ctx, c, log) }}
}

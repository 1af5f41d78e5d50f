package service_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"testing"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/shared/config"
	"github.com/tidemark/tidemark/shared/httpapi"
	"github.com/tidemark/tidemark/shared/service"
)

const spec = `
openapi: 3.0.3
info: {title: greeter, version: "1"}
paths:
  /health: {get: {x-scope: none, responses: {"200": {description: ok}}}}
  /ready: {get: {x-scope: none, responses: {"200": {description: ok}}}}
  /metrics: {get: {x-scope: none, responses: {"200": {description: ok}}}}
  /openapi.yaml: {get: {x-scope: none, responses: {"200": {description: ok}}}}
  /docs: {get: {x-scope: none, responses: {"200": {description: ok}}}}
  /docs/{file}: {get: {x-scope: none, parameters: [{name: file, in: path, required: true, schema: {type: string}}], responses: {"200": {description: ok}}}}
  /greeting: {get: {x-scope: none, responses: {"200": {description: ok}}}}
`

func options() service.Options {
	return service.Options{
		Name: "greeter", Log: slog.New(slog.DiscardHandler), Telemetry: config.DefaultTelemetry(),
		API:   httpapi.Options{HTTP: config.DefaultHTTP(0), Spec: []byte(spec)},
		Parts: []string{"greetings"},
	}
}

// An app opens what it needs, registers how that is closed, mounts its routes and listens.
func ExampleRun() {
	ctx, stop := context.WithCancel(context.Background())
	o := options()
	o.Listening = func(address string) {
		defer stop()                                            // as a signal would
		res, err := http.Get("http://" + address + "/greeting") //nolint:noctx // an example
		if err != nil {
			fmt.Println(err)
			return
		}
		defer func() { _ = res.Body.Close() }()
		body, _ := io.ReadAll(res.Body)
		fmt.Printf("%s\n", body)
	}
	err := service.Run(ctx, o, func(ctx context.Context, s *service.Service) error {
		// Open a database here, for instance.
		s.Stack.Add("greetings", func(context.Context) error {
			fmt.Println("greetings are closed")
			return nil
		})
		s.Ready.Ready("greetings")
		s.Engine.GET("/greeting", func(c *gin.Context) { c.String(http.StatusOK, "hello") })
		return s.Listen(ctx, 30*time.Second)
	})
	fmt.Println(err)
	// Output:
	// hello
	// greetings are closed
	// <nil>
}

func TestAStopIsUnreadyFirstAndTakesDownInReverse(t *testing.T) {
	t.Parallel()
	ctx, stop := context.WithCancel(t.Context())
	var stopped []string
	o := options()
	o.Listening = func(string) { stop() }
	var during map[string]string // what was missing while it stopped
	require.NoError(t, service.Run(ctx, o, func(ctx context.Context, s *service.Service) error {
		s.Ready.Ready("greetings")
		s.Stack.Add("first", func(context.Context) error { stopped = append(stopped, "first"); return nil })
		s.Stack.Go(ctx, "loop", func(ctx context.Context) { <-ctx.Done(); stopped = append(stopped, "loop") })
		if err := s.Listen(ctx, time.Second); err != nil {
			return err
		}
		s.Stack.Add("last", func(context.Context) error {
			during = s.Ready.Reasons()
			stopped = append(stopped, "last")
			return nil
		})
		return nil
	}))
	require.Equal(t, []string{"last", "loop", "first"}, stopped)
	require.Contains(t, during, "process", "nobody is sent here while it stops")
}

func TestWhatFailsEndsTheRunAndIsItsError(t *testing.T) {
	t.Parallel()
	broken, stuck := errors.New("the greeting is broken"), errors.New("it does not close")
	for name, wire := range map[string]func(context.Context, *service.Service) error{
		"wiring fails": func(context.Context, *service.Service) error { return broken },
		"something fails later": func(ctx context.Context, s *service.Service) error {
			s.Stack.Go(ctx, "greeter", func(context.Context) { s.Fail(broken) })
			return s.Listen(ctx, time.Second)
		},
		"wiring waits while something fails": func(ctx context.Context, s *service.Service) error {
			s.Fail(broken)
			<-ctx.Done()
			return context.Cause(ctx)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			err := service.Run(t.Context(), options(), func(ctx context.Context, s *service.Service) error {
				s.Stack.Add("greetings", func(context.Context) error { return stuck })
				return wire(ctx, s)
			})
			require.ErrorIs(t, err, broken)
			require.ErrorIs(t, err, stuck)
		})
	}
}

func TestAStopDuringTheStartIsClean(t *testing.T) {
	t.Parallel()
	ctx, stop := context.WithCancel(t.Context())
	closed := false
	require.NoError(t, service.Run(ctx, options(), func(ctx context.Context, s *service.Service) error {
		s.Stack.Add("greetings", func(context.Context) error { closed = true; return nil })
		stop()
		<-ctx.Done()
		return fmt.Errorf("waiting for the database: %w", ctx.Err())
	}))
	require.True(t, closed)
}

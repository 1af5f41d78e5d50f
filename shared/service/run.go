package service

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/trace"

	"github.com/tidemark/tidemark/shared/config"
	"github.com/tidemark/tidemark/shared/httpapi"
	"github.com/tidemark/tidemark/shared/lifecycle"
	"github.com/tidemark/tidemark/shared/telemetry"
)

// Options of one run of a service. All but Parts and Listening are required.
type Options struct {
	Name      string               // the service's name, in logs, traces and metrics, and in the title of /docs
	Log       *slog.Logger         // where everything that Run makes logs
	Telemetry config.Telemetry     // where traces and metrics are sent to; nowhere where it names no endpoint
	API       httpapi.Options      // the HTTP engine's: HTTP and Spec must be set; Run fills in Log, Registry and Tracer
	Parts     []string             // the parts of the readiness, all of which must report before the service is ready; none unless given
	Listening func(address string) // called once the port is open, with the address that was bound; optional
}

// Service is what Run has made by the time an app wires the rest.
type Service struct {
	Stack    *lifecycle.Stack     // cleanups; register one the moment its resource exists
	Registry *prometheus.Registry // what /metrics shows
	Tracer   trace.Tracer         // nil where no traces are sent
	Ready    *httpapi.Readiness   // what /ready shows
	Engine   *httpapi.Engine      // with the shared middleware, /health, /ready, /metrics, /openapi.yaml and /docs
	Fail     func(error)          // ends the run with an error that waiting cannot mend; the first one counts

	listening func(address string)
}

// Run is one life of a service. It makes what every service has, lets wire add what is the service's own, and waits until
// ctx ends or something calls Service.Fail. Then it stops, also where wire returned an error:
//
//  1. /ready answers 503, so that no new work is sent here.
//  2. The cleanups run, last in first out, within SHUTDOWN_TIMEOUT. So a wire that opens what it writes to, then starts
//     what writes, then calls Service.Listen is taken apart in the right order: no more requests are taken and those in
//     hand are finished, the loops end, their results are committed, the connections are closed.
//  3. Last of all, the telemetry is flushed.
//
// The context that wire gets ends when the run does; what must go on until its own turn to stop comes is started by
// Service.Stack.Go. wire must return soon after its context ends. Its error then counts as a clean stop, since it only
// says that something it waited for did not come.
//
// Run returns nil after ctx ended and all cleanups went well, else the error of wire or of Fail, joined with those of the
// cleanups.
func Run(ctx context.Context, o Options, wire func(context.Context, *Service) error) (err error) {
	outer := ctx
	ctx, fail := context.WithCancelCause(outer)
	defer fail(nil)
	s := &Service{
		Stack: &lifecycle.Stack{Log: o.Log}, Registry: prometheus.NewRegistry(), Ready: httpapi.NewReadiness(o.Parts...),
		Fail: fail, listening: o.Listening,
	}
	defer func() {
		s.Ready.Unready("process", "the service is being stopped")
		err = errors.Join(err, s.Stack.Stop(o.API.HTTP.ShutdownTimeout))
	}()

	export, err := telemetry.NewExporter(ctx, telemetry.ExportOptions{Config: o.Telemetry, Service: o.Name, Registry: s.Registry, Log: o.Log})
	if err != nil {
		return err
	}
	s.Stack.Add("telemetry", export.Stop)
	s.Tracer = export.Tracer()
	o.API.Log, o.API.Registry, o.API.Tracer = o.Log, s.Registry, s.Tracer
	if s.Engine, err = httpapi.NewEngine(ctx, o.API); err != nil {
		return err
	}
	s.Stack.Go(ctx, "keys and certificate", s.Engine.Watch)
	httpapi.Mount(s.Engine, o.Name, s.Ready)

	err = wire(ctx, s)
	if err == nil {
		<-ctx.Done()
		err = context.Cause(ctx)
	}
	if outer.Err() != nil {
		return nil
	}
	return err
}

// Listen opens the port and serves from now on; every route must be mounted by then. answerLimit bounds the time of a
// whole answer: it must be longer than the longest wait that a route allows.
func (s *Service) Listen(ctx context.Context, answerLimit time.Duration) error {
	server, err := httpapi.Listen(ctx, s.Engine, answerLimit, s.Fail)
	if err != nil {
		return err
	}
	s.Stack.Add("server", server.Stop)
	if s.listening != nil {
		s.listening(server.Address())
	}
	return nil
}

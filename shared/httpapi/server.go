package httpapi

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/tidemark/tidemark/shared/limits"
)

// Server is a listening HTTP server with bounds on every phase of a request.
type Server struct {
	http     *http.Server
	listener net.Listener
}

// Listen binds the engine's address and serves from now on, over TLS where the engine has a certificate. All
// routes must be mounted before: Listen fails where the specification does not list one of them. A later error of
// serving goes to fail, once. writeTimeout bounds a whole answer, so it must be longer than the longest wait that a
// route allows.
func Listen(ctx context.Context, e *Engine, writeTimeout time.Duration, fail func(error)) (*Server, error) {
	if err := e.access.scopes.unlisted(e.Routes()); err != nil {
		return nil, err
	}
	e.answerHead()
	address, log := e.options.HTTP.Address(), e.options.Log
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w: end what holds the port or set SERVER_PORT to another", address, err)
	}
	s := &Server{listener: l, http: &http.Server{
		Handler:           positionsInPaths(e),
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       30 * time.Second,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    limits.Header,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}}
	serve := s.http.Serve
	if e.pair != nil {
		s.http.TLSConfig = e.pair.Server()
		serve = func(l net.Listener) error { return s.http.ServeTLS(l, "", "") }
	}
	go func() {
		if err := serve(l); !errors.Is(err, http.ErrServerClosed) {
			fail(fmt.Errorf("serve on %s: %w", address, err))
		}
	}()
	log.Info("listening", "address", l.Addr().String(), "scheme", e.options.HTTP.Scheme())
	return s, nil
}

// Address is where the server listens, with the port it was given where it asked for any.
func (s *Server) Address() string { return s.listener.Addr().String() }

// Stop takes no more requests and waits for those in hand until ctx ends, then cuts them.
func (s *Server) Stop(ctx context.Context) error {
	if err := s.http.Shutdown(ctx); err != nil {
		return errors.Join(err, s.http.Close())
	}
	return nil
}

// answerHead has every route that takes GET take HEAD too, by the same handler; net/http leaves out the answer's body. A
// route has one handler: what stands before it belongs to the engine or is part of it.
func (e *Engine) answerHead() {
	there := map[string]bool{}
	for _, r := range e.Routes() {
		there[r.Method+" "+r.Path] = true
	}
	for _, r := range e.Routes() {
		if r.Method == http.MethodGet && !there[http.MethodHead+" "+r.Path] {
			e.HEAD(r.Path, r.HandlerFunc)
		}
	}
}

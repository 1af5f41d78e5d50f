// Package httpapi is consumer-service's JSON API: it decodes a request, asks the generations or the audit, and
// maps what comes back to the types of the specification, or to a problem. It holds no rules.
package httpapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/tidemark/tidemark/consumer-service/internal/generation"
	api "github.com/tidemark/tidemark/shared/api/consumer"
	sharedhttp "github.com/tidemark/tidemark/shared/httpapi"
	"github.com/tidemark/tidemark/shared/instant"
	"github.com/tidemark/tidemark/shared/loop"
	"github.com/tidemark/tidemark/shared/problem"
)

// Server answers the routes of the specification.
type Server struct {
	all *generation.All
	log *slog.Logger
}

var _ api.ServerInterface = (*Server)(nil)

// Mount adds the API to e.
func Mount(e *gin.Engine, all *generation.All, log *slog.Logger) {
	api.RegisterHandlersWithOptions(e, &Server{all, log}, api.GinServerOptions{
		Middlewares: []api.MiddlewareFunc{func(c *gin.Context) { c.Header("Cache-Control", "no-store") }},
		ErrorHandler: func(c *gin.Context, err error, _ int) {
			which, _, _ := strings.Cut(err.Error(), ":") // what follows is the parser's own text
			sharedhttp.Fail(c, problem.Problem{Status: http.StatusBadRequest, Detail: which + ": the specification at /openapi.yaml says how it is written"})
		},
	})
}

// ListProjections answers all projections.
func (s *Server) ListProjections(c *gin.Context) {
	found, err := s.all.Projections(c.Request.Context())
	if err != nil {
		s.fail(c, err)
		return
	}
	out := api.ProjectionList{Projections: make([]api.Projection, len(found))}
	for i, p := range found {
		out.Projections[i] = projectionOf(p)
	}
	c.PureJSON(http.StatusOK, out)
}

// GetProjection answers one projection.
func (s *Server) GetProjection(c *gin.Context, name api.ProjectionName) {
	if _, err := s.all.Of(name); err != nil {
		s.fail(c, err)
		return
	}
	found, err := s.all.Projections(c.Request.Context())
	if err != nil {
		s.fail(c, err)
		return
	}
	for _, p := range found {
		if p.Name == name {
			c.PureJSON(http.StatusOK, projectionOf(p))
		}
	}
}

// ListGenerations answers the generations of a projection.
func (s *Server) ListGenerations(c *gin.Context, name api.ProjectionName) {
	of := s.of(c, name)
	if of == nil {
		return
	}
	found, err := of.List(c.Request.Context())
	if err != nil {
		s.fail(c, err)
		return
	}
	c.PureJSON(http.StatusOK, generationList(found))
}

// StartRebuild begins a rebuild of one projection.
func (s *Server) StartRebuild(c *gin.Context, name api.ProjectionName) {
	of := s.of(c, name)
	if of == nil {
		return
	}
	var body api.Rebuild
	if !decode(c, &body) {
		return
	}
	request := requestOf(body.Swap, body.RateLimit, body.ReplaceStandby)
	if body.To != nil {
		if body.Swap != nil && *body.Swap {
			unprocessable(c, "a rebuild to a point never swaps: leave swap out, or to")
			return
		}
		request.To = &generation.Point{}
		if body.To.Time != nil {
			at, err := instant.Parse(*body.To.Time)
			if err != nil {
				unprocessable(c, "to.time: "+err.Error())
				return
			}
			request.To.Time = &at
		}
		if body.To.Position != nil {
			request.To.Position = *body.To.Position
		}
	}
	g, err := of.Start(c.Request.Context(), request)
	if err != nil {
		s.fail(c, err)
		return
	}
	c.Header("Location", fmt.Sprintf("/api/v1/projections/%s/generations/%d", name, g.Number))
	c.PureJSON(http.StatusAccepted, generationOf(g))
}

// RebuildAll begins a rebuild of every projection, one after the other.
func (s *Server) RebuildAll(c *gin.Context) {
	var body api.RebuildAll
	if !decode(c, &body) {
		return
	}
	made, err := s.all.Rebuild(c.Request.Context(), requestOf(body.Swap, body.RateLimit, body.ReplaceStandby))
	if err != nil {
		s.fail(c, err)
		return
	}
	c.PureJSON(http.StatusAccepted, generationList(made))
}

// GetGeneration answers one generation.
func (s *Server) GetGeneration(c *gin.Context, name api.ProjectionName, number api.Number) {
	s.answer(c, http.StatusOK, name, number, (*generation.Service).Get)
}

// DropGeneration cancels a rebuild or drops what does not serve.
func (s *Server) DropGeneration(c *gin.Context, name api.ProjectionName, number api.Number) {
	s.answer(c, http.StatusAccepted, name, number, (*generation.Service).Drop)
}

// ProveGeneration asks for a proof.
func (s *Server) ProveGeneration(c *gin.Context, name api.ProjectionName, number api.Number) {
	s.answer(c, http.StatusAccepted, name, number, (*generation.Service).Prove)
}

// SwapGeneration asks for a proof and a swap.
func (s *Server) SwapGeneration(c *gin.Context, name api.ProjectionName, number api.Number) {
	s.answer(c, http.StatusAccepted, name, number, (*generation.Service).Swap)
}

func (s *Server) answer(c *gin.Context, status int, name string, number api.Number, do func(*generation.Service, context.Context, int) (generation.Generation, error)) {
	of := s.of(c, name)
	if of == nil {
		return
	}
	g, err := do(of, c.Request.Context(), int(number))
	if err != nil {
		s.fail(c, err)
		return
	}
	c.PureJSON(status, generationOf(g))
}

// auditPatience is how long a request waits for an audit that is under way.
const auditPatience = 10 * time.Second

// AuditNow audits a projection, and waits a while for an audit that is under way.
func (s *Server) AuditNow(c *gin.Context, name api.ProjectionName) {
	of := s.of(c, name)
	if of == nil {
		return
	}
	for end := time.Now().Add(auditPatience); ; {
		found, err := of.Audit(c.Request.Context())
		switch {
		case errors.Is(err, generation.ErrBusy) && time.Now().Before(end):
			if loop.Sleep(c.Request.Context(), 100*time.Millisecond) == nil {
				continue
			}
			s.fail(c, err)
		case err != nil:
			s.fail(c, err)
		default:
			c.PureJSON(http.StatusOK, auditOf(name, found, time.Now()))
		}
		return
	}
}

// of is the service of a projection; where there is none it has answered.
func (s *Server) of(c *gin.Context, name string) *generation.Service {
	of, err := s.all.Of(name)
	if err != nil {
		s.fail(c, err)
		return nil
	}
	return of
}

// decode reads a body that may be left out; where it is wrong it has answered.
func decode(c *gin.Context, into any) bool {
	raw, err := io.ReadAll(c.Request.Body)
	if err != nil {
		sharedhttp.FailBody(c, err)
		return false
	}
	if len(raw) > 0 && json.Unmarshal(raw, into) != nil {
		sharedhttp.Fail(c, problem.Problem{Status: http.StatusBadRequest, Detail: "the body is no JSON object as the specification at /openapi.yaml describes it"})
		return false
	}
	return true
}

func unprocessable(c *gin.Context, detail string) {
	sharedhttp.Fail(c, problem.Problem{Type: "/problems/outside-the-log", Title: "No such point", Status: http.StatusUnprocessableEntity, Detail: detail})
}

// fail is the one table of errors of this service.
func (s *Server) fail(c *gin.Context, err error) {
	var conflict *generation.ConflictError
	var point *generation.PointError
	var unknown *generation.UnknownError
	switch {
	case errors.As(err, &unknown):
		sharedhttp.Fail(c, problem.Problem{Status: http.StatusNotFound, Detail: unknown.Error()})
	case errors.Is(err, generation.ErrNotFound):
		sharedhttp.Fail(c, problem.Problem{Status: http.StatusNotFound, Detail: "there is no such generation: /api/v1/projections/{name}/generations lists what there is"})
	case errors.As(err, &conflict):
		sharedhttp.Fail(c, problem.Problem{Type: "/problems/conflict", Status: http.StatusConflict, Detail: conflict.Reason})
	case errors.As(err, &point):
		unprocessable(c, point.Reason)
	case errors.Is(err, generation.ErrBusy):
		sharedhttp.Fail(c, problem.Problem{Type: "/problems/conflict", Status: http.StatusConflict, Detail: "another audit is running: ask again when it is done"})
	case errors.Is(err, generation.ErrNotRunning):
		name := c.Param("name")
		if name == "" {
			name = "any projection"
		}
		sharedhttp.Fail(c, problem.Problem{
			Type: "/problems/not-running", Title: "Not running", Status: http.StatusServiceUnavailable,
			Detail: fmt.Sprintf("no process runs %s: start a consumer-service whose PROJECTIONS names it", name),
		})
	default:
		if c.Request.Context().Err() == nil {
			s.log.WarnContext(c.Request.Context(), "a request found the database or the log down", "route", c.FullPath(), "err", err)
		}
		c.Header("Retry-After", "2")
		sharedhttp.Fail(c, problem.Problem{
			Type: "/problems/down", Title: "Database or log down", Status: http.StatusServiceUnavailable,
			Detail: "the database or the log does not answer as it should, or the service is just starting; /ready says what is missing, and the correlation id finds this request in the log: ask again",
		})
	}
}

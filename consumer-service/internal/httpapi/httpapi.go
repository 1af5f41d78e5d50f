// Package httpapi is consumer-service's JSON API: it decodes a request, asks the rebuild or the audit, and
// maps what comes back to the types of the specification, or to a problem. It holds no rules.
package httpapi

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/tidemark/tidemark/consumer-service/internal/projection"
	"github.com/tidemark/tidemark/consumer-service/internal/rebuild"
	api "github.com/tidemark/tidemark/shared/api/consumer"
	manners "github.com/tidemark/tidemark/shared/httpapi"
	"github.com/tidemark/tidemark/shared/instant"
	"github.com/tidemark/tidemark/shared/problem"
)

// Auditor compares tables and counts; *projection.Projector answers.
type Auditor interface {
	AuditNow(ctx context.Context) (audited []projection.Audited, ran bool, err error)
}

// Server answers the routes of the specification. Until the service has what it needs, it answers that it
// is starting.
type Server struct {
	rebuild atomic.Pointer[rebuild.Service]
	audits  atomic.Pointer[Auditor]
	log     *slog.Logger
}

var _ api.ServerInterface = (*Server)(nil)

// Mount adds the API to e. The context is needed only while the specification is read.
func Mount(ctx context.Context, e *gin.Engine, log *slog.Logger) (*Server, error) {
	validated, err := manners.Validated(ctx, api.Spec)
	if err != nil {
		return nil, err
	}
	s := &Server{log: log}
	api.RegisterHandlersWithOptions(e, s, api.GinServerOptions{
		Middlewares: []api.MiddlewareFunc{func(c *gin.Context) { c.Header("Cache-Control", "no-store") }, api.MiddlewareFunc(validated)},
		ErrorHandler: func(c *gin.Context, err error, _ int) {
			which, _, _ := strings.Cut(err.Error(), ":") // what follows is the parser's own text
			manners.Fail(c, problem.Problem{Status: http.StatusBadRequest, Detail: which + ": the specification at /openapi.yaml says how it is written"})
		},
	})
	return s, nil
}

// Rebuilds gives the API what answers for generations.
func (s *Server) Rebuilds(r *rebuild.Service) { s.rebuild.Store(r) }

// Audits gives the API what audits.
func (s *Server) Audits(a Auditor) { s.audits.Store(&a) }

// ListGenerations answers all generations.
func (s *Server) ListGenerations(c *gin.Context) {
	r := s.service(c)
	if r == nil {
		return
	}
	all, err := r.List(c.Request.Context())
	if err != nil {
		s.fail(c, err)
		return
	}
	out := api.GenerationList{Generations: make([]api.Generation, len(all))}
	for i, g := range all {
		out.Generations[i] = generation(g)
	}
	c.PureJSON(http.StatusOK, out)
}

// StartRebuild begins a rebuild.
func (s *Server) StartRebuild(c *gin.Context) {
	r := s.service(c)
	if r == nil {
		return
	}
	var body api.Rebuild
	raw, err := io.ReadAll(c.Request.Body)
	if err != nil {
		manners.FailBody(c, err)
		return
	}
	if len(raw) > 0 {
		if err := json.Unmarshal(raw, &body); err != nil {
			manners.Fail(c, problem.Problem{Status: http.StatusBadRequest, Detail: "the body is no JSON object as the specification at /openapi.yaml describes it"})
			return
		}
	}
	request := rebuild.Request{Swap: body.Swap == nil || *body.Swap, RateLimit: body.RateLimit, ReplaceStandby: body.ReplaceStandby != nil && *body.ReplaceStandby}
	if body.To != nil {
		if body.Swap != nil && *body.Swap {
			unprocessable(c, "a rebuild to a point never swaps: leave swap out, or to")
			return
		}
		request.To = &rebuild.Point{}
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
	g, err := r.Start(c.Request.Context(), request)
	if err != nil {
		s.fail(c, err)
		return
	}
	c.Header("Location", "/api/v1/generations/"+strconv.Itoa(g.Number))
	c.PureJSON(http.StatusAccepted, generation(g))
}

// GetGeneration answers one generation.
func (s *Server) GetGeneration(c *gin.Context, number api.Number) {
	s.answer(c, http.StatusOK, number, (*rebuild.Service).Get)
}

// DropGeneration cancels a rebuild or drops what does not serve.
func (s *Server) DropGeneration(c *gin.Context, number api.Number) {
	s.answer(c, http.StatusAccepted, number, (*rebuild.Service).Drop)
}

// ProveGeneration asks for a proof.
func (s *Server) ProveGeneration(c *gin.Context, number api.Number) {
	s.answer(c, http.StatusAccepted, number, (*rebuild.Service).Prove)
}

// SwapGeneration asks for a proof and a swap.
func (s *Server) SwapGeneration(c *gin.Context, number api.Number) {
	s.answer(c, http.StatusAccepted, number, (*rebuild.Service).Swap)
}

func (s *Server) answer(c *gin.Context, status int, number api.Number, do func(*rebuild.Service, context.Context, int) (rebuild.Generation, error)) {
	r := s.service(c)
	if r == nil {
		return
	}
	g, err := do(r, c.Request.Context(), int(number))
	if err != nil {
		s.fail(c, err)
		return
	}
	c.PureJSON(status, generation(g))
}

// AuditNow audits, and waits a while for an audit that is under way.
func (s *Server) AuditNow(c *gin.Context) {
	a := s.audits.Load()
	if a == nil {
		starting(c)
		return
	}
	for end := time.Now().Add(10 * time.Second); ; {
		found, ran, err := (*a).AuditNow(c.Request.Context())
		switch {
		case err != nil:
			s.fail(c, err)
		case !ran && time.Now().Before(end):
			select {
			case <-c.Request.Context().Done():
			case <-time.After(100 * time.Millisecond):
			}
			continue
		case !ran:
			s.fail(c, rebuild.ErrBusy)
		default:
			c.PureJSON(http.StatusOK, audit(found, time.Now()))
		}
		return
	}
}

func (s *Server) service(c *gin.Context) *rebuild.Service {
	r := s.rebuild.Load()
	if r == nil {
		starting(c)
	}
	return r
}

func starting(c *gin.Context) {
	c.Header("Retry-After", "1")
	manners.Fail(c, problem.Problem{
		Type: "/problems/starting", Title: "Starting", Status: http.StatusServiceUnavailable,
		Detail: "the service waits for the database or for Kafka; /ready says for what: ask again",
	})
}

func unprocessable(c *gin.Context, detail string) {
	manners.Fail(c, problem.Problem{Type: "/problems/outside-the-log", Title: "No such point", Status: http.StatusUnprocessableEntity, Detail: detail})
}

// fail is the one table of errors of this service.
func (s *Server) fail(c *gin.Context, err error) {
	var conflict *rebuild.ConflictError
	var point *rebuild.PointError
	switch {
	case errors.Is(err, rebuild.ErrNotFound):
		manners.Fail(c, problem.Problem{Status: http.StatusNotFound, Detail: "there is no such generation: /api/v1/generations lists what there is"})
	case errors.As(err, &conflict):
		manners.Fail(c, problem.Problem{Type: "/problems/conflict", Status: http.StatusConflict, Detail: conflict.Reason})
	case errors.As(err, &point):
		unprocessable(c, point.Reason)
	case errors.Is(err, rebuild.ErrBusy):
		manners.Fail(c, problem.Problem{Type: "/problems/conflict", Status: http.StatusConflict, Detail: "another audit is running: ask again when it is done"})
	default:
		if c.Request.Context().Err() == nil {
			s.log.WarnContext(c.Request.Context(), "a request found the database or the log away", "route", c.FullPath(), "err", err)
		}
		c.Header("Retry-After", "2")
		manners.Fail(c, problem.Problem{
			Type: "/problems/away", Title: "Database or log away", Status: http.StatusServiceUnavailable,
			Detail: "the database or the log does not answer as it should; the correlation id finds it in the service's log: ask again",
		})
	}
}

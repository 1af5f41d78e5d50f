// Package httpapi is command-service's HTTP API: it decodes a request, hands the command to the door, and answers with a
// ticket or a problem. It holds no rules.
package httpapi

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/tidemark/tidemark/command-service/internal/deadletter"
	"github.com/tidemark/tidemark/command-service/internal/door"
	api "github.com/tidemark/tidemark/shared/api/command"
	"github.com/tidemark/tidemark/shared/auth"
	"github.com/tidemark/tidemark/shared/event"
	sharedhttp "github.com/tidemark/tidemark/shared/httpapi"
	"github.com/tidemark/tidemark/shared/instant"
	"github.com/tidemark/tidemark/shared/position"
	"github.com/tidemark/tidemark/shared/problem"
)

// route is the one name of all spellings of the command, for the rule of keys: a retry that goes to the
// older alias is still a retry.
const route = "POST /api/v1/timestamp"

// streamRoute is that of a stream, whose lines have tickets of their own.
const streamRoute = "POST /api/v1/timestamps"

// Doors are the ways into the log, one a topic.
type Doors struct {
	Timestamps *door.Door // to timestamp.command.v1
	Endpoints  *door.Door // to endpoint.command.v1
}

// Server answers the routes of the specification.
type Server struct {
	doors    Doors
	letters  *deadletter.Desk
	queryURL string
	failures *failures
	now      func() time.Time
	limits   streamLimits
	stopping <-chan struct{} // closed when streams must come to an end
}

var _ api.ServerInterface = (*Server)(nil)

// Mount adds the API to e. QueryURL is where tickets are read. Streams that are still open end when ctx does.
func Mount(ctx context.Context, e *gin.Engine, doors Doors, letters *deadletter.Desk, queryURL string, log *slog.Logger) {
	mount(e, &Server{
		doors: doors, letters: letters, queryURL: queryURL, failures: &failures{log: log}, now: time.Now, limits: defaultLimits, stopping: ctx.Done(),
	})
}

func mount(e *gin.Engine, s *Server) {
	// Path values are taken as they stand on the wire and unescaped here: gin would read the plus sign of
	// +02:00 as a space.
	e.UseEscapedPath, e.UnescapePathValues = true, false
	wrapper := api.ServerInterfaceWrapper{
		Handler: s,
		ErrorHandler: func(c *gin.Context, err error, _ int) {
			sharedhttp.Fail(c, problem.Problem{Status: http.StatusBadRequest, Detail: err.Error()})
		},
	}
	e.POST("/api/v1/timestamp", wrapper.Stamp)
	e.POST("/api/v1/timestamp/", wrapper.Stamp)
	e.POST("/api/v1/timestamp/:instant", wrapper.StampInstant)
	e.POST("/api/v1/timestamps", wrapper.StampStream)
	e.POST("/app", wrapper.StampApp)
	e.POST("/api/v1/endpoints", wrapper.PostEndpoints)
	e.PUT("/api/v1/endpoints/:id", wrapper.PutEndpoint)
	e.DELETE("/api/v1/endpoints/:id", wrapper.DeleteEndpoint)
	e.POST("/api/v1/deadletters/redrive", wrapper.RedriveDeadLetters)
	e.POST("/api/v1/deadletters/discard", wrapper.DiscardDeadLetters)
}

// Stamp accepts the instant of the body, or the present one.
func (s *Server) Stamp(c *gin.Context, p api.StampParams) {
	s.stampBody(c, http.StatusAccepted, p.IdempotencyKey)
}

// StampApp is Stamp for those who know the older path and expect 200.
func (s *Server) StampApp(c *gin.Context, p api.StampAppParams) {
	s.stampBody(c, http.StatusOK, p.IdempotencyKey)
}

// StampInstant accepts the instant of the path.
func (s *Server) StampInstant(c *gin.Context, text string, p api.StampInstantParams) {
	if plain, err := url.PathUnescape(text); err == nil {
		text = plain
	}
	s.stamp(c, http.StatusAccepted, &text, p.IdempotencyKey)
}

func (s *Server) stampBody(c *gin.Context, status int, key *api.IdempotencyKey) {
	var body api.Stamp
	if c.Request.Body != nil && c.Request.Body != http.NoBody {
		raw, err := io.ReadAll(c.Request.Body)
		if err != nil {
			sharedhttp.FailBody(c, err)
			return
		}
		if len(raw) > 0 {
			if err := json.Unmarshal(raw, &body); err != nil { // it was validated before
				sharedhttp.Fail(c, problem.Problem{Status: http.StatusBadRequest, Detail: "the body is no JSON object with an event_timestamp"})
				return
			}
		}
	}
	s.stamp(c, status, body.EventTimestamp, key)
}

func (s *Server) stamp(c *gin.Context, status int, text *string, key *api.IdempotencyKey) {
	ctx := c.Request.Context()
	now := s.now()
	at, wanted, caller := instant.Cut(now), door.Now, callerOf(ctx)
	if text != nil {
		var err error
		if at, err = instant.Parse(*text); err != nil {
			s.fail(c, err, attempt{})
			return
		}
		wanted = instant.Format(at)
	}
	a := attempt{key: keyOf(key)}
	id, err := s.doors.Timestamps.Ticket(a.key, stampBinding(caller, wanted), now)
	if err != nil {
		s.fail(c, err, a)
		return
	}
	a.ticket = id.String()
	value := event.AppendTimestampCommand(make([]byte, 0, 128), event.TimestampCommand{CommandID: id, EventTimestamp: at})
	o := s.doors.Timestamps.Accept(ctx, door.Command{Key: a.ticket, Value: value})[0]
	if o.Err != nil {
		s.fail(c, o.Err, a)
		return
	}
	s.located(c, a, o.Position)
	c.Data(status, "application/json; charset=utf-8", []byte(`{"id":"`+a.ticket+`"}`))
}

// located sets the headers that say where an accepted command stands and where its ticket is read.
func (s *Server) located(c *gin.Context, a attempt, at position.Position) {
	written := at.String()
	h := c.Writer.Header()
	h["Location"] = []string{s.queryURL + "/api/v1/tickets/" + a.ticket + "?position=" + written}
	h[position.Header] = []string{written}
	h["Cache-Control"] = []string{"no-store"}
}

// stampBinding is what the key of a timestamp is bound to.
func stampBinding(caller, instant string) door.Binding {
	return door.Binding{Caller: caller, Route: route, Wanted: instant}
}

// keyOf is the request's Idempotency-Key, or empty.
func keyOf(key *api.IdempotencyKey) string {
	if key == nil {
		return ""
	}
	return *key
}

// callerOf is the id of the key that was shown, or empty.
func callerOf(ctx context.Context) string {
	caller, _ := auth.FromContext(ctx)
	return caller.ID
}

func (s *Server) fail(c *gin.Context, err error, a attempt) {
	if errors.Is(err, context.Canceled) && c.Request.Context().Err() != nil {
		c.AbortWithStatus(statusClientGone)
		return
	}
	f := s.failures.answer(c.Request.Context(), err, a)
	if f.retryAfter != "" {
		c.Header("Retry-After", f.retryAfter)
	}
	sharedhttp.Fail(c, f.Problem)
}

package httpapi

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	"github.com/gin-gonic/gin"

	"github.com/tidemark/tidemark/command-service/internal/deadletter"
	api "github.com/tidemark/tidemark/shared/api/command"
	"github.com/tidemark/tidemark/shared/auth"
	sharedhttp "github.com/tidemark/tidemark/shared/httpapi"
	"github.com/tidemark/tidemark/shared/position"
	"github.com/tidemark/tidemark/shared/problem"
)

// Bodies are the bounds of the routes that take larger bodies than others, for the engine.
var Bodies = map[string]int64{
	"/api/v1/deadletters/redrive": 8 << 20,
	"/api/v1/deadletters/discard": 1 << 20,
	"/api/v1/endpoints":           8 << 20,
}

// RedriveDeadLetters writes a new command for each letter.
func (s *Server) RedriveDeadLetters(c *gin.Context) {
	var body api.Redrive
	if !read(c, &body) {
		return
	}
	letters := make([]deadletter.Letter, len(body.Letters))
	for i, l := range body.Letters {
		letters[i] = deadletter.Letter{Position: l.Position, Payload: l.Payload}
	}
	results, err := s.letters.Redrive(c.Request.Context(), letters, request(c, body.Note, body.Readable))
	s.decided(c, results, err)
}

// DiscardDeadLetters decides that nothing more will be done about them.
func (s *Server) DiscardDeadLetters(c *gin.Context) {
	var body api.Discard
	if !read(c, &body) {
		return
	}
	results, err := s.letters.Discard(c.Request.Context(), body.Positions, request(c, body.Note, body.Readable))
	s.decided(c, results, err)
}

// read decodes a body that was validated before.
func read(c *gin.Context, body any) bool {
	if err := json.NewDecoder(c.Request.Body).Decode(body); err != nil {
		sharedhttp.FailBody(c, err)
		return false
	}
	return true
}

func request(c *gin.Context, note *string, readable *bool) deadletter.Request {
	r := deadletter.Request{Readable: readable != nil && *readable}
	if note != nil {
		r.Note = *note
	}
	if caller, ok := auth.FromContext(c.Request.Context()); ok {
		r.By, r.ByName = caller.ID, caller.Name
	}
	return r
}

func (s *Server) decided(c *gin.Context, results []deadletter.Result, err error) {
	var broken *deadletter.BrokenError
	var undecided *deadletter.UndecidedError
	switch {
	case errors.As(err, &broken):
		list := make([]api.LetterError, len(broken.Letters))
		for i, l := range broken.Letters {
			list[i] = api.LetterError{Position: l.Position, Reason: l.Reason}
		}
		sharedhttp.Fail(c, problem.Problem{
			Type: "/problems/broken-letters", Title: "Letters are broken", Status: http.StatusUnprocessableEntity,
			Detail: fmt.Sprintf("%d of the letters cannot be decided on as asked, see errors; nothing was written", len(list)), Errors: list,
		})
		return
	case errors.As(err, &undecided) && c.Request.Context().Err() == nil:
		s.failures.warn(c.Request.Context(), err)
		c.Header("Retry-After", "1")
		sharedhttp.Fail(c, problem.Problem{
			Type: "/problems/outcome-unknown", Title: "Outcome unknown", Status: http.StatusServiceUnavailable,
			Detail: fmt.Sprintf("%d of %d letters are decided on; what was written for the others is not known; send the same request again, "+
				"each letter counts once in either case", undecided.Decided, undecided.Letters),
		})
		return
	case err != nil:
		s.fail(c, err, attempt{})
		return
	}
	answer := api.Decisions{Results: make([]api.DecisionResult, len(results))}
	for i, r := range results {
		one := api.DecisionResult{Position: r.Letter.String(), Decision: r.Decision.String()}
		if r.Command.Topic != "" {
			ticket, command := r.Ticket.String(), r.Command.String()
			one.Ticket, one.Command = &ticket, &command
		}
		answer.Results[i] = one
	}
	h := c.Writer.Header()
	h[position.Header] = []string{results[len(results)-1].Decision.String()}
	h["Cache-Control"] = []string{"no-store"}
	c.PureJSON(http.StatusOK, answer)
}

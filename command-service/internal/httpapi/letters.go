package httpapi

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	"github.com/gin-gonic/gin"
	"github.com/google/uuid"

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

// RedriveDeadLetters writes a new command for each letter.
func (s *Server) RedriveDeadLetters(c *gin.Context, p api.RedriveDeadLettersParams) {
	var body api.Redrive
	if !read(c, &body) {
		return
	}
	r, key, err := s.request(c, p.IdempotencyKey, body.Note, body.Readable)
	if err != nil {
		s.fail(c, err, attempt{})
		return
	}
	letters := make([]deadletter.Letter, len(body.Letters))
	for i, l := range body.Letters {
		letters[i] = deadletter.Letter{Position: l.Position, Payload: l.Payload}
	}
	results, err := s.letters.Redrive(c.Request.Context(), letters, r)
	s.decided(c, key, results, err)
}

// DiscardDeadLetters decides that nothing more will be done about them.
func (s *Server) DiscardDeadLetters(c *gin.Context, p api.DiscardDeadLettersParams) {
	var body api.Discard
	if !read(c, &body) {
		return
	}
	r, key, err := s.request(c, p.IdempotencyKey, body.Note, body.Readable)
	if err != nil {
		s.fail(c, err, attempt{})
		return
	}
	results, err := s.letters.Discard(c.Request.Context(), body.Positions, r)
	s.decided(c, key, results, err)
}

// read decodes a body that was validated before.
func read(c *gin.Context, body any) bool {
	if err := json.NewDecoder(c.Request.Body).Decode(body); err != nil {
		sharedhttp.FailBody(c, err)
		return false
	}
	return true
}

// decisionRoute is the one name of both routes, for the rule of keys: what is wanted says which of them it was.
const decisionRoute = "POST /api/v1/deadletters"

// request is what the letters are decided with, and the key that a retry must bear: one of our own where none came.
func (s *Server) request(c *gin.Context, sent *api.DecisionKey, note *string, readable *bool) (deadletter.Request, string, error) {
	key, caller, now := keyOf(sent), callerOf(c.Request.Context()), s.now()
	if key == "" {
		key = uuid.NewString()
	}
	if _, err := door.PlaceTicket(key, door.Binding{Caller: caller}, 0, now); err != nil {
		return deadletter.Request{}, "", err
	}
	r := deadletter.Request{Readable: readable != nil && *readable, ID: func(letter position.Position, wanted string) uuid.UUID {
		id, _ := door.PlaceTicket(key, door.Binding{Caller: caller, Route: decisionRoute, Wanted: letter.String() + " " + wanted}, 0, now)
		return id // the key was found good
	}}
	if note != nil {
		r.Note = *note
	}
	if caller, ok := auth.FromContext(c.Request.Context()); ok {
		r.By, r.ByName = caller.ID, caller.Name
	}
	return r, key, nil
}

func (s *Server) decided(c *gin.Context, key string, results []deadletter.Result, err error) {
	var broken *deadletter.BrokenError
	var before *deadletter.DecidedError
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
	case errors.As(err, &before):
		list := make([]api.LetterError, len(before.Letters))
		for i, l := range before.Letters {
			list[i] = api.LetterError{Position: l.Position.String(), Reason: l.String(), Decided: &api.EarlierDecision{
				Decision: api.EarlierDecisionDecision(l.Decision), DecidedAt: instant.Format(l.At), Position: l.Place.String(),
			}}
			if l.Decision == event.Redrive {
				ticket := l.CommandID.String()
				list[i].Decided.Ticket = &ticket
			}
		}
		sharedhttp.Fail(c, problem.Problem{
			Type: "/problems/already-decided", Title: "Already decided", Status: http.StatusConflict,
			Detail: alreadyDecided(before.Letters), Errors: list,
		})
		return
	case errors.As(err, &undecided) && c.Request.Context().Err() == nil:
		s.failures.warn(c.Request.Context(), err)
		c.Header("Retry-After", "1")
		sharedhttp.Fail(c, problem.Problem{
			Type: "/problems/outcome-unknown", Title: "Outcome unknown", Status: http.StatusServiceUnavailable,
			Detail: fmt.Sprintf("%d of %d letters are decided on; what was written for the others is not known; send the same request again "+
				"with the Idempotency-Key %s, each letter counts once in either case", undecided.Decided, undecided.Letters, key),
			Extra: map[string]string{"retry_key": key},
		})
		return
	case err != nil:
		s.fail(c, err, attempt{})
		return
	}
	answer := api.Decisions{Results: make([]api.DecisionResult, len(results))}
	for i, r := range results {
		one := api.DecisionResult{Position: r.Letter.String(), Decision: r.Decision.String()}
		if r.Ticket != uuid.Nil {
			ticket := r.Ticket.String()
			one.Ticket = &ticket
		}
		if r.Command.Topic != "" {
			command := r.Command.String()
			one.Command = &command
		}
		answer.Results[i] = one
	}
	h := c.Writer.Header()
	h[position.Header] = []string{results[len(results)-1].Decision.String()}
	h["Cache-Control"] = []string{"no-store"}
	c.PureJSON(http.StatusOK, answer)
}

// alreadyDecided says what became of the letters before: all of it where there is one.
func alreadyDecided(letters []deadletter.Decided) string {
	if len(letters) == 1 {
		return fmt.Sprintf("%s is decided on: %s; nothing was written", letters[0].Position, letters[0])
	}
	return fmt.Sprintf("%d of the letters are decided on, see errors for what and when; nothing was written, send the others without them", len(letters))
}

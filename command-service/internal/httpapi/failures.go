package httpapi

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/tidemark/tidemark/command-service/internal/door"
	"github.com/tidemark/tidemark/command-service/internal/endpoint"
	api "github.com/tidemark/tidemark/shared/api/command"
	"github.com/tidemark/tidemark/shared/instant"
	"github.com/tidemark/tidemark/shared/problem"
)

// statusClientGone is what the request metrics show for a client that left; nobody reads it.
const statusClientGone = 499

// attempt is what a caller needs to send the same command again.
type attempt struct {
	ticket, key string
	line        int64 // the number of the line, where key is that of its whole stream; else 0
}

// retry says how to send it again.
func (a attempt) retry() string {
	if a.line > 0 {
		return fmt.Sprintf("send the stream again from this line on, with from_line=%d and the Idempotency-Key %s", a.line, a.key)
	}
	return "send it again with the Idempotency-Key " + a.retryKey()
}

// retryKey is the caller's own key, or the ticket where the caller sent none: a ticket is a key for its own command.
func (a attempt) retryKey() string {
	if a.key != "" {
		return a.key
	}
	return a.ticket
}

type failure struct {
	problem.Problem
	retryAfter string // seconds, or empty
}

// failures maps errors to answers, and logs those that an operator should see.
type failures struct {
	log *slog.Logger

	mu     sync.Mutex
	logged time.Time
}

// answer is this service's one table of which error is which problem.
func (f *failures) answer(ctx context.Context, err error, a attempt) failure {
	var (
		badInstant *instant.Error
		badKey     *door.KeyError
		shut       *door.ShutError
		badLine    *lineError
		invalid    *endpoint.InvalidError
	)
	switch {
	case errors.As(err, &badLine):
		return failure{Problem: problem.Problem{
			Type: "/problems/bad-line", Title: "Line not accepted", Status: badLine.status, Detail: badLine.Error(),
		}}
	case errors.Is(err, errIdle):
		return failure{Problem: problem.Problem{
			Type: "/problems/stream-idle", Title: "Nothing came", Status: http.StatusRequestTimeout,
			Detail: "the stream was ended because no line came for too long; the lines that were answered stay as they were answered",
		}}
	case errors.Is(err, errBodyBroken):
		return failure{Problem: problem.Problem{
			Type: "/problems/body-broken", Title: "The body broke off", Status: http.StatusBadRequest,
			Detail: "the body could not be read to its end; the lines that were answered stay as they were answered, the others were not read",
		}}
	case errors.Is(err, errStopping):
		return failure{problem.Problem{
			Type: "/problems/stopping", Title: "The service is being stopped", Status: http.StatusServiceUnavailable,
			Detail: "the service is being stopped; the lines that were answered stay as they were answered, send the others again",
		}, "5"}
	case errors.As(err, &badInstant):
		return failure{Problem: problem.Problem{
			Type: "/problems/bad-instant", Title: "Instant not accepted", Status: http.StatusBadRequest, Detail: badInstant.Error(),
		}}
	case errors.As(err, &invalid):
		list := make([]api.FieldError, len(invalid.Fields))
		for i, e := range invalid.Fields {
			list[i] = api.FieldError{Path: e.Path, Message: e.Message}
		}
		return failure{Problem: problem.Problem{
			Type: "/problems/bad-endpoint", Title: "Endpoint not accepted", Status: http.StatusBadRequest,
			Detail: invalid.Error() + "; nothing was written", Errors: list,
		}}
	case errors.As(err, &badKey):
		return failure{Problem: problem.Problem{
			Type: "/problems/bad-idempotency-key", Title: "Idempotency-Key not taken", Status: http.StatusBadRequest, Detail: badKey.Error(),
		}}
	case errors.Is(err, door.ErrBusy):
		return failure{problem.Problem{
			Type: "/problems/busy", Title: "Too many commands are waiting", Status: http.StatusServiceUnavailable,
			Detail: "too many commands are waiting for the log; nothing was written, send the command again",
		}, "1"}
	case errors.Is(err, door.ErrTooLarge):
		f.warn(ctx, err)
		return failure{Problem: problem.Problem{
			Type: "/problems/record-too-large", Title: "The log takes no record of this size", Status: http.StatusRequestEntityTooLarge,
			Detail: "the command's record is larger than max.message.bytes of its topic; nothing was written, and sending it again does not help until an operator raises that",
		}}
	case errors.Is(err, door.ErrUnknown):
		f.warn(ctx, err)
		return failure{problem.Problem{
			Type: "/problems/outcome-unknown", Title: "Outcome unknown", Status: http.StatusServiceUnavailable,
			Detail: "the command was handed to the log and no answer came, so it may be there or not; " +
				a.retry() + " and it counts once in either case",
			Extra: map[string]string{"ticket": a.ticket, "retry_key": a.retryKey()},
		}, "1"}
	case errors.Is(err, door.ErrDown):
		f.warn(ctx, err)
		return failure{problem.Problem{
			Type: "/problems/log-down", Title: "The log is down", Status: http.StatusServiceUnavailable,
			Detail: "the log does not take commands at the moment; nothing was written, send the command again",
		}, "1"}
	case errors.As(err, &shut):
		return failure{problem.Problem{
			Type: "/problems/log-unsafe", Title: "No commands are taken", Status: http.StatusServiceUnavailable,
			Detail: "no commands are taken: " + shut.Reason.Error() + "; nothing was written, send the command again later",
		}, "5"}
	}
	f.log.ErrorContext(ctx, "a command failed", "err", err)
	return failure{Problem: problem.Problem{
		Status: http.StatusInternalServerError, Detail: "something went wrong here; the correlation id finds it in the service's log",
	}}
}

// warn logs one of the many equal errors of a broker that is down, at most once a second.
func (f *failures) warn(ctx context.Context, err error) {
	f.mu.Lock()
	due := time.Since(f.logged) > time.Second
	if due {
		f.logged = time.Now()
	}
	f.mu.Unlock()
	if due {
		f.log.WarnContext(ctx, "a command was not accepted", "err", err)
	}
}

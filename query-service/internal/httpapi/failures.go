package httpapi

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/tidemark/tidemark/query-service/internal/deadletter"
	"github.com/tidemark/tidemark/query-service/internal/endpoint"
	"github.com/tidemark/tidemark/query-service/internal/generation"
	"github.com/tidemark/tidemark/query-service/internal/projection"
	"github.com/tidemark/tidemark/query-service/internal/record"
	"github.com/tidemark/tidemark/shared/position"
	"github.com/tidemark/tidemark/shared/postgres"
	"github.com/tidemark/tidemark/shared/problem"
)

// statusClientGone is what the request metrics show for a client that left; nobody reads it.
const statusClientGone = 499

// Failure is an error as a client sees it.
type Failure struct {
	problem.Problem
	Outcome    string // for the metric
	RetryAfter string // seconds, or empty
}

// Failures maps errors to answers, and logs those that are this service's own.
type Failures struct {
	log    *slog.Logger
	mu     sync.Mutex
	logged time.Time
}

// NewFailures logs to log.
func NewFailures(log *slog.Logger) *Failures { return &Failures{log: log} }

// Of is this service's one table of which error is which problem.
func (f *Failures) Of(ctx context.Context, err error) Failure {
	var behind *projection.NotReachedError
	var unknown *projection.UnknownError
	var wrong *projection.WantError
	var refused *projection.RefusedError
	var rebuilding *projection.RebuildingError
	var busy *projection.BusyError
	switch {
	case errors.Is(err, context.Canceled) && ctx.Err() != nil:
		return Failure{problem.Problem{Status: statusClientGone}, "client_gone", ""}
	case errors.As(err, &wrong):
		return Failure{problem.Problem{Status: http.StatusBadRequest, Detail: wrong.Detail}, "wrong", ""}
	case errors.As(err, &unknown):
		return Failure{problem.Problem{Status: http.StatusNotFound, Detail: unknown.Error()}, "absent", ""}
	case errors.As(err, &refused):
		return Failure{problem.Problem{
			Type: "/problems/projection-refused", Title: "Projection stopped", Status: http.StatusServiceUnavailable,
			Detail: fmt.Sprintf("the projection %s has stopped, and until it goes on no position of its log is answered: %s", refused.Projection, refused.Reason),
			Extra:  map[string]string{"projection": refused.Projection},
		}, "refused", "10"}
	case errors.As(err, &rebuilding):
		return Failure{rebuildingProblem(rebuilding), "rebuilding", "5"}
	case errors.As(err, &behind):
		return Failure{problem.Problem{
			Type: "/problems/position-not-reached", Title: "Position not reached", Status: http.StatusGatewayTimeout,
			Detail: fmt.Sprintf("the projection did not pass %s within %s, it is at %s: ask again, or see /api/v1/projections", behind.Want.Position, behind.Want.Wait, behind.ReachedWord()),
			Extra:  map[string]string{"position": behind.Want.Position.String(), "reached": behind.ReachedWord()},
		}, "not_reached", "1"}
	case errors.Is(err, record.ErrNotFound):
		return Failure{problem.Problem{
			Status: http.StatusNotFound,
			Detail: "no record has this id; one that was accepted may still come: send its " + position.Header + " to wait for it",
		}, "absent", ""}
	case errors.Is(err, endpoint.ErrNotFound):
		return Failure{problem.Problem{
			Status: http.StatusNotFound,
			Detail: "no endpoint has this id; one that was accepted may still come: send its " + position.Header + " to wait for it",
		}, "absent", ""}
	case errors.Is(err, generation.ErrNotFound):
		return Failure{problem.Problem{Status: http.StatusNotFound, Detail: "the projection has no generation of this number"}, "absent", ""}
	case errors.Is(err, deadletter.ErrNotFound):
		return Failure{problem.Problem{
			Status: http.StatusNotFound,
			Detail: "there is no dead letter at this position: the record has another outcome, is not projected yet, or is not there",
		}, "absent", ""}
	case errors.Is(err, projection.ErrStopping):
		return Failure{problem.Problem{Status: http.StatusServiceUnavailable, Detail: "the service is being stopped: ask again"}, "stopping", "1"}
	case errors.Is(err, errTooManyStreams):
		return Failure{problem.Problem{Status: http.StatusServiceUnavailable, Detail: "too many event streams are open here: connect again later, or read /api/v1/projections now and then"}, "too_many_streams", "5"}
	case errors.As(err, &busy):
		f.warn(ctx, "busy", err)
		return Failure{problem.Problem{
			Type: "/problems/busy", Title: "Busy", Status: http.StatusServiceUnavailable,
			Detail: "the database answers, but there is more to read than it can do in time: ask again later",
			Extra:  map[string]string{"short_of": busy.ShortOf},
		}, "busy", "2"}
	case broken(err):
		f.log.ErrorContext(ctx, "a read failed", "err", err)
		return Failure{problem.Problem{
			Status: http.StatusInternalServerError,
			Detail: "the database refused a query of this service; the correlation id finds it in the service's log",
		}, "broken", ""}
	}
	f.warn(ctx, "down", err)
	return Failure{problem.Problem{
		Type: "/problems/database-down", Title: "Database down", Status: http.StatusServiceUnavailable,
		Detail: postgres.CauseOf(err).Found + "; the service goes on by itself once that has passed: ask again",
	}, "down", "2"}
}

// rebuildingProblem says how far a derived table is that is not complete yet.
func rebuildingProblem(r *projection.RebuildingError) problem.Problem {
	p := problem.Problem{
		Type: "/problems/rebuilding", Title: "Rebuilding", Status: http.StatusServiceUnavailable,
		Detail: fmt.Sprintf("the projection %s has not caught up with its log since it was started over, so what it shows now would be a part only: %s", r.Projection, r.HowFar()),
		Extra:  map[string]string{"projection": r.Projection, "done": strconv.FormatInt(r.Done, 10)},
	}
	if r.Total != nil {
		p.Extra["total"], p.Extra["percent"] = strconv.FormatInt(*r.Total, 10), strconv.FormatFloat(*r.Percent, 'f', 1, 64)
	}
	return p
}

// broken reports whether the server understood the query and refused it, which a newer try will not
// change. By class of SQLSTATE (Postgres manual, appendix A) the others are: 08 connection,
// 25 transaction state, 28 and 3D login, 40 rollback, 42P01 no table yet, 53 resources, 55 a lock not
// given, 57 operator's intervention, 58 system error.
func broken(err error) bool {
	state := postgres.State(err)
	if len(state) != 5 || state == "42P01" {
		return false
	}
	return !slices.Contains([]string{"08", "25", "28", "3D", "40", "53", "55", "57", "58"}, state[:2])
}

// warn logs one of the many equal errors that a database that is down or busy gives, at most once a second. outcome is that
// of the failure.
func (f *Failures) warn(ctx context.Context, outcome string, err error) {
	f.mu.Lock()
	due := time.Since(f.logged) > time.Second
	if due {
		f.logged = time.Now()
	}
	f.mu.Unlock()
	if due {
		f.log.WarnContext(ctx, "a read was not answered", "outcome", outcome, "err", err)
	}
}

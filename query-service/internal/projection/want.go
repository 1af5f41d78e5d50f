package projection

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/tidemark/tidemark/shared/position"
)

// Waits of a read that names a position.
const (
	DefaultWait = 5 * time.Second
	LongestWait = 30 * time.Second
)

// WantError says what is wrong with a position or a wait, for whoever sent it.
type WantError struct{ Detail string }

func (e *WantError) Error() string { return e.Detail }

// Want reads what a request wants: ParseWant, with the position's topic checked against the projections
// there are. A refusal is a *WantError; any other error is the database's.
func (r *Reader) Want(ctx context.Context, header, query, wait string, otherwise time.Duration) (Want, error) {
	w, err := ParseWant(header, query, wait, otherwise)
	if err == nil {
		_, err = r.awaited(ctx, w)
	}
	return w, err
}

// ParseWant reads a position that may come as header, as query parameter or as both if they agree, and
// a wait that is a duration or a number of seconds, otherwise where it is empty. Every refusal is a *WantError.
func ParseWant(header, query, wait string, otherwise time.Duration) (Want, error) {
	header, query = strings.TrimSpace(header), strings.TrimSpace(query)
	if header != "" && query != "" && header != query {
		return Want{}, &WantError{fmt.Sprintf("the header %s and the parameter position name two places: keep one", position.Header)}
	}
	w := Want{Wait: otherwise}
	if wait != "" {
		var err error
		if w.Wait, err = parseWait(wait); err != nil {
			return Want{}, err
		}
	}
	if header == "" {
		header = query
	}
	if header == "" {
		return w, nil
	}
	at, err := position.Parse(header)
	if err != nil {
		return Want{}, &WantError{err.Error()}
	}
	w.Position = at
	return w, nil
}

func parseWait(s string) (time.Duration, error) {
	d, err := time.ParseDuration(s)
	if err != nil {
		if seconds, numeric := strconv.ParseFloat(s, 64); numeric == nil && seconds >= 0 && seconds <= LongestWait.Seconds() {
			return time.Duration(seconds * float64(time.Second)), nil
		}
	}
	if err != nil || d < 0 || d > LongestWait {
		return 0, &WantError{fmt.Sprintf("wait=%q is not accepted: it is a duration from 0s to %s, or a number of seconds, for example 500ms, 5s or 5", s, LongestWait)}
	}
	return d, nil
}

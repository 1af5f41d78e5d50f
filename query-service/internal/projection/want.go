package projection

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/tidemark/tidemark/shared/position"
	"github.com/tidemark/tidemark/shared/topic"
)

// Waits of a read that names a position.
const (
	DefaultWait = 5 * time.Second
	LongestWait = 30 * time.Second
)

// Topics that are projected; a position in any other can never be passed.
var Topics = []string{topic.TimestampCommand.Name, topic.DeadLetterCommand.Name}

// WantError says what is wrong with a position or a wait, for whoever sent it.
type WantError struct{ Detail string }

func (e *WantError) Error() string { return e.Detail }

// ParseWant reads a position that may come as header, as query parameter or as both if they agree, and
// a wait that is a duration or a number of seconds, unless when it is empty. Every refusal is a *WantError.
func ParseWant(header, query, wait string, unless time.Duration) (Want, error) {
	header, query = strings.TrimSpace(header), strings.TrimSpace(query)
	if header != "" && query != "" && header != query {
		return Want{}, &WantError{fmt.Sprintf("the header %s and the parameter position name two places: keep one", position.Header)}
	}
	w := Want{Wait: unless}
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
	if !slices.Contains(Topics, at.Topic) {
		return Want{}, &WantError{fmt.Sprintf("%q is in a topic that is not projected: these are %s", at, strings.Join(Topics, ", "))}
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

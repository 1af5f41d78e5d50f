package web

import (
	"fmt"
	"html/template"
	"math"
	"strconv"
	"time"

	"github.com/tidemark/tidemark/query-service/internal/endpoint"
	"github.com/tidemark/tidemark/shared/instant"
)

var functions = template.FuncMap{
	"num":     number,
	"term":    linkToTerm,
	"instant": instant.Format,
	"clock":   func(t time.Time) string { return timeOfDay(t, time.Now(), "15:04:05 UTC") },
	"fine":    func(t time.Time) string { return timeOfDay(t, time.Now(), "15:04:05.000 UTC") },
	"day":     func(t time.Time) string { return t.UTC().Format("2 January 2006, 15:04 UTC") },
	"plural":  plural,
	"some":    func(n int, one, many string) string { return plural(int64(n), one, many) },
	// Templates hand over what a pointer points to, where a function takes it; printf would print the address.
	"isZero":   func(n int64) bool { return n == 0 },
	"tenths":   func(f float64) string { return fmt.Sprintf("%.1f", f) },
	"whole":    func(f float64) string { return number(int64(math.Round(f))) },
	"took":     took,
	"secs":     func(f float64) string { return span(time.Duration(f * float64(time.Second))) },
	"interval": endpoint.FormatInterval,
	"wrong":    func(wrong map[string]string, field string) fieldError { return fieldError{field, wrong[field]} },
	"millis":   func(f float64) string { return took(time.Duration(f * float64(time.Millisecond))) },
}

// timeOfDay prints t by layout, with its date where that is another one than today.
func timeOfDay(t, now time.Time, layout string) string {
	if t, now = t.UTC(), now.UTC(); t.Format(time.DateOnly) != now.Format(time.DateOnly) {
		layout = "2 January 2006, " + layout
	}
	return t.UTC().Format(layout)
}

// fieldError is what is wrong with a field of a form; Why is empty where nothing is.
type fieldError struct{ Field, Why string }

// number prints n with a comma for each thousand: 1 234 567 would break across lines, 1,234,567 does not.
func number(n int64) string {
	s := strconv.FormatInt(n, 10)
	start := 0
	if n < 0 {
		start = 1
	}
	for i := len(s) - 3; i > start; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

func plural(n int64, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return number(n) + " " + many
}

// age prints how long ago something was, in the unit that a person would use.
func age(d time.Duration) string {
	switch {
	case d < 1500*time.Millisecond: // clocks of two machines: a little below 0 is now
		return "just now"
	case d < 100*time.Second:
		return fmt.Sprintf("%.0f s ago", d.Seconds())
	case d < 100*time.Minute:
		return fmt.Sprintf("%.0f min ago", d.Minutes())
	case d < 48*time.Hour:
		return fmt.Sprintf("%.0f h ago", d.Hours())
	default:
		return fmt.Sprintf("%.0f days ago", d.Hours()/24)
	}
}

// span prints how long something takes.
func span(d time.Duration) string {
	switch {
	case d < time.Second:
		return "under a second"
	case d < 100*time.Second:
		return fmt.Sprintf("%.0f s", math.Ceil(d.Seconds()))
	case d < 100*time.Minute:
		return fmt.Sprintf("%.0f min", math.Ceil(d.Minutes()))
	case d < 100*time.Hour:
		return fmt.Sprintf("%.0f h", math.Ceil(d.Hours()))
	default:
		return fmt.Sprintf("%.0f days", math.Ceil(d.Hours()/24))
	}
}

// took prints how long something took, with two or three digits that mean something.
func took(d time.Duration) string {
	switch ms := float64(d) / float64(time.Millisecond); {
	case ms < 0.95:
		return "under 1 ms"
	case ms < 9.95:
		return fmt.Sprintf("%.1f ms", ms)
	case ms < 999.5:
		return fmt.Sprintf("%.0f ms", ms)
	case d < 100*time.Second:
		return fmt.Sprintf("%.1f s", d.Seconds())
	default:
		return span(d)
	}
}

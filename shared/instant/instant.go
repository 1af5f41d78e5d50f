// Package instant reads and prints the points in time that Tidemark accepts: RFC 3339 instants whose
// UTC year is 1 to 9999, cut to whole microseconds because that is what Postgres keeps.
//
// The door and the decoder of the log both go through Parse, so that a value means the same instant
// wherever it is read.
package instant

import (
	"errors"
	"fmt"
	"time"
)

// Example is an accepted instant, for messages that say what to send instead.
const Example = "2009-09-28T19:03:12Z"

// Cut returns t in UTC, cut to whole microseconds.
func Cut(t time.Time) time.Time { return t.UTC().Truncate(time.Microsecond) }

// Error says which value was refused and by which rule.
type Error struct {
	Value string
	Rule  string
}

func (e *Error) Error() string {
	value := e.Value
	if len(value) > 64 {
		value = value[:64] + "…"
	}
	return fmt.Sprintf("%q is not accepted: %s; an example of an accepted instant is %s", value, e.Rule, Example)
}

// Parse reads an RFC 3339 instant and returns it in UTC, digits past the microsecond cut.
// Every refusal is an *Error.
func Parse(s string) (time.Time, error) {
	refuse := func(err error) (time.Time, error) {
		return time.Time{}, &Error{Value: s, Rule: rule(s, err)}
	}
	if !wellFormed(s) {
		return refuse(nil)
	}
	t, err := time.Parse(time.RFC3339, upper(s))
	if err != nil {
		return refuse(err)
	}
	t = Cut(t)
	if y := t.Year(); y < 1 || y > 9999 {
		return time.Time{}, &Error{Value: s, Rule: fmt.Sprintf("its year in UTC is %d, outside 1 to 9999", y)}
	}
	return t, nil
}

// ParseUTC reads the instants that Format prints, at the cost of a few digits: it reports false for
// every other spelling, accepted or not, which Parse then decides.
func ParseUTC(b []byte) (time.Time, bool) {
	if len(b) < len("2006-01-02T15:04:05Z") || b[len(b)-1] != 'Z' || b[10] != 'T' || b[17] == '6' || !wellFormed(b) {
		return time.Time{}, false
	}
	num := func(from, to int) (n int) {
		for _, c := range b[from:to] {
			n = n*10 + int(c-'0')
		}
		return n
	}
	micros := 0
	if fraction := len(b) - len("2006-01-02T15:04:05.Z"); fraction > 6 {
		return time.Time{}, false
	} else if fraction > 0 {
		micros = num(20, 20+fraction)
		for range 6 - fraction {
			micros *= 10
		}
	}
	year, month, day := num(0, 4), time.Month(num(5, 7)), num(8, 10)
	hour, minute, second := num(11, 13), num(14, 16), num(17, 19)
	t := time.Date(year, month, day, hour, minute, second, micros*1000, time.UTC)
	// time.Date carries what is out of range into the next field; such a value is Parse's to refuse.
	if year < 1 || hour > 23 || minute > 59 || second > 59 || t.Day() != day || t.Month() != month {
		return time.Time{}, false
	}
	return t, true
}

// wellFormed checks the grammar of RFC 3339, section 5.6, which Go's parser takes loosely: it lets
// one-digit hours, a decimal comma and an offset of 24 hours pass.
func wellFormed[T string | []byte](s T) bool {
	const shape = "0000-00-00T00:00:00"
	if len(s) < len(shape)+1 {
		return false
	}
	for i := range len(shape) {
		switch c := s[i]; shape[i] {
		case '0':
			if c < '0' || c > '9' {
				return false
			}
		case 'T':
			if c != 'T' && c != 't' {
				return false
			}
		default:
			if c != shape[i] {
				return false
			}
		}
	}
	i := len(shape)
	if s[i] == '.' {
		start := i + 1
		for i = start; i < len(s) && s[i] >= '0' && s[i] <= '9'; i++ {
		}
		if i == start {
			return false
		}
	}
	zone := s[i:]
	if len(zone) == 1 {
		return zone[0] == 'Z' || zone[0] == 'z'
	}
	digit := func(c byte) bool { return c >= '0' && c <= '9' }
	return len(zone) == 6 && (zone[0] == '+' || zone[0] == '-') && zone[3] == ':' &&
		digit(zone[1]) && digit(zone[2]) && digit(zone[4]) && digit(zone[5]) &&
		(zone[1] < '2' || zone[1] == '2' && zone[2] < '4') && zone[4] < '6'
}

// Format prints t in UTC with a Z and with no more fractional digits than it has, at most six.
func Format(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.999999Z07:00") }

// Append appends what Format would return.
func Append(dst []byte, t time.Time) []byte {
	return t.UTC().AppendFormat(dst, "2006-01-02T15:04:05.999999Z07:00")
}

// upper turns the lower-case separators that RFC 3339 allows (section 5.6) into the ones Go's parser takes.
func upper(s string) string {
	if len(s) < 20 || (s[10] != 't' && s[len(s)-1] != 'z') {
		return s
	}
	b := []byte(s)
	if b[10] == 't' {
		b[10] = 'T'
	}
	if b[len(b)-1] == 'z' {
		b[len(b)-1] = 'Z'
	}
	return string(b)
}

func rule(s string, err error) string {
	if s == "" {
		return "it is empty, and an RFC 3339 instant is wanted"
	}
	if len(s) >= 19 && s[16] == ':' && s[17:19] == "60" {
		return "it names a leap second, which has no place on the log's time line"
	}
	var parse *time.ParseError
	if errors.As(err, &parse) && len(parse.Message) > 2 {
		return "it is no RFC 3339 instant" + parse.Message
	}
	return "it is no RFC 3339 instant (date, T, time with seconds, then Z or an offset such as +02:00)"
}

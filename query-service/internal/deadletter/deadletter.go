// Package deadletter reads the dead letters of every projection, in the order of their positions in the log, and what was
// decided on them. It bounds what it returns, since a payload can be as large as Kafka lets a record be, and how many
// letters it searches for one page.
package deadletter

import (
	"encoding/json"
	"errors"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"

	"github.com/tidemark/tidemark/shared/event"
	"github.com/tidemark/tidemark/shared/position"
	"github.com/tidemark/tidemark/shared/topic"
)

// ShownBytes is how many bytes of a payload a list has; headers that are larger are left out. WholeBytes is the same for
// one letter, and more than Kafka takes unless it is configured to.
const (
	ShownBytes = 16 << 10
	WholeBytes = 4 << 20
)

// ReasonCodes are those that consumer-service gives, as the comment on the table's column explains them.
var ReasonCodes = []string{"decode", "misplaced", "time", "refused", "decided"}

// ErrNotFound says that there is no dead letter at the position.
var ErrNotFound = errors.New("no dead letter is there")

// DeadLetter is one record that ended as rejected.
type DeadLetter struct {
	Projection   string
	Position     position.Position
	Payload      []byte // as much of it as is shown; nil where the record had no value
	PayloadBytes int    // of the whole
	Headers      json.RawMessage
	ReasonCode   string
	Reason       string
	FirstSeenAt  time.Time // the log's own time
	Decision     *Decision // nil while nobody has decided
}

// Decision is what was decided on a dead letter.
type Decision struct {
	Kind     event.Decision
	Ticket   *uuid.UUID // of the command in its place; of a redrive only
	Note     string
	By       string // the id of an API key, or empty
	At       time.Time
	Position position.Position // of the decision
}

// State is how far a dead letter is dealt with.
type State string

// The states. All stands for all of them, in a Filter.
const (
	Open      State = "open"
	Discarded State = "discarded"
	Redriven  State = "redriven"
	All       State = "all"
)

// Redrivable reports whether it can be redriven. A redrive is a new command, so command-service must be the
// writer of the letter's topic; letters of other topics can only be discarded.
func (d DeadLetter) Redrivable() bool {
	spec, known := topic.ByName(d.Position.Topic)
	return known && spec.Redrivable()
}

// State is how far the letter is dealt with.
func (d DeadLetter) State() State {
	switch {
	case d.Decision == nil:
		return Open
	case d.Decision.Kind == event.Redrive:
		return Redriven
	}
	return Discarded
}

// Truncated reports whether Payload is only the beginning.
func (d DeadLetter) Truncated() bool { return d.PayloadBytes > len(d.Payload) }

// Text returns the payload as text, and whether it is text. A character that the bound has cut in two
// is left out.
func (d DeadLetter) Text() (string, bool) {
	b := d.Payload
	if d.Truncated() {
		for cut := 0; cut < utf8.UTFMax && len(b) > 0; cut++ {
			if r, size := utf8.DecodeLastRune(b); r != utf8.RuneError || size > 1 {
				break
			}
			b = b[:len(b)-1]
		}
	}
	return string(b), utf8.Valid(b)
}

// Header is one of a record's headers, as text.
type Header struct{ Key, Value string }

// HeaderList reads Headers for people. A part that is no text is in base64, and says so.
func (d DeadLetter) HeaderList() []Header {
	var raw []map[string]string
	if json.Unmarshal(d.Headers, &raw) != nil {
		return nil // another release's form: the API has it as it is
	}
	part := func(m map[string]string, name string) string {
		if encoded, ok := m[name+"_base64"]; ok {
			return "base64:" + encoded
		}
		return m[name]
	}
	list := make([]Header, len(raw))
	for i, m := range raw {
		list[i] = Header{part(m, "key"), part(m, "value")}
	}
	return list
}

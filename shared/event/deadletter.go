package event

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/tidemark/tidemark/shared/position"
	"github.com/tidemark/tidemark/shared/ticket"
)

// HeaderRedriveOf is on a command that was made of a dead letter, and names the dead letter's position.
const HeaderRedriveOf = "redriveOf"

// Decision says what is done about a dead letter.
type Decision string

// The decisions.
const (
	Redrive Decision = "redrive" // a new command is written in its place
	Discard Decision = "discard" // nothing more is done about it
)

// DeadLetterCommand decides on one dead letter; its topic is topic.DeadLetterCommand. Of several about one position the
// first is the decision: the one with the lowest log time, partition and offset.
type DeadLetterCommand struct {
	Position  position.Position // of the dead letter
	Decision  Decision          // what is done about it
	CommandID uuid.UUID         // of the new command, where it is a redrive
	RequestID uuid.UUID         // the same in each try of one request; Nil where that came without an Idempotency-Key
	Note      string            // an operator's words
	By        string            // the id of the API key; empty without keys
}

type deadLetterCommand struct {
	Position  *string `json:"position"`
	Decision  *string `json:"decision"`
	CommandID *string `json:"command_id,omitempty"`
	RequestID any     `json:"request_id,omitempty"` // whatever else than a UUID it is, the record decides
	Note      string  `json:"note"`
	By        string  `json:"by"`
}

// AppendDeadLetterCommand appends the record value of c:
// {"position":"<topic/partition@offset>","decision":"redrive","command_id":"<uuid>","note":"…","by":"…"},
// without command_id where it is a discard, and with "request_id":"<uuid>" behind it where there is one.
func AppendDeadLetterCommand(dst []byte, c DeadLetterCommand) []byte {
	at, decision := c.Position.String(), string(c.Decision)
	raw := deadLetterCommand{Position: &at, Decision: &decision, Note: c.Note, By: c.By}
	if c.Decision == Redrive {
		id := c.CommandID.String()
		raw.CommandID = &id
	}
	if c.RequestID != uuid.Nil {
		raw.RequestID = c.RequestID.String()
	}
	return appendJSON(dst, raw)
}

// DecodeDeadLetterCommand reads a record value. Members that it does not know are ignored, so that a newer
// producer may add some. An error means that the record decides nothing, now and in every rebuild.
func DecodeDeadLetterCommand(value []byte) (DeadLetterCommand, error) {
	if value == nil {
		return DeadLetterCommand{}, errors.New("the record has no value")
	}
	var raw deadLetterCommand
	if err := json.Unmarshal(value, &raw); err != nil {
		return DeadLetterCommand{}, fmt.Errorf("the value is no JSON object of a dead letter command: %w", err)
	}
	switch {
	case raw.Position == nil:
		return DeadLetterCommand{}, errors.New("the value has no position")
	case raw.Decision == nil:
		return DeadLetterCommand{}, errors.New("the value has no decision")
	}
	c := DeadLetterCommand{Decision: Decision(*raw.Decision), Note: raw.Note, By: raw.By}
	var err error
	if text, ok := raw.RequestID.(string); ok {
		if c.RequestID, err = ticket.Parse(text); err != nil {
			c.RequestID = uuid.Nil
		}
	}
	if c.Position, err = position.Parse(*raw.Position); err != nil {
		return DeadLetterCommand{}, fmt.Errorf("position: %w", err)
	}
	switch c.Decision {
	case Discard:
		return c, nil
	case Redrive:
	default:
		return DeadLetterCommand{}, fmt.Errorf("the decision %.40q is neither redrive nor discard", *raw.Decision)
	}
	if raw.CommandID == nil {
		return DeadLetterCommand{}, errors.New("the value is a redrive without a command_id")
	}
	if c.CommandID, err = ticket.Parse(*raw.CommandID); err != nil {
		return DeadLetterCommand{}, fmt.Errorf("command_id: %w", err)
	}
	return c, nil
}

// DecisionRecord is a decision and its place in topic.DeadLetterCommand.
type DecisionRecord struct {
	DeadLetterCommand
	At        time.Time // the log's own
	Partition int32
	Offset    int64
}

// Before reports whether d, of two decisions on one position, is the one that holds: that with the lowest
// (log time, partition, offset).
func (d DecisionRecord) Before(other DecisionRecord) bool {
	if c := d.At.Compare(other.At); c != 0 {
		return c < 0
	}
	if d.Partition != other.Partition {
		return d.Partition < other.Partition
	}
	return d.Offset < other.Offset
}

// Package event encodes and decodes the records of each topic, byte for byte. Golden files freeze every encoding,
// because a rebuild years from now reads the bytes that are written today.
//
// Which topics there are is said by shared/topic. What a record changes in tables is left to consumer-service.
package event

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/tidemark/tidemark/shared/instant"
	"github.com/tidemark/tidemark/shared/ticket"
)

// Headers that every record of Tidemark's own producers carries. A record of any other producer may
// lack them.
const (
	HeaderCorrelationID = "correlationId"
	HeaderProducer      = "producer"
)

// TimestampCommand is the command to keep one instant under one ticket; its topic is topic.TimestampCommand.
type TimestampCommand struct {
	CommandID      uuid.UUID // the ticket
	EventTimestamp time.Time // UTC, whole microseconds, year 1 to 9999
}

const (
	commandHead   = `{"command_id":"`
	commandMiddle = `","event_timestamp":"`
	commandTail   = `"}`
	uuidLen       = 36
)

// AppendTimestampCommand appends the record value of c:
// {"command_id":"<uuid>","event_timestamp":"<RFC 3339, Z>"}.
func AppendTimestampCommand(dst []byte, c TimestampCommand) []byte {
	dst = append(dst, commandHead...)
	dst = append(dst, c.CommandID.String()...)
	dst = append(dst, commandMiddle...)
	dst = instant.Append(dst, c.EventTimestamp)
	return append(dst, commandTail...)
}

// CommandIDOf returns the command id in a value that AppendTimestampCommand wrote, without decoding it.
func CommandIDOf(written string) string {
	return written[len(commandHead) : len(commandHead)+uuidLen]
}

// DecodeTimestampCommand reads a record value: a JSON object with command_id (a UUID) and
// event_timestamp (an RFC 3339 instant); other members are ignored, so that a newer producer may add
// some. An error means that the record can never be read and belongs among the dead letters; it names the
// member that is wrong and what was expected there, and depends on the bytes alone, so a rebuild gives the same.
func DecodeTimestampCommand(value []byte) (TimestampCommand, error) {
	if c, ok := decodeCanonical(value); ok {
		return c, nil
	}
	if value == nil {
		return TimestampCommand{}, errors.New("the record has no value")
	}
	var raw struct {
		CommandID      *string `json:"command_id"`
		EventTimestamp *string `json:"event_timestamp"`
	}
	if err := json.Unmarshal(value, &raw); err != nil {
		return TimestampCommand{}, wrongJSON(err, "a JSON object")
	}
	if raw.CommandID == nil {
		return TimestampCommand{}, FieldError{"command_id", "expected a UUID, found nothing"}
	}
	if raw.EventTimestamp == nil {
		return TimestampCommand{}, FieldError{"event_timestamp", "expected an RFC 3339 instant, found nothing"}
	}
	id, err := ticket.Parse(*raw.CommandID)
	if err != nil {
		return TimestampCommand{}, fmt.Errorf("command_id: %w", err)
	}
	at, err := instant.Parse(*raw.EventTimestamp)
	if err != nil {
		return TimestampCommand{}, fmt.Errorf("event_timestamp: %w", err)
	}
	return TimestampCommand{CommandID: id, EventTimestamp: at}, nil
}

// decodeCanonical reads exactly what AppendTimestampCommand writes, many times faster than a general
// JSON decoder (which costs more than the rest of the projection together). Whatever it does not take
// goes the general way, which has the last word.
func decodeCanonical(value []byte) (TimestampCommand, bool) {
	rest, ok := bytes.CutPrefix(value, []byte(commandHead))
	if !ok || len(rest) < uuidLen {
		return TimestampCommand{}, false
	}
	id, err := uuid.ParseBytes(rest[:uuidLen])
	if err != nil {
		return TimestampCommand{}, false
	}
	rest, ok = bytes.CutPrefix(rest[uuidLen:], []byte(commandMiddle))
	if !ok {
		return TimestampCommand{}, false
	}
	text, ok := bytes.CutSuffix(rest, []byte(commandTail))
	if !ok {
		return TimestampCommand{}, false
	}
	at, ok := instant.ParseUTC(text)
	if !ok {
		return TimestampCommand{}, false
	}
	return TimestampCommand{CommandID: id, EventTimestamp: at}, true
}

package deadletter

import (
	"encoding/json"
	"errors"

	"github.com/google/uuid"

	"github.com/tidemark/tidemark/command-service/internal/door"
	"github.com/tidemark/tidemark/command-service/internal/endpoint"
	"github.com/tidemark/tidemark/shared/event"
	"github.com/tidemark/tidemark/shared/instant"
	"github.com/tidemark/tidemark/shared/position"
	"github.com/tidemark/tidemark/shared/ticket"
	"github.com/tidemark/tidemark/shared/topic"
)

// Topic is one that may have dead letters. Timestamps, Endpoints and Foreign make one.
type Topic struct {
	Spec     topic.Spec // with the count of its partitions
	Commands *door.Door // to it; nil where command-service does not write it

	decode  func(value []byte) error // whether this release can read a record; nil where nobody here can tell
	redrive func(letter position.Position, payload, sentBy string) (uuid.UUID, door.Command, error)
}

// Timestamps is topic.TimestampCommand.
func Timestamps(s topic.Spec, commands *door.Door) Topic {
	return Topic{s, commands, func(value []byte) error {
		_, err := event.DecodeTimestampCommand(value)
		return err
	}, redriveTimestamp}
}

// Endpoints is topic.EndpointCommand.
func Endpoints(s topic.Spec, commands *door.Door) Topic {
	return Topic{s, commands, func(value []byte) error {
		_, err := event.DecodeEndpointCommand(value)
		return err
	}, redriveEndpoint}
}

// Foreign is a topic that another service writes.
func Foreign(s topic.Spec) Topic { return Topic{Spec: s} }

// redriveTimestamp reads {"command_id":…,"event_timestamp":…}. A ticket that the payload has is kept, so that the first
// client's becomes valid; else it is made of the letter's position and the instant.
func redriveTimestamp(letter position.Position, payload, _ string) (uuid.UUID, door.Command, error) {
	var raw struct {
		CommandID      any     `json:"command_id"`
		EventTimestamp *string `json:"event_timestamp"`
	}
	if err := json.Unmarshal([]byte(payload), &raw); err != nil {
		return uuid.Nil, door.Command{}, errors.New("it is no JSON object with an event_timestamp: " + err.Error())
	}
	if raw.EventTimestamp == nil {
		return uuid.Nil, door.Command{}, errors.New("it has no event_timestamp")
	}
	at, err := instant.Parse(*raw.EventTimestamp)
	if err != nil {
		return uuid.Nil, door.Command{}, errors.New("event_timestamp: " + err.Error())
	}
	text, _ := raw.CommandID.(string)
	id, kept := keptTicket(text)
	if !kept {
		id = madeTicket(letter, instant.Format(at))
	}
	return id, door.Command{Key: id.String(), Value: event.AppendTimestampCommand(nil, event.TimestampCommand{CommandID: id, EventTimestamp: at})}, nil
}

// redriveEndpoint reads an endpoint command. Its ticket is kept as that of a timestamp is; who sends it is the caller.
func redriveEndpoint(letter position.Position, payload, sentBy string) (uuid.UUID, door.Command, error) {
	c, err := endpoint.ReadRedriven([]byte(payload), sentBy)
	if err != nil {
		return uuid.Nil, door.Command{}, err
	}
	if c.CommandID == uuid.Nil || c.CommandID == uuid.Max {
		c.CommandID = madeTicket(letter, c.EndpointID.String(), string(c.Kind), endpoint.Canonical(c.Document))
	}
	return c.CommandID, door.Command{Key: c.EndpointID.String(), Value: event.AppendEndpointCommand(nil, c)}, nil
}

// keptTicket is the ticket in a payload, if it is one.
func keptTicket(text string) (uuid.UUID, bool) {
	id, err := ticket.Parse(text)
	return id, err == nil && id != uuid.Nil && id != uuid.Max
}

// madeTicket is made of the letter and of what is wanted, so that a retry has the same.
func madeTicket(letter position.Position, wanted ...string) uuid.UUID {
	return ticket.Derived(append([]string{"tidemark redrive 1", letter.String()}, wanted...)...)
}

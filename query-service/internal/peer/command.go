package peer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/google/uuid"

	command "github.com/tidemark/tidemark/shared/api/command"
	"github.com/tidemark/tidemark/shared/position"
	ids "github.com/tidemark/tidemark/shared/ticket"
)

// Accepted is a ticket that the door gave.
type Accepted struct {
	ID       uuid.UUID
	Position string
	Endpoint string // the endpoint's id, of a command about one
}

// Stamp posts a timestamp command for at (now where it is empty) under key, a UUIDv7, which becomes the
// ticket. With a key of our own even a broken connection leaves something to ask after.
func (c *Client) Stamp(ctx context.Context, at string, key uuid.UUID) (Accepted, error) {
	return c.accept(ctx, key, func(ctx context.Context, key string) (*http.Response, error) {
		if at == "" {
			return c.command.Stamp(ctx, &command.StampParams{IdempotencyKey: &key}, command.Stamp{})
		}
		return c.command.StampInstant(ctx, at, &command.StampInstantParams{IdempotencyKey: &key})
	})
}

// AddEndpoint posts the document of a new endpoint under key, as Stamp does.
func (c *Client) AddEndpoint(ctx context.Context, document []byte, key uuid.UUID) (Accepted, error) {
	return c.accept(ctx, key, func(ctx context.Context, key string) (*http.Response, error) {
		return c.command.PostEndpointsWithBody(ctx, &command.PostEndpointsParams{IdempotencyKey: &key}, "application/json", bytes.NewReader(document))
	})
}

// PutEndpoint sends how the endpoint with that id shall be, under key.
func (c *Client) PutEndpoint(ctx context.Context, id uuid.UUID, document []byte, key uuid.UUID) (Accepted, error) {
	return c.accept(ctx, key, func(ctx context.Context, key string) (*http.Response, error) {
		return c.command.PutEndpointWithBody(ctx, id.String(), &command.PutEndpointParams{IdempotencyKey: &key}, "application/json", bytes.NewReader(document))
	})
}

// DeleteEndpoint deletes the endpoint with that id, under key.
func (c *Client) DeleteEndpoint(ctx context.Context, id, key uuid.UUID) (Accepted, error) {
	return c.accept(ctx, key, func(ctx context.Context, key string) (*http.Response, error) {
		return c.command.DeleteEndpoint(ctx, id.String(), &command.DeleteEndpointParams{IdempotencyKey: &key})
	})
}

// accept sends a command under key and reads the ticket that comes back.
func (c *Client) accept(ctx context.Context, key uuid.UUID, send func(context.Context, string) (*http.Response, error)) (Accepted, error) {
	var got command.EndpointTicket // or a ticket, which has an id alone
	header, err := c.call(ctx, CommandService, &got, func(ctx context.Context) (*http.Response, error) { return send(ctx, key.String()) })
	var id uuid.UUID
	if err == nil {
		id, err = ids.Parse(got.Id)
	}
	var refused *Refusal
	switch {
	case err == nil:
		return Accepted{ID: id, Position: header.Get(position.Header), Endpoint: got.EndpointId}, nil
	case errors.As(err, &refused) && !refused.Sent:
		return Accepted{}, refused
	default:
		return Accepted{}, &Refusal{
			Status: http.StatusServiceUnavailable, Down: true, Sent: true, Ticket: key.String(), Key: key.String(),
			Detail: fmt.Sprintf("command-service at %s gave no answer, so nobody knows whether the command is in the log", c.CommandURL),
		}
	}
}

// Decision is the answer to a redrive or a discard.
type Decision = command.Decisions

// Redrive writes new commands for up to 1,000 dead letters. Where one is still broken or decided on nothing is
// written, and the Refusal names each. What an earlier try under key decided counts as done. They come from this service's tables, so their records may be readable.
func (c *Client) Redrive(ctx context.Context, letters []command.Letter, note string, key uuid.UUID) (Decision, error) {
	readable := true
	return c.decide(ctx, key, func(ctx context.Context, key string) (*http.Response, error) {
		return c.command.RedriveDeadLetters(ctx, &command.RedriveDeadLettersParams{IdempotencyKey: &key}, command.Redrive{Letters: letters, Note: &note, Readable: &readable})
	})
}

// Discard closes up to 1,000 dead letters without a command, all or none, under key as Redrive does.
func (c *Client) Discard(ctx context.Context, positions []string, note string, key uuid.UUID) (Decision, error) {
	readable := true
	return c.decide(ctx, key, func(ctx context.Context, key string) (*http.Response, error) {
		return c.command.DiscardDeadLetters(ctx, &command.DiscardDeadLettersParams{IdempotencyKey: &key}, command.Discard{Positions: positions, Note: &note, Readable: &readable})
	})
}

func (c *Client) decide(ctx context.Context, key uuid.UUID, send func(context.Context, string) (*http.Response, error)) (Decision, error) {
	var d Decision
	_, err := c.call(ctx, CommandService, &d, func(ctx context.Context) (*http.Response, error) { return send(ctx, key.String()) })
	var refused *Refusal
	if errors.As(err, &refused) && refused.Sent {
		return Decision{}, &Refusal{
			Status: http.StatusServiceUnavailable, Down: true, Sent: true, Key: key.String(),
			Detail: fmt.Sprintf("command-service at %s gave no answer, so nobody knows what is decided; sent again from here each letter counts once", c.CommandURL),
		}
	}
	return d, err
}

package peer

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"

	"github.com/google/uuid"

	"github.com/tidemark/tidemark/shared/position"
	ids "github.com/tidemark/tidemark/shared/ticket"
)

// Accepted is a ticket that the door gave.
type Accepted struct {
	ID       uuid.UUID
	Position string
}

// Stamp posts a timestamp command for at (now where it is empty) under key, a UUIDv7, which becomes the
// ticket. With a key of our own even a broken connection leaves something to ask after.
func (c *Client) Stamp(ctx context.Context, at string, key uuid.UUID) (Accepted, error) {
	target := c.CommandURL + "/api/v1/timestamp"
	if at != "" {
		target += "/" + url.PathEscape(at)
	}
	var got struct {
		ID string `json:"id"`
	}
	header, err := c.send(ctx, request{service: command, method: http.MethodPost, url: target, key: key.String()}, &got)
	var id uuid.UUID
	if err == nil {
		id, err = ids.Parse(got.ID)
	}
	var refused *Refusal
	switch {
	case err == nil:
		return Accepted{ID: id, Position: header.Get(position.Header)}, nil
	case errors.As(err, &refused) && !refused.Away:
		return Accepted{}, refused
	default:
		return Accepted{}, &Refusal{
			Status: http.StatusServiceUnavailable, Away: true, Ticket: key.String(), Key: key.String(),
			Detail: fmt.Sprintf("command-service at %s gave no answer, so nobody knows whether the command is in the log", c.CommandURL),
		}
	}
}

// Letter is a dead letter to be re-issued with this payload.
type Letter struct {
	Position string `json:"position"`
	Payload  string `json:"payload"`
}

// Decided is what became of one dead letter: the positions of the records that say so.
type Decided struct {
	Position string `json:"position"`
	Ticket   string `json:"ticket"`
	Command  string `json:"command"`
	Decision string `json:"decision"`
}

// Decision is the answer to a redrive or a discard. Position is that of the last record written.
type Decision struct {
	Results  []Decided `json:"results"`
	Position string    `json:"-"`
}

// Redrive re-issues up to 1,000 dead letters as new commands. Where one is still broken nothing is
// written, and the Refusal names each. They are the read side's, so their records may be readable.
func (c *Client) Redrive(ctx context.Context, letters []Letter, note string) (Decision, error) {
	return c.decide(ctx, "redrive", map[string]any{"letters": letters, "note": note, "readable": true})
}

// Discard closes up to 1,000 dead letters without a command.
func (c *Client) Discard(ctx context.Context, positions []string, note string) (Decision, error) {
	return c.decide(ctx, "discard", map[string]any{"positions": positions, "note": note, "readable": true})
}

func (c *Client) decide(ctx context.Context, what string, body any) (Decision, error) {
	var d Decision
	header, err := c.send(ctx, request{service: command, method: http.MethodPost, url: c.CommandURL + "/api/v1/deadletters/" + what, body: body}, &d)
	if err != nil {
		return Decision{}, err
	}
	d.Position = header.Get(position.Header)
	return d, nil
}

package web

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/google/uuid"

	manners "github.com/tidemark/tidemark/shared/httpapi"
	"github.com/tidemark/tidemark/shared/position"
	"github.com/tidemark/tidemark/shared/telemetry"
	ids "github.com/tidemark/tidemark/shared/ticket"
)

// doorPatience is longer than the door's own deadline, so that the door's answer is heard.
const doorPatience = 15 * time.Second

// accepted is a ticket that the door gave.
type accepted struct {
	ID       uuid.UUID
	Position string
}

// refusal is a stamp that did not end in a ticket. Where Key is set nobody knows whether it is in the
// log: sending the same key again finds out, and cannot double it.
type refusal struct {
	Status int
	Detail string
	Ticket string
	Key    string
}

func (r *refusal) Error() string { return r.Detail }

// knock stamps at (now where it is empty) under key, a UUIDv7, which becomes the ticket. With a key of
// our own even a broken connection leaves something to ask after. Every error is a *refusal.
func (p *Pages) knock(ctx context.Context, at string, key uuid.UUID) (accepted, error) {
	ctx, cancel := context.WithTimeout(ctx, doorPatience)
	defer cancel()
	target := strings.TrimSuffix(p.CommandURL, "/") + "/api/v1/timestamp"
	if at != "" {
		target += "/" + url.PathEscape(at)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, target, nil)
	if err != nil {
		return accepted{}, &refusal{Status: http.StatusBadGateway, Detail: "COMMAND_URL of this service is no address to post to"}
	}
	req.Header.Set("Idempotency-Key", key.String())
	req.Header.Set(manners.CorrelationHeader, telemetry.CorrelationID(ctx))
	unknown := &refusal{
		Status: http.StatusServiceUnavailable, Ticket: key.String(), Key: key.String(),
		Detail: fmt.Sprintf("command-service at %s gave no answer, so nobody knows whether the command is in the log", p.CommandURL),
	}
	res, err := p.client.Do(req)
	if err != nil {
		p.Log.WarnContext(ctx, "the door did not answer", "err", err)
		return accepted{}, unknown
	}
	defer func() { _ = res.Body.Close() }()
	var body struct {
		ID       string `json:"id"`
		Detail   string `json:"detail"`
		Ticket   string `json:"ticket"`
		RetryKey string `json:"retry_key"`
	}
	if err := json.NewDecoder(io.LimitReader(res.Body, 64<<10)).Decode(&body); err != nil {
		return accepted{}, unknown
	}
	if res.StatusCode/100 == 2 {
		id, err := ids.Parse(body.ID)
		if err != nil {
			return accepted{}, unknown
		}
		return accepted{ID: id, Position: res.Header.Get(position.Header)}, nil
	}
	if body.Detail == "" {
		body.Detail = fmt.Sprintf("command-service answered with status %d", res.StatusCode)
	}
	return accepted{}, &refusal{Status: res.StatusCode, Detail: body.Detail, Ticket: body.Ticket, Key: body.RetryKey}
}

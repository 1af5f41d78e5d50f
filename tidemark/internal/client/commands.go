package client

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/tidemark/tidemark/shared/api/command"
	"github.com/tidemark/tidemark/shared/api/query"
	"github.com/tidemark/tidemark/shared/loop"
	"github.com/tidemark/tidemark/shared/position"
	"github.com/tidemark/tidemark/shared/service"
)

const (
	longestWait = 30 * time.Second // that query-service grants one request
	waitMargin  = 5 * time.Second
	retryPause  = 250 * time.Millisecond
)

// Accepted is an accepted command.
type Accepted struct {
	command.Ticket
	Position string `json:"position"` // in the log
}

// Stamp sends a command for instant, an RFC 3339 text that the door judges; empty means now. A key makes it safe to repeat.
func (c *Client) Stamp(ctx context.Context, instant, key string) (Accepted, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if instant == "" {
		resp, err := c.command.Stamp(ctx, &command.StampParams{IdempotencyKey: given(key)}, command.Stamp{})
		return accepted(resp, err)
	}
	resp, err := c.command.StampInstant(ctx, instant, &command.StampInstantParams{IdempotencyKey: given(key)})
	return accepted(resp, err)
}

func accepted(resp *http.Response, err error) (Accepted, error) {
	ticket, header, err := read[command.Ticket](service.Command, resp, err)
	return Accepted{Ticket: ticket, Position: header.Get(position.Header)}, err
}

// given is a parameter that is left out where it is empty.
func given(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

// Record reads the row of a ticket, which is there once the projection has passed at; wait bounds the waiting for that.
func (c *Client) Record(ctx context.Context, id, at string, wait time.Duration) (query.Timestamp, error) {
	return patiently(ctx, at, wait, func(ctx context.Context, position, wait *string) (query.Timestamp, error) {
		resp, err := c.query.GetTimestamp(ctx, id, &query.GetTimestampParams{Position: position, Wait: wait})
		found, _, err := read[query.Timestamp](service.Query, resp, err)
		return found, err
	})
}

// Ticket asks what became of a command, and goes on asking within wait while that is still open.
func (c *Client) Ticket(ctx context.Context, id, at string, wait time.Duration) (query.Ticket, error) {
	end := time.Now().Add(wait)
	for {
		ticket, err := patiently(ctx, at, time.Until(end), func(ctx context.Context, position, wait *string) (query.Ticket, error) {
			resp, err := c.query.GetTicket(ctx, id, &query.GetTicketParams{Position: position, Wait: wait})
			found, _, err := read[query.Ticket](service.Query, resp, err)
			return found, err
		})
		open := ticket.State == query.Pending || ticket.State == query.Unknown && at == ""
		if err != nil || !open || time.Now().Add(retryPause).After(end) {
			return ticket, err
		}
		if err := loop.Sleep(ctx, retryPause); err != nil {
			return ticket, err
		}
	}
}

// patiently asks query-service for something once the projection has passed at, in as many requests as that takes, within
// wait. A database that is down is waited for too.
func patiently[T any](ctx context.Context, at string, wait time.Duration, ask func(ctx context.Context, position, wait *string) (T, error)) (T, error) {
	end := time.Now().Add(wait)
	for {
		remaining := max(0, min(time.Until(end), longestWait))
		var granted *string
		if at != "" {
			granted = given(remaining.Round(time.Millisecond).String())
		}
		asking, cancel := context.WithTimeout(ctx, remaining+waitMargin)
		found, err := ask(asking, given(at), granted)
		cancel()
		var refused *Problem
		if !errors.As(err, &refused) || (refused.Status != http.StatusGatewayTimeout && refused.Status != http.StatusServiceUnavailable) ||
			time.Now().Add(retryPause).After(end) {
			return found, err
		}
		if err := loop.Sleep(ctx, retryPause); err != nil {
			return found, err
		}
	}
}

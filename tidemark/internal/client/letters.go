package client

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/tidemark/tidemark/shared/position"
	"github.com/tidemark/tidemark/shared/service"
)

// DeadLetter is a record that could not be projected, and what was decided on it.
type DeadLetter struct {
	Position         string          `json:"position"`
	Payload          *string         `json:"payload"`
	PayloadEncoding  string          `json:"payload_encoding"`
	PayloadBytes     int64           `json:"payload_bytes"`
	PayloadTruncated bool            `json:"payload_truncated"`
	Headers          json.RawMessage `json:"headers"`
	ReasonCode       string          `json:"reason_code"`
	Reason           string          `json:"reason"`
	FirstSeenAt      string          `json:"first_seen_at"`
	State            string          `json:"state"`
	Decision         *Decision       `json:"decision"`
}

// Decision is what was decided on a dead letter.
type Decision struct {
	Decision  string  `json:"decision"`
	Ticket    *string `json:"ticket,omitempty"`
	Note      string  `json:"note"`
	By        string  `json:"by"`
	Position  string  `json:"position"`
	DecidedAt string  `json:"decided_at"`
}

// LetterSearch names dead letters; empty members do not restrict. Partition below 0 is any.
type LetterSearch struct {
	State, Text, ReasonCode string
	Partition               int
}

// Redrive is one dead letter and the payload of the command to issue in its place.
type Redrive struct {
	Position string `json:"position"`
	Payload  string `json:"payload"`
}

// Decided is what became of one decision.
type Decided struct {
	Position string `json:"position"`
	Ticket   string `json:"ticket,omitempty"`
	Command  string `json:"command,omitempty"`
	Decision string `json:"decision"`
}

// DeadLetters returns one page in the order of positions, and where the next one begins; "" is the end. A page may be
// empty and not the last.
func (c *Client) DeadLetters(ctx context.Context, s LetterSearch, after string, limit int) ([]DeadLetter, string, error) {
	query := url.Values{"limit": {strconv.Itoa(limit)}}
	for name, value := range map[string]string{"state": s.State, "q": s.Text, "reason_code": s.ReasonCode, "after": after} {
		if value != "" {
			query.Set(name, value)
		}
	}
	if s.Partition >= 0 {
		query.Set("partition", strconv.Itoa(s.Partition))
	}
	var page struct {
		Items []DeadLetter `json:"items"`
		Next  *string      `json:"next"`
	}
	if _, err := c.do(ctx, patience, http.MethodGet, service.Query.Name, c.services.URLs[service.Query.Name], "/api/v1/deadletters", query, nil, &page); err != nil {
		return nil, "", err
	}
	return page.Items, cursor(page.Next), nil
}

// cursor is the position in the path of a next page, or the position itself.
func cursor(next *string) string {
	if next == nil {
		return ""
	}
	if u, err := url.Parse(*next); err == nil && u.Query().Has("after") {
		return u.Query().Get("after")
	}
	return *next
}

// DeadLetter returns one with its whole payload.
func (c *Client) DeadLetter(ctx context.Context, at string) (DeadLetter, json.RawMessage, error) {
	var raw json.RawMessage
	var d DeadLetter
	if _, err := c.do(ctx, patience, http.MethodGet, service.Query.Name, c.services.URLs[service.Query.Name], "/api/v1/deadletters/"+url.PathEscape(at), nil, nil, &raw); err != nil {
		return d, nil, err
	}
	err := json.Unmarshal(raw, &d)
	return d, raw, err
}

// AwaitDecisions returns when readers see the decisions, or when wait is over: an error says only that they may not yet.
func (c *Client) AwaitDecisions(ctx context.Context, decided []Decided, wait time.Duration) error {
	last := map[int32]Decided{} // of each partition: who sees it sees those before it
	far := map[int32]int64{}
	for _, d := range decided {
		at, err := position.Parse(d.Decision)
		if err != nil {
			return err
		}
		if seen, ok := far[at.Partition]; !ok || at.Offset > seen {
			far[at.Partition], last[at.Partition] = at.Offset, d
		}
	}
	end := time.Now().Add(wait)
	for _, d := range last {
		var letter json.RawMessage
		if err := c.patiently(ctx, "/api/v1/deadletters/"+url.PathEscape(d.Position), d.Decision, time.Until(end), &letter); err != nil {
			return err
		}
	}
	return nil
}

// Redrive issues the letters again, all or none; 1 to 1,000 of them. It also returns the position of the last decision,
// to read it back with. They must be dead letters of the read side: their records may be readable, so the door does not look.
func (c *Client) Redrive(ctx context.Context, letters []Redrive, note string) ([]Decided, string, error) {
	return c.decide(ctx, "redrive", map[string]any{"letters": letters, "note": note, "readable": true})
}

// Discard gives the letters up; 1 to 1,000 of them.
func (c *Client) Discard(ctx context.Context, positions []string, note string) ([]Decided, string, error) {
	return c.decide(ctx, "discard", map[string]any{"positions": positions, "note": note, "readable": true})
}

func (c *Client) decide(ctx context.Context, what string, body any) ([]Decided, string, error) {
	var answer struct {
		Results []Decided `json:"results"`
	}
	header, err := c.call(ctx, request{
		within: patience, method: http.MethodPost, service: service.Command.Name, base: c.services.URLs[service.Command.Name], path: "/api/v1/deadletters/" + what, body: body,
	}, &answer)
	return answer.Results, header.Get(position.Header), err
}

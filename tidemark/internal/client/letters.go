package client

import (
	"context"
	"net/http"
	"net/url"
	"time"

	"github.com/tidemark/tidemark/shared/api/command"
	"github.com/tidemark/tidemark/shared/api/query"
	"github.com/tidemark/tidemark/shared/position"
	"github.com/tidemark/tidemark/shared/service"
)

// LetterSearch names dead letters; empty members do not restrict. Partition below 0 is any. They are listed by position, or the
// newest first.
type LetterSearch struct {
	State, Text, ReasonCode, Projection string
	Partition                           int
	Newest                              bool
}

// DeadLetters returns one page, and where the next one begins; "" is the end. A page may be
// empty and not the last.
func (c *Client) DeadLetters(ctx context.Context, s LetterSearch, after string, limit int) ([]query.DeadLetter, string, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	params := &query.SearchDeadLettersParams{
		Q: given(s.Text), ReasonCode: given(s.ReasonCode), Projection: given(s.Projection), After: given(after), Limit: &limit,
	}
	order := query.SearchDeadLettersParamsOrderPosition
	if s.Newest {
		order = query.SearchDeadLettersParamsOrderNewest
	}
	params.Order = &order
	if s.State != "" {
		state := query.SearchDeadLettersParamsState(s.State)
		params.State = &state
	}
	if s.Partition >= 0 {
		partition := int32(s.Partition) //nolint:gosec // Kafka has no more
		params.Partition = &partition
	}
	resp, err := c.query.SearchDeadLetters(ctx, params)
	page, _, err := read[query.DeadLetterPage](service.Query, resp, err)
	return page.Items, cursor(page.Next), err
}

// LetterSummary counts what a search finds, by reason, producer and hour.
func (c *Client) LetterSummary(ctx context.Context, s LetterSearch) (query.DeadLetterSummary, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	params := &query.SummariseDeadLettersParams{Q: given(s.Text), ReasonCode: given(s.ReasonCode), Projection: given(s.Projection)}
	if s.State != "" {
		state := query.SummariseDeadLettersParamsState(s.State)
		params.State = &state
	}
	if s.Partition >= 0 {
		partition := int32(s.Partition) //nolint:gosec // Kafka has no more
		params.Partition = &partition
	}
	resp, err := c.query.SummariseDeadLetters(ctx, params)
	sum, _, err := read[query.DeadLetterSummary](service.Query, resp, err)
	return sum, err
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
func (c *Client) DeadLetter(ctx context.Context, at string) (query.DeadLetter, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	resp, err := c.query.GetDeadLetter(ctx, at, &query.GetDeadLetterParams{})
	found, _, err := read[query.DeadLetter](service.Query, resp, err)
	return found, err
}

// AwaitDecisions returns when readers see the decisions, or when wait is over: an error says only that they may not yet.
func (c *Client) AwaitDecisions(ctx context.Context, decided []command.DecisionResult, wait time.Duration) error {
	last := map[int32]command.DecisionResult{} // of each partition: who sees it sees those before it
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
		_, err := patiently(ctx, d.Decision, time.Until(end), func(ctx context.Context, position, wait *string) (query.DeadLetter, error) {
			resp, err := c.query.GetDeadLetter(ctx, d.Position, &query.GetDeadLetterParams{Position: position, Wait: wait})
			found, _, err := read[query.DeadLetter](service.Query, resp, err)
			return found, err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// Redrive writes new commands in the place of the letters, all or none; 1 to 1,000 of them. What an earlier try with the same key decided counts as done.
// It also returns the position of the last decision, to read it back with. They must be dead letters that query-service lists: their records may be readable, so the door does not check that.
func (c *Client) Redrive(ctx context.Context, letters []command.Letter, note, key string) ([]command.DecisionResult, string, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	readable := true
	resp, err := c.command.RedriveDeadLetters(ctx, &command.RedriveDeadLettersParams{IdempotencyKey: &key}, command.Redrive{Letters: letters, Note: &note, Readable: &readable})
	return decisions(resp, err)
}

// Discard decides that nothing more is done about the letters, all or none; 1 to 1,000 of them. The key is as for Redrive.
func (c *Client) Discard(ctx context.Context, positions []string, note, key string) ([]command.DecisionResult, string, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	readable := true
	resp, err := c.command.DiscardDeadLetters(ctx, &command.DiscardDeadLettersParams{IdempotencyKey: &key}, command.Discard{Positions: positions, Note: &note, Readable: &readable})
	return decisions(resp, err)
}

func decisions(resp *http.Response, err error) ([]command.DecisionResult, string, error) {
	answer, header, err := read[command.Decisions](service.Command, resp, err)
	return answer.Results, header.Get(position.Header), err
}

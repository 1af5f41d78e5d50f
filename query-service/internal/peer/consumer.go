package peer

import (
	"context"
	"net/http"

	consumer "github.com/tidemark/tidemark/shared/api/consumer"
)

// StartRebuild asks for a new generation of a projection.
func (c *Client) StartRebuild(ctx context.Context, projection string, r consumer.Rebuild) error {
	return c.change(ctx, func(ctx context.Context) (*http.Response, error) {
		return c.consumer.StartRebuild(ctx, projection, r)
	})
}

// Prove compares a generation with the serving one again, without a swap.
func (c *Client) Prove(ctx context.Context, projection string, generation int) error {
	return c.change(ctx, func(ctx context.Context) (*http.Response, error) {
		return c.consumer.ProveGeneration(ctx, projection, consumer.Number(generation))
	})
}

// Swap proves a generation and, if that holds, makes it the serving one.
func (c *Client) Swap(ctx context.Context, projection string, generation int) error {
	return c.change(ctx, func(ctx context.Context) (*http.Response, error) {
		return c.consumer.SwapGeneration(ctx, projection, consumer.Number(generation))
	})
}

// Drop cancels a rebuild or drops a generation that does not serve.
func (c *Client) Drop(ctx context.Context, projection string, generation int) error {
	return c.change(ctx, func(ctx context.Context) (*http.Response, error) {
		return c.consumer.DropGeneration(ctx, projection, consumer.Number(generation))
	})
}

// Audit has the counts of a projection compared with its tables now. It ends when the audit has; what was
// found is then in the projection's status.
func (c *Client) Audit(ctx context.Context, projection string) error {
	return c.change(ctx, func(ctx context.Context) (*http.Response, error) { return c.consumer.AuditNow(ctx, projection) })
}

func (c *Client) change(ctx context.Context, send func(context.Context) (*http.Response, error)) error {
	_, err := c.call(ctx, ConsumerService, nil, send)
	return err
}

package client

import (
	"context"
	"net/http"
	"time"

	"github.com/tidemark/tidemark/shared/api/consumer"
	"github.com/tidemark/tidemark/shared/api/query"
	"github.com/tidemark/tidemark/shared/service"
)

// auditPatience is long: an audit counts whole tables.
const auditPatience = 10 * time.Minute

// Rebuildable lists the projections that consumer-service knows, in the order of their names.
func (c *Client) Rebuildable(ctx context.Context) ([]consumer.Projection, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	resp, err := c.consumer.ListProjections(ctx)
	list, _, err := read[consumer.ProjectionList](service.Consumer, resp, err)
	return list.Projections, err
}

// Generations lists those of a projection: the serving one first, then the newest first.
func (c *Client) Generations(ctx context.Context, projection string) ([]consumer.Generation, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	resp, err := c.consumer.ListGenerations(ctx, projection)
	list, _, err := read[consumer.GenerationList](service.Consumer, resp, err)
	return list.Generations, err
}

// KnownGenerations lists the same as the database has them, by way of query-service, so that they are known while
// consumer-service is down.
func (c *Client) KnownGenerations(ctx context.Context, projection string) ([]consumer.Generation, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	resp, err := c.query.ListGenerations(ctx, projection, &query.ListGenerationsParams{})
	list, _, err := read[consumer.GenerationList](service.Query, resp, err)
	return list.Generations, err
}

// Generation returns one of them.
func (c *Client) Generation(ctx context.Context, projection string, n int) (consumer.Generation, error) {
	return generation(ctx, projection, n, c.consumer.GetGeneration)
}

// Rebuild begins a candidate of one projection.
func (c *Client) Rebuild(ctx context.Context, projection string, r consumer.Rebuild) (consumer.Generation, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	resp, err := c.consumer.StartRebuild(ctx, projection, r)
	found, _, err := read[consumer.Generation](service.Consumer, resp, err)
	return found, err
}

// RebuildAll begins one of every projection, which are filled one after the other.
func (c *Client) RebuildAll(ctx context.Context, r consumer.RebuildAll) ([]consumer.Generation, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	resp, err := c.consumer.RebuildAll(ctx, r)
	list, _, err := read[consumer.GenerationList](service.Consumer, resp, err)
	return list.Generations, err
}

// Prove has a generation compared with the serving one again.
func (c *Client) Prove(ctx context.Context, projection string, n int) error {
	_, err := generation(ctx, projection, n, c.consumer.ProveGeneration)
	return err
}

// Swap has a generation proved and, where the proof holds, serve.
func (c *Client) Swap(ctx context.Context, projection string, n int) error {
	_, err := generation(ctx, projection, n, c.consumer.SwapGeneration)
	return err
}

// Drop ends a rebuild, or drops a generation that does not serve.
func (c *Client) Drop(ctx context.Context, projection string, n int) error {
	_, err := generation(ctx, projection, n, c.consumer.DropGeneration)
	return err
}

// Audit compares counts and tables of a projection now.
func (c *Client) Audit(ctx context.Context, projection string) (consumer.Audit, error) {
	ctx, cancel := context.WithTimeout(ctx, auditPatience)
	defer cancel()
	resp, err := c.consumer.AuditNow(ctx, projection)
	found, _, err := read[consumer.Audit](service.Consumer, resp, err)
	return found, err
}

// generation asks something about one generation, whose answer is the generation.
func generation(ctx context.Context, projection string, n int,
	ask func(context.Context, consumer.ProjectionName, consumer.Number, ...consumer.RequestEditorFn) (*http.Response, error),
) (consumer.Generation, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	resp, err := ask(ctx, projection, int32(n)) //nolint:gosec // the command line bounds it
	found, _, err := read[consumer.Generation](service.Consumer, resp, err)
	return found, err
}

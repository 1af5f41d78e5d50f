package client

import (
	"context"

	"github.com/tidemark/tidemark/shared/api/query"
	"github.com/tidemark/tidemark/shared/service"
)

// Projections says of each projection how far it is and whether it is whole, in the order of their names.
func (c *Client) Projections(ctx context.Context) ([]query.ProjectionSummary, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	resp, err := c.query.ListProjections(ctx, &query.ListProjectionsParams{})
	list, _, err := read[query.ProjectionList](service.Query, resp, err)
	return list.Projections, err
}

// Projection says the same of one, with its partitions and its last audit.
func (c *Client) Projection(ctx context.Context, name string) (query.Projection, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	resp, err := c.query.GetProjection(ctx, name, &query.GetProjectionParams{})
	found, _, err := read[query.Projection](service.Query, resp, err)
	return found, err
}

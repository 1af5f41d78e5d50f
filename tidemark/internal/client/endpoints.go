package client

import (
	"context"
	"net/http"
	"time"

	"github.com/tidemark/tidemark/shared/api/command"
	"github.com/tidemark/tidemark/shared/api/query"
	"github.com/tidemark/tidemark/shared/position"
	"github.com/tidemark/tidemark/shared/service"
)

// EndpointSearch names endpoints; empty members do not restrict.
type EndpointSearch struct{ Group, Tag, Text string }

// AcceptedEndpoint is an accepted command about an endpoint.
type AcceptedEndpoint struct {
	command.EndpointTicket
	Position string `json:"position"` // in the log
}

// Endpoints returns one page in the order of names, and where the next one begins; "" is the end.
func (c *Client) Endpoints(ctx context.Context, s EndpointSearch, after string, limit int) ([]query.Endpoint, string, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	resp, err := c.query.ListEndpoints(ctx, &query.ListEndpointsParams{Group: given(s.Group), Tag: given(s.Tag), Q: given(s.Text), After: given(after), Limit: &limit})
	page, _, err := read[query.EndpointPage](service.Query, resp, err)
	return page.Items, cursor(page.Next), err
}

// Endpoint reads one as it is once the projection has passed at; wait bounds the waiting for that.
func (c *Client) Endpoint(ctx context.Context, id, at string, wait time.Duration) (query.Endpoint, error) {
	return patiently(ctx, at, wait, func(ctx context.Context, position, wait *string) (query.Endpoint, error) {
		resp, err := c.query.GetEndpoint(ctx, id, &query.GetEndpointParams{Position: position, Wait: wait})
		found, _, err := read[query.Endpoint](service.Query, resp, err)
		return found, err
	})
}

// EndpointHistory returns one page of the changes of an endpoint, the newest first, and where the next page begins.
func (c *Client) EndpointHistory(ctx context.Context, id, after string, limit int) ([]query.EndpointChange, string, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	resp, err := c.query.GetEndpointHistory(ctx, id, &query.GetEndpointHistoryParams{After: given(after), Limit: &limit})
	page, _, err := read[query.EndpointHistory](service.Query, resp, err)
	return page.Items, cursor(page.Next), err
}

// PutEndpoint says how the endpoint with this id shall be, or adds one where id is empty. A key makes it safe to repeat.
func (c *Client) PutEndpoint(ctx context.Context, id string, e command.Endpoint, key string) (AcceptedEndpoint, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if id != "" {
		resp, err := c.command.PutEndpoint(ctx, id, &command.PutEndpointParams{IdempotencyKey: given(key)}, e)
		return acceptedEndpoint(resp, err)
	}
	var body command.NewEndpoints
	if err := body.FromNewEndpoint(command.NewEndpoint{Url: e.Url, Name: e.Name, Group: e.Group, Tags: e.Tags, Interval: e.Interval, Enabled: e.Enabled}); err != nil {
		return AcceptedEndpoint{}, err
	}
	resp, err := c.command.PostEndpoints(ctx, &command.PostEndpointsParams{IdempotencyKey: given(key)}, body)
	return acceptedEndpoint(resp, err)
}

// DeleteEndpoint deletes it; its history stays.
func (c *Client) DeleteEndpoint(ctx context.Context, id, key string) (AcceptedEndpoint, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	resp, err := c.command.DeleteEndpoint(ctx, id, &command.DeleteEndpointParams{IdempotencyKey: given(key)})
	return acceptedEndpoint(resp, err)
}

func acceptedEndpoint(resp *http.Response, err error) (AcceptedEndpoint, error) {
	ticket, header, err := read[command.EndpointTicket](service.Command, resp, err)
	return AcceptedEndpoint{EndpointTicket: ticket, Position: header.Get(position.Header)}, err
}

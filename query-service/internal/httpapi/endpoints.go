package httpapi

import (
	"context"
	"encoding/json"
	"math"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/gin-gonic/gin"

	"github.com/tidemark/tidemark/query-service/internal/endpoint"
	"github.com/tidemark/tidemark/query-service/internal/projection"
	api "github.com/tidemark/tidemark/shared/api/query"
	sharedhttp "github.com/tidemark/tidemark/shared/httpapi"
	"github.com/tidemark/tidemark/shared/instant"
	"github.com/tidemark/tidemark/shared/problem"
)

// ListEndpoints answers a page of those that are wanted.
func (s *Server) ListEndpoints(c *gin.Context, p api.ListEndpointsParams) {
	f := endpoint.Filter{Group: orElse(p.Group, ""), Tag: orElse(p.Tag, ""), Text: orElse(p.Q, "")}
	for name, text := range map[string]string{"group": f.Group, "tag": f.Tag, "q": f.Text} {
		if !utf8.ValidString(text) || strings.ContainsRune(text, 0) {
			s.refuse(c, name+": it is no text")
			return
		}
	}
	var after endpoint.Cursor
	if p.After != nil {
		var err error
		if after, err = endpoint.ParseCursor(*p.After); err != nil {
			s.refuse(c, "after: "+err.Error())
			return
		}
	}
	want, ok := s.want(c, p.TidemarkPosition, p.Position, p.Wait)
	if !ok {
		return
	}
	limit := orElse(p.Limit, defaultLimit)
	var list []endpoint.Endpoint
	var next *endpoint.Cursor
	err := s.reader.Read(c.Request.Context(), want, projection.Of(endpoint.Projection), func(ctx context.Context, snap *projection.Snapshot) (err error) {
		list, next, err = endpoint.List(ctx, snap, f, after, limit)
		return err
	})
	if s.done(c, "endpoints", "found", err) {
		c.PureJSON(http.StatusOK, endpointPage(list, next, f, limit))
	}
}

// GetEndpoint answers one as it is now.
func (s *Server) GetEndpoint(c *gin.Context, id string, p api.GetEndpointParams) {
	key, ok := s.id(c, id)
	if !ok {
		return
	}
	want, ok := s.want(c, p.TidemarkPosition, p.Position, p.Wait)
	if !ok {
		return
	}
	found, err := s.endpoints.Find(c.Request.Context(), want, key)
	switch {
	case err == nil && found.Deleted:
		s.reads.WithLabelValues("endpoint", "absent").Inc()
		sharedhttp.Fail(c, problem.Problem{Status: http.StatusNotFound, Detail: "this endpoint was deleted at " + instant.Format(found.ChangedAt) + ": its history is at /api/v1/endpoints/" + found.ID.String() + "/history"})
	case s.done(c, "endpoint", "found", err):
		c.PureJSON(http.StatusOK, endpointOf(found))
	}
}

// GetEndpointHistory answers a page of what was changed.
func (s *Server) GetEndpointHistory(c *gin.Context, id string, p api.GetEndpointHistoryParams) {
	key, ok := s.id(c, id)
	if !ok {
		return
	}
	below := int64(math.MaxInt64)
	if p.After != nil {
		var err error
		if below, err = strconv.ParseInt(*p.After, 10, 64); err != nil {
			s.refuse(c, "after: "+endpoint.ErrCursor.Error())
			return
		}
	}
	want, ok := s.want(c, p.TidemarkPosition, p.Position, p.Wait)
	if !ok {
		return
	}
	limit := orElse(p.Limit, defaultLimit)
	var list []endpoint.Change
	var more bool
	err := s.reader.Read(c.Request.Context(), want, projection.Of(endpoint.Projection), func(ctx context.Context, snap *projection.Snapshot) (err error) {
		list, more, err = endpoint.History(ctx, snap, key, below, limit)
		return err
	})
	if s.done(c, "endpoint_history", "found", err) {
		c.PureJSON(http.StatusOK, endpointHistory(key.String(), list, more, limit))
	}
}

func endpointOf(e endpoint.Endpoint) api.Endpoint {
	return api.Endpoint{
		Id: e.ID.String(), Url: e.URL, Name: e.Name, Group: e.Group, Tags: e.Tags, Interval: endpoint.FormatInterval(e.Interval), Enabled: e.Enabled, Document: e.Document,
		CreatedAt: instant.Format(e.CreatedAt), ChangedAt: instant.Format(e.ChangedAt), ChangedBy: e.ChangedBy, Ticket: e.Ticket.String(), Position: e.Position.String(),
	}
}

// endpointPage names the page after it with everything that was asked of this one.
func endpointPage(list []endpoint.Endpoint, next *endpoint.Cursor, f endpoint.Filter, limit int) api.EndpointPage {
	page := api.EndpointPage{Items: make([]api.Endpoint, len(list))}
	for i, e := range list {
		page.Items[i] = endpointOf(e)
	}
	if next == nil {
		return page
	}
	q := url.Values{"after": {next.String()}, "limit": {strconv.Itoa(limit)}}
	for name, value := range map[string]string{"group": f.Group, "tag": f.Tag, "q": f.Text} {
		if value != "" {
			q.Set(name, value)
		}
	}
	page.Next = text("/api/v1/endpoints?" + q.Encode())
	return page
}

func endpointHistory(id string, list []endpoint.Change, more bool, limit int) api.EndpointHistory {
	page := api.EndpointHistory{Items: make([]api.EndpointChange, len(list))}
	for i, change := range list {
		item := api.EndpointChange{
			Ticket: change.Ticket.String(), Kind: api.EndpointChangeKind(change.Kind), Document: raw(change.Document), Changes: make([]api.MemberChange, len(change.Members)),
			SentBy: change.By, CreatedAt: instant.Format(change.At), Position: change.Position.String(),
		}
		for j, m := range change.Members {
			item.Changes[j] = api.MemberChange{Member: m.Name, Before: raw(m.Before), After: raw(m.After)}
		}
		page.Items[i] = item
	}
	if more {
		page.Next = text("/api/v1/endpoints/" + id + "/history?after=" + strconv.FormatInt(list[len(list)-1].Position.Offset, 10) + "&limit=" + strconv.Itoa(limit))
	}
	return page
}

func raw(m json.RawMessage) *json.RawMessage {
	if m == nil {
		return nil
	}
	return &m
}

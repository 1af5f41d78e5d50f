package client

import (
	"context"
	"encoding/json"
	"maps"
	"net/http"
	"slices"
	"time"

	"github.com/tidemark/tidemark/shared/service"
)

// Service is what a service says of its readiness.
type Service struct {
	Name    string            `json:"name"`
	URL     string            `json:"url"`
	Ready   bool              `json:"ready"`
	Missing map[string]string `json:"missing,omitempty"` // what keeps it from its work, by part
	Error   string            `json:"error,omitempty"`   // why it could not be asked
}

// Reasons are what keeps the service from its work, a sentence each; none when it is ready.
func (s Service) Reasons() []string {
	if s.Error != "" {
		return []string{s.Error}
	}
	var reasons []string
	for _, part := range slices.Sorted(maps.Keys(s.Missing)) {
		reasons = append(reasons, s.Name+": "+part+": "+s.Missing[part])
	}
	return reasons
}

// Ready asks all services at once, in the order in which a record passes them.
func (c *Client) Ready(ctx context.Context) []Service {
	answers := make([]chan Service, len(service.All()))
	for i, spec := range service.All() {
		answers[i] = make(chan Service, 1)
		go func() { answers[i] <- c.ready(ctx, spec) }()
	}
	var services []Service
	for _, answer := range answers {
		services = append(services, <-answer)
	}
	return services
}

func (c *Client) ready(ctx context.Context, spec service.Spec) Service {
	s := Service{Name: spec.Name, URL: c.services.URLs[spec.Name]}
	a, err := c.get(ctx, spec, "ready")
	if err != nil {
		s.Error = err.Error()
		return s
	}
	var missing struct {
		Missing map[string]string `json:"missing"`
	}
	switch {
	case a.status == http.StatusOK && json.Valid(a.body):
		s.Ready = true
	case a.status == http.StatusOK:
		s.Error = a.strange().Error()
	case a.status == http.StatusServiceUnavailable && json.Unmarshal(a.body, &missing) == nil && len(missing.Missing) > 0:
		s.Missing = missing.Missing
	default:
		s.Error = a.refusal().Error()
	}
	return s
}

// Clocks asks each service that answers what time it is, and returns how far each is ahead of this machine. HTTP tells
// whole seconds, so half a second is no difference.
func (c *Client) Clocks(ctx context.Context) map[string]time.Duration {
	ahead := map[string]time.Duration{}
	for _, spec := range service.All() {
		asked := time.Now()
		a, err := c.get(ctx, spec, "health")
		if err != nil || a.status != http.StatusOK {
			continue
		}
		if at, err := http.ParseTime(a.header.Get("Date")); err == nil {
			ahead[spec.Name] = at.Add(time.Second / 2).Sub(asked.Add(time.Since(asked) / 2))
		}
	}
	return ahead
}

// get asks for what every service answers and no specification's client has.
func (c *Client) get(ctx context.Context, spec service.Spec, path string) (answer, error) {
	ctx, cancel := context.WithTimeout(ctx, waitMargin)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.server(spec)+path, nil)
	if err != nil {
		return answer{}, err
	}
	return c.send(req, spec)
}

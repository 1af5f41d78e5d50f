// Package client speaks to the services over HTTP, as any stranger could: commands to command-service, reads to
// query-service. It promises bounded answers, times and waits, and errors that say whether the other side was reached and
// what it said; what to print and with which status to exit is left to the command line.
package client

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"mime"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/tidemark/tidemark/shared/certs"
	"github.com/tidemark/tidemark/shared/config"
	"github.com/tidemark/tidemark/shared/loop"
	"github.com/tidemark/tidemark/shared/position"
	"github.com/tidemark/tidemark/shared/problem"
)

const (
	maxAnswer     = 8 << 20
	patience      = 20 * time.Second // for an answer that need not wait for anything
	longestWait   = 30 * time.Second // that query-service grants one request
	waitMargin    = 5 * time.Second
	auditPatience = 10 * time.Minute // it counts whole tables
	retryPause    = 250 * time.Millisecond
)

// Services are the base URLs of the services.
type Services struct {
	CommandURL  string `env:"COMMAND_URL" desc:"base URL of command-service"`
	ConsumerURL string `env:"CONSUMER_URL" desc:"base URL of consumer-service"`
	QueryURL    string `env:"QUERY_URL" desc:"base URL of query-service"`
	APIKey      string `env:"TIDEMARK_API_KEY" desc:"key to show to the services" secret:"true"`
	CAFile      string `env:"TIDEMARK_CA_FILE" desc:"authorities that sign the services' certificates, PEM; the system's unless given"`
}

// DefaultServices are where `tidemark up` and the services themselves listen.
func DefaultServices() Services {
	return Services{CommandURL: "http://127.0.0.1:7080", ConsumerURL: "http://127.0.0.1:7081", QueryURL: "http://127.0.0.1:7082"}
}

// Validate checks the URLs' form and the CA file.
func (s Services) Validate() error {
	var authorities error
	if s.CAFile != "" {
		_, authorities = certs.Authorities("TIDEMARK_CA_FILE", s.CAFile)
	}
	return errors.Join(authorities, config.ServiceURL("COMMAND_URL", s.CommandURL), config.ServiceURL("CONSUMER_URL", s.ConsumerURL), config.ServiceURL("QUERY_URL", s.QueryURL))
}

// Client is ready for use by one or many goroutines.
type Client struct {
	services Services
	http     *http.Client
}

// New returns a client of services. Close ends its idle connections.
func New(services Services) *Client {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	if services.CAFile != "" {
		// One that cannot be read was told by Validate; here it trusts nobody.
		pool, err := certs.Authorities("TIDEMARK_CA_FILE", services.CAFile)
		if err != nil {
			pool = x509.NewCertPool()
		}
		transport.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: pool}
	}
	return &Client{services: services, http: &http.Client{
		Transport: transport,
		// An answer from elsewhere would be taken for the service's own.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// Close ends the connections that are kept for reuse.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Problem is a refusal or failure that a service answered with. Ticket and RetryKey are there when the command may have
// been accepted all the same.
type Problem struct {
	Service  string `json:"-"`
	Type     string `json:"type"`
	Title    string `json:"title"`
	Status   int    `json:"status"`
	Detail   string `json:"detail"`
	Ticket   string `json:"ticket,omitempty"`
	RetryKey string `json:"retry_key,omitempty"`
	Errors   []struct {
		Position string `json:"position"`
		Reason   string `json:"reason"`
	} `json:"errors,omitempty"`
}

// Words are what the problem says, without who says it.
func (p *Problem) Words() string {
	if p.Detail != "" {
		return p.Detail
	}
	return p.Title
}

func (p *Problem) Error() string {
	text := p.Words()
	for _, e := range p.Errors {
		text += "\n  " + e.Position + ": " + e.Reason
	}
	return fmt.Sprintf("%s answered %d: %s", p.Service, p.Status, text)
}

// Stamp is an accepted command.
type Stamp struct {
	ID       string `json:"id"`
	Position string `json:"position"`
}

// Record is a row of the projection.
type Record struct {
	ID             string `json:"id"`
	CommandID      string `json:"command_id"`
	EventTimestamp string `json:"event_timestamp"`
	CreatedAt      string `json:"created_at"`
}

// Ticket is what became of a command.
type Ticket struct {
	ID             string  `json:"id"`
	State          string  `json:"state"`
	Position       *string `json:"position"`
	Generation     int     `json:"generation"`
	Epoch          int64   `json:"epoch"`
	Reason         *string `json:"reason"`
	ReasonCode     string  `json:"reason_code,omitempty"`
	AsOf           *string `json:"as_of"`
	Reached        string  `json:"reached,omitempty"`
	RowPosition    string  `json:"row_position,omitempty"`
	EventTimestamp string  `json:"event_timestamp,omitempty"`
	CreatedAt      string  `json:"created_at,omitempty"`
}

// Stamp sends a command for instant, an RFC 3339 text that the door judges; empty means now. A key makes it safe to repeat.
func (c *Client) Stamp(ctx context.Context, instant, key string) (Stamp, error) {
	path := "/api/v1/timestamp"
	if instant != "" {
		path += "/" + url.PathEscape(instant)
	}
	header := http.Header{}
	if key != "" {
		header.Set("Idempotency-Key", key)
	}
	var stamp Stamp
	answered, err := c.do(ctx, patience, http.MethodPost, "command-service", c.services.CommandURL, path, nil, header, &stamp)
	if err != nil {
		return Stamp{}, err
	}
	stamp.Position = answered.Get(position.Header)
	return stamp, nil
}

// Record reads the row of a ticket, which is there once the projection has passed at; wait bounds the waiting for that.
func (c *Client) Record(ctx context.Context, id, at string, wait time.Duration) (Record, error) {
	var record Record
	err := c.patiently(ctx, "/api/v1/timestamp/"+url.PathEscape(id), at, wait, &record)
	return record, err
}

// Ticket asks what became of a command, and goes on asking within wait while that is still open.
func (c *Client) Ticket(ctx context.Context, id, at string, wait time.Duration) (Ticket, error) {
	var ticket Ticket
	end := time.Now().Add(wait)
	for {
		err := c.patiently(ctx, "/api/v1/tickets/"+url.PathEscape(id), at, time.Until(end), &ticket)
		open := ticket.State == "pending" || ticket.State == "unknown" && at == ""
		if err != nil || !open || time.Now().Add(retryPause).After(end) {
			return ticket, err
		}
		if err := loop.Sleep(ctx, retryPause); err != nil {
			return ticket, err
		}
	}
}

// patiently reads path once the projection has passed at, in as many requests as that takes, within wait. The database
// being away is waited for too.
func (c *Client) patiently(ctx context.Context, path, at string, wait time.Duration, into any) error {
	end := time.Now().Add(wait)
	for {
		one := max(0, min(time.Until(end), longestWait))
		query := url.Values{}
		if at != "" {
			query.Set("position", at)
			query.Set("wait", one.Round(time.Millisecond).String())
		}
		_, err := c.do(ctx, one+waitMargin, http.MethodGet, "query-service", c.services.QueryURL, path, query, nil, into)
		var refused *Problem
		if !errors.As(err, &refused) || (refused.Status != http.StatusGatewayTimeout && refused.Status != http.StatusServiceUnavailable) ||
			time.Now().Add(retryPause).After(end) {
			return err
		}
		if err := loop.Sleep(ctx, retryPause); err != nil {
			return err
		}
	}
}

// Projection returns query-service's account of the projection as it sent it, and the part of it that Status shows.
func (c *Client) Projection(ctx context.Context) (Projection, json.RawMessage, error) {
	var raw json.RawMessage
	if _, err := c.do(ctx, patience, http.MethodGet, "query-service", c.services.QueryURL, "/api/v1/projection", nil, nil, &raw); err != nil {
		return Projection{}, nil, err
	}
	var p Projection
	if err := json.Unmarshal(raw, &p); err != nil {
		return Projection{}, nil, fmt.Errorf("query-service's answer: %w", err)
	}
	return p, raw, nil
}

// Projection is how far the projection is and whether it is whole; null stands for what is not known yet.
type Projection struct {
	Generation int     `json:"generation"`
	Epoch      int64   `json:"epoch"`
	Group      *string `json:"group"`
	CaughtUpAt *string `json:"caught_up_at"`
	Totals     struct {
		Applied   int64  `json:"applied"`
		Duplicate int64  `json:"duplicate"`
		Rejected  int64  `json:"rejected"`
		Skipped   int64  `json:"skipped"`
		Lag       *int64 `json:"lag"`
	} `json:"totals"`
	CatchingUp bool `json:"catching_up"`
	Replay     struct {
		Percent    *float64 `json:"percent"`
		Rate       *float64 `json:"rate"`
		ETASeconds *float64 `json:"eta_seconds"`
	} `json:"replay"`
	Audit struct {
		OK         *bool   `json:"ok"`
		LastRun    *string `json:"last_run"`
		Partitions []struct {
			Topic     string `json:"topic"`
			Partition int32  `json:"partition"`
			OK        bool   `json:"ok"`
			Finding   string `json:"finding"`
		} `json:"partitions"`
	} `json:"audit"`
}

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

// Ready asks all services at once, in the order of the pipeline.
func (c *Client) Ready(ctx context.Context) []Service {
	services := []Service{
		{Name: "command-service", URL: c.services.CommandURL},
		{Name: "consumer-service", URL: c.services.ConsumerURL},
		{Name: "query-service", URL: c.services.QueryURL},
	}
	done := make(chan struct{})
	for i := range services {
		go func(s *Service) {
			defer func() { done <- struct{}{} }()
			var answer struct {
				Missing map[string]string `json:"missing"`
			}
			_, err := c.do(ctx, waitMargin, http.MethodGet, s.Name, s.URL, "/ready", nil, nil, &answer)
			var down *Problem
			switch {
			case err == nil:
				s.Ready = true
			case errors.As(err, &down) && down.Status == http.StatusServiceUnavailable && len(answer.Missing) > 0:
				s.Missing = answer.Missing
			default:
				s.Error = err.Error()
			}
		}(&services[i])
	}
	for range services {
		<-done
	}
	return services
}

// Clocks asks each service that answers what time it is, and returns how far each is ahead of this machine. HTTP tells
// whole seconds, so half a second is no difference.
func (c *Client) Clocks(ctx context.Context) map[string]time.Duration {
	ahead := map[string]time.Duration{}
	for name, base := range map[string]string{"command-service": c.services.CommandURL, "consumer-service": c.services.ConsumerURL, "query-service": c.services.QueryURL} {
		asked := time.Now()
		header, err := c.do(ctx, waitMargin, http.MethodGet, name, base, "/health", nil, nil, new(any))
		if err != nil {
			continue
		}
		if at, err := http.ParseTime(header.Get("Date")); err == nil {
			ahead[name] = at.Add(time.Second / 2).Sub(asked.Add(time.Since(asked) / 2))
		}
	}
	return ahead
}

// request is one call of a service.
type request struct {
	within  time.Duration
	method  string
	service string
	base    string
	path    string
	query   url.Values
	header  http.Header
	body    any // as JSON; nil is none
}

// do is call for a request without a body.
func (c *Client) do(ctx context.Context, within time.Duration, method, service, base, path string, query url.Values, header http.Header, into any) (http.Header, error) {
	return c.call(ctx, request{within, method, service, base, path, query, header, nil}, into)
}

// new makes the request, with the API key.
func (c *Client) new(ctx context.Context, r request, body io.Reader) (*http.Request, error) {
	target := strings.TrimRight(r.base, "/") + r.path
	if len(r.query) > 0 {
		target += "?" + r.query.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, r.method, target, body)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", r.service, err)
	}
	for name, values := range r.header {
		req.Header[name] = values
	}
	if c.services.APIKey != "" {
		req.Header.Set("Authorization", "Bearer "+c.services.APIKey)
	}
	return req, nil
}

// call sends one request and decodes a JSON answer into what into points to: that of a success, and that of a failure which
// is no problem document. Every status but 2xx is a *Problem.
func (c *Client) call(ctx context.Context, r request, into any) (http.Header, error) {
	ctx, cancel := context.WithTimeout(ctx, r.within)
	defer cancel()
	var content io.Reader
	if r.body != nil {
		text, err := json.Marshal(r.body)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", r.service, err)
		}
		content = bytes.NewReader(text)
	}
	req, err := c.new(ctx, r, content)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", "application/json, "+problem.ContentType)
	if r.body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	sent := r.method != http.MethodGet
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, &Unreachable{Service: r.service, URL: r.base, Sent: sent, Err: certs.Untrusted(unwrapped(err), "TIDEMARK_CA_FILE", c.services.CAFile)}
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil || len(body) > maxAnswer {
		if err == nil {
			err = fmt.Errorf("more than %d bytes", maxAnswer)
		}
		return nil, &Unreachable{Service: r.service, URL: r.base, Sent: sent, Err: fmt.Errorf("read answer: %w", err)}
	}
	if resp.StatusCode/100 != 2 {
		return nil, refusal(r.service, resp, body, into)
	}
	if _, whatever := into.(*any); whatever {
		return resp.Header, nil
	}
	if err := json.Unmarshal(body, into); err != nil {
		return nil, fmt.Errorf("%s at %s answered %d with something else than expected (%q): is it Tidemark's %s?", r.service, r.base, resp.StatusCode, excerpt(body), r.service)
	}
	return resp.Header, nil
}

// refusal reads an answer that is no success. One in plain JSON is decoded into what into points to.
func refusal(service string, resp *http.Response, body []byte, into any) *Problem {
	kind, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	refused := &Problem{Service: service, Status: resp.StatusCode, Title: http.StatusText(resp.StatusCode)}
	switch kind {
	case problem.ContentType:
		_ = json.Unmarshal(body, refused) // The status alone says enough.
		refused.Status = resp.StatusCode
	case "application/json":
		_ = json.Unmarshal(body, into)
	default:
		refused.Detail = excerpt(body)
	}
	return refused
}

// Unreachable says that a service gave no answer.
type Unreachable struct {
	Service string
	URL     string
	Sent    bool // something that changes state
	Err     error
}

func (u *Unreachable) Error() string {
	return fmt.Sprintf("%s at %s gave no answer: %v", u.Service, u.URL, u.Err)
}

func (u *Unreachable) Unwrap() error { return u.Err }

// Unknown says whether the request may have been carried out: only a connection that was never made, or never trusted,
// rules that out.
func (u *Unreachable) Unknown() bool {
	var op *net.OpError
	var untrusted *tls.CertificateVerificationError
	return u.Sent && !(errors.As(u.Err, &op) && op.Op == "dial") && !errors.As(u.Err, &untrusted)
}

// unwrapped drops the method and URL that net/http puts before every error: they are said better.
func unwrapped(err error) error {
	var wrapped *url.Error
	if errors.As(err, &wrapped) {
		return wrapped.Err
	}
	return err
}

func excerpt(body []byte) string {
	text := string(bytes.ToValidUTF8(bytes.TrimSpace(body), []byte("?")))
	if len(text) > 200 {
		text = text[:200] + "… (" + strconv.Itoa(len(body)) + " bytes)"
	}
	return text
}

// Package peer speaks to command-service and consumer-service from this service's side, so that a
// browser needs one address only: it stamps, decides on dead letters, rebuilds and audits by their
// HTTP APIs, and knows whether they are there.
//
// Every call goes out through one method, send. An answer that is no success is a *Refusal, whose words
// are the peer's own where it gave some and say what to do where it did not answer. What an answer
// means for a page is the page's business.
package peer

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/tidemark/tidemark/query-service/internal/recent"
	"github.com/tidemark/tidemark/shared/auth"
	"github.com/tidemark/tidemark/shared/certs"
	manners "github.com/tidemark/tidemark/shared/httpapi"
	"github.com/tidemark/tidemark/shared/loop"
	"github.com/tidemark/tidemark/shared/telemetry"
)

// patience is longer than the door's own deadline, so that the door's answer is heard.
const patience = 15 * time.Second

// mostAnswer bounds what is read of an answer: a thousand results of a bulk fit ten times over.
const mostAnswer = 4 << 20

// Client calls the other services. It is safe for concurrent use.
type Client struct {
	CommandURL  string
	ConsumerURL string
	log         *slog.Logger
	http        *http.Client
	health      health
	generations *recent.Value[[]Generation]
}

// Options of a Client. All are required but CAFile.
type Options struct {
	CommandURL  string
	ConsumerURL string
	CAFile      string // of the authorities that sign the other services' certificates; the system's where empty
	Log         *slog.Logger
}

// NewClient returns one. The caller closes it.
func NewClient(o Options) (*Client, error) {
	transport := &http.Transport{MaxIdleConnsPerHost: 8, MaxConnsPerHost: 64, ForceAttemptHTTP2: true}
	if o.CAFile != "" {
		pool, err := certs.Authorities("SERVICES_CA_FILE", o.CAFile)
		if err != nil {
			return nil, err
		}
		transport.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: pool}
	}
	c := &Client{
		CommandURL: strings.TrimSuffix(o.CommandURL, "/"), ConsumerURL: strings.TrimSuffix(o.ConsumerURL, "/"), log: o.Log,
		http: &http.Client{
			Transport:     telemetry.Transport(transport),
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}
	c.generations = &recent.Value[[]Generation]{For: sharedFor, Patience: readPatience, Read: c.readGenerations}
	c.health.wanted, c.health.next = loop.NewKick(), make(chan struct{})
	return c, nil
}

// Close drops idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Refusal is an answer that is no success, or none at all.
type Refusal struct {
	Status int    // of the answer; 503 where there was none
	Detail string // what to tell a person, without a full stop at its end
	Away   bool   // there was no answer, or none of the peer's own
	// Ticket and Key are set where nobody knows whether a command is in the log: sending the same key
	// again finds out, and cannot double it.
	Ticket, Key string
	Errors      []LetterError // of a redrive, one for each letter that is still broken
}

func (r *Refusal) Error() string { return r.Detail }

// LetterError says what is wrong with one dead letter of a redrive.
type LetterError struct {
	Position string `json:"position"`
	Reason   string `json:"reason"`
}

type request struct {
	service string // whom to name when there is no answer
	method  string
	url     string
	key     string // Idempotency-Key, or empty
	body    any    // as JSON; nil for none
}

// send is the one way out. It decodes a success into answer, which may be nil, and returns its headers.
// Any other end is a *Refusal.
func (c *Client) send(ctx context.Context, r request, answer any) (http.Header, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var body io.Reader
	if r.body != nil {
		b, err := json.Marshal(r.body)
		if err != nil {
			return nil, fmt.Errorf("write a request: %w", err)
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, r.method, r.url, body)
	if err != nil {
		return nil, &Refusal{Status: http.StatusBadGateway, Away: true, Detail: fmt.Sprintf("the address of %s is none that can be called: %q", r.service, r.url)}
	}
	if r.body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if r.key != "" {
		req.Header.Set("Idempotency-Key", r.key)
	}
	req.Header.Set("Accept", "application/json")
	auth.PassOn(req) // the key of the caller that this is done for
	req.Header.Set(manners.CorrelationHeader, telemetry.CorrelationID(ctx))
	res, err := c.http.Do(req)
	if err != nil {
		if ctx.Err() == nil { // else the page's reader has left, or the log would say so each second
			c.log.DebugContext(ctx, "another service did not answer", "peer", r.service, "err", err)
		}
		return nil, c.away(r.service)
	}
	defer func() { _ = res.Body.Close() }()
	content, err := io.ReadAll(io.LimitReader(res.Body, mostAnswer))
	if err != nil {
		return nil, c.away(r.service)
	}
	if res.StatusCode/100 == 2 {
		if answer == nil {
			return res.Header, nil
		}
		if err := json.Unmarshal(content, answer); err != nil {
			return nil, &Refusal{Status: http.StatusBadGateway, Away: true, Detail: fmt.Sprintf("what answers at %s is not %s: see that %s names it", c.base(r.service), r.service, c.setting(r.service))}
		}
		return res.Header, nil
	}
	return nil, c.refusal(r.service, res.StatusCode, content)
}

func (c *Client) refusal(service string, status int, content []byte) *Refusal {
	var told struct {
		Detail   string        `json:"detail"`
		Ticket   string        `json:"ticket"`
		RetryKey string        `json:"retry_key"`
		Errors   []LetterError `json:"errors"`
	}
	isProblem := json.Unmarshal(content, &told) == nil && told.Detail != ""
	r := &Refusal{Status: status, Detail: strings.TrimSuffix(told.Detail, "."), Ticket: told.Ticket, Key: told.RetryKey, Errors: told.Errors}
	switch {
	case status == http.StatusUnauthorized:
		r.Detail = fmt.Sprintf("%s wants an API key for this, and none that it knows came with the request", service)
	case status == http.StatusForbidden:
		r.Detail = fmt.Sprintf("%s does not let this API key do that: it takes one with a wider scope", service)
	case isProblem:
	case status == http.StatusNotFound || status == http.StatusMethodNotAllowed:
		r.Away, r.Detail = true, fmt.Sprintf("what answers at %s cannot do this: it is an older release of %s, or %s names something else", c.base(service), service, c.setting(service))
	default:
		r.Detail = fmt.Sprintf("%s answered with status %d and no reason", service, status)
	}
	return r
}

const (
	command  = "command-service"
	consumer = "consumer-service"
)

func (c *Client) base(service string) string {
	if service == command {
		return c.CommandURL
	}
	return c.ConsumerURL
}

func (c *Client) setting(service string) string {
	if service == command {
		return "COMMAND_URL"
	}
	return "CONSUMER_URL"
}

func (c *Client) away(service string) *Refusal {
	return &Refusal{
		Status: http.StatusServiceUnavailable, Away: true,
		Detail: fmt.Sprintf("%s does not answer at %s: start it, or set %s to where it listens", service, c.base(service), c.setting(service)),
	}
}

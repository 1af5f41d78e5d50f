// Package peer calls command-service and consumer-service on behalf of the pages, so that a browser needs one address
// only. It stamps, changes endpoints, decides on dead letters, rebuilds and audits by their HTTP APIs, and knows whether
// they are ready.
//
// Every call goes through the generated clients of shared/api and one method, call. An answer that is no success is a
// *Refusal. Its detail is the peer's own where the peer gave one, and says what to do where the peer did not answer. What
// an answer means for a page is left to the page.
package peer

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"time"

	command "github.com/tidemark/tidemark/shared/api/command"
	consumer "github.com/tidemark/tidemark/shared/api/consumer"
	"github.com/tidemark/tidemark/shared/auth"
	"github.com/tidemark/tidemark/shared/certs"
	sharedhttp "github.com/tidemark/tidemark/shared/httpapi"
	"github.com/tidemark/tidemark/shared/loop"
	specs "github.com/tidemark/tidemark/shared/service"
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
	command     *command.Client
	consumer    *consumer.Client
	health      health
}

// Options of a Client. All are required but CAFile.
type Options struct {
	CommandURL  string       // base URL of command-service
	ConsumerURL string       // base URL of consumer-service
	CAFile      string       // CA file for the other services' certificates, PEM; the system's authorities unless given
	Log         *slog.Logger // where a service that does not answer is logged
}

// NewClient returns a client that has not connected yet. The caller closes it.
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
	var wrong, worse error
	c.command, wrong = command.NewClient(c.CommandURL, command.WithHTTPClient(c.http), command.WithRequestEditorFn(onBehalf))
	c.consumer, worse = consumer.NewClient(c.ConsumerURL, consumer.WithHTTPClient(c.http), consumer.WithRequestEditorFn(onBehalf))
	c.health.wanted, c.health.next = loop.NewKick(), make(chan struct{})
	return c, errors.Join(wrong, worse)
}

// Close drops idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Refusal is an answer that is no success, or none at all.
type Refusal struct {
	Status int    // of the answer; 503 where there was none
	Detail string // what to tell a person, without a full stop at its end
	Down   bool   // there was no answer, or none of the peer's own
	Sent   bool   // it was sent, and no answer says what became of it
	// Ticket and Key are set where nobody knows whether a command is in the log: sending the same key
	// again finds out, and cannot double it.
	Ticket, Key string
	Letters     []command.LetterError // of a redrive, one for each letter that is still broken
	Fields      []command.FieldError  // of an endpoint, one for each member that is not accepted
}

func (r *Refusal) Error() string { return r.Detail }

// Refused is false where a form only comes again, with nothing wrong in it.
func (r *Refusal) Refused() bool { return r.Status >= 400 }

// onBehalf gives a request the API key and the correlation id of the request that it is made for.
func onBehalf(ctx context.Context, req *http.Request) error {
	req.Header.Set("Accept", "application/json")
	auth.PassOn(req)
	req.Header.Set(sharedhttp.CorrelationHeader, telemetry.CorrelationID(ctx))
	return nil
}

// call makes every request of this package: send is a method of a generated client. It decodes a success into answer, which
// may be nil, and returns its headers. Any other end is a *Refusal.
func (c *Client) call(ctx context.Context, service string, answer any, send func(context.Context) (*http.Response, error)) (http.Header, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	ctx, sent := specs.TraceSent(ctx)
	res, err := send(ctx)
	if err != nil {
		if ctx.Err() == nil { // else the page's reader has left, or the log would say so each second
			c.log.DebugContext(ctx, "another service did not answer", "peer", service, "err", err)
		}
		return nil, c.down(service, sent())
	}
	defer func() { _ = res.Body.Close() }()
	content, err := io.ReadAll(io.LimitReader(res.Body, mostAnswer))
	if err != nil {
		return nil, c.down(service, true)
	}
	if res.StatusCode/100 == 2 {
		if answer == nil {
			return res.Header, nil
		}
		if err := json.Unmarshal(content, answer); err != nil {
			return nil, &Refusal{Status: http.StatusBadGateway, Down: true, Sent: true, Detail: fmt.Sprintf("what answers at %s is not %s: see that %s names it", c.base(service), service, c.setting(service))}
		}
		return res.Header, nil
	}
	return nil, c.refusal(service, res.StatusCode, content)
}

func (c *Client) refusal(service string, status int, content []byte) *Refusal {
	var answer struct {
		Detail   string     `json:"detail"`
		Ticket   string     `json:"ticket"`
		RetryKey string     `json:"retry_key"`
		Errors   []struct { // an error has the members of one of the two
			command.LetterError
			command.FieldError
		} `json:"errors"`
	}
	isProblem := json.Unmarshal(content, &answer) == nil && answer.Detail != ""
	r := &Refusal{Status: status, Detail: strings.TrimSuffix(answer.Detail, "."), Ticket: answer.Ticket, Key: answer.RetryKey}
	for _, e := range answer.Errors {
		if e.Position != "" {
			r.Letters = append(r.Letters, e.LetterError)
		} else {
			r.Fields = append(r.Fields, e.FieldError)
		}
	}
	switch {
	case status == http.StatusUnauthorized:
		r.Detail = fmt.Sprintf("%s wants an API key for this, and none that it knows came with the request", service)
	case status == http.StatusForbidden && isProblem:
		r.Detail = fmt.Sprintf("%s: %s", service, r.Detail)
	case isProblem:
	case status == http.StatusNotFound || status == http.StatusMethodNotAllowed:
		r.Down, r.Detail = true, fmt.Sprintf("what answers at %s cannot do this: it is an older release of %s, or %s names something else", c.base(service), service, c.setting(service))
	default:
		r.Detail = fmt.Sprintf("%s answered with status %d and no reason", service, status)
	}
	return r
}

// Names of the peers.
const (
	CommandService  = "command-service"
	ConsumerService = "consumer-service"
)

func (c *Client) base(service string) string {
	if service == CommandService {
		return c.CommandURL
	}
	return c.ConsumerURL
}

func (c *Client) setting(service string) string {
	if service == CommandService {
		return "COMMAND_URL"
	}
	return "CONSUMER_URL"
}

func (c *Client) down(service string, sent bool) *Refusal {
	return &Refusal{
		Status: http.StatusServiceUnavailable, Down: true, Sent: sent,
		Detail: fmt.Sprintf("%s does not answer at %s: start it, or set %s to where it listens", service, c.base(service), c.setting(service)),
	}
}

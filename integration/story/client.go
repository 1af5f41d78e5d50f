package story

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/tidemark/tidemark/shared/loop"
)

// Client is a plain and patient HTTP client. Its answers are whatever came back; only a request that got none is an
// error.
type Client struct{ http *http.Client }

// NewClient makes one that gives up a request after that time.
func NewClient(timeout time.Duration) *Client {
	transport := &http.Transport{MaxIdleConnsPerHost: 256}
	return &Client{&http.Client{
		Timeout: timeout, Transport: transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// Close drops idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Answer is one HTTP answer.
type Answer struct {
	Status int
	Header http.Header
	Body   []byte
}

// JSON reads the body as an object; it is nil when it is none.
func (a Answer) JSON() map[string]any {
	var object map[string]any
	if json.Unmarshal(a.Body, &object) != nil {
		return nil
	}
	return object
}

// Text returns a member of the body that is a string, or "".
func (a Answer) Text(member string) string {
	s, _ := a.JSON()[member].(string)
	return s
}

func (a Answer) String() string {
	return fmt.Sprintf("%d %s", a.Status, strings.TrimSpace(string(a.Body)))
}

// Do sends a request with headers as name, value pairs.
func (c *Client) Do(ctx context.Context, method, url, body string, headers ...string) (_ Answer, err error) {
	req, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
	if err != nil {
		return Answer{}, err
	}
	for i := 0; i+1 < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return Answer{}, err
	}
	defer func() { err = errors.Join(err, resp.Body.Close()) }()
	content, err := io.ReadAll(resp.Body)
	return Answer{resp.StatusCode, resp.Header, content}, err
}

// Send is Do of a client that is told to come again: what is answered 503 with Retry-After it sends again after that time, under
// the retry_key that the answer names where nobody knows what became of the first.
func (c *Client) Send(ctx context.Context, method, url, body string, headers ...string) (Answer, error) {
	ctx, cancel := context.WithTimeout(ctx, Patience)
	defer cancel()
	for {
		a, err := c.Do(ctx, method, url, body, headers...)
		after, bad := strconv.Atoi(a.Header.Get("Retry-After"))
		if err != nil || a.Status != http.StatusServiceUnavailable || bad != nil {
			return a, err
		}
		if key := a.Text("retry_key"); key != "" {
			headers = append(slices.Clone(headers), "Idempotency-Key", key) // of two the last one counts
		}
		if loop.Sleep(ctx, time.Duration(after)*time.Second) != nil {
			return a, nil
		}
	}
}

// Get asks once.
func (c *Client) Get(ctx context.Context, url string, headers ...string) (Answer, error) {
	return c.Do(ctx, http.MethodGet, url, "", headers...)
}

// Post sends an empty body.
func (c *Client) Post(ctx context.Context, url string, headers ...string) (Answer, error) {
	return c.Do(ctx, http.MethodPost, url, "", headers...)
}

// Until asks again and again until the answer has that status or the context ends.
func (c *Client) Until(ctx context.Context, status int, url string, headers ...string) (Answer, error) {
	for {
		a, err := c.Get(ctx, url, headers...)
		if err == nil && a.Status == status {
			return a, nil
		}
		if ended := loop.Sleep(ctx, 10*time.Millisecond); ended != nil {
			return a, fmt.Errorf("GET %s: wanted %d, last had %s (%w): %w", url, status, a, err, ended)
		}
	}
}

// Ticket is what the door gives for an accepted command.
type Ticket struct {
	ID       string
	Position string
	Location string
}

// Stamp sends a timestamp command, with headers as name, value pairs, and returns the ticket. at is an RFC 3339
// instant, or empty for now. Any answer but 202 in the end is an error that shows it.
func (c *Client) Stamp(ctx context.Context, commandURL, at string, headers ...string) (Ticket, error) {
	return stampBy(ctx, c.Send, commandURL, at, headers...)
}

// StampOnce is Stamp for a story which promises that no client is told to come again: a 503 is an error, too.
func (c *Client) StampOnce(ctx context.Context, commandURL, at string, headers ...string) (Ticket, error) {
	return stampBy(ctx, c.Do, commandURL, at, headers...)
}

func stampBy(ctx context.Context, send func(ctx context.Context, method, url, body string, headers ...string) (Answer, error), commandURL, at string, headers ...string) (Ticket, error) {
	url := commandURL + "/api/v1/timestamp"
	if at != "" {
		url += "/" + at
	}
	a, err := send(ctx, http.MethodPost, url, "", headers...)
	if err != nil {
		return Ticket{}, fmt.Errorf("POST %s: %w", url, err)
	}
	t := Ticket{a.Text("id"), a.Header.Get("Tidemark-Position"), a.Header.Get("Location")}
	if a.Status != http.StatusAccepted || t.ID == "" {
		return Ticket{}, fmt.Errorf("POST %s: wanted 202 and a ticket, had %s", url, a)
	}
	return t, nil
}

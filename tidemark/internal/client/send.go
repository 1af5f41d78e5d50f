package client

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/tidemark/tidemark/shared/certs"
	"github.com/tidemark/tidemark/shared/problem"
	"github.com/tidemark/tidemark/shared/service"
)

const (
	maxAnswer = 8 << 20
	patience  = 20 * time.Second // for an answer that need not wait for anything
)

// sender is what a generated client sends its requests by: with the API key, and with the limits and the errors of this
// package. An answer that it returns is a success, and has been read to its end.
type sender struct {
	client *Client
	to     service.Spec
}

// Do sends req. Its context bounds the whole of it. Every status but 2xx is a *Problem.
func (s *sender) Do(req *http.Request) (*http.Response, error) {
	a, err := s.client.send(req, s.to)
	if err != nil {
		return nil, err
	}
	if a.status/100 != 2 {
		return nil, a.refusal()
	}
	return &http.Response{
		StatusCode: a.status, Status: http.StatusText(a.status), Header: a.header, Request: req,
		Body: io.NopCloser(bytes.NewReader(a.body)), ContentLength: int64(len(a.body)),
	}, nil
}

// answer is one that has been read to its end.
type answer struct {
	from   service.Spec
	url    string // of the service
	status int
	header http.Header
	body   []byte
}

// send sends one request and reads the answer, whatever it is.
func (c *Client) send(req *http.Request, to service.Spec) (answer, error) {
	c.authorise(req)
	req.Header.Set("Accept", "application/json, "+problem.ContentType)
	url := c.services.URLs[to.Name]
	ctx, sent := service.TraceSent(req.Context())
	req = req.WithContext(ctx)
	unreachable := func(err error) error {
		return &Unreachable{Service: to.Name, URL: url, Sent: req.Method != http.MethodGet && sent(), Err: err}
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return answer{}, unreachable(certs.Untrusted(unwrapped(err), "TIDEMARK_CA_FILE", c.services.CAFile))
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err == nil && len(body) > maxAnswer {
		err = fmt.Errorf("more than %d bytes", maxAnswer)
	}
	if err != nil {
		return answer{}, unreachable(fmt.Errorf("read answer: %w", err))
	}
	return answer{to, url, resp.StatusCode, resp.Header, body}, nil
}

func (c *Client) authorise(req *http.Request) {
	if c.services.APIKey != "" {
		req.Header.Set("Authorization", "Bearer "+c.services.APIKey)
	}
}

// read decodes the success that a generated client returned, and passes its error on.
func read[T any](from service.Spec, resp *http.Response, err error) (T, http.Header, error) {
	var into T
	if err != nil {
		return into, nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body) // it is in memory
	if err != nil {
		return into, nil, err
	}
	if err := json.Unmarshal(body, &into); err != nil {
		return into, nil, answer{from: from, url: resp.Request.URL.Scheme + "://" + resp.Request.URL.Host, status: resp.StatusCode, body: body}.strange()
	}
	return into, resp.Header, nil
}

// strange says that what answered is hardly the service that was asked.
func (a answer) strange() error {
	return fmt.Errorf("%s at %s answered %d with something else than expected (%q): is it Tidemark's %s?", a.from.Name, a.url, a.status, excerpt(a.body), a.from.Name)
}

// Problem is a refusal or failure that a service answered with. Ticket and RetryKey are there when the command may have
// been accepted all the same.
type Problem struct {
	Service  string  `json:"-"`
	Type     string  `json:"type"`
	Title    string  `json:"title"`
	Status   int     `json:"status"`
	Detail   string  `json:"detail"`
	Ticket   string  `json:"ticket,omitempty"`
	RetryKey string  `json:"retry_key,omitempty"`
	Errors   []Fault `json:"errors,omitempty"`
}

// Fault is one of several things that a request was refused for: a dead letter by its position, or a member by its path.
type Fault struct {
	Position string `json:"position,omitempty"`
	Reason   string `json:"reason,omitempty"`
	Path     string `json:"path,omitempty"`
	Message  string `json:"message,omitempty"`
}

func (f Fault) String() string {
	where, what := f.Position+f.Path, f.Reason+f.Message // one of each is empty
	if where == "" {
		return what
	}
	return where + ": " + what
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
		text += "\n  " + e.String()
	}
	return fmt.Sprintf("%s answered %d: %s", p.Service, p.Status, text)
}

// refusal is an answer that is no success.
func (a answer) refusal() *Problem {
	kind, _, _ := mime.ParseMediaType(a.header.Get("Content-Type"))
	refused := &Problem{Service: a.from.Name, Status: a.status, Title: http.StatusText(a.status)}
	switch kind {
	case problem.ContentType:
		_ = json.Unmarshal(a.body, refused) // The status alone says enough.
		refused.Status = a.status
	case "application/json":
	default:
		refused.Detail = excerpt(a.body)
	}
	return refused
}

// Unreachable says that a service gave no answer.
type Unreachable struct {
	Service string
	URL     string
	Sent    bool // something that changes state, or a part of it
	Err     error
}

func (u *Unreachable) Error() string {
	return fmt.Sprintf("%s at %s gave no answer: %v", u.Service, u.URL, u.Err)
}

func (u *Unreachable) Unwrap() error { return u.Err }

// Unknown says whether the request may have been carried out: only one of which nothing was sent rules that out.
func (u *Unreachable) Unknown() bool { return u.Sent }

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

package client

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/tidemark/tidemark/shared/api/command"
	"github.com/tidemark/tidemark/shared/service"
)

// silence is how long a stream may stand without an answer before it counts as broken. The door answers every line
// within its deadline, a minute at most, and cuts a stream in which nothing moves.
const silence = 90 * time.Second

// LineAnswer is what the door says of one line of a stream.
type LineAnswer struct {
	Line     int64    `json:"line"`
	ID       string   `json:"id,omitempty"`
	Position string   `json:"position,omitempty"`
	Error    *Problem `json:"error,omitempty"`
}

// StampStream sends body, NDJSON, to the door and hands every answer to got, in the order of the lines, while the body
// is still being read. It ends at the answers' end, or with the error that ended the stream: a *Problem where the door
// says why. Once the answers begin, began is told how many bytes may be under way without one. When the connection is lost, lost is called: a Read of body that is under way must come to an end then, since
// net/http waits for it, and any later one must be at the end.
func (c *Client) StampStream(ctx context.Context, body io.Reader, began func(window int), lost func(), got func(LineAnswer)) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	// A connection of its own, whose end is seen.
	transport := c.http.Transport.(*http.Transport).Clone()
	transport.DisableKeepAlives = true
	transport.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := new(net.Dialer).DialContext(ctx, network, address)
		if err != nil {
			return nil, err
		}
		return &watchedConn{Conn: conn, closed: lost}, nil
	}
	defer transport.CloseIdleConnections()
	req, err := command.NewStampStreamRequestWithBody(c.server(service.Command), nil, "application/x-ndjson", io.NopCloser(body))
	if err != nil {
		return err
	}
	traced, sent := service.TraceSent(ctx)
	req = req.WithContext(traced)
	c.authorise(req)
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return &Unreachable{Service: service.Command.Name, URL: c.services.URLs[service.Command.Name], Sent: sent(), Err: unwrapped(err)}
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, maxAnswer)) // the status alone says enough
		return answer{from: service.Command, status: resp.StatusCode, header: resp.Header, body: text}.refusal()
	}
	if window, err := strconv.Atoi(resp.Header.Get("Tidemark-Stream-Window")); err == nil {
		began(window)
	}
	quiet := time.AfterFunc(silence, func() { cancel(fmt.Errorf("no answer for %s", silence)) })
	defer quiet.Stop()
	in := bufio.NewReaderSize(resp.Body, 64<<10)
	for n := 0; ; n++ {
		if in.Buffered() == 0 {
			quiet.Reset(silence)
		}
		text, err := in.ReadSlice('\n')
		if errors.Is(err, io.EOF) && len(text) == 0 {
			return nil
		}
		if err != nil {
			if cause := context.Cause(ctx); cause != nil {
				err = cause
			}
			return &Unreachable{Service: service.Command.Name, URL: c.services.URLs[service.Command.Name], Sent: true, Err: err}
		}
		var a LineAnswer
		if err := json.Unmarshal(text, &a); err != nil {
			return fmt.Errorf("%s at %s answered a line with something else than expected (%q): is it Tidemark's %s?", service.Command.Name, c.services.URLs[service.Command.Name], excerpt(text), service.Command.Name)
		}
		if a.Error != nil {
			a.Error.Service = service.Command.Name
			if a.Line == 0 {
				return a.Error
			}
		}
		got(a)
	}
}

// watchedConn calls closed when either end closes it.
type watchedConn struct {
	net.Conn
	closed func()
}

func (w *watchedConn) Close() error {
	w.closed()
	return w.Conn.Close()
}

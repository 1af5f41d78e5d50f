package peer

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/tidemark/tidemark/shared/loop"
)

const (
	healthEvery   = 2 * time.Second
	healthTimeout = 700 * time.Millisecond
)

// PartState is what is known of a Part.
type PartState string

// The states of a Part.
const (
	Up      PartState = "up"
	Unready PartState = "unready" // it answers, and says that it is not ready
	Down    PartState = "down"    // it does not answer
	Asked   PartState = "asked"   // there was no time for an answer yet
)

// Part is something that runs, or should.
type Part struct {
	Name  string // of the service, or database
	What  string // what it does, in a few words
	State PartState
	Words string // why it is not up
	URL   string // of its own documents; empty for the database
}

// health is what the peers answered last.
type health struct {
	mu     sync.Mutex
	parts  []Part
	asked  time.Time     // when they answered
	next   chan struct{} // closed when they have been asked again
	seen   time.Time     // when a page last wanted it
	wanted loop.Kick     // a page wants it, and it is old
}

// freshTimeout is how long a page waits for a fresh answer where the last one is seconds old.
const freshTimeout = 200 * time.Millisecond

// Parts returns the state of the two peers as it was some seconds ago at most. Only the first page after a
// while waits for it, and not for long.
func (c *Client) Parts() []Part {
	parts, asked, next := c.known()
	c.health.wanted.Send()
	if time.Since(asked) > 2*healthEvery {
		select {
		case <-next:
			parts, _, _ = c.known()
		case <-time.After(freshTimeout):
		}
	}
	if parts == nil {
		parts = c.peers()
	}
	return parts
}

func (c *Client) known() ([]Part, time.Time, <-chan struct{}) {
	c.health.mu.Lock()
	defer c.health.mu.Unlock()
	c.health.seen = time.Now()
	return slices.Clone(c.health.parts), c.health.asked, c.health.next
}

func (c *Client) peers() []Part {
	return []Part{
		{Name: CommandService, What: "takes commands in", URL: c.CommandURL, State: Asked},
		{Name: ConsumerService, What: "turns the log into tables", URL: c.ConsumerURL, State: Asked},
	}
}

// WatchHealth asks the peers at once and then again while pages are looked at, until ctx ends.
func (c *Client) WatchHealth(ctx context.Context) {
	for ctx.Err() == nil {
		parts := c.peers()
		asking, cancel := context.WithTimeout(ctx, healthTimeout)
		var wg sync.WaitGroup
		for i := range parts {
			wg.Go(func() { c.askReady(asking, &parts[i]) })
		}
		wg.Wait()
		cancel()
		if ctx.Err() != nil {
			return
		}
		c.health.mu.Lock()
		c.health.parts, c.health.asked = parts, time.Now()
		close(c.health.next)
		c.health.next = make(chan struct{})
		idle := time.Since(c.health.seen) > 2*healthEvery
		c.health.mu.Unlock()
		if idle { // and now and then, so that the first page after a quiet hour is not a day old
			_ = c.health.wanted.Sleep(ctx, 10*healthEvery)
		} else {
			_ = loop.Sleep(ctx, healthEvery)
		}
	}
}

// askReady asks a peer for /ready and notes the answer in part.
func (c *Client) askReady(ctx context.Context, part *Part) {
	part.State, part.Words = Down, "it does not answer at "+part.URL
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, part.URL+"/ready", nil)
	if err != nil {
		return
	}
	res, err := c.http.Do(req)
	if err != nil {
		return
	}
	defer func() { _ = res.Body.Close() }()
	var body struct {
		Status  string            `json:"status"`
		Missing map[string]string `json:"missing"`
	}
	err = json.NewDecoder(io.LimitReader(res.Body, 64<<10)).Decode(&body)
	switch {
	case res.StatusCode == http.StatusOK && err == nil:
		part.State, part.Words = Up, ""
	case res.StatusCode == http.StatusServiceUnavailable && err == nil:
		part.State, part.Words = Unready, cmp.Or(Reasons(body.Missing), "it does not say why")
	default:
		part.Words = fmt.Sprintf("something else answers at %s, with status %d", part.URL, res.StatusCode)
	}
}

// Reasons joins what a readiness says is missing.
func Reasons(missing map[string]string) string {
	var out []string
	for _, part := range slices.Sorted(maps.Keys(missing)) {
		out = append(out, part+": "+missing[part])
	}
	return strings.Join(out, "; ")
}

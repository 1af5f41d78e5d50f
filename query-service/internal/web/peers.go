package web

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
)

// peerPatience is how long a page waits for another service's health.
const peerPatience = 700 * time.Millisecond

// Part is something that runs, or should.
type Part struct {
	Name  string
	What  string
	State string // up, unready or away
	Words string // why it is not up
	URL   string // of its own documents; empty for the database
}

// parts asks the other services, all at once, and this one.
func (p *Pages) parts(ctx context.Context) []Part {
	all := []Part{
		{Name: "command-service", What: "takes commands in", URL: p.CommandURL},
		{Name: "consumer-service", What: "turns the log into rows", URL: p.ConsumerURL},
		{Name: "query-service", What: "reads the rows, shows this page", State: "up"},
		{Name: "database", What: "holds the rows", State: "up"},
	}
	ctx, cancel := context.WithTimeout(ctx, peerPatience)
	defer cancel()
	var wg sync.WaitGroup
	for i := range all[:2] {
		wg.Go(func() { p.ask(ctx, &all[i]) })
	}
	wg.Wait()
	own := p.Ready.Reasons()
	if why, away := own["database"]; away {
		all[3].State, all[3].Words = "away", why
		delete(own, "database")
	}
	if len(own) > 0 {
		all[2].State, all[2].Words = "unready", reasons(own)
	}
	return all
}

func (p *Pages) ask(ctx context.Context, part *Part) {
	part.State, part.Words = "away", "it does not answer at "+part.URL
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(part.URL, "/")+"/ready", nil)
	if err != nil {
		return
	}
	res, err := p.client.Do(req)
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
		part.State, part.Words = "up", ""
	case res.StatusCode == http.StatusServiceUnavailable && err == nil:
		part.State, part.Words = "unready", cmp.Or(reasons(body.Missing), "it does not say why")
	default:
		part.Words = fmt.Sprintf("something else answers at %s, with status %d", part.URL, res.StatusCode)
	}
}

func reasons(missing map[string]string) string {
	var out []string
	for _, part := range slices.Sorted(maps.Keys(missing)) {
		out = append(out, part+": "+missing[part])
	}
	return strings.Join(out, "; ")
}

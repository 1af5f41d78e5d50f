package integration_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/integration/story"
	"github.com/tidemark/tidemark/shared/await"
)

const endpointsPath = "/api/v1/endpoints"

// endpoints is a client of the routes of endpoints.
type endpoints struct {
	*story.Story // of the projection endpoints
	t            *testing.T
	stack        addresses
}

// change is what the door answers to a command about one endpoint.
type change struct {
	ID         string `json:"id"`
	EndpointID string `json:"endpoint_id"`
	Position   string `json:"position"`
}

func startEndpoints(t *testing.T) endpoints {
	t.Helper()
	s := story.New(t)
	e := endpoints{s.Of(story.Endpoints), t, up(t, s)}
	// A derived table is not read before its epoch has caught up once, with an empty log too.
	ctx, cancel := context.WithTimeout(t.Context(), story.Patience)
	defer cancel()
	_, err := e.Client.Until(ctx, http.StatusOK, e.stack.query+endpointsPath)
	require.NoError(t, err)
	return e
}

// send sends a command that must be accepted, with headers as name, value pairs.
func (e endpoints) send(method, path, body string, headers ...string) change {
	e.t.Helper()
	a := e.ask(http.StatusAccepted, method, path, body, headers...)
	c := change{Position: a.Header.Get("Tidemark-Position")}
	require.NoError(e.t, json.Unmarshal(a.Body, &c))
	return c
}

func (e endpoints) ask(status int, method, path, body string, headers ...string) story.Answer {
	e.t.Helper()
	a, err := e.Client.Send(e.t.Context(), method, e.stack.command+path, body, append([]string{"Content-Type", "application/json"}, headers...)...)
	require.NoError(e.t, err)
	require.Equal(e.t, status, a.Status, a)
	return a
}

// read asks query-service, which must have passed that position.
func (e endpoints) read(status int, path, position string) map[string]any {
	e.t.Helper()
	a, err := e.Client.Get(e.t.Context(), e.stack.query+path, "Tidemark-Position", position)
	require.NoError(e.t, err)
	require.Equal(e.t, status, a.Status, a)
	return a.JSON()
}

// An endpoint is made, changed and deleted, each write is read as soon as it is accepted, and its history and its tickets
// say what happened. What the projection holds in the end is what the log says.
func TestAnEndpointFromItsFirstPutToItsEnd(t *testing.T) {
	e := startEndpoints(t)

	made := e.send(http.MethodPost, endpointsPath, `{"url":"https://example.org/health","tags":["b","a"],"conditions":[{"status":200}]}`)
	at := e.read(http.StatusOK, endpointsPath+"/"+made.EndpointID, made.Position)
	require.Equal(t, made.EndpointID, at["id"])
	require.Equal(t, "https://example.org/health", at["url"])
	require.Equal(t, "example.org/health", at["name"], "the door's default")
	require.Equal(t, []any{"b", "a"}, at["tags"])
	require.Equal(t, "1m", at["interval"])
	require.Equal(t, true, at["enabled"])
	require.Equal(t, made.ID, at["ticket"])
	require.Equal(t, made.Position, at["position"])
	require.Equal(t, []any{map[string]any{"status": 200.0}}, at["document"].(map[string]any)["conditions"], "what this release does not know is kept")

	changed := e.send(http.MethodPut, endpointsPath+"/"+made.EndpointID, `{"url":"https://example.org/health","name":"Health","interval":"30s","enabled":false}`)
	require.Equal(t, made.EndpointID, changed.EndpointID)
	now := e.read(http.StatusOK, endpointsPath+"/"+made.EndpointID, changed.Position)
	require.Equal(t, "Health", now["name"])
	require.Equal(t, "30s", now["interval"])
	require.Equal(t, false, now["enabled"])
	require.Equal(t, []any{}, now["tags"], "a put is the whole endpoint")
	require.Equal(t, at["created_at"], now["created_at"])
	require.Equal(t, changed.Position, now["position"])

	deleted := e.send(http.MethodDelete, endpointsPath+"/"+made.EndpointID, "")
	e.read(http.StatusNotFound, endpointsPath+"/"+made.EndpointID, deleted.Position)
	again := e.send(http.MethodPut, endpointsPath+"/"+made.EndpointID, `{"url":"https://example.org/again"}`)
	anew := e.read(http.StatusOK, endpointsPath+"/"+made.EndpointID, again.Position)
	require.Equal(t, "https://example.org/again", anew["url"])
	require.Equal(t, anew["changed_at"], anew["created_at"], "it was made anew")

	history := e.read(http.StatusOK, endpointsPath+"/"+made.EndpointID+"/history", again.Position)["items"].([]any)
	require.Len(t, history, 4)
	for i, wanted := range []change{again, deleted, changed, made} { // the newest first
		one := history[i].(map[string]any)
		require.Equal(t, wanted.ID, one["ticket"])
		require.Equal(t, wanted.Position, one["position"])
		require.Equal(t, map[bool]string{true: "delete", false: "put"}[i == 1], one["kind"])
		ticket := e.read(http.StatusOK, "/api/v1/tickets/"+wanted.ID, wanted.Position)
		require.Equal(t, "applied", ticket["state"])
		require.Equal(t, wanted.Position, ticket["position"])
	}
	var members []string
	for _, m := range history[2].(map[string]any)["changes"].([]any) {
		members = append(members, m.(map[string]any)["member"].(string))
	}
	require.ElementsMatch(t, []string{"name", "tags", "interval", "enabled", "conditions"}, members)

	unknown := e.read(http.StatusOK, "/api/v1/tickets/"+uuid.NewString(), "")
	require.Equal(t, "unknown", unknown["state"])
	e.RequireProjected(e.DB)
	e.RequireCleanAudit(e.DB)
}

// A list makes one endpoint for each item, and sent again under the same key it makes no second one. A list with a mistake
// is refused whole, with every path that is wrong.
func TestAListOfEndpointsThatIsSentAgainMakesNothingTwice(t *testing.T) {
	e := startEndpoints(t)
	var items []string
	for i := range 50 {
		items = append(items, fmt.Sprintf(`{"url":"https://example.org/%d","group":"g%d","tags":["t%d"]}`, i%40, i%2, i%5)) // some twice in one list
	}
	list := "[" + strings.Join(items, ",") + "]"

	refused := e.ask(http.StatusBadRequest, http.MethodPost, endpointsPath, `[`+items[0]+`,{"url":"/no","interval":"1s","enabled":"yes"}]`)
	var paths []string
	for _, one := range refused.JSON()["errors"].([]any) {
		paths = append(paths, one.(map[string]any)["path"].(string))
	}
	require.ElementsMatch(t, []string{"[1].url", "[1].interval", "[1].enabled"}, paths)

	for _, key := range []string{uuid.NewString(), uuid.Must(uuid.NewV7()).String()} { // only the second could be a ticket itself
		var first []change
		for range 3 {
			a := e.ask(http.StatusAccepted, http.MethodPost, endpointsPath, list, "Idempotency-Key", key)
			var answers []change
			require.NoError(t, json.Unmarshal(a.Body, &answers))
			require.Len(t, answers, len(items))
			if first == nil {
				first = answers
			}
			ids := map[string]bool{}
			for i, one := range answers {
				require.Equal(t, first[i].ID, one.ID)
				require.Equal(t, first[i].EndpointID, one.EndpointID)
				ids[one.EndpointID] = true
			}
			require.Len(t, ids, len(items))
		}
		for i, one := range first {
			at := e.read(http.StatusOK, endpointsPath+"/"+one.EndpointID, one.Position)
			require.Equal(t, fmt.Sprintf("https://example.org/%d", i%40), at["url"])
			require.Equal(t, one.Position, at["position"], "the first of the records is the row")
		}
	}
	d := e.RequireProjected(e.DB)
	require.Equal(t, 2*len(items), lines(d.Derived))
	require.Equal(t, 2*len(items), lines(d.Rows))
	e.RequireCleanAudit(e.DB)

	// They are listed by name, page by page, each once.
	for query, wanted := range map[string]int{"": 100, "&group=g1": 50, "&tag=t3": 20, "&q=example.org%2F7": 4} {
		seen := map[string]bool{}
		for path := endpointsPath + "?limit=7" + query; path != ""; {
			page := e.read(http.StatusOK, path, "")
			for _, one := range page["items"].([]any) {
				id := one.(map[string]any)["id"].(string)
				require.False(t, seen[id], "listed twice: %s", id)
				seen[id] = true
			}
			path, _ = page["next"].(string)
		}
		require.Len(t, seen, wanted, query)
	}
}

// Records of endpoints that nobody can read are listed with those of timestamps, each under its projection; one is put
// right and redriven, one discarded. A rebuild by name gives the same bytes.
func TestDeadLettersOfEndpointsAreDealtWith(t *testing.T) {
	e := startEndpoints(t)
	l := letters{e.Story, t, e.stack.command, e.stack.query}
	id, command := uuid.NewString(), uuid.NewString()
	value := func(interval string) string {
		return fmt.Sprintf(`{"command_id":%q,"endpoint_id":%q,"kind":"put","sent_by":"","endpoint":{"url":"https://example.org/","name":"n","group":"","tags":[],"interval":%s,"enabled":true}}`, command, id, interval)
	}
	elsewhere := (story.PartitionOf(id, story.EndpointPartitions) + 1) % story.EndpointPartitions
	written, err := e.Log.Write(
		story.Message{Partition: story.AnyPartition, Key: id, Value: []byte(value("7"))},
		story.Message{Partition: elsewhere, Key: id, Value: []byte(value(`"30s"`))},
	)
	require.NoError(t, err)
	_, err = e.Log.On(story.Topic).Write(story.Message{Partition: 1, Value: []byte("poison")})
	require.NoError(t, err)
	e.RequireProjected(e.DB)
	timestamps := e.Of(story.Timestamps)
	timestamps.RequireProjected(e.DB)

	require.Len(t, l.list("state=open", ""), 3)
	open := l.list("state=open&projection=endpoints", written[1].Position())
	require.Len(t, open, 2)
	reasons := map[string]string{}
	for _, one := range open {
		a := e.read(http.StatusOK, "/api/v1/deadletters/"+url.PathEscape(one.Position), "")
		reasons[one.Position] = a["reason_code"].(string) + ": " + a["reason"].(string)
	}
	require.Contains(t, reasons[written[0].Position()], "decode: endpoint.interval: expected a duration such as 30s, found a number")
	require.Contains(t, reasons[written[1].Position()], "misplaced: ")
	e.read(http.StatusNotFound, "/api/v1/deadletters?projection=checks", "")

	redriven, _ := l.decide("redrive", "", map[string]any{"letters": []any{map[string]any{"position": written[0].Position(), "payload": value(`"30s"`)}}, "note": "a number"})
	require.Len(t, redriven, 1)
	require.Equal(t, command, redriven[0].Ticket, "under the ticket that its client has")
	require.True(t, strings.HasPrefix(redriven[0].Command, story.EndpointTopic+"/"), redriven[0].Command)
	at := e.read(http.StatusOK, endpointsPath+"/"+id, redriven[0].Command)
	require.Equal(t, "30s", at["interval"])
	ticket := e.read(http.StatusOK, "/api/v1/tickets/"+command, redriven[0].Command)
	require.Equal(t, "applied", ticket["state"])
	_, last := l.decide("discard", "", map[string]any{"positions": []string{written[1].Position()}, "note": "misplaced", "readable": true})
	require.Len(t, l.list("state=redriven&projection=endpoints", redriven[0].Decision), 1)
	require.Len(t, l.list("state=discarded", last), 1)
	require.Empty(t, l.list("state=open&projection=endpoints", ""))

	before := e.RequireProjected(e.DB)
	require.Equal(t, 2, lines(before.Decisions))
	e.RequireCleanAudit(e.DB)
	epoch := e.Epoch(e.DB)
	again := e.Service("consumer-service", map[string]string{"KAFKA_GROUP_ID": "story-endpoint-letters-again"})
	e.Ready(again)
	await.Until(t, func() bool { return e.Epoch(e.DB) > epoch })
	story.RequireSame(t, before, e.RequireProjected(e.DB))
}

// A rebuild of all projections, one after the other, goes unnoticed while commands come in and are read.
func TestARebuildOfAllWhileCommandsComeIn(t *testing.T) {
	e := startEndpoints(t)
	var ids []string
	for i := range 40 {
		ids = append(ids, e.send(http.MethodPost, endpointsPath, fmt.Sprintf(`{"url":"https://example.org/%d"}`, i)).EndpointID)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*story.Patience)
	defer cancel()
	coming, stop := context.WithCancel(ctx)
	failed := make(chan error, 2)
	go func() { failed <- e.keepChanging(coming, ids) }()
	go func() { failed <- keepStamping(coming, e) }()

	a, err := e.Client.Do(ctx, http.MethodPost, e.stack.consumer+"/api/v1/rebuilds", "", "Content-Type", "application/json")
	require.NoError(t, err)
	require.Equal(t, http.StatusAccepted, a.Status, a)
	var begun struct {
		Generations []struct {
			Projection string
			Generation int
			State      string
		}
	}
	require.NoError(t, json.Unmarshal(a.Body, &begun))
	require.Len(t, begun.Generations, 2)
	for _, g := range begun.Generations {
		require.NoError(t, story.Eventually(ctx, "the rebuild of "+g.Projection, func(ctx context.Context) error {
			// query-service reads it from the database.
			a, err := e.Client.Get(ctx, fmt.Sprintf("%s/api/v1/projections/%s/generations/%d", e.stack.query, g.Projection, g.Generation))
			if err != nil {
				return err
			}
			if a.Text("state") != "serving" {
				return fmt.Errorf("generation %d: %s", g.Generation, a)
			}
			return nil
		}))
	}
	time.Sleep(time.Second) // users go on for a little under what serves now
	stop()
	require.NoError(t, <-failed)
	require.NoError(t, <-failed)
	e.RequireProjected(e.DB)
	e.RequireCleanAudit(e.DB)
	timestamps := e.Of(story.Timestamps)
	timestamps.RequireProjected(e.DB)
	timestamps.RequireCleanAudit(e.DB)
}

// keepChanging puts and deletes endpoints and reads each write, until ctx ends. The error is what somebody noticed.
func (e endpoints) keepChanging(ctx context.Context, ids []string) error {
	for i := 0; ; i++ {
		method, body, status := http.MethodPut, fmt.Sprintf(`{"url":"https://example.org/changed/%d"}`, i), http.StatusOK
		if i%3 == 0 {
			method, body, status = http.MethodDelete, "", http.StatusNotFound
		}
		path := endpointsPath + "/" + ids[i%len(ids)]
		a, err := e.Client.Do(ctx, method, e.stack.command+path, body, "Content-Type", "application/json")
		if err == nil && a.Status == http.StatusAccepted {
			var read story.Answer
			read, err = e.Client.Get(ctx, e.stack.query+path+"?wait=30s", "Tidemark-Position", a.Header.Get("Tidemark-Position"))
			if err == nil && (read.Status != status || status == http.StatusOK && read.Text("url") != fmt.Sprintf("https://example.org/changed/%d", i)) {
				err = fmt.Errorf("the read after %s %s was answered %s", method, body, read)
			}
		} else if err == nil {
			err = fmt.Errorf("%s %s: %s", method, path, a)
		}
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func keepStamping(ctx context.Context, e endpoints) error {
	for i := 0; ; i++ {
		at := time.Date(2012, 1, 1, 0, 0, 0, 0, time.UTC).Add(time.Duration(i) * time.Second).Format(time.RFC3339)
		err := writeAndRead(ctx, e.Client, e.Client.StampOnce, e.stack, at)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

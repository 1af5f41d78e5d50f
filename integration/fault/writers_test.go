package fault_test

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/tidemark/tidemark/integration/stack"
	"github.com/tidemark/tidemark/integration/story"
)

// ticket is what the door gave.
type ticket struct {
	id       uuid.UUID
	position string
	key      string // of the record: the ticket itself, or the endpoint that the command is about
}

// writers keep the log growing: some post to command-service as patient clients do, one writes to Kafka itself, past the
// door, what anybody might write there.
type writers struct {
	door   *stack.Service
	client *story.Client
	log    *story.Log

	quiet sync.RWMutex // held for reading while something is written

	mu    sync.Mutex
	given []ticket

	stop context.CancelFunc
	busy sync.WaitGroup
}

func startWriters(ctx context.Context, seed uint64, door *stack.Service, client *story.Client, log *story.Log) *writers {
	ctx, stop := context.WithCancel(ctx)
	w := &writers{door: door, client: client, log: log, stop: stop}
	for i := range uint64(2) {
		r := rand.New(rand.NewPCG(seed, 1000+i))
		w.busy.Go(func() {
			for ctx.Err() == nil {
				w.quiet.RLock()
				w.send(ctx, r, drawn(r, commands)(r, w.door.URL()))
				w.quiet.RUnlock()
				pause(ctx, between(r, 0, 200*time.Millisecond))
			}
		})
	}
	w.busy.Go(func() {
		r := rand.New(rand.NewPCG(seed, 2000))
		for ctx.Err() == nil {
			w.quiet.RLock()
			// The broker may be down; whatever is in the log counts.
			_, _ = w.log.Write(anything(r, 1+r.IntN(8))...)
			_, _ = w.log.On(story.EndpointTopic).Write(anyEndpoints(r, r.IntN(3))...)
			w.quiet.RUnlock()
			pause(ctx, between(r, 50*time.Millisecond, 400*time.Millisecond))
		}
	})
	return w
}

func (w *writers) close() {
	w.stop()
	w.busy.Wait()
}

// tickets returns all that were given by now. The slice only grows.
func (w *writers) tickets() []ticket {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clip(w.given)
}

// request is a command on its way to the door.
type request struct{ method, url, body string }

// commands are what the writers send, with how often.
var commands = []weighted[func(*rand.Rand, string) request]{
	{8, func(r *rand.Rand, door string) request {
		url := door + "/api/v1/timestamp"
		if r.IntN(2) == 0 {
			url += "/" + someTime(r)
		}
		return request{http.MethodPost, url, ""}
	}},
	{1, func(r *rand.Rand, door string) request {
		return request{http.MethodPost, door + "/api/v1/endpoints", document(r)}
	}},
	{2, func(r *rand.Rand, door string) request {
		return request{http.MethodPut, door + "/api/v1/endpoints/" + someEndpoint(r).String(), document(r)}
	}},
	{1, func(r *rand.Rand, door string) request {
		return request{http.MethodDelete, door + "/api/v1/endpoints/" + someEndpoint(r).String(), ""}
	}},
}

// send sends a request until there is a ticket for it, sometimes twice with one key.
func (w *writers) send(ctx context.Context, r *rand.Rand, command request) {
	var id uuid.UUID
	key := ""
	if r.IntN(4) > 0 {
		id, _ = uuid.NewV7() // fails without randomness only
		key = id.String()
	}
	times := 1
	if r.IntN(6) == 0 {
		times = 2
	}
	for times > 0 && ctx.Err() == nil {
		headers := []string{"Content-Type", "application/json"}
		if key != "" {
			headers = append(headers, "Idempotency-Key", key)
		}
		answer, err := w.client.Do(ctx, command.method, command.url, command.body, headers...)
		switch {
		case err != nil && key == "":
			return // it may be in the log, and nobody can ask for it again
		case err != nil:
			pause(ctx, 50*time.Millisecond) // the door is down, or died with the command in its hands
			continue
		case answer.Status == http.StatusAccepted:
			w.give(answer)
			key = answer.Text("id")
			times--
			continue
		}
		if again := answer.Text("retry_key"); again != "" {
			key = again
		}
		pause(ctx, 100*time.Millisecond)
	}
}

func (w *writers) give(answer story.Answer) {
	t := ticket{position: answer.Header.Get("Tidemark-Position"), key: cmp.Or(answer.Text("endpoint_id"), answer.Text("id"))}
	t.id, _ = uuid.Parse(answer.Text("id")) // one that is none is looked for in vain, and so told
	w.mu.Lock()
	defer w.mu.Unlock()
	w.given = append(w.given, t)
}

// someEndpoint is one of a few, so that each has many commands.
func someEndpoint(r *rand.Rand) uuid.UUID { return uuid.UUID{6: 0x80, 8: 0x80, 15: byte(r.IntN(30))} }

// document is an endpoint, complete as the door writes it into the log.
func document(r *rand.Rand) string {
	return fmt.Sprintf(`{"url":"https://example.org/%d","name":"endpoint %d","group":"","tags":["a","%d"],"interval":"%ds","enabled":%t,"more":{"x":[%d]}}`,
		r.IntN(100), r.IntN(100), r.IntN(10), 5+r.IntN(50), r.IntN(2) == 0, r.IntN(100))
}

// anyEndpoints makes about n records of endpoints that a stranger may write: mostly good ones, some commands twice with
// different content, some that nobody can read, and some that stand in another partition than their endpoint's.
func anyEndpoints(r *rand.Rand, n int) []story.Message {
	var messages []story.Message
	for range n {
		id, command := someEndpoint(r), uuid.UUID{}
		for i := range command {
			command[i] = byte(r.UintN(256))
		}
		put := func() story.Message {
			value := fmt.Sprintf(`{"command_id":%q,"endpoint_id":%q,"kind":"put","sent_by":"a stranger","endpoint":%s}`, command, id, document(r))
			return story.Message{Partition: story.AnyPartition, Key: id.String(), Value: []byte(value)}
		}
		one := put()
		switch r.IntN(8) {
		case 0:
			one.Value = []byte([]string{"", "{}", `{"command_id":7}`, `{"command_id":"` + command.String() + `"}`}[r.IntN(4)])
		case 1:
			one.Partition = (story.PartitionOf(one.Key, story.EndpointPartitions) + 1) % story.EndpointPartitions
		case 2:
			messages = append(messages, put())
		case 3:
			one.Value = fmt.Appendf(nil, `{"command_id":%q,"endpoint_id":%q,"kind":"delete","sent_by":""}`, command, id)
		}
		messages = append(messages, one)
	}
	return messages
}

func someTime(r *rand.Rand) string {
	return time.Unix(r.Int64N(4_000_000_000), r.Int64N(1_000_000)*1000).UTC().Format(time.RFC3339Nano)
}

func command(id uuid.UUID, at string) []byte {
	return fmt.Appendf(nil, `{"command_id":%q,"event_timestamp":%q}`, id, at)
}

// anything makes about n records that a stranger may write: mostly plain ones without a header, some that nobody can
// read, some ids in two partitions or twice in one, with different content.
func anything(r *rand.Rand, n int) []story.Message {
	var messages []story.Message
	for range n {
		id := uuid.UUID{}
		for i := range id {
			id[i] = byte(r.UintN(256))
		}
		partition := r.Int32N(12)
		plain := story.Message{Partition: partition, Key: id.String(), Value: command(id, someTime(r))}
		switch r.IntN(12) {
		case 0:
			messages = append(messages, poison(r, partition))
		case 1:
			other := story.Message{Partition: r.Int32N(12), Key: id.String(), Value: command(id, someTime(r))}
			messages = append(messages, plain, other)
		default:
			messages = append(messages, plain)
		}
	}
	return messages
}

// poison is a record that is no command.
func poison(r *rand.Rand, partition int32) story.Message {
	values := [][]byte{
		nil, {}, []byte("poison"), []byte("\x00\xff"), []byte(`{"command_id":"7"}`), []byte(`[]`),
		[]byte(`{"command_id":"0191e3a0-7a3c-7d52-9c4e-3f1d2a5b6c7d","event_timestamp":"2009-02-30T00:00:00Z"}`),
		[]byte(`{"command_id":"0191e3a0-7a3c-7d52-9c4e-3f1d2a5b6c7d","event_timestamp":"yesterday"}`),
	}
	return story.Message{Partition: partition, Value: values[r.IntN(len(values))], Headers: map[string]string{"correlationId": "\x00\xff"}}
}

package fault_test

import (
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
				w.post(ctx, r)
				w.quiet.RUnlock()
				pause(ctx, between(r, 0, 200*time.Millisecond))
			}
		})
	}
	w.busy.Go(func() {
		r := rand.New(rand.NewPCG(seed, 2000))
		for ctx.Err() == nil {
			w.quiet.RLock()
			_, _ = w.log.Write(anything(r, 1+r.IntN(8))...) // the broker may be down; whatever is in the log counts
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

// post stamps a time until there is a ticket for it, sometimes twice with one key.
func (w *writers) post(ctx context.Context, r *rand.Rand) {
	var id uuid.UUID
	key := ""
	if r.IntN(4) > 0 {
		id, _ = uuid.NewV7() // fails without randomness only
		key = id.String()
	}
	url := w.door.URL() + "/api/v1/timestamp"
	if r.IntN(2) == 0 {
		url += "/" + someTime(r)
	}
	times := 1
	if r.IntN(6) == 0 {
		times = 2
	}
	for times > 0 && ctx.Err() == nil {
		var headers []string
		if key != "" {
			headers = []string{"Idempotency-Key", key}
		}
		answer, err := w.client.Post(ctx, url, headers...)
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
	t := ticket{position: answer.Header.Get("Tidemark-Position")}
	t.id, _ = uuid.Parse(answer.Text("id")) // one that is none is looked for in vain, and so told
	w.mu.Lock()
	defer w.mu.Unlock()
	w.given = append(w.given, t)
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

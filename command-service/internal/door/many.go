package door

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/tidemark/tidemark/shared/kafka"
	"github.com/tidemark/tidemark/shared/loop"
	"github.com/tidemark/tidemark/shared/position"
	"github.com/tidemark/tidemark/shared/telemetry"
)

// Command is one record for AcceptAll.
type Command struct {
	Key   string
	Value []byte
}

// Outcome of one command. Err is nil when every in-sync replica has it, else one of Accept's errors.
type Outcome struct {
	Position position.Position
	Err      error
}

const (
	firstPause   = 50 * time.Millisecond
	longestPause = 500 * time.Millisecond
)

// AcceptAll is Accept for many commands of one caller: they go in one flight, and the outcomes come in their order.
// It returns within the deadline, or when ctx ends.
//
// It is for a caller with more behind these: where Accept refuses at once what was surely not written (a queue that is
// full, a broker that is away), AcceptAll tries that part again until the deadline. So a stream stands still through a
// short outage, and does not run through it with a refusal for each command.
func (d *Door) AcceptAll(ctx context.Context, commands []Command, correlationID string) []Outcome {
	outcomes := make([]Outcome, len(commands))
	ctx, cancel := context.WithTimeout(ctx, d.options.Deadline)
	defer cancel()
	headers := kafka.NewMessage("", nil, correlationID).Metadata // read only from here on, so one will do for all
	if parent := telemetry.Traceparent(ctx); d.options.Tracer != nil && parent != "" {
		if headers == nil {
			headers = message.Metadata{}
		}
		headers[telemetry.TraceHeader] = parent // all belong to the caller's span: one each would cost more than the work
	}
	store := make([]message.Message, len(commands))
	msgs, of := make([]*message.Message, len(commands)), make([]int, len(commands))
	for i, c := range commands {
		m := &store[i]
		m.UUID, m.Payload, m.Metadata = c.Key, c.Value, headers
		msgs[i], of[i] = m, i
	}
	retry := loop.Backoff{First: firstPause, Most: longestPause}
	for {
		again := 0
		for i, r := range d.acceptAll(ctx, msgs) {
			outcomes[of[i]] = r
			if r.Err != nil && !errors.Is(r.Err, ErrUnknown) {
				msgs[again], of[again] = msgs[i], of[i]
				again++
			}
		}
		msgs, of = msgs[:again], of[:again]
		if again == 0 || retry.Sleep(ctx) != nil {
			break
		}
	}
	d.options.Metrics.countAll(outcomes)
	return outcomes
}

// acceptAll is one attempt. It may end before every message has had its flight: those are ErrAway.
func (d *Door) acceptAll(ctx context.Context, msgs []*message.Message) []Outcome {
	if len(msgs) == 0 {
		return nil
	}
	if shut := d.shut.Load(); shut != nil {
		return same(len(msgs), shut)
	}
	c := &command{messages: msgs, results: make(chan []kafka.Result, 1)}
	select {
	case d.queue <- c:
	case <-ctx.Done():
		return same(len(msgs), ErrBusy)
	}
	select {
	case r := <-c.results:
		return outcomesOf(r)
	case <-ctx.Done():
	}
	why := fmt.Errorf("no answer within %s", d.options.Deadline)
	if errors.Is(ctx.Err(), context.Canceled) {
		why = ctx.Err()
	}
	if c.state.CompareAndSwap(queued, abandoned) {
		return same(len(msgs), fmt.Errorf("%w: %w", ErrAway, why))
	}
	select { // the results may have come at the same moment
	case r := <-c.results:
		return outcomesOf(r)
	default:
		return same(len(msgs), fmt.Errorf("%w: %w", ErrUnknown, why))
	}
}

// Refuses says why the door takes no commands at the moment, a *ShutError; nil when it is open.
func (d *Door) Refuses() error {
	if shut := d.shut.Load(); shut != nil {
		return shut
	}
	return nil
}

func outcomesOf(results []kafka.Result) []Outcome {
	outcomes := make([]Outcome, len(results))
	for i, r := range results {
		outcomes[i].Position, outcomes[i].Err = outcome(r)
	}
	return outcomes
}

func same(n int, err error) []Outcome {
	outcomes := make([]Outcome, n)
	for i := range outcomes {
		outcomes[i].Err = err
	}
	return outcomes
}

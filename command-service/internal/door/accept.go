package door

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"go.opentelemetry.io/otel/trace"

	"github.com/tidemark/tidemark/shared/event"
	"github.com/tidemark/tidemark/shared/kafka"
	"github.com/tidemark/tidemark/shared/position"
	"github.com/tidemark/tidemark/shared/telemetry"
)

// Command is one record that is to be written.
type Command struct {
	Key     string            // the record's key
	Value   []byte            // the record's value
	Headers map[string]string // headers of this record only; every record has the correlation id and the trace of its request
}

// Outcome of one command. Err is nil when every in-sync replica has its record, and then Position is its place.
type Outcome struct {
	Position position.Position
	Err      error
}

// Accept writes the commands of one caller, which go to the log together, and returns the outcome of each, in their
// order. It returns within the deadline, or when ctx ends. What cannot be written now is refused at once.
func (d *Door) Accept(ctx context.Context, commands ...Command) []Outcome {
	return d.accept(ctx, commands, false)
}

// AcceptPatiently is Accept for a caller with more behind these: what was surely not written (the queue is full, a broker
// is down) is tried again until the deadline. So a stream stands still through a short outage, and does not run through
// it with a refusal for each command.
func (d *Door) AcceptPatiently(ctx context.Context, commands []Command) []Outcome {
	return d.accept(ctx, commands, true)
}

const (
	firstPause   = 50 * time.Millisecond
	longestPause = 500 * time.Millisecond
)

// accept is the one way into the log.
func (d *Door) accept(ctx context.Context, commands []Command, patient bool) []Outcome {
	ctx, cancel := context.WithTimeoutCause(ctx, d.options.Deadline, d.late)
	defer cancel()
	ctx, span := d.startSpan(ctx, commands)
	msgs := messagesOf(ctx, commands, span)
	outcomes := d.attempt(ctx, msgs, span)
	for pause := firstPause; patient && slices.ContainsFunc(outcomes, isRefused) && wait(ctx, pause); pause = min(2*pause, longestPause) {
		var again []*message.Message
		var of []int
		for i, o := range outcomes {
			if isRefused(o) {
				again, of = append(again, msgs[i]), append(of, i)
			}
		}
		for i, o := range d.attempt(ctx, again, span) {
			outcomes[of[i]] = o
		}
	}
	d.metrics.count(outcomes)
	endSpan(span, outcomes)
	return outcomes
}

// attempt hands the messages over once.
func (d *Door) attempt(ctx context.Context, msgs []*message.Message, span trace.Span) []Outcome {
	if len(msgs) == 0 {
		return nil
	}
	if err := d.State(); err != nil {
		return same(len(msgs), err)
	}
	r := &request{messages: msgs, results: make(chan []kafka.Result, 1), span: span}
	select {
	case d.queue <- r:
	default:
		return same(len(msgs), ErrBusy)
	}
	select {
	case results := <-r.results:
		return outcomesOf(results)
	case <-ctx.Done():
	}
	if r.state.CompareAndSwap(queued, abandoned) {
		return same(len(msgs), fmt.Errorf("%w: %w", ErrDown, context.Cause(ctx)))
	}
	select { // the results may have come at the same moment
	case results := <-r.results:
		return outcomesOf(results)
	default:
		return same(len(msgs), fmt.Errorf("%w: %w", ErrUnknown, context.Cause(ctx)))
	}
}

// messagesOf makes the records. Those without headers of their own share one map, which nobody writes to any more.
func messagesOf(ctx context.Context, commands []Command, span trace.Span) []*message.Message {
	shared := message.Metadata{}
	if id := telemetry.CorrelationID(ctx); id != "" {
		shared[event.HeaderCorrelationID] = id
	}
	if parent := telemetry.Traceparent(ctx); span != nil && parent != "" {
		shared[telemetry.TraceHeader] = parent
	}
	store := make([]message.Message, len(commands)) // for publishing only: they cannot be acknowledged
	msgs := make([]*message.Message, len(commands))
	for i, c := range commands {
		m := &store[i]
		m.UUID, m.Payload, m.Metadata = c.Key, c.Value, shared
		if len(c.Headers) > 0 {
			m.Metadata = maps.Clone(shared)
			maps.Copy(m.Metadata, c.Headers)
		}
		msgs[i] = m
	}
	return msgs
}

func outcomesOf(results []kafka.Result) []Outcome {
	outcomes := make([]Outcome, len(results))
	for i, r := range results {
		switch {
		case r.Err == nil:
			outcomes[i].Position = r.Position
		case errors.Is(r.Err, kafka.ErrNotSent) && errors.Is(r.Err, kafka.ErrTooLarge):
			outcomes[i].Err = fmt.Errorf("%w: %w", ErrTooLarge, r.Err)
		case errors.Is(r.Err, kafka.ErrNotSent):
			outcomes[i].Err = fmt.Errorf("%w: %w", ErrDown, r.Err)
		default:
			outcomes[i].Err = fmt.Errorf("%w: %w", ErrUnknown, r.Err)
		}
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

// isRefused reports whether a command is surely not in the log, and may be taken later.
func isRefused(o Outcome) bool {
	return o.Err != nil && !errors.Is(o.Err, ErrUnknown) && !errors.Is(o.Err, ErrTooLarge)
}

// wait pauses, and reports whether there is time left after it.
func wait(ctx context.Context, pause time.Duration) bool {
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

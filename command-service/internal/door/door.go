// Package door accepts commands and writes them to the log, and answers each caller with the outcome.
//
// Promises: a command is accepted only when every in-sync replica has its record, and then its position
// is known. A caller who is refused may send the command again as it is: nothing of it was handed to the
// log. After the answer "unknown" the command may be in the log or not. The caller sends it again under a key
// that makes both attempts one command (see Ticket). Every caller is answered within the deadline, whatever
// the broker does.
//
// Commands are committed in groups: while one group is on its way to the log, the next one gathers, and an
// idle door sends at once. So the size of a group follows the load, and no command waits for others.
//
// A command goes through three states. They are changed by compare-and-swap only, because its caller may give
// up at the very moment the group is sent:
//
//	queued ──▶ handed over ──▶ accepted, refused by the log, or unknown
//	   └─────▶ abandoned: the deadline came first, nothing was written
//
// What a command means, and how an answer is worded in HTTP, is left to others.
package door

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"go.opentelemetry.io/otel/trace"

	"github.com/tidemark/tidemark/shared/kafka"
)

// Errors of an Outcome. After every one but ErrUnknown nothing was written, and nothing will be.
var (
	// ErrUnknown says that the command was handed over, and that no answer came or one that does not say what
	// became of it. It may be in the log.
	ErrUnknown = errors.New("the command was handed to the log and its outcome is not known")
	// ErrDown says that the log did not take the command: there is no broker, or it did not get to it
	// within the deadline.
	ErrDown = errors.New("the log did not take the command")
	// ErrTooLarge says that the log's topic takes no record of this size, so that sending it again does not help.
	ErrTooLarge = errors.New("the record is larger than the log takes")
	// ErrBusy says that as many commands are waiting as the door lets wait.
	ErrBusy = errors.New("too many commands are waiting")
)

// ShutError says why the door takes no commands at all. It wraps ErrDown where the log is down.
type ShutError struct{ Reason error }

func (e *ShutError) Error() string { return "the door is shut: " + e.Reason.Error() }

func (e *ShutError) Unwrap() error { return e.Reason }

// Log is what the door needs of the log.
type Log interface {
	// PublishAll sends the messages together and returns the result of each, in their order. An error
	// that is kafka.ErrNotSent says that the message is not in the log and will not be.
	PublishAll(topic string, msgs ...*message.Message) []kafka.Result
}

var _ Log = (*kafka.Publisher)(nil)

// Options of a door. Topic, Log and Metrics are required.
type Options struct {
	Topic      string        // the topic that commands are written to
	Partitions int32         // how many partitions the topic has; tickets are not chosen by partition unless given
	Log        Log           // where commands are published
	Deadline   time.Duration // the longest a caller waits for an answer; 5 s unless given
	MaxGroup   int           // the number of commands at which a group is full; 1,000 unless given
	MaxQueue   int           // the most callers that wait for a group; 10,000 unless given
	Metrics    *Metrics      // the metrics of all doors of the process
	OnFailure  func()        // called after a group of which something was not written, so that the reason can be looked for; optional
	Tracer     trace.Tracer  // makes the spans of commands and groups; none unless given
}

// Door commits commands in groups. Open it before the first Accept.
type Door struct {
	options Options
	queue   chan *request
	groups  atomic.Int64 // sent so far
	shut    atomic.Pointer[ShutError]
	stop    chan struct{}
	once    sync.Once
	done    chan struct{}
	late    error // the cause of a context whose deadline came first
	metrics topicMetrics
}

const (
	queued int32 = iota
	handedOver
	abandoned
)

// request is what one caller waits for: the messages of one command or of many, which stay together.
type request struct {
	messages []*message.Message
	state    atomic.Int32
	results  chan []kafka.Result // of capacity 1: the group never waits for a caller
	span     trace.Span          // nil where nobody traces it
}

// New returns a door that is shut and has nothing to do. Close ends it.
func New(o Options) (*Door, error) {
	if o.Topic == "" || o.Log == nil || o.Metrics == nil {
		return nil, errors.New("a door needs a topic, a log and metrics")
	}
	if o.Deadline == 0 {
		o.Deadline = 5 * time.Second
	}
	if o.MaxGroup == 0 {
		o.MaxGroup = 1_000
	}
	if o.MaxQueue == 0 {
		o.MaxQueue = 10_000
	}
	d := &Door{options: o, queue: make(chan *request, o.MaxQueue), stop: make(chan struct{}), done: make(chan struct{}),
		late: fmt.Errorf("no answer within %s", o.Deadline), metrics: o.Metrics.forTopic(o.Topic)}
	d.Shut(fmt.Errorf("%w: it has not been checked yet", ErrDown))
	go d.run()
	return d, nil
}

// Open lets commands in.
func (d *Door) Open() {
	d.shut.Store(nil)
	d.metrics.open.Set(1)
}

// Shut refuses every command from now on, for reason. What is in hand is finished.
func (d *Door) Shut(reason error) {
	d.shut.Store(&ShutError{Reason: reason})
	d.metrics.open.Set(0)
}

// Close finishes what is in hand and returns. Nothing may be accepted any more by then: stop the server
// first.
func (d *Door) Close(ctx context.Context) error {
	d.Shut(fmt.Errorf("%w: the service is being stopped", ErrDown))
	d.once.Do(func() { close(d.stop) })
	select {
	case <-d.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// State is nil while commands are let in, else a *ShutError.
func (d *Door) State() error {
	if shut := d.shut.Load(); shut != nil {
		return shut
	}
	return nil
}

// run sends one group after the other, and at the end what is still queued.
func (d *Door) run() {
	defer close(d.done)
	group := make([]*request, 0, d.options.MaxGroup)
	msgs := make([]*message.Message, 0, d.options.MaxGroup)
	for {
		var first *request
		select {
		case first = <-d.queue:
		case <-d.stop:
			select {
			case first = <-d.queue:
			default:
				return
			}
		}
		group, msgs = group[:0], msgs[:0]
		for c, more := first, true; more; c, more = d.next(len(msgs)) {
			if c.state.CompareAndSwap(queued, handedOver) {
				group = append(group, c)
				msgs = append(msgs, c.messages...)
			}
		}
		if len(group) == 0 {
			continue
		}
		d.groups.Add(1) // whoever comes from now on goes with the next one
		start := time.Now()
		results := d.options.Log.PublishAll(d.options.Topic, msgs...)
		d.metrics.sent(len(msgs), time.Since(start))
		if d.options.OnFailure != nil && slices.ContainsFunc(results, func(r kafka.Result) bool { return r.Err != nil }) {
			d.options.OnFailure()
		}
		if d.options.Tracer != nil {
			d.traceFlight(group, results, start)
		}
		for _, c := range group {
			n := len(c.messages)
			c.results <- results[:n:n]
			results = results[n:]
		}
	}
}

// next returns another request for a group of n messages, if one is waiting and the group is not full.
func (d *Door) next(n int) (*request, bool) {
	if n >= d.options.MaxGroup {
		return nil, false
	}
	select {
	case c := <-d.queue:
		return c, true
	default:
		return nil, false
	}
}

package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/tidemark/tidemark/command-service/internal/door"
	manners "github.com/tidemark/tidemark/shared/httpapi"
	"github.com/tidemark/tidemark/shared/kafka"
	"github.com/tidemark/tidemark/shared/topic"
)

// The parts of readiness.
const (
	partLog       = "log"              // the topic of commands is there and safe
	partDecisions = "dead letters log" // so is that of decisions on dead letters
	partPublisher = "publisher"        // there is a connection to write by
)

// WatchOptions say how often the log is looked after. Zero means the default named.
type WatchOptions struct {
	Retry time.Duration // 500 ms: after a look that found no broker
	Guard time.Duration // 1 minute: after a look that found the topic, good or bad
}

// watch looks after one topic of the log and the door to it: it makes the topic where there is none, and opens the door once the topic
// is known to keep what it is given. A topic that could lose records ends the run when the first look
// finds it. Found later it shuts the door, because other services are still reading what it holds, and
// the door opens by itself when the topic is mended. A broker that does not answer says nothing about
// the topic: readiness goes, the door stays as it is and lets the publisher speak.
type watch struct {
	reader  *kafka.Reader
	topic   topic.Spec
	options WatchOptions
	door    *door.Door
	part    string // of readiness
	ready   *manners.Readiness
	log     *slog.Logger
}

func newWatch(o Options, t topic.Spec, part string, d *door.Door, ready *manners.Readiness) *watch {
	w := &watch{
		reader:  kafka.NewReader(o.Config.Kafka, Name+"-watch"),
		topic:   t,
		options: o.Watch, door: d, part: part, ready: ready, log: o.Log,
	}
	if w.options.Retry == 0 {
		w.options.Retry = 500 * time.Millisecond
	}
	if w.options.Guard == 0 {
		w.options.Guard = time.Minute
	}
	return w
}

func (w *watch) run(ctx context.Context, fail func(error)) {
	defer func() { _ = w.reader.Close() }()
	opened := false // the topic was good once
	last := "starting"
	for ctx.Err() == nil {
		err := w.look(ctx, opened)
		var guard *kafka.GuardError
		wait, reason := w.options.Guard, ""
		switch {
		case err == nil:
			opened = true
			w.door.Open()
			w.ready.Ready(w.part)
		case errors.As(err, &guard) && !opened:
			fail(err)
			return
		case errors.As(err, &guard):
			reason = guard.Error()
			w.door.Shut(guard)
			w.ready.Unready(w.part, reason)
		default:
			wait, reason = w.options.Retry, "Kafka does not answer: "+err.Error()
			if !opened {
				w.door.Shut(fmt.Errorf("%w: it has not answered yet", door.ErrAway))
			}
			w.ready.Unready(w.part, reason)
		}
		if reason != last {
			switch {
			case guard != nil:
				w.log.Error("the log is not safe, the door is shut", "topic", w.topic.Name, "err", err)
			case err != nil:
				w.log.Warn("the log does not answer", "topic", w.topic.Name, "err", err)
			default:
				w.log.Info("the log is safe", "topic", w.topic.Name)
			}
			last = reason
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
}

// look makes the topic until it has been seen once. One that goes missing later is not made anew: that
// would hide the loss from everybody who reads it.
func (w *watch) look(ctx context.Context, seen bool) error {
	if !seen {
		if err := w.reader.Ensure(ctx, w.topic); err != nil {
			return err
		}
	}
	return w.reader.Check(ctx, w.topic)
}

// publisherState keeps readiness in step with the publisher's connection.
func publisherState(ready *manners.Readiness) func(error) {
	return func(err error) {
		if err != nil {
			ready.Unready(partPublisher, err.Error())
			return
		}
		ready.Ready(partPublisher)
	}
}

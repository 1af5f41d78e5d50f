package app

import (
	"context"
	"errors"
	"time"

	"github.com/tidemark/tidemark/command-service/internal/door"
	sharedhttp "github.com/tidemark/tidemark/shared/httpapi"
	"github.com/tidemark/tidemark/shared/kafka"
	"github.com/tidemark/tidemark/shared/topic"
)

// The parts of readiness.
const (
	partLog       = "log"              // the topic of timestamps is there and safe
	partEndpoints = "endpoints log"    // so is that of endpoints
	partDecisions = "dead letters log" // so is that of decisions on dead letters
	partPublisher = "publisher"        // there is a connection to write by
)

// WatchOptions say how often the log is looked after.
type WatchOptions struct {
	Retry time.Duration // after a look that found no broker; 500 ms unless given
	Guard time.Duration // after a look that found the topic, good or bad; 1 minute unless given
}

// guardDoor looks after one topic and the door to it until ctx ends. The door opens once the topic is known to keep what
// it is given. A topic that could lose records at the first look ends the run. Found later it shuts the door, because other
// services are still reading what the topic holds, and the door opens by itself when the topic is mended. A broker that
// does not answer says nothing about the topic: the door stays as it is and lets the publisher speak.
func guardDoor(ctx context.Context, o Options, reader *kafka.Reader, t topic.Spec, part string, d *door.Door, ready *sharedhttp.Readiness, fail func(error)) {
	guard := kafka.NewGuard(kafka.GuardOptions{
		Reader: reader, Topic: t, Part: part, Ready: ready, Log: o.Log, Retry: o.Watch.Retry, Every: o.Watch.Guard,
		Checked: func(err error) {
			var unsafe *kafka.GuardError
			switch {
			case err == nil:
				d.Open()
			case errors.As(err, &unsafe):
				d.Shut(unsafe)
			}
		},
	})
	if err := guard.Await(ctx); err != nil {
		if ctx.Err() == nil {
			fail(err)
		}
		return
	}
	guard.Keep(ctx)
}

// publisherState keeps readiness in step with the publisher's connection.
func publisherState(ready *sharedhttp.Readiness) func(error) {
	return func(err error) {
		if err != nil {
			ready.Unready(partPublisher, err.Error())
			return
		}
		ready.Ready(partPublisher)
	}
}

package app

import (
	"context"
	"errors"
	"time"

	"github.com/tidemark/tidemark/command-service/internal/door"
	sharedhttp "github.com/tidemark/tidemark/shared/httpapi"
	"github.com/tidemark/tidemark/shared/kafka"
	"github.com/tidemark/tidemark/shared/logid"
	"github.com/tidemark/tidemark/shared/topic"
)

// The parts of readiness.
const (
	partLog       = "log"              // the topic of timestamps is there and safe
	partEndpoints = "endpoints log"    // so is that of endpoints
	partDecisions = "dead letters log" // so is that of decisions on dead letters
	partPublisher = "publisher"        // there is a connection to write by
)

// WatchOptions say how often each topic is checked.
type WatchOptions struct {
	Retry time.Duration // the pause after a check that no broker answered; 500 ms unless given
	Guard time.Duration // the pause after a check that was answered, whatever it found; 1 minute unless given
	Look  time.Duration // the pause after the topic's id was looked at; 3 seconds unless given
}

// newGuard returns the guard of one topic and the door to it. The door opens once the topic is known to be safe. One that is
// found unsafe later only shuts the door, because other services are still reading what the topic holds; the door opens
// again when the topic is mended. One that was deleted, or made anew, shuts it at the first look: tickets would be given for
// records of a log that nobody reads. A broker that does not answer says nothing about the topic: then the door stays as it
// is, and the publisher reports the outage.
func newGuard(o Options, reader *kafka.Reader, known *logid.Book, t topic.Spec, part string, d *door.Door, ready *sharedhttp.Readiness, faults *kafka.Faults) *kafka.Guard {
	return kafka.NewGuard(kafka.GuardOptions{
		Reader: reader, Topic: t, Part: part, Ready: ready, Log: o.Log, Retry: o.Watch.Retry, Every: o.Watch.Guard,
		SameLog: known.SameLog, Look: o.Watch.Look, Faults: faults,
		Checked: func(err error) {
			var unsafe *kafka.GuardError
			switch {
			case err == nil:
				d.Open()
			case errors.As(err, &unsafe):
				d.Shut(unsafe)
			case kafka.IsOtherLog(err):
				d.Shut(err)
			}
		},
	})
}

// guardDoor guards until ctx ends. A topic that could lose records at the first check ends the run.
func guardDoor(ctx context.Context, guard *kafka.Guard, fail func(error)) {
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
			cause, _ := kafka.CauseOf(err) // the publisher has logged err
			ready.Unready(partPublisher, cause.Found)
			return
		}
		ready.Ready(partPublisher)
	}
}

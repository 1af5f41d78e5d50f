package kafka

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/tidemark/tidemark/shared/loop"
	"github.com/tidemark/tidemark/shared/topic"
)

// Readiness is told how a part of a service is. The reason of Unready is a sentence that an operator can act on.
type Readiness interface {
	Ready(part string)
	Unready(part, reason string)
}

// GuardOptions of one topic. All are required but Retry, Every and Looked.
type GuardOptions struct {
	Reader *Reader
	Topic  topic.Spec // with its counts: see Sized
	Part   string     // of the readiness, which the guard speaks for alone
	Ready  Readiness
	Log    *slog.Logger

	Retry time.Duration // after a look that the broker did not answer; 500 ms unless given
	Every time.Duration // after a look that it did answer; 1 minute unless given
	// Looked is told the outcome of each look, before the readiness is: nil for a topic that is safe, a *GuardError for
	// one that is not, any other error where the broker did not answer, which says nothing about the topic.
	Looked func(error)
}

// Guard makes one topic as its Spec says and then watches over it. It is used in two steps:
//
//	if err := guard.Await(ctx); err != nil { … } // the topic is there and safe, or the service must not start
//	guard.Keep(ctx)                              // in the background, until the service stops
//
// Await waits for a broker that is missing, unready, for as long as it takes. A topic that is not safe ends it: nothing
// but an operator can mend that, and a service that never began has lost nothing.
//
// Keep never ends by itself. A topic that is found unsafe later makes the service unready, and what follows from it is the
// service's own: one that writes refuses to, one that reads goes on, since to stop would make the loss certain. When the
// topic is mended, the service is ready again. Keep never makes a topic: one that has gone missing was lost, and making it
// anew would hide that from everybody who reads it.
type Guard struct {
	o    GuardOptions
	last string // what the log was told last
}

// lookWithin bounds one look. A broker that takes longer does not answer.
const lookWithin = 5 * time.Second

// NewGuard returns a guard that has not looked yet.
func NewGuard(o GuardOptions) *Guard {
	if o.Retry == 0 {
		o.Retry = 500 * time.Millisecond
	}
	if o.Every == 0 {
		o.Every = time.Minute
	}
	if o.Looked == nil {
		o.Looked = func(error) {}
	}
	return &Guard{o: o}
}

// Await makes the topic where there is none and returns nil once it is safe, a *GuardError where it is not, or the cause
// of ctx's end.
func (g *Guard) Await(ctx context.Context) error {
	for {
		err := g.look(ctx, func(ctx context.Context) error {
			if err := g.o.Reader.Ensure(ctx, g.o.Topic); err != nil {
				return err
			}
			return g.o.Reader.Check(ctx, g.o.Topic)
		})
		var unsafe *GuardError
		if err == nil || errors.As(err, &unsafe) {
			return err
		}
		if err := loop.Sleep(ctx, g.o.Retry); err != nil {
			return err
		}
	}
}

// Keep looks again and again until ctx ends.
func (g *Guard) Keep(ctx context.Context) {
	wait := g.o.Every
	for loop.Sleep(ctx, wait) == nil {
		err := g.look(ctx, func(ctx context.Context) error { return g.o.Reader.Check(ctx, g.o.Topic) })
		var unsafe *GuardError
		if wait = g.o.Every; err != nil && !errors.As(err, &unsafe) {
			wait = g.o.Retry
		}
	}
}

// look looks once, and tells everybody what it found.
func (g *Guard) look(ctx context.Context, at func(context.Context) error) error {
	bounded, cancel := context.WithTimeout(ctx, lookWithin)
	defer cancel()
	err := at(bounded)
	if ctx.Err() != nil {
		return err // it was ended, and nothing was found
	}
	g.o.Looked(err)
	var unsafe *GuardError
	reason := ""
	switch {
	case err == nil:
		g.o.Ready.Ready(g.o.Part)
	case errors.As(err, &unsafe):
		reason = unsafe.Error()
	default:
		reason = "Kafka does not answer: " + err.Error()
	}
	if err != nil {
		g.o.Ready.Unready(g.o.Part, reason)
	}
	if reason == g.last {
		return err
	}
	g.last = reason
	switch log := g.o.Log.With("topic", g.o.Topic.Name); {
	case err == nil:
		log.Info("the topic is safe")
	case unsafe != nil:
		log.Error("the topic is not safe", "err", err)
	default:
		log.Warn("the topic cannot be checked", "err", err)
	}
	return err
}

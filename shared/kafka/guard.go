package kafka

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/tidemark/tidemark/shared/loop"
	"github.com/tidemark/tidemark/shared/topic"
)

// Readiness is told whether a part of a service can do its work. The reason of Unready is a sentence that an operator
// can act on.
type Readiness interface {
	Ready(part string)
	Unready(part, reason string)
}

// GuardOptions say which topic is guarded and who is told. All are required but WatchStart, AcceptStart, SameLog, Look, Retry,
// Every, Checked and Faults.
type GuardOptions struct {
	Reader *Reader      // asks the brokers
	Topic  topic.Spec   // the topic, with its counts: see Sized
	Part   string       // the part of the readiness that this guard, and nobody else, reports
	Ready  Readiness    // is told whether the topic is safe
	Log    *slog.Logger // where a change is logged

	// WatchStart has Keep look at where a topic that is kept forever starts. Await does not: whoever reads the topic judges
	// its start before the first record.
	WatchStart bool
	// AcceptStart is where it may start by ACCEPT_LOG_START, by partition: at 0 where it names none. Nil where that setting
	// does not concern the topic.
	AcceptStart map[int32]int64

	// SameLog is asked whether the topic is the one that it was, before the topic may be made and, in Keep, every few seconds.
	// It returns nil where it is; ErrNotKnown where it is not there and nobody has known it; an *IdentityError where it is another
	// one or is gone, a *ClusterError where the brokers are others; any other error where that could not be found out. Optional.
	SameLog func(ctx context.Context, topic string) error
	Look    time.Duration // the pause between two questions of SameLog in Keep; 3 seconds unless given

	Retry time.Duration // the pause after a check that the broker did not answer; 500 ms unless given
	Every time.Duration // the pause after a check that the broker answered; 1 minute unless given
	// Checked is called with the outcome of each check, before the readiness is told: nil for a topic that is safe, a
	// *GuardError for one that is not, a *TrimmedError for one that has lost its beginning, an *IdentityError for another one,
	// any other error where the broker did not answer, which says nothing about the topic. Optional.
	Checked func(error)
	Faults  *Faults // the metric of what is found; optional
}

// Guard makes one topic as its Spec says and then watches over it. It is used in two steps:
//
//	if err := guard.Await(ctx); err != nil { … } // the topic is there and safe, or the service must not start
//	guard.Keep(ctx)                              // in the background, until the service stops
//
// Await waits for a broker that is down, unready, for as long as it takes. It returns an error for a topic that is not
// safe: only an operator can mend that, and a service that has not begun has lost nothing.
//
// Keep never ends by itself. A topic that is found unsafe later makes the service unready. What else follows is left to
// the service: one that writes refuses to, and one that reads goes on, since stopping would make the loss certain. When
// the topic is mended, the service is ready again. Keep never makes a topic: one that has gone missing was lost, and a
// new one would hide that from everybody who reads it.
//
// A topic that is not the one that it was (see SameLog) is an *IdentityError. Await waits for it, since an operator may bring
// the old one back, and makes no topic meanwhile.
//
// A topic that is kept forever and has lost its beginning is a *TrimmedError. Nothing mends it, so the service stays
// unready until it is restarted with a setting that accepts the loss.
type Guard struct {
	o    GuardOptions
	last string    // the reason that was logged last; empty for a topic that is safe
	wake loop.Kick // somebody has seen that the topic may have changed
}

// checkTimeout bounds one check. A broker that takes longer counts as one that does not answer.
const checkTimeout = 5 * time.Second

// NewGuard returns a guard that has checked nothing yet.
func NewGuard(o GuardOptions) *Guard {
	if o.Retry == 0 {
		o.Retry = 500 * time.Millisecond
	}
	if o.Every == 0 {
		o.Every = time.Minute
	}
	if o.Look == 0 {
		o.Look = 3 * time.Second
	}
	if o.SameLog == nil {
		o.SameLog, o.Look = func(context.Context, string) error { return nil }, o.Every
	}
	if o.Checked == nil {
		o.Checked = func(error) {}
	}
	return &Guard{o: o, wake: loop.NewKick()}
}

// CheckNow has Keep check at once, for somebody who has met an error of the topic. It never waits, and may be called for
// each error: there is a pause between two checks.
func (g *Guard) CheckNow() { g.wake.Send() }

// Await makes the topic where there is none and returns nil once it is safe, a *GuardError where it is not, or the cause
// of ctx's end.
func (g *Guard) Await(ctx context.Context) error {
	for {
		err := g.checkOnce(ctx, func(ctx context.Context) error {
			if err := g.o.SameLog(ctx, g.o.Topic.Name); err != nil && !errors.Is(err, ErrNotKnown) {
				return err // one that is gone must not be made
			}
			if err := g.o.Reader.Ensure(ctx, g.o.Topic); err != nil {
				return err
			}
			if err := g.o.Reader.Check(ctx, g.o.Topic); err != nil {
				return err
			}
			return g.o.SameLog(ctx, g.o.Topic.Name) // one that was made now must be known before anything is written to it
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

// Keep checks the topic again and again until ctx ends.
func (g *Guard) Keep(ctx context.Context) {
	for wait := g.o.Every; ; {
		err := g.watch(ctx, wait)
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			err = g.checkOnce(ctx, g.checkWhole)
		}
		if wait = g.o.Every; err != nil && !isFinding(err) {
			wait = g.o.Retry
		}
		pause := min(wait, g.o.Retry)
		if loop.Sleep(ctx, pause) != nil {
			return
		}
		wait -= pause
	}
}

// watch returns nil once the topic should be checked as a whole: after wait, or at once when somebody asks for it. Until then it
// asks every few seconds whether it is the same topic, and returns what it has reported where it is not.
func (g *Guard) watch(ctx context.Context, wait time.Duration) error {
	for due := time.After(wait); ; {
		select {
		case <-due:
			return nil
		case <-g.wake:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(g.o.Look):
		}
		if g.last != "" {
			return nil // whether it is mended is told by the whole check only
		}
		bounded, cancel := context.WithTimeout(ctx, checkTimeout)
		err := g.o.SameLog(bounded, g.o.Topic.Name)
		cancel()
		if isFinding(err) {
			return g.checkOnce(ctx, func(context.Context) error { return err })
		}
	}
}

func (g *Guard) checkWhole(ctx context.Context) error {
	if err := g.o.SameLog(ctx, g.o.Topic.Name); err != nil {
		return err
	}
	if err := g.o.Reader.Check(ctx, g.o.Topic); err != nil || !g.o.WatchStart {
		return err
	}
	return g.o.Reader.CheckStart(ctx, g.o.Topic, g.o.AcceptStart)
}

// isFinding reports whether err says something about the topic, and not that the broker did not answer.
func isFinding(err error) bool {
	var unsafe *GuardError
	var trimmed *TrimmedError
	return errors.As(err, &unsafe) || errors.As(err, &trimmed) || IsOtherLog(err)
}

// checkOnce runs check, and reports what it found.
func (g *Guard) checkOnce(ctx context.Context, check func(context.Context) error) error {
	bounded, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	err := check(bounded)
	if ctx.Err() != nil {
		return err // the check was ended, and has found nothing
	}
	g.o.Checked(err)
	g.o.Faults.Note(g.o.Topic.Name, err)
	var unsafe *GuardError
	var trimmed *TrimmedError
	other := IsOtherLog(err)
	reason := ""
	switch {
	case err == nil:
		g.o.Ready.Ready(g.o.Part)
	case other:
		reason = err.Error()
	case errors.As(err, &trimmed):
		reason = trimmed.Error()
	case errors.As(err, &unsafe):
		reason = unsafe.Error()
	case errors.Is(err, ErrNoTopic), errors.Is(err, ErrNotKnown):
		reason = "topic " + g.o.Topic.Name + " is not there: it was deleted, or the brokers have lost it"
	default:
		cause, _ := CauseOf(err)
		reason = cause.Found
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
	case other:
		log.Error("the topic is not the one that it was", "err", err)
	case trimmed != nil:
		log.Error("the topic has lost its beginning", "err", err)
	case unsafe != nil:
		log.Error("the topic is not safe", "err", err)
	default:
		log.Warn("the topic cannot be checked", "err", err)
	}
	return err
}

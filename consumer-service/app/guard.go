package app

import (
	"context"
	"errors"
	"time"

	"github.com/tidemark/tidemark/consumer-service/internal/projection"
	"github.com/tidemark/tidemark/shared/kafka"
	"github.com/tidemark/tidemark/shared/topic"
)

// awaitTopic returns the guard of a topic once the topic is there and safe. While a topic that was noted is gone, readers of
// these projections are told: none of them is read before it is back.
func (w *wiring) awaitTopic(ctx context.Context, of topic.Spec, part string, accepted map[int32]int64, projections ...string) (*kafka.Guard, error) {
	gone := &absence{}
	guard := kafka.NewGuard(kafka.GuardOptions{
		Reader: w.reader, Topic: of, Part: part, Ready: w.Ready, Log: w.Log, WatchStart: true, AcceptStart: accepted, SameLog: w.notGone, Faults: w.faults,
		Checked: func(err error) {
			if reason := gone.news(err); reason != "" {
				gone.told = w.tellReaders(ctx, reason, projections)
			}
		},
	})
	err := guard.Await(ctx)
	gone.over = true // the projector looks from now on, and the book of decisions
	return guard, err
}

// notGone is asked by guards before they make a topic: one that was noted is not made again, since that would hide its loss
// from everybody who reads it. One that was made anew by others is judged by whoever has read the former one.
func (w *wiring) notGone(ctx context.Context, topic string) error {
	err := w.notes.SameLog(ctx, topic)
	if other := (*kafka.IdentityError)(nil); errors.As(err, &other) && other.Found != "" {
		return nil
	}
	return err
}

// absence remembers what a guard found in a row while it waits for a topic.
type absence struct {
	looks int
	told  bool
	over  bool // it waits no longer
}

// missingLooks that find no topic in a row are believed: one may be an answer of a broker that has just started.
const missingLooks = 3

// news returns what readers are to be told of the outcome of a check, empty where it is nothing, or nothing new.
func (a *absence) news(err error) string {
	other := (*kafka.IdentityError)(nil)
	if a.over || !errors.As(err, &other) || other.Found != "" {
		a.looks, a.told = 0, false
		return ""
	}
	if a.looks++; a.looks < missingLooks || a.told {
		return ""
	}
	return other.Error()
}

// tellReaders notes why the projections are not read, and reports whether it could.
func (w *wiring) tellReaders(ctx context.Context, reason string, projections []string) bool {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	err := projection.NoteRefusal(ctx, w.db, reason, projections...)
	if err != nil && ctx.Err() == nil {
		w.Log.Debug("cannot tell readers yet", "err", err) // it is tried again at the next look
	}
	return err == nil
}

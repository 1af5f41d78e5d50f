package projection

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/tidemark/tidemark/shared/kafka"
	"github.com/tidemark/tidemark/shared/loop"
	"github.com/tidemark/tidemark/shared/topic"
)

const (
	watchEvery = time.Second
	// candidateWatchEvery is shorter: whoever rebuilds waits for the moment when the candidate has caught up.
	candidateWatchEvery = 250 * time.Millisecond
	// idleEvery is the time after which a partition without records writes a receipt without offsets.
	idleEvery = 5 * time.Second
	// runsEvery is the time between two notes that this process runs the projection.
	runsEvery = 3 * time.Second
	// daysEvery is the time between two looks for days that are to be dropped.
	daysEvery = time.Minute
)

// watch is what Watch remembers from one look to the next.
type watch struct {
	tails    map[int32]int64 // partition → progress, where the log went on past it at the last look
	failed   int             // looks in a row
	ranAt    time.Time
	daysSeen time.Time
}

// Watch notes, each second until ctx ends, how far the log is and whether the projection has caught up
// with it; lets assignments go on in the epoch that a swap gave them, or ends their session where the
// projection was started over; takes back the mark of a swap that died; books transaction markers
// that stand alone before the log's end, which no consumer is ever given; tells of partitions that are idle; and drops days
// that are too old. Two looks in a row that fail make the service unready: with nothing to project, nothing else would
// tell that the database is down.
func (p *Projector) Watch(ctx context.Context) {
	every := watchEvery
	if p.Role.candidate() != nil {
		every = candidateWatchEvery
	}
	w := &watch{tails: map[int32]int64{}}
	loop.Every(ctx, every, func(ctx context.Context) {
		err := p.look(ctx, w)
		switch {
		case ctx.Err() != nil:
		case err != nil:
			p.Logger.Debug("cannot note the watermark", "projection", p.Definition.Name, "err", err)
			p.Metrics.lagUnknown()
			if w.failed++; w.failed == 2 {
				p.unready(PartWatermark, p.reason(err))
			}
		default:
			if w.failed >= 2 {
				p.ready(PartWatermark)
			}
			w.failed = 0
		}
	})
}

func (p *Projector) look(ctx context.Context, w *watch) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if err := p.lookAtTopic(ctx); err != nil {
		return err
	}
	p.mu.Lock()
	session, assigned := p.session, p.assigned
	p.mu.Unlock()
	if session == nil {
		p.Metrics.lagUnknown()
		return nil // not known yet to be the right log and the right database
	}
	g, err := p.store.generation(ctx)
	if err != nil {
		return err
	}
	if err := p.mayGoOn(g); err != nil {
		var refusal *Refusal
		if errors.As(err, &refusal) {
			return err
		}
		p.Logger.Info("the session is given back", "topic", p.topic(), "reason", err.Error())
		session.End() // an idle partition would else never find out
		return nil
	}
	if g.State == "swapping" {
		return p.store.takeBack(ctx)
	}
	for partition, a := range assigned {
		if err := p.follow(ctx, partition, a, g); err != nil {
			p.Logger.Warn("the session is given back", "topic", p.topic(), "partition", partition, "err", err)
			session.End() // an idle partition would else never be read anew
			return nil
		}
	}
	at := g.Now // before the log is asked: what it holds then is what had come in by now
	ends, err := p.Log.StableEnds(ctx, p.topic(), p.all())
	if err != nil {
		return err
	}
	for partition, a := range assigned {
		a.log.Store(&reached{ends[partition], at})
	}
	next, err := p.store.watermark(ctx, at, ends)
	if err != nil {
		return err
	}
	if err := p.compare(ctx, w, assigned, ends, next); err != nil {
		return err
	}
	if err := p.tellIdle(ctx, assigned); err != nil {
		return err
	}
	return p.upkeep(ctx, w, g)
}

// compare shows the lag, and books what only markers are left of.
func (p *Projector) compare(ctx context.Context, w *watch, assigned map[int32]*assignment, ends, at map[int32]int64) error {
	var behind int64
	for partition, end := range ends {
		if stop, ok := p.Pace.stop(partition); ok {
			end = min(end, stop)
		}
		next := at[partition]
		p.Metrics.lag(partition, max(end-next, 0))
		a := assigned[partition]
		if a == nil || next >= end {
			delete(w.tails, partition)
			continue
		}
		behind++
		if stood, ok := w.tails[partition]; ok && stood == next {
			if err := p.skipTail(ctx, a, partition, next, end); err != nil {
				return err
			}
		}
		w.tails[partition] = next
	}
	p.Pace.waited(behind)
	return nil
}

// skipTail books [next, end) as skipped where nothing but markers and aborted records stands there, or what was compacted
// away.
func (p *Projector) skipTail(ctx context.Context, a *assignment, partition int32, next, end int64) error {
	if !a.mu.TryLock() {
		return nil // a batch is in flight
	}
	defer a.mu.Unlock()
	if a.next != next {
		return nil
	}
	g, err := p.Log.Explain(ctx, p.topic(), partition, next, end)
	if err != nil {
		return err
	}
	if g.Records > 0 || g.Missing > 0 && p.Definition.Topic.Kept != topic.Compacted {
		return nil // records are on their way; a hole is told when the record after it comes
	}
	if err := p.store.skip(ctx, a.epoch, partition, next, end); err != nil {
		if errors.Is(err, errFenced) {
			return nil // whoever moved it will find the next batch fenced, too
		}
		return fmt.Errorf("partition %d: %w", partition, err)
	}
	if p.Definition.Topic.Kept == topic.Compacted {
		p.Metrics.bookedGap(end - next)
	} else {
		p.Metrics.gap(kafka.Gap{Markers: g.Markers, Aborted: g.Aborted})
	}
	p.Written()
	a.next, a.wrote = end, time.Now()
	return nil
}

// tellIdle writes receipts for partitions that have written none for a while.
func (p *Projector) tellIdle(ctx context.Context, assigned map[int32]*assignment) error {
	var idle []int32
	for partition, a := range assigned {
		if a.mu.TryLock() {
			if time.Since(a.wrote) >= idleEvery {
				idle = append(idle, partition)
				a.wrote = time.Now()
			}
			a.mu.Unlock()
		}
	}
	if len(idle) == 0 {
		return nil
	}
	if err := p.store.tellIdle(ctx, idle); err != nil {
		return err
	}
	p.Written()
	return nil
}

// upkeep notes that this process is there, and drops days.
func (p *Projector) upkeep(ctx context.Context, w *watch, g generation) error {
	if p.Role.candidate() == nil && time.Since(w.ranAt) >= runsEvery {
		w.ranAt = time.Now()
		if err := p.store.runs(ctx); err != nil {
			return err
		}
	}
	if p.Definition.Retention == 0 || time.Since(w.daysSeen) < daysEvery {
		return nil
	}
	w.daysSeen = time.Now()
	n, err := p.store.dropDays(ctx, g.Epoch)
	p.Metrics.dropped.Add(float64(n))
	if n > 0 {
		p.Logger.Info("days were dropped", "projection", p.Definition.Name, "days", n)
	}
	if err != nil {
		p.Logger.Warn("cannot drop a day yet", "projection", p.Definition.Name, "err", err) // it is tried again in a minute
	}
	return nil
}

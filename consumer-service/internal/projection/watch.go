package projection

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"
)

// Watch notes, each second until ctx ends, how far the log is and whether the projection has caught up
// with it; lets claims go on in the epoch that a swap gave them, or ends their session where the
// projection was started over; takes back the mark of a swap that died; and books transaction markers
// that stand alone before the log's end, which no consumer is ever given. Two looks in a row that fail make
// the service unready: with nothing to project, nothing else would tell that the database is away.
func (p *Projector) Watch(ctx context.Context) {
	tails := map[int32]int64{}
	every := time.Second
	if p.Side != nil {
		every = 250 * time.Millisecond // whoever rebuilds waits for the moment when it is level
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	failed := 0
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		err := p.watch(ctx, tails)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			p.Logger.Debug("cannot note the watermark", "err", err)
			if failed++; failed == 2 {
				p.Ready.Unready(PartWatermark, reason(err))
			}
		default:
			if failed >= 2 {
				p.Ready.Ready(PartWatermark)
			}
			failed = 0
		}
	}
}

func (p *Projector) watch(ctx context.Context, tails map[int32]int64) error {
	p.mu.Lock()
	session, claims := p.session, p.claims
	p.mu.Unlock()
	if session == nil {
		return nil // not known yet to be the right log and the right database
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	g, err := p.store.generation(ctx)
	if err != nil {
		return err
	}
	if err := p.replaced(g); err != nil {
		return err
	}
	if g.State == "swapping" {
		return p.store.takeBack(ctx)
	}
	for partition, c := range claims {
		if err := p.follow(ctx, partition, c, g); err != nil {
			p.Logger.Warn("the session is given back", "partition", partition, "err", err)
			session.End() // an idle partition would else never be read anew
			return nil
		}
	}
	all := p.all()
	at := time.Now() // before the log is asked: what it holds then is what had come in by now
	ends, err := p.Log.StableEnds(ctx, p.Topic, all)
	if err != nil {
		return err
	}
	if err := p.store.watermark(ctx, at, ends); err != nil {
		return err
	}
	progress, err := p.store.progress(ctx, p.store.db, all)
	if err != nil {
		return err
	}
	var behind int64
	for partition, end := range ends {
		if stop, ok := p.Side.stop(partition); ok {
			end = min(end, stop)
		}
		next := progress[partition].NextOffset
		if claims[partition] != nil && next < end {
			behind++
		}
		p.Metrics.lag.WithLabelValues(strconv.Itoa(int(partition))).Set(float64(max(end-next, 0)))
		c := claims[partition]
		if c == nil || next >= end {
			delete(tails, partition)
			continue
		}
		if stood, ok := tails[partition]; ok && stood == next {
			if err := p.skipTail(ctx, c, partition, next, end); err != nil {
				return err
			}
		}
		tails[partition] = next
	}
	p.Side.busy(behind)
	return nil
}

// skipTail books [next, end) as skipped where nothing but markers and aborted records stands there.
func (p *Projector) skipTail(ctx context.Context, c *claim, partition int32, next, end int64) error {
	if !c.mu.TryLock() {
		return nil // a batch is in flight
	}
	defer c.mu.Unlock()
	if c.next != next {
		return nil
	}
	g, err := p.Log.Explain(ctx, p.Topic, partition, next, end)
	if err != nil {
		return err
	}
	if g.Records > 0 || g.Missing > 0 {
		return nil // records are on their way; a hole is told when the record after it comes
	}
	if err := p.store.skip(ctx, c.epoch, partition, next, end); err != nil {
		if errors.Is(err, errFenced) {
			return nil // whoever moved it will find the next batch fenced, too
		}
		return fmt.Errorf("partition %d: %w", partition, err)
	}
	p.Metrics.gap(g)
	p.Written()
	c.next = end
	return nil
}

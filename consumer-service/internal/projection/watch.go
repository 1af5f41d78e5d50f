package projection

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"
)

// Watch notes, each second until ctx ends, how far the log is and whether the projection has caught up
// with it; ends sessions whose epoch is over; and books transaction markers that stand alone before the
// log's end, which no consumer is ever given.
func (p *Projector) Watch(ctx context.Context) {
	tails := map[int32]int64{}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if err := p.watch(ctx, tails); err != nil && ctx.Err() == nil {
			p.Logger.Debug("cannot note the watermark", "err", err)
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
	for _, c := range claims {
		if c.over(g.Epoch) {
			p.Logger.Warn("the projection was started over elsewhere", "epoch", g.Epoch)
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
	for partition, end := range ends {
		next := progress[partition].NextOffset
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
	return nil
}

// over reports whether a claim stands in another epoch. One whose batch is in flight finds out by itself.
func (c *claim) over(epoch int64) bool {
	if !c.mu.TryLock() {
		return false
	}
	defer c.mu.Unlock()
	return c.epoch != epoch
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

package projection

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/tidemark/tidemark/shared/position"
)

// claim is what is known of one partition within a session. Only who holds mu changes it: the batch in
// flight, or Watch between two batches.
type claim struct {
	mu     sync.Mutex
	epoch  int64  // under which it writes
	mark   string // metadata of the offsets that are committed for it
	next   int64
	window window
}

const (
	// swapPoll is the time between two looks of a writer that waits for the end of a swap.
	swapPoll = 15 * time.Millisecond
	// tornReads is how often a generation and a progress of two epochs are read again.
	tornReads = 20
)

var errSwapping = errors.New("generations are being swapped")

// reread tells a fenced writer where its generation is. While a swap is under way it waits. Under
// another epoch the claim goes on where everything that it has written is there, as after a swap. An
// error means that the session is over.
func (p *Projector) reread(ctx context.Context, partition int32, c *claim) (int64, error) {
	wait := backoff{}
	for torn := 0; ; {
		g, had, err := p.store.standing(ctx, partition)
		switch {
		case p.Side != nil && errors.Is(err, sql.ErrNoRows):
			return 0, fmt.Errorf("generation %d is gone", p.Side.Generation)
		case err != nil:
			p.Logger.Error("cannot read the projection's state", "err", err)
			p.Ready.Unready(PartDatabase, reason(err))
			if wait.sleep(ctx) != nil {
				return 0, ctx.Err()
			}
			continue
		case g.State == "swapping":
			if err := p.store.takeBack(ctx); err != nil {
				p.Logger.Warn("cannot take the mark of a swap back", "err", err)
			}
		default:
			if err := p.replaced(g); err != nil {
				return 0, err
			}
			if err := p.over(g); err != nil {
				return 0, err
			}
			if had != nil && had.Epoch == g.Epoch {
				return c.adopt(position.Position{Topic: p.Topic, Partition: partition}, g, *had)
			}
			if torn++; torn == tornReads {
				return 0, fmt.Errorf("the generation is at epoch %d and the progress of partition %d is not", g.Epoch, partition)
			}
		}
		if err := pause(ctx, swapPoll); err != nil {
			return 0, err
		}
	}
}

// adopt lets the claim go on under g, where had does not lie behind it.
func (c *claim) adopt(at position.Position, g generation, had progress) (int64, error) {
	switch {
	case g.Epoch == c.epoch:
	case had.NextOffset < c.next:
		return 0, fmt.Errorf("the projection of %s/%d was started over: it is at epoch %d and offset %d, this claim at epoch %d and offset %d", at.Topic, at.Partition, g.Epoch, had.NextOffset, c.epoch, c.next)
	default:
		c.epoch, c.mark = g.Epoch, g.mark()
	}
	return had.NextOffset, nil
}

// follow is adopt for a claim that may be idle. One whose batch is in flight finds out by itself.
func (p *Projector) follow(ctx context.Context, partition int32, c *claim, g generation) error {
	if !c.mu.TryLock() {
		return nil
	}
	defer c.mu.Unlock()
	if err := p.over(g); err != nil {
		return err
	}
	if c.epoch == g.Epoch {
		return nil
	}
	g, had, err := p.store.standing(ctx, partition)
	if err != nil || had == nil || had.Epoch != g.Epoch || g.State == "swapping" {
		return nil //nolint:nilerr // the next look, a second later, tells more
	}
	next, err := c.adopt(position.Position{Topic: p.Topic, Partition: partition}, g, *had)
	if err == nil {
		c.next = next
		p.Logger.Debug("a claim goes on in another epoch", "partition", partition, "epoch", g.Epoch, "offset", next)
	}
	return err
}

// replaced stops the process when another name has taken over. A generation at the side has no name.
func (p *Projector) replaced(g generation) error {
	if p.Side != nil || g.GroupName == nil || *g.GroupName == p.Group {
		return nil
	}
	err := refuse("KAFKA_GROUP_ID %q was replaced by %q, which rebuilds this database: this process stops for good; start it under %q to join", p.Group, *g.GroupName, *g.GroupName)
	p.Ready.Unready(PartClaims, err.Error())
	p.Stop(err)
	return err
}

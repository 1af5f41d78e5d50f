package projection

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tidemark/tidemark/shared/loop"
	"github.com/tidemark/tidemark/shared/position"
)

// assignment is what is known of one partition that the group gave to this member, for one session. Only who holds mu
// changes it: the batch in flight, or Watch between two batches.
type assignment struct {
	mu       sync.Mutex
	epoch    int64  // under which it writes
	metadata string // of the offsets that are committed for it
	next     int64
	window   window
	wrote    time.Time // when it last wrote a receipt

	log atomic.Pointer[reached] // where the log ended when it was last asked
}

const (
	// swapPoll is the time between two looks of a writer that waits for the end of a swap.
	swapPoll = 15 * time.Millisecond
	// notWrittenPoll is the time between two looks of a worker whose candidate is no longer filled.
	notWrittenPoll = 500 * time.Millisecond
	// mostRereads is how often a generation and a progress of two epochs are read again.
	mostRereads = 20
)

var errSwapping = errors.New("generations are being swapped")

// reread tells a fenced writer where its generation is. While a swap is under way it waits. Under
// another epoch the assignment goes on where everything that it has written is there, as after a swap. An
// error means that the session is over.
func (p *Projector) reread(ctx context.Context, partition int32, a *assignment) (int64, error) {
	wait := &loop.Backoff{}
	for mismatched := 0; ; {
		g, had, err := p.store.standing(ctx, partition)
		switch {
		case errors.Is(err, sql.ErrNoRows):
			return 0, errGone
		case err != nil:
			p.Logger.Error("cannot read the projection's state", "topic", p.topic(), "partition", partition, "err", err)
			p.troubled(partition, p.reason(err))
			if err := wait.Sleep(ctx); err != nil {
				return 0, err
			}
			continue
		case g.State == "swapping":
			if err := p.store.takeBack(ctx); err != nil {
				p.Logger.Warn("cannot take the mark of a swap back", "err", err)
			}
		default:
			if err := p.mayGoOn(g); err != nil {
				return 0, err
			}
			if had != nil && had.Epoch == g.Epoch {
				return a.adopt(position.Position{Topic: p.topic(), Partition: partition}, g, *had)
			}
			if mismatched++; mismatched == mostRereads {
				return 0, fmt.Errorf("the generation is at epoch %d and the progress of partition %d is not", g.Epoch, partition)
			}
		}
		if err := loop.Sleep(ctx, swapPoll); err != nil {
			return 0, err
		}
	}
}

// adopt switches the assignment to the generation's epoch, unless its stored next_offset is below ours; then the projection
// was started over, and the session must end.
func (a *assignment) adopt(at position.Position, g generation, had progress) (int64, error) {
	switch {
	case g.Epoch == a.epoch:
	case had.NextOffset < a.next:
		return 0, fmt.Errorf("the projection of %s/%d was started over: it is at epoch %d and offset %d, this session at epoch %d and offset %d", at.Topic, at.Partition, g.Epoch, had.NextOffset, a.epoch, a.next)
	default:
		a.epoch, a.metadata = g.Epoch, g.metadata()
	}
	return had.NextOffset, nil
}

// follow is adopt for an assignment that may be idle. One whose batch is in flight finds out by itself.
func (p *Projector) follow(ctx context.Context, partition int32, a *assignment, g generation) error {
	if !a.mu.TryLock() {
		return nil
	}
	defer a.mu.Unlock()
	if a.epoch == g.Epoch {
		return nil
	}
	g, had, err := p.store.standing(ctx, partition)
	if err != nil || had == nil || had.Epoch != g.Epoch || g.State == "swapping" {
		return nil //nolint:nilerr // the next look, a second later, tells more
	}
	next, err := a.adopt(position.Position{Topic: p.topic(), Partition: partition}, g, *had)
	if err == nil {
		a.next = next
		p.Logger.Debug("an assignment goes on in another epoch", "topic", p.topic(), "partition", partition, "epoch", g.Epoch, "offset", next)
	}
	return err
}

// mayGoOn says why this projector must not go on with g. Where that is a refusal, it stops.
func (p *Projector) mayGoOn(g generation) error {
	err := p.Role.check(g, p.Group)
	var refusal *Refusal
	if errors.As(err, &refusal) {
		p.stop(refusal)
	}
	return err
}

package projection

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/jmoiron/sqlx"
	"golang.org/x/time/rate"

	"github.com/tidemark/tidemark/shared/kafka"
	"github.com/tidemark/tidemark/shared/postgres"
)

// Side is what a generation that does not serve has of its own. Its tables are those of SideSchema. Its
// projector judges no group name and never starts over; whoever drives the rebuild decides when it ends.
type Side struct {
	Generation int
	// Stops, by partition, are the offsets at which a rebuild to a point ends; nil follows the log.
	Stops map[int32]int64
	// Limit holds the whole rebuild to a rate in records a second; 0 does not. Each process is given
	// its share, which is that of its partitions.
	Limit int

	mu    sync.Mutex
	share *rate.Limiter
	times Times
	since time.Time // up to here the waiting was counted
	left  int64     // partitions of this process that have records to read
}

// Times says where the partitions of one process have spent their time: waiting for records, decoding
// them, waiting for the database, or held back by the limit.
type Times struct{ Kafka, Consumer, Postgres, Throttle time.Duration }

// Times returns what was spent since the last call.
func (s *Side) Times() Times {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.times
	s.times = Times{}
	t.Kafka = max(t.Kafka-t.Consumer-t.Postgres-t.Throttle, 0)
	return t
}

func (s *Side) spent(consumer, postgres time.Duration) {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.times.Consumer += consumer
	s.times.Postgres += postgres
}

// busy notes how many partitions have records to read: what they did not spend otherwise since the last
// call, they spent waiting for them.
func (s *Side) busy(partitions int64) {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	if !s.since.IsZero() {
		s.times.Kafka += time.Duration(s.left) * now.Sub(s.since)
	}
	s.since, s.left = now, partitions
}

// stop returns where a partition ends, where it does.
func (s *Side) stop(partition int32) (int64, bool) {
	if s == nil || s.Stops == nil {
		return 0, false
	}
	return s.Stops[partition], true
}

// assigned gives the process its share of the limit.
func (s *Side) assigned(own, all int) {
	if s == nil || s.Limit == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	per := max(float64(s.Limit)*float64(own)/float64(all), 1)
	s.share = rate.NewLimiter(rate.Limit(per), max(int(per/throttleSteps), 1))
}

// throttleSteps is how many pieces a second of a limited rebuild is cut into: small ones, so that what
// serves meanwhile is never held up by a large one.
const throttleSteps = 20

// piece waits until the limit lets some of n records through, and returns how many.
func (s *Side) piece(ctx context.Context, n int) (int, error) {
	s.mu.Lock()
	share := s.share
	s.mu.Unlock()
	if share == nil {
		return n, nil
	}
	start := time.Now()
	n = min(n, share.Burst())
	err := share.WaitN(ctx, n)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.times.Throttle += time.Since(start)
	return n, err
}

// take projects records, for a generation at the side as many at a time as its limit allows, and none at
// or above its stop.
func (p *Projector) take(ctx context.Context, partition int32, c *claim, records []kafka.Record) error {
	if p.Side == nil {
		return p.project(ctx, partition, c, records)
	}
	if stop, ok := p.Side.stop(partition); ok {
		records = records[:below(records, stop)]
	}
	for len(records) > 0 {
		n, err := p.Side.piece(ctx, len(records))
		if err != nil {
			return err
		}
		if err := p.project(ctx, partition, c, records[:n]); err != nil {
			return err
		}
		records = records[n:]
	}
	return nil
}

// fed reports whether a generation at the side is written.
func fed(state string) bool {
	switch state {
	case "filling", "indexing", "ready", "standby":
		return true
	}
	return false
}

// over says that a generation at the side is no longer written, or nil.
func (p *Projector) over(g generation) error {
	if p.Side == nil || fed(g.State) {
		return nil
	}
	return fmt.Errorf("generation %d is not fed any more: it is %s", g.Number, g.State)
}

// enterSide begins a session of a generation at the side: its progress rows stand since it was made.
func (s store) enterSide(ctx context.Context, e entering) (out entered, err error) {
	err = postgres.Tx(ctx, s.db, func(tx *sqlx.Tx) error {
		err := tx.GetContext(ctx, &out.generation, s.in(selectGeneration))
		switch {
		case errors.Is(err, sql.ErrNoRows):
			return errors.New("the generation is gone")
		case err != nil:
			return fmt.Errorf("read the generation: %w", err)
		case !fed(out.State):
			return fmt.Errorf("generation %d is not fed any more: it is %s", out.Number, out.State)
		}
		if err := judgeCluster(out.generation, e.cluster); err != nil {
			return err
		}
		for _, c := range e.committed { // two databases on one group would share its partitions
			if c.Offset >= 0 {
				if _, err := judgeMark(out.generation, c); err != nil {
					return err
				}
			}
		}
		out.progress, err = s.progress(ctx, tx, e.own)
		return err
	})
	return out, err
}

// standing reads a generation and the progress of one partition of it in one moment. The progress is nil
// where there is none.
func (s store) standing(ctx context.Context, partition int32) (generation, *progress, error) {
	var row struct {
		generation
		ProgressEpoch *int64 `db:"progress_epoch"`
		Next          *int64 `db:"next_offset"`
	}
	err := s.db.GetContext(ctx, &row, s.in(`
SELECT i.database_id, g.generation, g.state, g.epoch, g.group_name, g.cluster_id, p.epoch AS progress_epoch, p.next_offset
FROM public.generations g CROSS JOIN public.database_identity i
	LEFT JOIN {g}.projection_progress p ON p.topic = $1 AND p.partition = $2
WHERE {row}`), s.topic, partition)
	if s.schema != Public && sorted(err) == fence { // the tables went first: its row tells why
		g, err := s.generation(ctx)
		return g, nil, err
	}
	if err != nil {
		return generation{}, nil, fmt.Errorf("read the generation: %w", err)
	}
	if row.ProgressEpoch == nil {
		return row.generation, nil, nil
	}
	return row.generation, &progress{Partition: partition, Epoch: *row.ProgressEpoch, NextOffset: *row.Next}, nil
}

// staleMark is the age at which the mark of a swap is anybody's to take back: a swap takes a second or two
// at most, so whoever set this one is dead or was stopped.
const staleMark = 5 * time.Second

// takeBack ends the swap of a process that died in the middle of it, or does nothing.
func (s store) takeBack(ctx context.Context) error {
	if _, err := s.db.ExecContext(ctx, `
UPDATE public.generations SET state = 'serving', state_since = clock_timestamp(), swapping_since = NULL
WHERE state = 'swapping' AND swapping_since < clock_timestamp() - $1 * interval '1 second'`, staleMark.Seconds()); err != nil {
		return fmt.Errorf("take the mark of a swap back: %w", err)
	}
	return nil
}

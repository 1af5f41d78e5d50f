package projection

import (
	"context"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// Pace says how fast and how far a projector goes, and keeps count of where its time goes. The zero value is without
// limits.
type Pace struct {
	// Stops, by partition, are the offsets at which a rebuild to a point ends; nil follows the log.
	Stops map[int32]int64
	// Limit holds the projection to so many records a second, over all processes together; 0 is no limit. Each process
	// is given its share, which is that of its partitions.
	Limit int

	mu     sync.Mutex
	share  *rate.Limiter
	times  Times
	since  time.Time // up to here the waiting was counted
	behind int64     // partitions of this process that have records to read
}

// Times says where the partitions of one process have spent their time: waiting for records, decoding
// them, waiting for the database, or held back by the limit.
type Times struct{ Kafka, Consumer, Postgres, Throttle time.Duration }

// Times returns what was spent since the last call.
func (p *Pace) Times() Times {
	p.mu.Lock()
	defer p.mu.Unlock()
	t := p.times
	p.times = Times{}
	t.Kafka = max(t.Kafka-t.Consumer-t.Postgres-t.Throttle, 0)
	return t
}

func (p *Pace) spent(consumer, postgres time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.times.Consumer += consumer
	p.times.Postgres += postgres
}

// waited notes how many partitions have records to read: what they did not spend otherwise since the last
// call, they spent waiting for them.
func (p *Pace) waited(behind int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	if !p.since.IsZero() {
		p.times.Kafka += time.Duration(p.behind) * now.Sub(p.since)
	}
	p.since, p.behind = now, behind
}

// stop returns where a partition ends, where it does.
func (p *Pace) stop(partition int32) (int64, bool) {
	at, ok := p.Stops[partition]
	return at, ok
}

// divide gives the process its share of the limit.
func (p *Pace) divide(own, all int) {
	if p.Limit == 0 {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	per := max(float64(p.Limit)*float64(own)/float64(all), 1)
	p.share = rate.NewLimiter(rate.Limit(per), max(int(per/piecesPerSecond), 1))
}

// piecesPerSecond is how many pieces a second of a limited rebuild is cut into: small ones, so that what
// serves meanwhile is never held up by a large one.
const piecesPerSecond = 20

// admit waits until the limit lets some of n records through, and returns how many.
func (p *Pace) admit(ctx context.Context, n int) (int, error) {
	p.mu.Lock()
	share := p.share
	p.mu.Unlock()
	if share == nil {
		return n, nil
	}
	start := time.Now()
	n = min(n, share.Burst())
	err := share.WaitN(ctx, n)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.times.Throttle += time.Since(start)
	return n, err
}

package projection

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/jmoiron/sqlx"
)

const (
	paceWindow  = 10 * time.Second
	paceSamples = 16
)

// Pace is how fast the projection goes, measured between two readings some seconds apart.
type Pace struct {
	Known  bool
	Done   float64 // offsets passed a second
	Shrink float64 // offsets by which the lag shrinks a second; negative while it grows
}

type sample struct {
	At    time.Time `db:"at"`
	Epoch int64     `db:"epoch"`
	Done  int64     `db:"done"`
	Lag   int64     `db:"lag"`
}

// Pacer keeps the readings of the last seconds. It is safe for concurrent use.
type Pacer struct {
	db      *sqlx.DB
	mu      sync.Mutex
	samples []sample // oldest first, all of one epoch
}

// NewPacer reads from db whenever Sample is called.
func NewPacer(db *sqlx.DB) *Pacer { return &Pacer{db: db} }

// Sample takes one reading. It is called about once a second.
func (p *Pacer) Sample(ctx context.Context) error {
	var s sample
	err := p.db.GetContext(ctx, &s, `
		SELECT clock_timestamp() AS at, coalesce(max(g.epoch), 0) AS epoch, coalesce(sum(p.next_offset - p.first_offset), 0)::bigint AS done,
			coalesce(sum(greatest(p.log_end - p.next_offset, 0)), 0)::bigint AS lag
		FROM public.generations g LEFT JOIN public.projection_progress p ON true WHERE g.state IN ('serving', 'swapping')`)
	if err != nil {
		return fmt.Errorf("sample the progress: %w", err)
	}
	p.add(s)
	return nil
}

func (p *Pacer) add(s sample) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if n := len(p.samples); n > 0 && (p.samples[n-1].Epoch != s.Epoch || p.samples[n-1].Done > s.Done || !s.At.After(p.samples[n-1].At)) {
		p.samples = nil // started over, or the clock was set: what was before is no measure of it
	}
	p.samples = append(p.samples, s)
	for len(p.samples) > paceSamples || len(p.samples) > 2 && s.At.Sub(p.samples[0].At) > paceWindow {
		p.samples = p.samples[1:]
	}
}

// Pace compares the newest reading with the oldest of the window.
func (p *Pacer) Pace() Pace {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.samples) < 2 {
		return Pace{}
	}
	oldest, newest := p.samples[0], p.samples[len(p.samples)-1]
	seconds := newest.At.Sub(oldest.At).Seconds()
	return Pace{
		Known:  true,
		Done:   float64(newest.Done-oldest.Done) / seconds,
		Shrink: float64(oldest.Lag-newest.Lag) / seconds,
	}
}

package projection

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/jmoiron/sqlx"
)

const (
	paceWindow = 10 * time.Second
	// historyWindow is how far back History reaches, and historySamples how many readings that can be.
	historyWindow  = 2 * time.Minute
	historySamples = 160
)

// Pace is how fast the projection goes, measured between two readings some seconds apart.
type Pace struct {
	Known  bool
	Done   float64 // offsets passed a second
	Shrink float64 // offsets by which the lag shrinks a second; negative while it grows
}

type sample struct {
	At         time.Time
	Epoch      int64
	Done       int64
	Lag        int64
	Partitions []reading
}

type reading struct {
	Place
	Done int64
	Lag  int64
}

// Moment is what one reading showed against the one before it.
type Moment struct {
	At   time.Time
	Lag  int64
	Rate float64 // offsets passed a second
}

// History is the last two minutes, the oldest moment first, of one epoch.
type History struct {
	All         []Moment
	ByPartition map[Place][]Moment
}

// Pacer keeps the readings of the last two minutes. It is safe for concurrent use.
type Pacer struct {
	db      *sqlx.DB
	mu      sync.Mutex
	samples []sample // oldest first, all of one epoch
}

// NewPacer reads from db whenever Sample is called.
func NewPacer(db *sqlx.DB) *Pacer { return &Pacer{db: db} }

// Sample takes one reading. It is called about once a second.
func (p *Pacer) Sample(ctx context.Context) error {
	var rows []struct {
		At        time.Time `db:"at"`
		Epoch     int64     `db:"epoch"`
		Topic     *string   `db:"topic"`
		Partition *int32    `db:"partition"`
		Done      int64     `db:"done"`
		Lag       int64     `db:"lag"`
	}
	err := p.db.SelectContext(ctx, &rows, `
		SELECT clock_timestamp() AS at, g.epoch, p.topic, p.partition, coalesce(p.next_offset - p.first_offset, 0) AS done,
			coalesce(greatest(p.log_end - p.next_offset, 0), 0) AS lag
		FROM public.generations g LEFT JOIN public.projection_progress p ON true WHERE g.state IN ('serving', 'swapping') ORDER BY p.topic, p.partition`)
	if err != nil {
		return fmt.Errorf("sample the progress: %w", err)
	}
	if len(rows) == 0 {
		return nil // no generation serves at this moment
	}
	s := sample{At: rows[0].At, Epoch: rows[0].Epoch, Partitions: make([]reading, 0, len(rows))}
	for _, r := range rows {
		if r.Topic == nil {
			continue
		}
		s.Done += r.Done
		s.Lag += r.Lag
		s.Partitions = append(s.Partitions, reading{Place{*r.Topic, *r.Partition}, r.Done, r.Lag})
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
	for len(p.samples) > historySamples || len(p.samples) > 2 && s.At.Sub(p.samples[0].At) > historyWindow {
		p.samples = p.samples[1:]
	}
}

// Pace compares the newest reading with the oldest of the last ten seconds.
func (p *Pacer) Pace() Pace {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.samples) < 2 {
		return Pace{}
	}
	newest := p.samples[len(p.samples)-1]
	oldest := p.samples[len(p.samples)-2]
	for i := len(p.samples) - 3; i >= 0 && newest.At.Sub(p.samples[i].At) <= paceWindow; i-- {
		oldest = p.samples[i]
	}
	seconds := newest.At.Sub(oldest.At).Seconds()
	return Pace{
		Known:  true,
		Done:   float64(newest.Done-oldest.Done) / seconds,
		Shrink: float64(oldest.Lag-newest.Lag) / seconds,
	}
}

// History returns the lag and the rate at each reading of the last two minutes but the first.
func (p *Pacer) History() History {
	p.mu.Lock()
	defer p.mu.Unlock()
	h := History{ByPartition: map[Place][]Moment{}}
	for i := 1; i < len(p.samples); i++ {
		before, s := p.samples[i-1], p.samples[i]
		seconds := s.At.Sub(before.At).Seconds()
		h.All = append(h.All, Moment{s.At, s.Lag, float64(s.Done-before.Done) / seconds})
		done := make(map[Place]int64, len(before.Partitions))
		for _, r := range before.Partitions {
			done[r.Place] = r.Done
		}
		for _, r := range s.Partitions {
			rate := 0.0
			if was, known := done[r.Place]; known {
				rate = float64(r.Done-was) / seconds
			}
			h.ByPartition[r.Place] = append(h.ByPartition[r.Place], Moment{s.At, r.Lag, rate})
		}
	}
	return h
}

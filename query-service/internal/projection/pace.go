package projection

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/jmoiron/sqlx"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/tidemark/tidemark/shared/pace"
	"github.com/tidemark/tidemark/shared/schema"
)

const (
	// historyWindow is how far back History reaches, and historySamples how many readings that can be.
	historyWindow  = 2 * time.Minute
	historySamples = 160
)

// sample is one reading of one projection.
type sample struct {
	At         time.Time // the database's clock
	Epoch      int64
	Done       int64
	Lag        *int64 // nil where it was not known
	Partitions []reading
	vitals
}

// vitals are what the metrics report of a projection beside its lag.
type vitals struct {
	LogEndAt   *time.Time // when the log end was read that is the oldest of all partitions; nil where one was never read
	CaughtUpAt *time.Time // nil where a partition has never caught up
	Running    bool
	taken      time.Time // by this process's clock
}

type reading struct {
	Place
	Done int64
	Lag  *int64 // nil where it was not known
}

// Moment is what one reading showed against the one before it.
type Moment struct {
	At   time.Time
	Lag  *int64  // nil where it was not known
	Rate float64 // offsets passed a second
}

// History is the last two minutes, the oldest moment first, of one epoch.
type History struct {
	All         []Moment
	ByPartition map[Place][]Moment
}

// Pacer keeps the readings of the last two minutes of each projection, and reports the newest as metrics. It is
// safe for concurrent use.
type Pacer struct {
	db      *sqlx.DB
	catalog *Catalog
	mu      sync.Mutex
	series  map[string]*series // by projection
}

// NewPacer reads from db whenever Sample is called, and registers the metrics.
func NewPacer(db *sqlx.DB, catalog *Catalog, registry prometheus.Registerer) *Pacer {
	p := &Pacer{db: db, catalog: catalog, series: map[string]*series{}}
	registry.MustRegister(p)
	return p
}

// Sample takes one reading of every projection. It is called about once a second.
func (p *Pacer) Sample(ctx context.Context) error {
	known, err := p.catalog.All(ctx)
	if err != nil {
		return err
	}
	parts := make([]string, len(known))
	for i, d := range known {
		parts[i] = fmt.Sprintf(`
SELECT d.projection, d.run_at, g.epoch, p.topic, p.partition, p.first_offset, p.next_offset, p.log_end, p.log_end_at, p.caught_up_at
FROM public.projections d JOIN public.projection_generations g USING (projection) LEFT JOIN %s p ON true
WHERE d.projection = %s AND g.state IN ('serving', 'swapping')`, d.Table(schema.Progress), literal(d.Name))
	}
	var rows []struct {
		Projection string     `db:"projection"`
		Running    bool       `db:"running"`
		At         time.Time  `db:"at"`
		Epoch      int64      `db:"epoch"`
		Topic      *string    `db:"topic"`
		Partition  *int32     `db:"partition"`
		Done       int64      `db:"done"`
		LogEnd     *int64     `db:"log_end"`
		LogEndAt   *time.Time `db:"log_end_at"`
		NextOffset *int64     `db:"next_offset"`
		CaughtUpAt *time.Time `db:"caught_up_at"`
	}
	err = p.db.SelectContext(ctx, &rows, `
SELECT projection, coalesce(run_at > now() - interval '10 seconds', false) AS running, clock_timestamp() AS at, epoch, topic, partition,
	coalesce(next_offset - first_offset, 0) AS done, next_offset, log_end, log_end_at, caught_up_at
FROM (`+strings.Join(parts, " UNION ALL ")+`) AS s ORDER BY projection, topic, partition`)
	if err != nil {
		return fmt.Errorf("sample the progress: %w", err)
	}
	samples := map[string]*sample{}
	for _, r := range rows {
		s := samples[r.Projection]
		if s == nil {
			s = &sample{At: r.At, Epoch: r.Epoch, vitals: vitals{LogEndAt: r.LogEndAt, CaughtUpAt: r.CaughtUpAt, Running: r.Running, taken: time.Now()}}
			if r.Partition != nil {
				s.Lag = new(int64)
			}
			samples[r.Projection] = s
		}
		if r.Partition == nil {
			continue
		}
		s.Done += r.Done
		one := reading{Place: Place{*r.Topic, *r.Partition}, Done: r.Done, Lag: Partition{NextOffset: *r.NextOffset, LogEnd: r.LogEnd, LogEndAt: r.LogEndAt}.Lag(r.At)}
		if one.Lag == nil {
			s.Lag = nil
		} else if s.Lag != nil {
			*s.Lag += *one.Lag
		}
		s.LogEndAt, s.CaughtUpAt = earlier(s.LogEndAt, r.LogEndAt), earlier(s.CaughtUpAt, r.CaughtUpAt)
		s.Partitions = append(s.Partitions, one)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for name, s := range samples {
		if p.series[name] == nil {
			p.series[name] = &series{}
		}
		p.series[name].add(*s)
	}
	return nil
}

// earlier is the earlier of two times; nil, which is never, where one of them is.
func earlier(a, b *time.Time) *time.Time {
	if a == nil || b == nil {
		return nil
	}
	if b.Before(*a) {
		return b
	}
	return a
}

// Pace measures how fast a projection has gone of late.
func (p *Pacer) Pace(projection string) pace.Measure {
	p.mu.Lock()
	defer p.mu.Unlock()
	if s := p.series[projection]; s != nil {
		return s.pace()
	}
	return pace.Measure{}
}

// Now is the database's clock, as far as the newest reading tells; this process's before there is one. Whoever says how old
// a figure is compares with it, since the figures bear the database's times.
func (p *Pacer) Now() time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	var taken time.Time
	for _, s := range p.series {
		if newest := s.samples[len(s.samples)-1]; newest.taken.After(taken) {
			taken = newest.taken
			now = newest.At.Add(time.Since(taken))
		}
	}
	return now
}

// History returns the lag and the rate of a projection at each reading of the last two minutes but the
// first.
func (p *Pacer) History(projection string) History {
	p.mu.Lock()
	defer p.mu.Unlock()
	if s := p.series[projection]; s != nil {
		return s.history()
	}
	return History{}
}

var (
	lagMetric = prometheus.NewDesc("tidemark_query_projection_lag",
		"Offsets that are not projected yet; missing where the log's end was not read for some seconds.", []string{"projection"}, nil)
	logEndMetric = prometheus.NewDesc("tidemark_query_projection_log_end_age_seconds",
		"How long ago the log's end was read, by the database's clock, in the partition where that is longest; missing where it never was. Past some seconds nobody knows the lag.", []string{"projection"}, nil)
	watermarkMetric = prometheus.NewDesc("tidemark_query_projection_watermark_age_seconds",
		"How long ago everything that was accepted was projected, by the database's clock; missing while a partition has never caught up.", []string{"projection"}, nil)
	runningMetric = prometheus.NewDesc("tidemark_query_projection_running",
		"Whether a process that runs the projection was there within the last 10 s.", []string{"projection"}, nil)
)

var _ prometheus.Collector = (*Pacer)(nil)

// Describe names the metrics.
func (p *Pacer) Describe(out chan<- *prometheus.Desc) {
	out <- lagMetric
	out <- logEndMetric
	out <- watermarkMetric
	out <- runningMetric
}

// Collect reports the newest reading of each projection. Ages go on while the database cannot be read.
func (p *Pacer) Collect(out chan<- prometheus.Metric) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for name, s := range p.series {
		newest := s.samples[len(s.samples)-1]
		gauge := func(d *prometheus.Desc, value float64) {
			out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, name)
		}
		age := func(at time.Time) time.Duration { return max(newest.At.Sub(at)+time.Since(newest.taken), 0) }
		if at := newest.LogEndAt; at != nil {
			gauge(logEndMetric, age(*at).Seconds())
			if newest.Lag != nil && age(*at) <= FreshFor {
				gauge(lagMetric, float64(*newest.Lag))
			}
		}
		if at := newest.CaughtUpAt; at != nil {
			gauge(watermarkMetric, age(*at).Seconds())
		}
		running := 0.0
		if newest.Running {
			running = 1
		}
		gauge(runningMetric, running)
	}
}

// series is the readings of one projection.
type series struct {
	samples []sample // oldest first, all of one epoch
}

func (s *series) add(one sample) {
	if n := len(s.samples); n > 0 && (s.samples[n-1].Epoch != one.Epoch || s.samples[n-1].Done > one.Done || !one.At.After(s.samples[n-1].At)) {
		s.samples = nil // started over, or the clock was set: what was before is no measure of it
	}
	s.samples = append(s.samples, one)
	for len(s.samples) > historySamples || len(s.samples) > 2 && one.At.Sub(s.samples[0].At) > historyWindow {
		s.samples = s.samples[1:]
	}
}

func (s *series) pace() pace.Measure {
	readings := make([]pace.Reading, len(s.samples))
	for i, one := range s.samples {
		readings[i] = pace.Reading{At: one.At, Done: one.Done, Lag: one.Lag}
	}
	return pace.Of(readings)
}

func (s *series) history() History {
	h := History{ByPartition: map[Place][]Moment{}}
	for i := 1; i < len(s.samples); i++ {
		before, now := s.samples[i-1], s.samples[i]
		seconds := now.At.Sub(before.At).Seconds()
		h.All = append(h.All, Moment{now.At, now.Lag, float64(now.Done-before.Done) / seconds})
		done := make(map[Place]int64, len(before.Partitions))
		for _, r := range before.Partitions {
			done[r.Place] = r.Done
		}
		for _, r := range now.Partitions {
			rate := 0.0
			if was, known := done[r.Place]; known {
				rate = float64(r.Done-was) / seconds
			}
			h.ByPartition[r.Place] = append(h.ByPartition[r.Place], Moment{now.At, r.Lag, rate})
		}
	}
	return h
}

package generation

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/tidemark/tidemark/shared/loop"
	"github.com/tidemark/tidemark/shared/pace"
)

const (
	sampleEvery = time.Second
	// stallAfter is how long nothing may move while there is something to read.
	stallAfter = 15 * time.Second
)

// history is what the driver has seen of one generation.
type history struct {
	readings []pace.Reading // oldest first
	moved    time.Time      // when it last moved, or had nothing to read
	warned   bool
}

func (h *history) add(at time.Time, done, lag int64) {
	if n := len(h.readings); n == 0 || h.readings[n-1].Done != done || lag == 0 {
		h.moved = at
	}
	h.readings = append(h.readings, pace.Reading{At: at, Done: done, Lag: &lag})
	for len(h.readings) > 2 && at.Sub(h.readings[1].At) > pace.Window {
		h.readings = h.readings[1:]
	}
}

// pace is the rate of the last seconds, 0 until it was measured for long enough, and the seconds until it has caught up.
func (h *history) pace() (rate float64, eta *float64) {
	measured := pace.Of(h.readings)
	if measured.Rate != nil {
		rate = *measured.Rate
	}
	if measured.ETA != nil {
		left := measured.ETA.Seconds()
		eta = &left
	}
	return rate, eta
}

// stalled is since when nothing has moved, where that is too long.
func (h *history) stalled() *time.Time {
	if last := h.readings[len(h.readings)-1]; last.At.Sub(h.moved) >= stallAfter {
		return &h.moved
	}
	return nil
}

// sample notes once a second how the generations that do not serve come along.
func (s *Service) sample(ctx context.Context) {
	seen := map[int]*history{}
	defer s.Metrics.forget(s.name()) // whoever drives next shows it
	loop.Every(ctx, sampleEvery, func(ctx context.Context) {
		if err := s.sampleAll(ctx, seen); err != nil && ctx.Err() == nil {
			s.Logger.Debug("cannot note the progress of a rebuild", "projection", s.name(), "err", err)
		}
	})
}

func (s *Service) sampleAll(ctx context.Context, seen map[int]*history) error {
	if all := s.seen.Load(); all != nil && len(seen) == 0 && !slices.ContainsFunc(*all, func(g Generation) bool { return !g.State.serves() }) {
		return nil
	}
	all, err := s.rows(ctx)
	if err != nil {
		return err
	}
	there, stalls := map[int]bool{}, false
	s.Metrics.clearLags(s.name())
	for _, g := range all {
		if g.State.serves() || g.State == Dropping || g.State == Queued {
			continue
		}
		if err := s.count(ctx, &g); err != nil {
			return err
		}
		there[g.Number] = true
		h := seen[g.Number]
		if h == nil {
			h = &history{}
			seen[g.Number] = h
		}
		h.add(time.Now(), g.Progress.Done, g.Progress.Lag())
		s.Metrics.lag.WithLabelValues(s.name(), string(g.State)).Set(float64(g.Progress.Lag()))
		stalled, err := s.saveProgress(ctx, g, h)
		if err != nil {
			return err
		}
		stalls = stalls || stalled
	}
	for n := range seen {
		if !there[n] {
			delete(seen, n)
		}
	}
	s.Metrics.stalls(s.name(), stalls)
	return nil
}

// saveProgress notes how g comes along, and reports whether it stalls.
func (s *Service) saveProgress(ctx context.Context, g Generation, h *history) (stalls bool, err error) {
	rate, eta := h.pace()
	stalled := h.stalled()
	if !g.State.written() {
		rate, stalled = 0, nil
	}
	bottleneck, trouble, err := s.workers(ctx, g.Number)
	if err != nil {
		return false, err
	}
	if g.Progress.Lag() == 0 || !g.State.written() {
		bottleneck = ByNothing
	}
	switch {
	case stalled != nil && !h.warned:
		h.warned = true
		s.Logger.Error("a rebuild stalls", "projection", s.name(), "generation", g.Number, "since", *stalled, "lag", g.Progress.Lag(), "bottleneck", bottleneck, "trouble", trouble)
	case stalled == nil:
		h.warned = false
	}
	if _, err := s.DB.ExecContext(ctx, s.in(`
INSERT INTO public.generation_progress (projection, generation, sampled_at, rate, eta_seconds, bottleneck, stalled_since, note, noted_at)
SELECT g.projection, g.generation, now(), $2, $3, $4, $5, $6, CASE WHEN $6 <> '' THEN now() END FROM public.projection_generations g
WHERE g.projection = {projection} AND g.generation = $1 AND g.state NOT IN ('serving', 'swapping')
ON CONFLICT (projection, generation) DO UPDATE SET sampled_at = excluded.sampled_at, rate = excluded.rate, eta_seconds = excluded.eta_seconds,
	bottleneck = excluded.bottleneck, stalled_since = excluded.stalled_since,
	note = CASE WHEN excluded.note <> '' THEN excluded.note
		WHEN generation_progress.noted_at > now() - interval '30 seconds' THEN generation_progress.note ELSE '' END,
	noted_at = coalesce(excluded.noted_at, generation_progress.noted_at)`), g.Number, rate, eta, bottleneck, stalled, trouble); err != nil {
		return false, fmt.Errorf("note the progress of generation %d: %w", g.Number, err)
	}
	return stalled != nil, nil
}

// note keeps the words of a trouble for half a minute after it was last seen.
func (s *Service) note(ctx context.Context, number int, words string) error {
	_, err := s.DB.ExecContext(ctx, s.in(`
INSERT INTO public.generation_progress (projection, generation, sampled_at, rate, bottleneck, note, noted_at)
SELECT g.projection, g.generation, now(), 0, 'none', $2, now() FROM public.projection_generations g
WHERE g.projection = {projection} AND g.generation = $1 AND g.state NOT IN ('serving', 'swapping')
ON CONFLICT (projection, generation) DO UPDATE SET note = excluded.note, noted_at = excluded.noted_at`), number, words)
	return err
}

// workers says where the processes that fill a generation spend most of their time, and their last trouble.
func (s *Service) workers(ctx context.Context, number int) (Bottleneck, string, error) {
	var sum struct{ Kafka, Consumer, Postgres, Throttle float64 }
	if err := s.DB.GetContext(ctx, &sum, s.in(`
SELECT coalesce(sum(kafka), 0) AS kafka, coalesce(sum(consumer), 0) AS consumer, coalesce(sum(postgres), 0) AS postgres, coalesce(sum(throttle), 0) AS throttle
FROM public.generation_workers WHERE projection = {projection} AND generation = $1 AND seen_at > now() - interval '10 seconds'`), number); err != nil {
		return ByNothing, "", fmt.Errorf("read the workers of generation %d: %w", number, err)
	}
	var notes []string
	if err := s.DB.SelectContext(ctx, &notes, s.in(`
SELECT note FROM public.generation_workers WHERE projection = {projection} AND generation = $1 AND note <> '' AND noted_at > now() - interval '30 seconds' ORDER BY noted_at DESC LIMIT 1`), number); err != nil {
		return ByNothing, "", fmt.Errorf("read the workers of generation %d: %w", number, err)
	}
	most, name := 0.0, ByNothing
	for _, b := range []struct {
		name    Bottleneck
		seconds float64
	}{{ByThrottle, sum.Throttle}, {ByPostgres, sum.Postgres}, {ByConsumer, sum.Consumer}, {ByKafka, sum.Kafka}} {
		if b.seconds > most {
			most, name = b.seconds, b.name
		}
	}
	if len(notes) > 0 {
		return name, notes[0], nil
	}
	return name, "", nil
}

package generation

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/tidemark/tidemark/consumer-service/internal/projection"
	"github.com/tidemark/tidemark/shared/config"
	"github.com/tidemark/tidemark/shared/loop"
)

// WorkerOptions are what a worker needs beside the service's own. All are required.
type WorkerOptions struct {
	Kafka     config.Kafka
	ClientID  string // of its member in the consumer group
	BatchSize int    // most records in one transaction
}

// worker is this process's part in filling a generation: a member of its consumer group.
type worker struct {
	id     uuid.UUID
	cancel context.CancelFunc
	ended  chan struct{}

	mu    sync.Mutex
	note  string
	noted time.Time
}

// Work fills, until ctx ends, every generation that does not serve and is written. What goes wrong there is
// noted with the generation; it neither makes the service unready nor stops it.
func (s *Service) Work(ctx context.Context) {
	running := map[int]*worker{}
	defer func() {
		for _, w := range running {
			w.cancel()
		}
		for _, w := range running {
			<-w.ended
		}
	}()
	loop.Every(ctx, pollEvery, func(ctx context.Context) {
		all := s.seen.Load()
		if all == nil {
			return
		}
		wanted := map[int]Generation{}
		for _, g := range *all {
			if g.State.written() {
				wanted[g.Number] = g
			}
		}
		for number, w := range running {
			if _, ok := wanted[number]; !ok {
				w.cancel()
			}
			select {
			case <-w.ended:
				w.cancel()
				delete(running, number)
			default:
			}
		}
		for number, g := range wanted {
			if running[number] == nil {
				running[number] = s.start(ctx, g)
			}
		}
	})
}

func (s *Service) start(ctx context.Context, g Generation) *worker {
	ctx, cancel := context.WithCancel(ctx)
	w := &worker{id: uuid.New(), cancel: cancel, ended: make(chan struct{})}
	go func() {
		defer close(w.ended)
		log := s.Logger.With("generation", g.Number)
		for ctx.Err() == nil {
			err := s.fill(ctx, g, w, log)
			if ctx.Err() != nil {
				return
			}
			if err != nil {
				w.trouble(err.Error())
			}
			log.Warn("a worker could not begin and is tried again", "projection", s.name(), "err", err)
			_ = loop.Sleep(ctx, time.Second) // the loop looks at ctx
		}
	}()
	return w
}

// fill projects until ctx ends.
func (s *Service) fill(ctx context.Context, g Generation, w *worker, log *slog.Logger) error {
	pace := &projection.Pace{Stops: g.Stops}
	if g.RateLimit != nil {
		pace.Limit = *g.RateLimit
	}
	group := CandidateGroup(s.Group, g.Number)
	projector := projection.New(projection.Options{
		DB: s.DB, Log: s.Log, Decisions: s.Decisions, Written: s.Written, Definition: s.Definition, Group: group,
		Role: projection.Candidate(g.Number), Pace: pace, AcceptLogStart: s.AcceptLogStart, Identity: s.Identity,
		Ready: w, Metrics: projection.NewMetrics(prometheus.NewRegistry()).Of(s.name()), Logger: log,
		Stop: func(r *projection.Refusal) { w.trouble(r.Reason) },
	})
	log.Info("a worker begins", "projection", s.name(), "group", group)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var running sync.WaitGroup
	running.Go(func() { projector.Watch(ctx) })
	running.Go(func() { s.report(ctx, g.Number, w, pace) })
	err := projector.Consume(ctx, projection.Membership{Kafka: s.Worker.Kafka, ClientID: s.Worker.ClientID, BatchSize: s.Worker.BatchSize})
	cancel()
	running.Wait()
	log.Info("a worker ends", "projection", s.name(), "group", group)
	return err
}

// report notes once a second where the time of the last seconds went.
func (s *Service) report(ctx context.Context, number int, w *worker, pace *projection.Pace) {
	var of [4]float64
	loop.Every(ctx, sampleEvery, func(ctx context.Context) {
		t := pace.Times()
		for i, d := range []time.Duration{t.Kafka, t.Consumer, t.Postgres, t.Throttle} {
			of[i] = 0.8*of[i] + d.Seconds() // five seconds or so
		}
		w.mu.Lock()
		note, noted := w.note, w.noted
		w.mu.Unlock()
		var at *time.Time
		if note != "" {
			at = &noted
		}
		if _, err := s.DB.ExecContext(ctx, s.in(`
INSERT INTO public.generation_workers (projection, generation, worker, seen_at, kafka, consumer, postgres, throttle, note, noted_at)
SELECT g.projection, g.generation, $2, now(), $3, $4, $5, $6, $7, $8 FROM public.projection_generations g
WHERE g.projection = {projection} AND g.generation = $1 AND g.state NOT IN ('serving', 'swapping')
ON CONFLICT (projection, generation, worker) DO UPDATE SET seen_at = excluded.seen_at, kafka = excluded.kafka, consumer = excluded.consumer,
	postgres = excluded.postgres, throttle = excluded.throttle, note = excluded.note, noted_at = excluded.noted_at`),
			number, w.id, of[0], of[1], of[2], of[3], note, at); err != nil && ctx.Err() == nil {
			s.Logger.Debug("cannot report a worker", "projection", s.name(), "generation", number, "err", err)
		}
	})
}

func (w *worker) trouble(words string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.note, w.noted = words, time.Now()
}

// Ready ends a trouble: a worker is told what a projection's readiness would be.
func (w *worker) Ready(string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.note = ""
}

// Unready notes a trouble. That a session has just ended is none.
func (w *worker) Unready(part, reason string) {
	if reason == projection.BetweenSessions {
		return
	}
	w.trouble(fmt.Sprintf("%s: %s", part, reason))
}

var _ projection.Readiness = (*worker)(nil)

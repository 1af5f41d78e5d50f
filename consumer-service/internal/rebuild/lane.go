package rebuild

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/tidemark/tidemark/consumer-service/internal/projection"
	"github.com/tidemark/tidemark/shared/config"
	"github.com/tidemark/tidemark/shared/kafka"
)

// LaneOptions are what a lane needs beside the service's own.
type LaneOptions struct {
	Kafka     config.Kafka
	ClientID  string
	BatchSize int
}

const lanesEvery = 300 * time.Millisecond

// lane is this process's member of the consumer group of a generation at the side.
type lane struct {
	id     uuid.UUID
	cancel context.CancelFunc
	ended  chan struct{}

	mu    sync.Mutex
	note  string
	noted time.Time
}

// Lanes feeds, until ctx ends, every generation at the side that is to be fed. What goes wrong there is
// noted with the generation; it neither makes the service unready nor stops it.
func (s *Service) Lanes(ctx context.Context) {
	running := map[int]*lane{}
	defer func() {
		for _, l := range running {
			l.cancel()
		}
		for _, l := range running {
			<-l.ended
		}
	}()
	tick := time.NewTicker(lanesEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		all, err := s.rows(ctx)
		if err != nil {
			continue // the lanes that run find out by themselves
		}
		wanted := map[int]Generation{}
		for _, g := range all {
			if g.State.fed() {
				wanted[g.Number] = g
			}
		}
		for number, l := range running {
			if _, ok := wanted[number]; !ok {
				l.cancel()
			}
			select {
			case <-l.ended:
				l.cancel()
				delete(running, number)
			default:
			}
		}
		for number, g := range wanted {
			if running[number] == nil {
				running[number] = s.start(ctx, g)
			}
		}
	}
}

func (s *Service) start(ctx context.Context, g Generation) *lane {
	ctx, cancel := context.WithCancel(ctx)
	l := &lane{id: uuid.New(), cancel: cancel, ended: make(chan struct{})}
	go func() {
		defer close(l.ended)
		log := s.Logger.With("generation", g.Number)
		for ctx.Err() == nil {
			err := s.feed(ctx, g, l, log)
			if ctx.Err() != nil {
				return
			}
			l.trouble(err.Error())
			log.Warn("a lane could not begin and is tried again", "err", err)
			_ = sleep(ctx, time.Second) // the loop looks at ctx
		}
	}()
	return l
}

// feed projects until ctx ends.
func (s *Service) feed(ctx context.Context, g Generation, l *lane, log *slog.Logger) error {
	side := &projection.Side{Generation: g.Number, Stops: g.Stops}
	if g.RateLimit != nil {
		side.Limit = *g.RateLimit
	}
	group := SideGroup(s.Group, g.Number)
	projector := projection.New(projection.Options{
		DB: s.DB, Log: s.Log, Decisions: s.Decisions, Written: s.Written, Topic: s.Topic, Group: group, Partitions: s.Partitions, Side: side, AcceptLogStart: s.AcceptLogStart,
		Ready: l, Metrics: projection.NewMetrics(prometheus.NewRegistry()), Logger: log,
		Stop: func(err error) { l.trouble(err.Error()) },
	})
	subscriber, err := kafka.NewSubscriber(kafka.SubscriberOptions{
		Kafka: s.Lane.Kafka, ClientID: s.Lane.ClientID, Group: group, BatchSize: s.Lane.BatchSize, Log: log,
		SetUp: projector.SetUp, CleanUp: projector.CleanUp,
	})
	if err != nil {
		return err
	}
	batches, err := subscriber.Subscribe(context.WithoutCancel(ctx), s.Topic) // it ends with Close, after the batches in hand
	if err != nil {
		return errors.Join(err, subscriber.Close())
	}
	log.Info("a lane begins", "group", group)
	var running sync.WaitGroup
	running.Go(func() {
		var inHand sync.WaitGroup
		defer inHand.Wait()
		for b := range batches {
			inHand.Go(func() { projector.Project(b) })
		}
	})
	running.Go(func() { projector.Watch(ctx) })
	running.Go(func() { s.report(ctx, g.Number, l, side) })
	<-ctx.Done()
	err = subscriber.Close()
	running.Wait()
	log.Info("a lane ends", "group", group)
	return err
}

// report notes once a second where the time of the last seconds went.
func (s *Service) report(ctx context.Context, number int, l *lane, side *projection.Side) {
	var of [4]float64
	tick := time.NewTicker(sampleEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		t := side.Times()
		for i, d := range []time.Duration{t.Kafka, t.Consumer, t.Postgres, t.Throttle} {
			of[i] = 0.8*of[i] + d.Seconds() // five seconds or so
		}
		l.mu.Lock()
		note, noted := l.note, l.noted
		l.mu.Unlock()
		var at *time.Time
		if note != "" {
			at = &noted
		}
		if _, err := s.DB.ExecContext(ctx, `
INSERT INTO public.generation_lanes (generation, lane, seen_at, kafka, consumer, postgres, throttle, note, noted_at)
SELECT g.generation, $2, now(), $3, $4, $5, $6, $7, $8 FROM public.generations g WHERE g.generation = $1 AND g.state NOT IN ('serving', 'swapping')
ON CONFLICT (generation, lane) DO UPDATE SET seen_at = excluded.seen_at, kafka = excluded.kafka, consumer = excluded.consumer,
	postgres = excluded.postgres, throttle = excluded.throttle, note = excluded.note, noted_at = excluded.noted_at`,
			number, l.id, of[0], of[1], of[2], of[3], note, at); err != nil && ctx.Err() == nil {
			s.Logger.Debug("cannot report a lane", "generation", number, "err", err)
		}
	}
}

func (l *lane) trouble(words string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.note, l.noted = words, time.Now()
}

// Ready ends a trouble: a lane speaks of its parts as the projection's readiness would.
func (l *lane) Ready(string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.note = ""
}

// Unready notes a trouble. That a session has just ended is none.
func (l *lane) Unready(part, reason string) {
	if part == projection.PartClaims && reason == projection.BetweenSessions {
		return
	}
	l.trouble(fmt.Sprintf("%s: %s", part, reason))
}

var _ projection.Readiness = (*lane)(nil)

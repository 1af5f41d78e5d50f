package httpapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/tidemark/tidemark/query-service/internal/generation"
	"github.com/tidemark/tidemark/query-service/internal/projection"
	"github.com/tidemark/tidemark/query-service/internal/recent"
	"github.com/tidemark/tidemark/query-service/internal/ticket"
	api "github.com/tidemark/tidemark/shared/api/query"
	"github.com/tidemark/tidemark/shared/loop"
)

const (
	mostStreams  = 256
	streamFor    = 10 * time.Minute // then the client connects again, perhaps to another process
	eventsEvery  = time.Second
	beatEvery    = 15 * time.Second // as the specification says
	writeWithin  = 10 * time.Second // a client that takes no bytes for so long has gone
	ticketWait   = 10 * time.Second
	ticketsEvery = time.Second // for a ticket without a position, which cannot be waited for
)

// Streams holds the event streams that are open: at most mostStreams, none after Stop.
type Streams struct {
	mu      sync.Mutex
	free    int
	beat    time.Duration
	stopped bool
	stop    chan struct{}
	open    prometheus.Gauge
}

// NewStreams registers its metric.
func NewStreams(registry prometheus.Registerer) *Streams {
	s := &Streams{free: mostStreams, beat: beatEvery, stop: make(chan struct{}), open: prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "tidemark_query_streams", Help: "Event streams that are open.",
	})}
	registry.MustRegister(s.open)
	return s
}

// Stop ends every stream, and those to come. It may be called again.
func (s *Streams) Stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.stopped {
		s.stopped = true
		close(s.stop)
	}
}

// acquire counts one stream more, or says why none may be opened.
func (s *Streams) acquire() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.stopped:
		return projection.ErrStopping
	case s.free == 0:
		return errTooManyStreams
	}
	s.free--
	s.open.Inc()
	return nil
}

func (s *Streams) release() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.free++
	s.open.Dec()
}

var errTooManyStreams = errors.New("too many event streams are open")

// StreamEvents sends what changes until the client leaves, its time is over or the service stops.
func (s *Server) StreamEvents(c *gin.Context, p api.StreamEventsParams) {
	watch := orElse(p.Watch, nil)
	st := stream{
		server:      s,
		projection:  slices.Contains(watch, api.StreamEventsParamsWatchProjection),
		generations: slices.Contains(watch, api.StreamEventsParamsWatchGenerations),
		last:        map[string][]byte{},
	}
	if p.Projection != nil {
		if _, err := s.catalog.Named(c.Request.Context(), *p.Projection); err != nil {
			s.done(c, "events", "", err)
			return
		}
		st.of = *p.Projection
	}
	if p.Ticket != nil {
		id, ok := s.id(c, *p.Ticket)
		if !ok {
			return
		}
		wait := ticketWait.String()
		if st.want, ok = s.want(c, nil, p.Position, &wait); !ok {
			return
		}
		st.ticket = &id
	}
	if !st.projection && !st.generations && st.ticket == nil {
		s.refuse(c, "nothing is watched: name watch=projection, watch=generations or a ticket")
		return
	}
	if err := s.streams.acquire(); err != nil {
		s.done(c, "events", "", err)
		return
	}
	defer s.streams.release()
	s.reads.WithLabelValues("events", "streamed").Inc()

	ctx, cancel := context.WithTimeout(c.Request.Context(), streamFor)
	defer cancel()
	st.out, st.ctl = c.Writer, http.NewResponseController(c.Writer)
	h := c.Writer.Header()
	h.Set("Content-Type", "text/event-stream; charset=utf-8")
	h.Set("Cache-Control", "no-store, no-transform")
	h.Set("X-Accel-Buffering", "no")
	c.Status(http.StatusOK)
	if c.Request.Method == http.MethodHead {
		return
	}
	st.run(ctx)
}

// stream is one client's.
type stream struct {
	server                  *Server
	projection, generations bool
	of                      string // the projection that it is limited to; empty for all
	ticket                  *uuid.UUID
	want                    projection.Want
	out                     gin.ResponseWriter
	ctl                     *http.ResponseController
	last                    map[string][]byte // what was sent of each event, by name and subject
}

// event is one to send; a nil body is a heartbeat.
type event struct {
	name    string
	subject string // the projection that it is about, where there are several events of the name
	body    any
}

func (st *stream) run(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	tickets := make(chan event)
	var following sync.WaitGroup
	defer following.Wait()
	defer cancel()
	if st.ticket != nil {
		following.Go(func() { st.follow(ctx, tickets) })
	}
	if st.write("retry: 2000\n\n") != nil {
		return
	}
	tick := time.NewTicker(eventsEvery)
	defer tick.Stop()
	beat := time.NewTicker(st.server.streams.beat)
	defer beat.Stop()
	for now := true; ; {
		if now && st.sendChanges(ctx) != nil {
			return
		}
		now = false
		select {
		case <-ctx.Done():
			return
		case <-st.server.streams.stop:
			return
		case <-tick.C:
			now = st.projection || st.generations
		case <-beat.C:
			if st.write(": beat\n\n") != nil {
				return
			}
		case e := <-tickets:
			if st.send(e) != nil {
				return
			}
			if e.name == "end" && !st.projection && !st.generations {
				return
			}
		}
	}
}

// sendChanges sends what has changed of the projections and the generations.
func (st *stream) sendChanges(ctx context.Context) error {
	if st.projection {
		statuses, err := st.server.statuses.Get(ctx)
		if err != nil {
			return st.send(st.trouble(ctx, err))
		}
		for _, s := range statuses {
			if st.of != "" && st.of != s.Name {
				continue
			}
			s.Pace = st.server.pacer.Pace(s.Name)
			if err := st.send(event{"projection", s.Name, projectionStatus(s)}); err != nil {
				return err
			}
		}
	}
	if st.generations {
		list, err := st.server.generations.Get(ctx)
		if err != nil {
			return st.send(st.trouble(ctx, err))
		}
		for len(list) > 0 { // they come by projection
			name := list[0].Projection
			end := slices.IndexFunc(list, func(g generation.Generation) bool { return g.Projection != name })
			if end < 0 {
				end = len(list)
			}
			if st.of == "" || st.of == name {
				if err := st.send(event{"generations", name, generationList(name, list[:end])}); err != nil {
					return err
				}
			}
			list = list[end:]
		}
	}
	return nil
}

func (st *stream) trouble(ctx context.Context, err error) event {
	return event{name: "trouble", body: st.server.failures.Of(ctx, err).Problem}
}

// follow hands on each state of the ticket, until it is an outcome.
func (st *stream) follow(ctx context.Context, out chan<- event) {
	want := st.want
	want.Wait = 0 // the first answer is the state now
	for {
		t, err := st.server.tickets.Find(ctx, *st.ticket, want)
		want.Wait = st.want.Wait
		if errors.Is(err, projection.ErrStopping) || ctx.Err() != nil {
			return
		}
		events := []event{{name: "ticket", body: ticketState(t)}}
		if err != nil {
			events[0] = st.trouble(ctx, err)
		}
		settled := err == nil && t.State != ticket.Pending && (t.State != ticket.Unknown || st.want.Asked())
		if settled {
			events = append(events, event{name: "end", body: struct{}{}})
		}
		for _, e := range events {
			select {
			case out <- e:
			case <-ctx.Done():
				return
			}
		}
		if settled {
			return
		}
		if (err != nil || !st.want.Asked()) && loop.Sleep(ctx, ticketsEvery) != nil {
			return
		}
	}
}

// send writes an event unless the last one of its name and subject was the same.
func (st *stream) send(e event) error {
	body, err := json.Marshal(e.body) // one line: JSON escapes what would break it
	if err != nil {
		return err
	}
	which := e.name + " " + e.subject
	if bytes.Equal(body, st.last[which]) {
		return nil
	}
	if e.name == "trouble" { // so that what follows it is sent, even where it is what came before it
		clear(st.last)
	} else {
		delete(st.last, "trouble ")
	}
	st.last[which] = body
	return st.write("event: " + e.name + "\ndata: " + string(body) + "\n\n")
}

func (st *stream) write(text string) error {
	_ = st.ctl.SetWriteDeadline(time.Now().Add(writeWithin)) // the server's own bound is for answers that end
	if _, err := st.out.WriteString(text); err != nil {
		return err
	}
	return st.ctl.Flush()
}

// shared wraps a reading so that all streams share its result.
func shared[T any](read func(context.Context) (T, error)) *recent.Value[T] {
	return &recent.Value[T]{For: eventsEvery / 2, Patience: 6 * time.Second, Read: read}
}

func (s *Server) readStatuses(ctx context.Context) (all []projection.Status, err error) {
	err = s.reader.Read(ctx, projection.Want{}, projection.Every(), func(ctx context.Context, snap *projection.Snapshot) (err error) {
		all, err = projection.ReadStatuses(ctx, snap)
		return err
	})
	return all, err
}

func (s *Server) readGenerations(ctx context.Context) ([]generation.Generation, error) {
	return generation.List(ctx, s.reader, projection.Want{}, projection.Every())
}

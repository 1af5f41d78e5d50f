package projectiontest

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/consumer-service/internal/generation"
	"github.com/tidemark/tidemark/consumer-service/internal/projection"
	"github.com/tidemark/tidemark/shared/await"
	"github.com/tidemark/tidemark/shared/config"
	"github.com/tidemark/tidemark/shared/event"
	"github.com/tidemark/tidemark/shared/httpapi"
	"github.com/tidemark/tidemark/shared/kafka"
	"github.com/tidemark/tidemark/shared/logid"
	"github.com/tidemark/tidemark/shared/postgres"
	"github.com/tidemark/tidemark/shared/postgres/postgrestest"
	"github.com/tidemark/tidemark/shared/topic"
)

const partitions = 3

// stage is one contract's topic and database.
type stage struct {
	*writer
	def     *projection.Definition
	samples Samples
	random  *rand.Rand
	kafka   config.Kafka
	reader  *kafka.Reader
	asker   *logid.Asker
	db      *sqlx.DB
	long    *sqlx.DB // without limits of time
	group   string
	decided decided // on dead letters, by every process of the stage
}

func newStage(t *testing.T, def func(topic.Spec) *projection.Definition, samples Samples) *stage {
	t.Helper()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	suffix := "-" + uuid.NewString()[:8]
	of := samples.Topic
	of.Name, of.Partitions, of.ReplicationFactor = of.Name+suffix, partitions, 1
	s := &stage{
		def: def(of), samples: samples, random: rand.New(&sharedSource{source: rand.NewPCG(seed, 0)}), group: "suite" + suffix,
		kafka: config.Kafka{Brokers: brokers(t), Partitions: partitions, ClaimedPartitions: partitions, ReplicationFactor: 1},
	}
	require.NoError(t, projection.CheckAll([]*projection.Definition{s.def}))

	c := config.DefaultPostgres()
	c.URL = postgrestest.Migrated(t)
	open := func(limits postgres.Limits) *sqlx.DB {
		db, err := postgres.Open(c, "suite", limits)
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, db.Close()) })
		return db
	}
	s.db, s.long = open(postgres.WriterLimits), open(postgres.Limits{})
	if samples.Tables != "" {
		s.exec(t, samples.Tables)
	}
	require.NoError(t, projection.Register(t.Context(), s.db, []*projection.Definition{s.def}))

	s.reader = kafka.NewReader(s.kafka, "suite")
	t.Cleanup(func() { require.NoError(t, s.reader.Close()) })
	s.asker = logid.NewAsker(s.kafka, "suite")
	t.Cleanup(func() { require.NoError(t, s.asker.Close()) })
	if samples.At != nil && s.def.Retention > 0 && strings.HasSuffix(t.Name(), timedContract) {
		timedByTheWriter(t, s.kafka.Brokers, of.Name, partitions)
	}
	await.NoError(t, func() error { return s.reader.Ensure(t.Context(), of) })
	s.mustEnd(t)
	s.writer = newWriter(t, s.kafka.Brokers, of.Name, partitions, of.Transactional)
	return s
}

// sharedSource is a source of random numbers for a test and what it starts.
type sharedSource struct {
	mu     sync.Mutex
	source rand.Source
}

func (s *sharedSource) Uint64() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.source.Uint64()
}

func (s *stage) ends(ctx context.Context) (map[int32]int64, error) {
	all := make([]int32, partitions)
	for p := range all {
		all[p] = int32(p)
	}
	return s.reader.StableEnds(ctx, s.def.Topic.Name, all)
}

// mustEnd is ends, as soon as the brokers answer: on a busy machine a partition may be without a leader for a moment.
func (s *stage) mustEnd(t *testing.T) (ends map[int32]int64) {
	t.Helper()
	await.NoError(t, func() (err error) { ends, err = s.ends(t.Context()); return err })
	return ends
}

// valid makes records that can be applied.
func (s *stage) valid(n int) []Record {
	out := make([]Record, n)
	for i := range out {
		out[i] = s.samples.Valid(s.random, time.Now())
	}
	return out
}

// mixed makes records of all kinds: about a tenth cannot be read, and as many repeat the key of one before.
func (s *stage) mixed(n int) []Record {
	out := s.valid(n)
	for i := range out {
		switch s.random.IntN(10) {
		case 0:
			out[i] = s.samples.Undecodable(s.random)
		case 1:
			if of := out[s.random.IntN(i+1)]; i > 0 && of.Identity != "" {
				out[i] = s.samples.Repeat(s.random, of)
			}
		}
	}
	return out
}

func (s *stage) mustSend(t *testing.T, records ...Record) {
	t.Helper()
	require.NoError(t, s.send(records...))
}

// keepSending sends records of all kinds every now and then until the returned function is called.
func (s *stage) keepSending(t *testing.T, pause time.Duration) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var sending sync.WaitGroup
	sending.Go(func() {
		for ctx.Err() == nil {
			if err := s.send(s.mixed(5)...); err != nil {
				t.Error(err)
				return
			}
			time.Sleep(pause) // so that what is tested meets records at every moment and does not drown in them
		}
	})
	stop = sync.OnceFunc(func() { cancel(); sending.Wait() })
	t.Cleanup(stop)
	return stop
}

// settings of one process.
type settings struct {
	group    string // that of the stage unless given
	batch    int    // most records in a transaction; any number up to 50 unless given
	pace     *projection.Pace
	rebuilds bool   // it fills generations and drives them, too
	accepts  string // the id of the topic that it accepts in place of another
}

// process is what app wires for a projection, without the receipts' way to the log.
type process struct {
	*projection.Projector
	gate     *gate
	asked    *countedLog
	registry *prometheus.Registry
	refused  chan *projection.Refusal
	rebuilds *generation.Service
	accepts  string
	stop     func()
	// unwatch stops what a process does beside writing, as if it were stopped whole; watch lets it go on.
	watch, unwatch func()
}

func (s *stage) start(t *testing.T, o settings) *process {
	t.Helper()
	return s.startHeld(t, o)
}

// startHeld starts a process whose writers of some partitions are held from the beginning.
func (s *stage) startHeld(t *testing.T, o settings, held ...int32) *process {
	t.Helper()
	if o.group == "" {
		o.group = s.group
	}
	if o.batch == 0 {
		o.batch = 1 + s.random.IntN(50)
	}
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	p := &process{
		gate: &gate{decided: &s.decided}, asked: &countedLog{Reader: s.reader}, accepts: o.accepts, registry: prometheus.NewRegistry(), refused: make(chan *projection.Refusal, 1),
	}
	p.gate.hold(held...)
	ctx, cancel := context.WithCancel(t.Context())
	p.Projector = projection.New(projection.Options{
		DB: s.db, Log: p.asked, Decisions: p.gate, Definition: s.def, Group: o.group, Role: projection.Serving(), Pace: o.pace,
		Identity: s.asker, NewLog: p, AuditInterval: time.Hour, Ready: httpapi.NewReadiness(), Metrics: projection.NewMetrics(p.registry).Of(s.def.Name), Logger: log,
		Stop: func(r *projection.Refusal) { p.refused <- r; cancel() },
	})
	p.rebuilds = generation.New(generation.Options{
		DB: s.db, Long: s.long, Log: s.reader, Decisions: &gate{decided: &s.decided}, Written: func() {}, Definition: s.def, Group: o.group, Identity: s.asker,
		Worker:  generation.WorkerOptions{Kafka: s.kafka, ClientID: "suite", BatchSize: o.batch},
		Metrics: generation.NewMetrics(prometheus.NewRegistry()), Logger: log,
	})
	var running sync.WaitGroup
	running.Go(func() {
		if err := p.Consume(ctx, projection.Membership{Kafka: s.kafka, ClientID: "suite", BatchSize: o.batch}); err != nil {
			t.Error(err)
		}
		cancel()
	})
	p.watch = func() {
		watching, cancel := context.WithCancel(ctx)
		ended := make(chan struct{})
		running.Go(func() { defer close(ended); p.Watch(watching) })
		p.unwatch = func() { cancel(); <-ended }
	}
	p.watch()
	if o.rebuilds {
		running.Go(func() { generation.NewAll(s.db, p.rebuilds).Poll(ctx) })
		running.Go(func() { p.rebuilds.Work(ctx) })
		running.Go(func() { p.rebuilds.Drive(ctx) })
	}
	p.stop = sync.OnceFunc(func() { p.gate.open(); cancel(); p.unwatch(); running.Wait() })
	t.Cleanup(p.stop)
	return p
}

// decided is what was decided on dead letters, by partition and offset.
type decided struct {
	mu   sync.Mutex
	made map[int32]map[int64]event.Decision
}

func (d *decided) add(partition int32, offset int64, what event.Decision) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.made == nil {
		d.made = map[int32]map[int64]event.Decision{}
	}
	if d.made[partition] == nil {
		d.made[partition] = map[int64]event.Decision{}
	}
	d.made[partition][offset] = what
}

func (d *decided) of(partition int32, offset int64) (what event.Decision, ok bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	what, ok = d.made[partition][offset]
	return what, ok
}

// gate is what a projector asks for decisions between reading and writing, so it can hold a writer there for as long as a
// process may be stopped.
type gate struct {
	decided *decided

	mu     sync.Mutex
	closed map[int32]chan struct{} // partition → closed when the writers may go on
	held   map[int32]int           // writers that wait
}

var _ projection.Decisions = (*gate)(nil)

// CatchUp implements projection.Decisions.
func (g *gate) CatchUp(context.Context) error { return nil }

// Of implements projection.Decisions.
func (g *gate) Of(_ string, partition int32, from, next int64) map[int64]event.Decision {
	g.mu.Lock()
	wait := g.closed[partition]
	if wait != nil {
		g.held[partition]++
	}
	g.mu.Unlock()
	if wait != nil {
		<-wait
	}
	out := map[int64]event.Decision{}
	for offset := from; offset < next; offset++ {
		if what, ok := g.decided.of(partition, offset); ok {
			out[offset] = what
		}
	}
	return out
}

// hold lets writers of these partitions go no further than between reading and writing.
func (g *gate) hold(of ...int32) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed, g.held = map[int32]chan struct{}{}, map[int32]int{}
	for _, p := range of {
		g.closed[p] = make(chan struct{})
	}
}

// open lets them go on.
func (g *gate) open() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, wait := range g.closed {
		close(wait)
	}
	g.closed = nil
}

// waiting are the partitions whose writers wait.
func (g *gate) waiting() map[int32]bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	out := map[int32]bool{}
	for p, n := range g.held {
		out[p] = n > 0
	}
	return out
}

// awaitHeld waits until a writer of each of these partitions waits.
func (g *gate) awaitHeld(t *testing.T, of ...int32) {
	t.Helper()
	await.NoError(t, func() error {
		waiting := g.waiting()
		for _, p := range of {
			if !waiting[p] {
				return fmt.Errorf("no writer of partition %d has read anything", p)
			}
		}
		return nil
	})
}

// countedLog remembers what a projector asked the log to explain.
type countedLog struct {
	*kafka.Reader
	mu    sync.Mutex
	calls []explained
}

type explained struct {
	partition int32
	from, to  int64
}

// Explain implements projection.Log.
func (l *countedLog) Explain(ctx context.Context, of string, partition int32, from, to int64) (kafka.Gap, error) {
	l.mu.Lock()
	l.calls = append(l.calls, explained{partition, from, to})
	l.mu.Unlock()
	return l.Reader.Explain(ctx, of, partition, from, to)
}

func (l *countedLog) explained() []explained {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]explained(nil), l.calls...)
}

// stopped is a pace that never reads one partition.
func (s *stage) stopped(partition int32) *projection.Pace {
	return &projection.Pace{Stops: map[int32]int64{partition: 0}}
}

// Package projection reads the tables that consumer-service computes from the log, in snapshots, and says how far they
// are. The table projections alone says which projections there are (Catalog).
//
// A read names the projections whose tables it reads (Scope): these tables it locks, and no others. It may
// also name a position of the log that must have been passed; the position's topic says by which
// projection. It is then answered from a snapshot in which that projection is past it, or not at all. Each
// try is one new transaction, so that progress and rows are of one moment; none is held open while
// waiting, or it would keep old rows alive and block a swap of generations.
//
//	Reader.Read ── hint says not yet ──▶ Watch.Await ── a poll saw it pass ──┐
//	     │                                                                  ▼
//	     └──────────────────────────────▶ one snapshot: passed? ── yes ──▶ the caller's queries
//	                                          └ no, and time left: await again
//
// What a poll saw is only a reason to open a snapshot; the snapshot decides. So a projection that is started over
// between the two is waited for.
//
// Reads of one row do not each have a transaction: those that come while one is under way gather, and the next one
// answers them all (Grouped).
//
// A database that answers, but not in time, is busy (*BusyError); one that answers nobody is down. The two are told
// apart by what the database did for others in the meantime.
//
// Nothing is summed over projections. What a row means is left to record, endpoint, ticket and deadletter.
package projection

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jmoiron/sqlx"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/tidemark/tidemark/shared/position"
	"github.com/tidemark/tidemark/shared/topic"
)

// tryTimeout bounds one transaction, the wait for a connection included.
const tryTimeout = 5 * time.Second

// Want is what a read asks of the projection before it is answered. The zero value asks nothing.
type Want struct {
	Position position.Position // to be passed; none where its topic is empty
	Wait     time.Duration     // the longest wait for it; 0 tries once
}

// Asked reports whether a position was named.
func (w Want) Asked() bool { return w.Position.Topic != "" }

// Scope is the projections whose tables a read names.
type Scope struct {
	names []string
	topic string
	every bool
}

// Of is the named projections; *UnknownError comes of a name that none has.
func Of(names ...string) Scope { return Scope{names: names} }

// OfTopic is the projection that reads the topic; *UnknownError comes of a topic that none reads.
func OfTopic(topic string) Scope { return Scope{topic: topic} }

// Every is all projections there are.
func Every() Scope { return Scope{every: true} }

// NotReachedError says that the wait ended before the projection passed the position.
type NotReachedError struct {
	Want       Want
	Projection string             // that was waited for; empty where decisions on dead letters were
	Reached    *position.Position // the last one passed in that partition; nil where there is none
	Generation int
	Epoch      int64
}

func (e *NotReachedError) Error() string {
	return fmt.Sprintf("the projection has not passed %s, it is at %s", e.Want.Position, e.ReachedWord())
}

// ReachedWord prints the last position passed, or none.
func (e *NotReachedError) ReachedWord() string {
	if e.Reached == nil {
		return "none"
	}
	return e.Reached.String()
}

// RefusedError says that the projection stopped by itself, and why; nothing more is projected until
// somebody has acted on it.
type RefusedError struct {
	Projection string
	Reason     string // without a full stop at its end
}

func (e *RefusedError) Error() string { return e.Projection + " has stopped: " + e.Reason }

// RebuildingError says that a derived table is being computed for the first time in this epoch: what it
// holds is a part of what there is, and is not shown as the whole.
type RebuildingError struct {
	Projection string
	Done       int64
	Total      *int64   // nil where a log's end is not known
	Percent    *float64 // nil where Total is
}

func (e *RebuildingError) Error() string { return e.Projection + " is being rebuilt: " + e.HowFar() }

// HowFar says it in words.
func (e *RebuildingError) HowFar() string {
	if e.Total == nil {
		return fmt.Sprintf("%d offsets are done, of a number that is not known yet", e.Done)
	}
	return fmt.Sprintf("%.1f%%, %d of %d offsets are done", *e.Percent, e.Done, *e.Total)
}

// ErrStopping ends the waits of a service that is being stopped.
var ErrStopping = errors.New("the service is stopping")

// Place is one partition of one topic.
type Place struct {
	Topic     string
	Partition int32
}

// Progress is how far one partition is projected.
type Progress struct {
	Epoch       int64
	FirstOffset int64 // the first that was read
	NextOffset  int64 // all below it are projected
}

// Served is the generation of one projection that a snapshot is of.
type Served struct {
	Definition
	Generation int
	Epoch      int64
}

// Snapshot is one moment of the serving generations. It is valid inside the function that Read calls.
type Snapshot struct {
	served   []Served // that were read for, by name
	conn     *sqlx.Conn
	at       map[Place]Progress          // of the partitions that were asked for
	waited   Served                      // the projection of those partitions
	refused  func(context.Context) error // why that one has stopped; nil where it has not
	decided  *decidedLetters             // the reader's
	answered *lastAnswer                 // the reader's
}

// Served returns the projections in the read's scope, by name.
func (s *Snapshot) Served() []Served { return s.served }

// Of returns one of them; the zero value where it is not in the scope.
func (s *Snapshot) Of(name string) Served {
	for _, d := range s.served {
		if d.Name == name {
			return d
		}
	}
	return Served{}
}

// OfTopic returns the one that reads the topic, where it is in the scope.
func (s *Snapshot) OfTopic(topic string) (Served, bool) {
	i := slices.IndexFunc(s.served, func(d Served) bool { return d.Topic == topic })
	if i < 0 {
		return Served{}, false
	}
	return s.served[i], true
}

// Progress is how far the partition of a wanted position is; zero where it was not asked for.
func (s *Snapshot) Progress(of position.Position) Progress {
	return s.at[Place{of.Topic, of.Partition}]
}

// Get reads one row into dest, sql.ErrNoRows where there is none.
func (s *Snapshot) Get(ctx context.Context, dest any, query string, args ...any) error {
	defer s.answered.noteUnless(ctx)
	return s.conn.GetContext(ctx, dest, query, args...)
}

// Select reads rows into dest, a pointer to a slice.
func (s *Snapshot) Select(ctx context.Context, dest any, query string, args ...any) error {
	defer s.answered.noteUnless(ctx)
	return s.conn.SelectContext(ctx, dest, query, args...)
}

// Reader opens snapshots, after waiting where a read asks for it. It is safe for concurrent use.
type Reader struct {
	db       *sqlx.DB
	catalog  *Catalog
	watch    *Watch
	answered lastAnswer
	busy     *prometheus.CounterVec
	grouped  prometheus.Histogram
	decided  decidedLetters // counts of them, kept from one snapshot to the next
}

// NewReader reads from db what catalog knows of, lets watch do the waiting, and registers the metrics.
func NewReader(db *sqlx.DB, catalog *Catalog, watch *Watch, registry prometheus.Registerer) *Reader {
	r := &Reader{db: db, catalog: catalog, watch: watch,
		busy: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tidemark_query_busy_total", Help: "Reads that were answered with busy, by what there was too little of: time, connections, locks or waits.",
		}, []string{"short_of"}),
		grouped: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "tidemark_query_group_reads", Help: "How many reads of one row one transaction answered.",
			Buckets: []float64{1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024},
		}),
	}
	for _, short := range []string{shortOfTime, shortOfConnections, shortOfLocks, shortOfWaits} {
		r.busy.WithLabelValues(short)
	}
	registry.MustRegister(r.busy, r.grouped)
	return r
}

// Read calls fn with a snapshot of the projections in scope in which want holds. It returns *NotReachedError when the wait
// ends first, *RefusedError where the projection has stopped by itself, *BusyError where the database answers others but
// not this read in time, fn's error as it is, and any other error where the database could not be read.
func (r *Reader) Read(ctx context.Context, want Want, scope Scope, fn func(context.Context, *Snapshot) error) error {
	return r.counted(r.whenPassed(ctx, want, func() error { return r.try(ctx, want, scope, fn) }))
}

// whenPassed calls try, which decides by a snapshot whether want holds, as often as there is reason to until the wait
// is over.
func (r *Reader) whenPassed(ctx context.Context, want Want, try func() error) error {
	if !want.Asked() {
		return try()
	}
	deadline := time.Now().Add(want.Wait)
	waiting, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	due := want.Wait <= 0 || r.watch.Hint(want.Position)
	for {
		if !due {
			err := r.watch.Await(waiting, want.Position)
			if errors.Is(err, errTooManyWaits) {
				return &BusyError{shortOfWaits, err}
			}
			if errors.Is(err, ErrStopping) {
				return err
			}
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			// Passed, or the wait is over: the snapshot decides in both cases.
		}
		err := try()
		var behind *NotReachedError
		if !errors.As(err, &behind) || !time.Now().Before(deadline) {
			return err
		}
		due = false
	}
}

// try is one transaction for one read.
func (r *Reader) try(ctx context.Context, want Want, scope Scope, fn func(context.Context, *Snapshot) error) error {
	read, err := r.resolve(ctx, scope)
	if err != nil {
		return err
	}
	awaited, err := r.awaited(ctx, want)
	if err != nil {
		return err
	}
	return r.snapshot(ctx, read, awaited, func() []Want { return []Want{want} }, func(ctx context.Context, s *Snapshot) error {
		if err := s.passed(ctx, want); err != nil {
			return err
		}
		return fn(ctx, s)
	})
}

// snapshot calls fn inside one transaction. Its first statement takes the locks, in the order in which a swap of
// generations takes them, before the snapshot is chosen: so the tables are seen wholly before a swap or wholly after
// it. The wants, all of the projection awaited, are asked for once a connection is at hand and before the transaction
// begins: so many can still come while connections are scarce, and each has come before the snapshot that answers it.
func (r *Reader) snapshot(caller context.Context, read []Definition, awaited Definition, wants func() []Want, fn func(context.Context, *Snapshot) error) (err error) {
	began := time.Now()
	ctx, cancel := context.WithTimeout(caller, tryTimeout)
	defer cancel()
	defer func() {
		if caller.Err() == nil {
			err = r.busyOrDown(began, err)
		}
	}()
	s, err := r.open(ctx, read, awaited, wants)
	if err != nil {
		return err
	}
	r.answered.noteUnless(ctx)
	defer func() {
		if ended := end(ctx, s.conn); err == nil {
			err = ended
		}
	}()
	return fn(ctx, s)
}

// passed returns nil where want holds in s, *NotReachedError or *RefusedError where it does not. While the projection
// refuses its log no position counts as passed: the rows may be of a former log, in which that position was another record's.
func (s *Snapshot) passed(ctx context.Context, want Want) error {
	if !want.Asked() {
		return nil
	}
	if err := s.refused(ctx); err != nil {
		return err
	}
	at := want.Position
	progress, known := s.at[Place{at.Topic, at.Partition}]
	if known && progress.NextOffset > at.Offset {
		return nil
	}
	behind := &NotReachedError{Want: want, Projection: s.waited.Name, Generation: s.waited.Generation, Epoch: s.waited.Epoch}
	if at.Topic == topic.DeadLetterCommand.Name {
		behind.Projection = ""
	}
	if progress.NextOffset > progress.FirstOffset {
		at.Offset = progress.NextOffset - 1
		behind.Reached = &at
	}
	return behind
}

// resolve returns the projections in scope, by name.
func (r *Reader) resolve(ctx context.Context, scope Scope) ([]Definition, error) {
	if scope.every {
		return r.catalog.All(ctx)
	}
	if scope.topic != "" {
		d, err := r.catalog.OfTopic(ctx, scope.topic)
		return []Definition{d}, err
	}
	out := make([]Definition, 0, len(scope.names))
	for _, name := range slices.Sorted(slices.Values(scope.names)) {
		d, err := r.catalog.Named(ctx, name)
		if err != nil {
			return nil, err
		}
		out = append(out, d)
	}
	return out, nil
}

// awaited is the projection that must have passed the wanted position; the zero value where none is
// wanted, or where it is one of decisions on dead letters, which belong to no projection.
func (r *Reader) awaited(ctx context.Context, want Want) (Definition, error) {
	if !want.Asked() || want.Position.Topic == topic.DeadLetterCommand.Name {
		return Definition{}, nil
	}
	d, err := r.catalog.OfTopic(ctx, want.Position.Topic)
	var unknown *UnknownError
	if errors.As(err, &unknown) {
		topics := append(unknown.Topics, topic.DeadLetterCommand.Name)
		return d, &WantError{fmt.Sprintf("%q is in a topic that is not projected: these are %s", want.Position, strings.Join(topics, ", "))}
	}
	return d, err
}

package generation

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/tidemark/tidemark/consumer-service/internal/projection"
	"github.com/tidemark/tidemark/shared/kafka"
	"github.com/tidemark/tidemark/shared/loop"
	"github.com/tidemark/tidemark/shared/postgres"
	"github.com/tidemark/tidemark/shared/schema"
)

// Log is what a rebuild asks of Kafka beside what its projectors do; *kafka.Reader answers.
type Log interface {
	projection.Log
	OffsetsAt(ctx context.Context, topic string, partitions []int32, at time.Time) (map[int32]int64, error)
	DeleteGroup(ctx context.Context, group string) error
}

var _ Log = (*kafka.Reader)(nil)

// Options of a Service. All are required but AcceptLogStart.
type Options struct {
	DB   *sqlx.DB // with a writer's limits
	Long *sqlx.DB // without limits of time, for proofs, indexes and the driver's lock
	Log  Log
	// Decisions is what was decided on dead letters.
	Decisions projection.Decisions
	// Written is called when there is a new receipt in the outbox.
	Written func()
	// Definition is the projection; its topic has its number of partitions filled in.
	Definition *projection.Definition
	// Group is the consumer group of the serving generation, as it is configured.
	Group string
	// AcceptLogStart names, by partition, the offset at which a log that lost its beginning may start.
	AcceptLogStart map[int32]int64
	// Identity tells whether the topic is still the one that a generation was computed from.
	Identity projection.Identity
	Worker   WorkerOptions
	Metrics  *Metrics
	Logger   *slog.Logger
}

// Service takes requests about the generations of one projection. In a process that runs the projection it fills them as
// well, and drives them where it holds the lock.
type Service struct {
	Options
	kick   loop.Kick    // a request was noted: look now
	tries  map[int]*try // the driver's own, by generation
	audits *projection.Auditor
	tidy   map[int]bool                 // serving generations of which nothing is left in their candidate's schema
	seen   atomic.Pointer[[]Generation] // what Poll last saw
}

// New returns a service whose loops do not run yet.
func New(o Options) *Service {
	return &Service{Options: o, audits: projection.NewAuditor(o.DB, o.Definition, o.Logger), kick: loop.NewKick(), tries: map[int]*try{}, tidy: map[int]bool{}}
}

// look makes the driver look at once: a request was noted.
func (s *Service) look() {
	s.seen.Store(nil) // it is older than the request
	s.kick.Send()
}

// quiet reports whether, as far as is known, every generation serves, and the driver has nothing to do.
func (s *Service) quiet() bool {
	all := s.seen.Load()
	return all != nil && !slices.ContainsFunc(*all, func(g Generation) bool { return g.State != Serving || !s.tidy[g.Number] })
}

// name is the projection's.
func (s *Service) name() string { return s.Definition.Name }

func (s *Service) topic() string { return s.Definition.Topic.Name }

// serving is the schema of the serving generation.
func (s *Service) serving() string { return s.Definition.ServingSchema() }

// schemaOf is the schema of a generation that does not serve.
func (s *Service) schemaOf(number int) string { return schema.Candidate(s.name(), number) }

func (s *Service) partitionCount() int { return s.Definition.Topic.Partitions }

// in puts the projection into a statement: {projection} is its name as a literal, {serving} the schema that serves.
func (s *Service) in(query string) string {
	return strings.NewReplacer("{projection}", "'"+s.name()+"'", "{serving}", postgres.Quoted(s.serving())).Replace(query)
}

const selectRows = `
SELECT g.projection, g.generation, g.schema_name, g.state, g.epoch, g.group_name, g.requested_at, g.state_since, g.swap_wanted, g.proof_wanted,
	g.rate_limit, g.point, g.stops, g.proof, g.topic_id, g.new_log, g.fill_ms, g.index_ms, p.rate, p.eta_seconds, p.bottleneck, p.stalled_since, p.note
FROM public.projection_generations g LEFT JOIN public.generation_progress p ON p.projection = g.projection AND p.generation = g.generation`

const servingFirst = ` ORDER BY g.projection, g.state IN ('serving', 'swapping') DESC, g.generation DESC`

// List returns all generations, the serving one first, then the newest first.
func (s *Service) List(ctx context.Context) ([]Generation, error) {
	all, err := s.rows(ctx)
	if err != nil {
		return nil, err
	}
	for i := range all {
		if err := s.count(ctx, &all[i]); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// rows are the generations without what has to be counted.
func (s *Service) rows(ctx context.Context) ([]Generation, error) {
	var rows []row
	if err := s.DB.SelectContext(ctx, &rows, s.in(selectRows+` WHERE g.projection = {projection}`+servingFirst)); err != nil {
		return nil, fmt.Errorf("list the generations: %w", err)
	}
	return s.read(rows)
}

func (s *Service) read(rows []row) ([]Generation, error) {
	out := make([]Generation, len(rows))
	for i, r := range rows {
		var err error
		if out[i], err = r.generation(s.Group); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// Get returns one generation, or ErrNotFound.
func (s *Service) Get(ctx context.Context, number int) (Generation, error) {
	g, err := s.get(ctx, s.DB, number, "")
	if err != nil {
		return g, err
	}
	return g, s.count(ctx, &g)
}

type querier interface {
	GetContext(ctx context.Context, dest any, query string, args ...any) error
	SelectContext(ctx context.Context, dest any, query string, args ...any) error
}

func (s *Service) get(ctx context.Context, q querier, number int, lock string) (Generation, error) {
	var r row
	err := q.GetContext(ctx, &r, s.in(selectRows+` WHERE g.projection = {projection} AND g.generation = $1 `+lock), number)
	if errors.Is(err, sql.ErrNoRows) {
		return Generation{}, ErrNotFound
	}
	if err != nil {
		return Generation{}, fmt.Errorf("read generation %d: %w", number, err)
	}
	return r.generation(s.Group)
}

// count adds how far the generation is. One that has no tables, or whose tables are just being moved, shows nothing.
func (s *Service) count(ctx context.Context, g *Generation) error {
	if g.State == Dropping || g.State == Queued {
		return nil
	}
	var rows []struct {
		Partition int32
		Done      int64
		First     int64
		Next      int64
		End       int64
	}
	err := s.DB.SelectContext(ctx, &rows, `
SELECT partition, first_offset AS first, next_offset AS next, next_offset - first_offset AS done,
	greatest(coalesce(log_end, next_offset), next_offset) AS end FROM `+postgres.Qualified(g.Schema, schema.Progress)+` WHERE topic = $1`, s.topic())
	if state := postgres.State(err); state == "42P01" || state == "3F000" {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read the progress of generation %d: %w", g.Number, err)
	}
	for _, r := range rows {
		end := r.End
		if g.Stops != nil {
			end = g.Stops[r.Partition]
		}
		g.Progress.Done += r.Done
		g.Progress.Total += max(end-r.First, 0)
	}
	return nil
}

// runLimit is how long ago a process that runs a projection must have been there.
const runLimit = 10 * time.Second

// Running reports whether some process runs the projection.
func (s *Service) Running(ctx context.Context) (running bool, err error) {
	if err := s.DB.GetContext(ctx, &running, s.in(`
SELECT coalesce(run_at > clock_timestamp() - $1 * interval '1 second', false) FROM public.projections WHERE projection = {projection}`), runLimit.Seconds()); err != nil {
		return false, fmt.Errorf("see whether a process runs %s: %w", s.name(), err)
	}
	return running, nil
}

// mustRun is ErrNotRunning where nobody would carry a request out.
func (s *Service) mustRun(ctx context.Context) error {
	running, err := s.Running(ctx)
	if err == nil && !running {
		return ErrNotRunning
	}
	return err
}

// Start makes a new generation, which the workers then fill. It returns *ConflictError and *PointError.
func (s *Service) Start(ctx context.Context, r Request) (Generation, error) {
	if err := s.mustRun(ctx); err != nil {
		return Generation{}, err
	}
	stops, point, err := s.resolve(ctx, r.To)
	if err != nil {
		return Generation{}, err
	}
	if stops != nil {
		r.Swap = false
	}
	starts, err := projection.LogStarts(ctx, s.Log, s.Definition.Topic, s.AcceptLogStart)
	if err != nil {
		return Generation{}, err
	}
	var number int
	err = postgres.Tx(ctx, s.DB, func(tx *sqlx.Tx) error {
		others, err := s.locked(ctx, tx)
		if err != nil {
			return err
		}
		if err := s.makeRoom(ctx, tx, r, others); err != nil {
			return err
		}
		number, err = s.insert(ctx, tx, Filling, r, point, stops)
		if err != nil {
			return err
		}
		return s.makeTables(ctx, tx, number, starts)
	})
	if postgres.State(err) == "23505" { // one_rebuild_at_a_time: another process was a moment earlier
		return Generation{}, conflict("another rebuild was started at the same moment: see its generations")
	}
	if err != nil {
		return Generation{}, err
	}
	s.Logger.Info("a rebuild begins", "projection", s.name(), "generation", number, "swap", r.Swap, "point", point)
	s.look()
	return s.Get(ctx, number)
}

// insert notes a new generation and returns its number.
func (s *Service) insert(ctx context.Context, tx *sqlx.Tx, state State, r Request, point *string, stops map[int32]int64) (number int, err error) {
	var encoded []byte
	if stops != nil {
		if encoded, err = json.Marshal(stops); err != nil {
			return 0, fmt.Errorf("write the stops: %w", err)
		}
	}
	if err := tx.GetContext(ctx, &number, `SELECT nextval('public.generation_numbers')::integer`); err != nil {
		return 0, fmt.Errorf("take a number: %w", err)
	}
	if _, err := tx.ExecContext(ctx, s.in(`
INSERT INTO public.projection_generations (projection, generation, schema_name, state, cluster_id, topic_id, started_at, swap_wanted, rate_limit, point, stops)
SELECT {projection}, $1, $2, $7, g.cluster_id, g.topic_id, now(), $3, $4, $5, $6::text::jsonb
FROM public.projection_generations g WHERE g.projection = {projection} AND g.state = 'serving'`),
		number, s.schemaOf(number), r.Swap, r.RateLimit, point, text(encoded), state); err != nil {
		return 0, fmt.Errorf("note the generation: %w", err)
	}
	return number, nil
}

// text passes JSON as text: the driver would send []byte as bytes.
func text(b []byte) *string {
	if b == nil {
		return nil
	}
	t := string(b)
	return &t
}

// locked reads all generations, locked in the order of their numbers.
func (s *Service) locked(ctx context.Context, tx *sqlx.Tx) ([]Generation, error) {
	var rows []row
	if err := tx.SelectContext(ctx, &rows, s.in(selectRows+` WHERE g.projection = {projection} ORDER BY g.generation FOR UPDATE OF g`)); err != nil {
		return nil, fmt.Errorf("lock the generations: %w", err)
	}
	return s.read(rows)
}

// makeRoom refuses a rebuild where there is no room for one, and makes it where it may.
func (s *Service) makeRoom(ctx context.Context, tx *sqlx.Tx, r Request, others []Generation) error {
	for _, g := range others {
		switch {
		case g.State == Queued || g.State == Filling || g.State == Indexing || g.State == Ready:
			return conflict("generation %d is %s: one rebuild at a time, cancel it first", g.Number, g.State)
		case g.State == Swapping:
			return conflict("generations are just being swapped: ask again")
		case g.State == Standby && r.To == nil && !r.ReplaceStandby:
			return conflict("generation %d is kept as standby: drop it first, or replace it (replace_standby; --replace-standby on the command line)", g.Number)
		case g.State == Standby && r.To == nil:
			if err := s.setState(ctx, tx, g.Number, Dropping); err != nil {
				return err
			}
		}
	}
	if r.To != nil {
		return nil
	}
	return s.refuseBound(ctx, tx)
}

func (s *Service) setState(ctx context.Context, tx *sqlx.Tx, number int, to State) error {
	if _, err := tx.ExecContext(ctx, s.in(`
UPDATE public.projection_generations SET state = $2, state_since = now(), swap_wanted = swap_wanted AND $2 IN ('filling', 'indexing', 'ready'), proof_wanted = false
WHERE projection = {projection} AND generation = $1`), number, to); err != nil {
		return fmt.Errorf("note that generation %d is %s: %w", number, to, err)
	}
	s.Logger.Info("a generation changes its state", "projection", s.name(), "generation", number, "state", to)
	return nil
}

// Prove asks for a proof without a swap.
func (s *Service) Prove(ctx context.Context, number int) (Generation, error) {
	return s.request(ctx, number, false)
}

// Swap asks for a proof and, if it holds, the swap.
func (s *Service) Swap(ctx context.Context, number int) (Generation, error) {
	return s.request(ctx, number, true)
}

func (s *Service) request(ctx context.Context, number int, swap bool) (Generation, error) {
	if err := s.mustRun(ctx); err != nil {
		return Generation{}, err
	}
	err := postgres.Tx(ctx, s.DB, func(tx *sqlx.Tx) error {
		all, err := s.locked(ctx, tx)
		if err != nil {
			return err
		}
		i := slices.IndexFunc(all, func(g Generation) bool { return g.Number == number })
		if i < 0 {
			return ErrNotFound
		}
		switch g := all[i]; g.State {
		case Ready, Standby:
			if !swap && replacesLog(all, g) {
				return conflict("generation %d is filled from a new log that was accepted: there is nothing to verify it against", number)
			}
		case Serving, Swapping:
			return conflict("generation %d serves already", number)
		case Held:
			if g.Point == nil {
				return conflict("generation %d was computed from another log (topic id %s) than the one that is there now, and never serves again: read its tables in schema %s, and drop it when done", number, g.TopicID, g.Schema)
			}
			return conflict("generation %d was filled to %s and never serves: read its tables in schema %s, and drop it when done", number, *g.Point, g.Schema)
		case Queued, Filling, Indexing:
			return conflict("generation %d cannot be verified yet: it is still %s", number, g.State)
		default:
			return conflict("generation %d is %s", number, g.State)
		}
		for _, g := range all {
			if swap && g.State == Standby && g.Number != number {
				return conflict("generation %d is kept as standby: drop it first", g.Number)
			}
		}
		if _, err := tx.ExecContext(ctx, s.in(`
UPDATE public.projection_generations SET proof_wanted = true, swap_wanted = $2, proof = NULL WHERE projection = {projection} AND generation = $1`), number, swap); err != nil {
			return fmt.Errorf("note the request: %w", err)
		}
		return nil
	})
	if err != nil {
		return Generation{}, err
	}
	s.look()
	return s.Get(ctx, number)
}

// Drop cancels a rebuild, or drops a generation that does not serve.
func (s *Service) Drop(ctx context.Context, number int) (Generation, error) {
	if err := s.mustRun(ctx); err != nil {
		return Generation{}, err
	}
	err := postgres.Tx(ctx, s.DB, func(tx *sqlx.Tx) error {
		g, err := s.get(ctx, tx, number, "FOR UPDATE OF g")
		switch {
		case err != nil:
			return err
		case g.State.serves():
			return conflict("generation %d serves: swap another one in first", number)
		case g.State == Dropping:
			return nil
		}
		return s.setState(ctx, tx, number, Dropping)
	})
	if err != nil {
		return Generation{}, err
	}
	s.look()
	return s.Get(ctx, number)
}

// Audit compares the serving generation's tables with its counts, or returns ErrBusy where an audit or a swap is under way.
func (s *Service) Audit(ctx context.Context) ([]projection.Audited, error) {
	if err := s.mustRun(ctx); err != nil {
		return nil, err
	}
	found, ran, err := s.audits.Audit(ctx)
	if err == nil && !ran {
		return nil, ErrBusy
	}
	return found, err
}

func (s *Service) partitions() []int32 {
	all := make([]int32, s.partitionCount())
	for i := range all {
		all[i] = int32(i)
	}
	return all
}

package generation

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/tidemark/tidemark/query-service/internal/projection"
	"github.com/tidemark/tidemark/shared/postgres"
	"github.com/tidemark/tidemark/shared/schema"
)

// Reader opens snapshots of projections.
type Reader interface {
	Read(context.Context, projection.Want, projection.Scope, func(context.Context, *projection.Snapshot) error) error
}

var _ Reader = (*projection.Reader)(nil)

// mostTries is how often a list is read that is disturbed by generations being dropped meanwhile.
const mostTries = 5

// List returns the generations of the projections in scope: by projection, the serving one first, then the
// newest. No swap happens while it reads, since it holds locks on the serving tables; a generation that is
// dropped under it makes it read again.
func List(ctx context.Context, r Reader, want projection.Want, scope projection.Scope) (list []Generation, err error) {
	for try := 1; ; try++ {
		err = r.Read(ctx, want, scope, func(ctx context.Context, s *projection.Snapshot) error {
			list = nil
			for _, of := range s.Served() {
				some, err := listProjection(ctx, s, of)
				if err != nil {
					return err
				}
				list = append(list, some...)
			}
			return nil
		})
		if err == nil || postgres.State(err) != "42P01" || try == mostTries {
			return list, err
		}
	}
}

// Get returns one generation of a projection, or ErrNotFound.
func Get(ctx context.Context, r Reader, want projection.Want, name string, number int) (Generation, error) {
	list, err := List(ctx, r, want, projection.Of(name))
	if err != nil {
		return Generation{}, err
	}
	for _, g := range list {
		if g.Number == number {
			return g, nil
		}
	}
	return Generation{}, ErrNotFound
}

type row struct {
	Number      int        `db:"generation"`
	Schema      string     `db:"schema_name"`
	State       State      `db:"state"`
	Epoch       int64      `db:"epoch"`
	Group       *string    `db:"group_name"`
	RequestedAt time.Time  `db:"requested_at"`
	StateSince  time.Time  `db:"state_since"`
	SwapWanted  bool       `db:"swap_wanted"`
	ProofWanted bool       `db:"proof_wanted"`
	Measured    bool       `db:"measured"`
	RateLimit   *int       `db:"rate_limit"`
	Point       *string    `db:"point"`
	Stops       []byte     `db:"stops"`
	Proof       []byte     `db:"proof"`
	NewLog      bool       `db:"new_log"`
	FillMS      *float64   `db:"fill_ms"`
	IndexMS     *float64   `db:"index_ms"`
	Rate        *float64   `db:"rate"`
	ETA         *float64   `db:"eta_seconds"`
	Bottleneck  *string    `db:"bottleneck"`
	Stalled     *time.Time `db:"stalled_since"`
	Note        *string    `db:"note"`
	HasTables   bool       `db:"has_tables"`
}

func listProjection(ctx context.Context, s *projection.Snapshot, of projection.Served) ([]Generation, error) {
	var rows []row
	err := s.Select(ctx, &rows, `
SELECT g.generation, g.schema_name, g.state, g.epoch, g.group_name, g.requested_at, g.state_since, g.swap_wanted, g.proof_wanted,
	coalesce(p.sampled_at > now() - $2 * interval '1 second', false) AS measured, g.rate_limit, g.point, g.stops, g.proof, g.new_log, g.fill_ms, g.index_ms, p.rate, p.eta_seconds, p.bottleneck, p.stalled_since, p.note,
	to_regclass(format('%I.projection_progress', g.schema_name)) IS NOT NULL AS has_tables
FROM public.projection_generations g LEFT JOIN public.generation_progress p USING (projection, generation)
WHERE g.projection = $1 ORDER BY g.state IN ('serving', 'swapping') DESC, g.generation DESC`, of.Name, projection.FreshFor.Seconds())
	if err != nil {
		return nil, fmt.Errorf("list the generations of %s: %w", of.Name, err)
	}
	serving := ""
	out := make([]Generation, 0, len(rows))
	for _, r := range rows {
		g, stops, err := r.generation(of.Name)
		if err != nil {
			return nil, err
		}
		switch {
		case g.Serves() && r.Group != nil:
			g.Group, serving = *r.Group, *r.Group
		case g.fed() && serving != "":
			g.Group = fmt.Sprintf("%s.g%d", serving, g.Number)
		}
		if r.HasTables && g.State != Dropping {
			if err := g.readProgress(ctx, s, stops); err != nil {
				return nil, err
			}
		}
		if g.State == Indexing {
			if err := g.readIndexBuild(ctx, s); err != nil {
				return nil, err
			}
		}
		out = append(out, g)
	}
	return out, nil
}

// readIndexBuild asks Postgres how far it is with the index that it builds.
func (g *Generation) readIndexBuild(ctx context.Context, s *projection.Snapshot) error {
	var builds []IndexBuild
	err := s.Select(ctx, &builds, `
SELECT t.relname AS table_name, b.phase, CASE WHEN b.blocks_total > 0 THEN b.blocks_done ELSE b.tuples_done END AS done,
	CASE WHEN b.blocks_total > 0 THEN b.blocks_total ELSE b.tuples_total END AS total
FROM pg_stat_progress_create_index b JOIN pg_class t ON t.oid = b.relid
WHERE b.datname = current_database() AND t.relnamespace = to_regnamespace($1) LIMIT 1`, g.Schema)
	if err != nil {
		return fmt.Errorf("read how far the indexes of generation %d of %s are: %w", g.Number, g.Projection, err)
	}
	if len(builds) > 0 {
		g.Progress.Index = &builds[0]
	}
	return nil
}

// generation reads r, and by partition where it stops, nil where it follows the log.
func (r row) generation(of string) (Generation, map[int32]int64, error) {
	g := Generation{
		Projection: of, Number: r.Number, State: r.State, Epoch: r.Epoch, Schema: r.Schema, RequestedAt: r.RequestedAt, StateSince: r.StateSince,
		SwapWanted: r.SwapWanted, ProofWanted: r.ProofWanted, RateLimit: r.RateLimit, Point: r.Point, NewLog: r.NewLog, FillMS: r.FillMS, IndexMS: r.IndexMS, Progress: Progress{Bottleneck: "none"},
	}
	if r.Measured && !g.Serves() { // what there is of the serving one is of its time as a candidate
		g.Progress.Measured = true
		if g.State == Filling { // later it keeps up: what takes time then is no reading
			g.Progress.ETASeconds = r.ETA
		}
		g.Progress.Rate, g.Progress.Bottleneck = *r.Rate, *r.Bottleneck
		g.Progress.Stalled, g.Progress.Note = r.Stalled, *r.Note
	}
	var stops map[int32]int64
	if r.Stops != nil {
		if err := json.Unmarshal(r.Stops, &stops); err != nil {
			return g, nil, fmt.Errorf("read where generation %d of %s stops: %w", r.Number, of, err)
		}
	}
	if r.Proof != nil {
		g.Proof = &Proof{}
		if err := json.Unmarshal(r.Proof, g.Proof); err != nil {
			return g, nil, fmt.Errorf("read the proof of generation %d of %s: %w", r.Number, of, err)
		}
	}
	return g, stops, nil
}

// readProgress adds how far its partitions are.
func (g *Generation) readProgress(ctx context.Context, s *projection.Snapshot, stops map[int32]int64) error {
	var rows []struct {
		Partition int32 `db:"partition"`
		First     int64 `db:"first_offset"`
		Next      int64 `db:"next_offset"`
		End       int64 `db:"log_end"`
		Fresh     bool  `db:"fresh"`
	}
	err := s.Select(ctx, &rows, `
SELECT partition, first_offset, next_offset, greatest(log_end, next_offset) AS log_end,
	coalesce(log_end_at > now() - $1 * interval '1 second', false) AS fresh FROM `+postgres.Qualified(g.Schema, schema.Progress), projection.FreshFor.Seconds())
	if err != nil {
		return fmt.Errorf("read the progress of generation %d of %s: %w", g.Number, g.Projection, err)
	}
	g.Progress.Current = len(rows) > 0
	for _, r := range rows {
		if stops != nil {
			r.End, r.Fresh = stops[r.Partition], true
		}
		g.Progress.Current = g.Progress.Current && r.Fresh
		g.Progress.Done += r.Next - r.First
		g.Progress.Total += max(r.End-r.First, 0)
	}
	return nil
}

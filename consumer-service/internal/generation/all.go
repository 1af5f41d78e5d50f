package generation

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/tidemark/tidemark/consumer-service/internal/projection"
	"github.com/tidemark/tidemark/shared/loop"
	"github.com/tidemark/tidemark/shared/postgres"
)

// All are the generations of every projection of this release, those that other processes run included.
type All struct {
	db       *sqlx.DB
	services []*Service
}

// NewAll returns the set of services, in the order in which a rebuild of all takes them.
func NewAll(db *sqlx.DB, services ...*Service) *All { return &All{db, services} }

// Of returns the service of a projection. The error is an *UnknownError.
func (a *All) Of(name string) (*Service, error) {
	for _, s := range a.services {
		if s.name() == name {
			return s, nil
		}
	}
	return nil, &UnknownError{name, a.Names()}
}

// Names are those of the projections, in their order.
func (a *All) Names() []string {
	names := make([]string, len(a.services))
	for i, s := range a.services {
		names[i] = s.name()
	}
	return names
}

// UnknownError says that there is no such projection, and which ones there are.
type UnknownError struct {
	Name  string
	Names []string
}

func (e *UnknownError) Error() string {
	return fmt.Sprintf("there is no projection %.60q: there are %s", e.Name, strings.Join(e.Names, ", "))
}

// Poll reads the rows of all generations every so often until ctx ends, for the workers of every projection: one look for
// all of them, since most of the time there is nothing to do.
func (a *All) Poll(ctx context.Context) {
	loop.Every(ctx, pollEvery, func(ctx context.Context) {
		var rows []row
		if err := a.db.SelectContext(ctx, &rows, selectRows+servingFirst); err != nil {
			return // what runs finds out by itself
		}
		for _, s := range a.services {
			own := slices.DeleteFunc(slices.Clone(rows), func(r row) bool { return r.Projection != s.name() })
			if read, err := s.read(own); err == nil {
				s.seen.Store(&read)
			}
		}
	})
}

const pollEvery = 300 * time.Millisecond

// Projection is one projection as the API shows it.
type Projection struct {
	Name    string
	Topic   string
	Schema  string
	Tables  []string
	Running bool   // a process that runs it was there within the last ten seconds
	Refusal string // why a process refuses to go on with it; empty where none does
}

// Projections lists all, in their order.
func (a *All) Projections(ctx context.Context) ([]Projection, error) {
	var rows []struct {
		Name    string `db:"projection"`
		Running bool   `db:"running"`
		Refusal string `db:"refusal"`
	}
	if err := a.db.SelectContext(ctx, &rows, `
SELECT projection, coalesce(run_at > clock_timestamp() - $1 * interval '1 second', false) AS running, refusal FROM public.projections`, runLimit.Seconds()); err != nil {
		return nil, fmt.Errorf("list the projections: %w", err)
	}
	out := make([]Projection, len(a.services))
	for i, s := range a.services {
		out[i] = Projection{Name: s.name(), Topic: s.topic(), Schema: s.serving(), Tables: s.Definition.Tables()}
		for _, r := range rows {
			if r.Name == s.name() {
				out[i].Running, out[i].Refusal = r.Running, r.Refusal
			}
		}
	}
	return out, nil
}

// Rebuild makes a candidate for every projection that some process runs. They wait in a queue and are filled one after the
// other. It is all or nothing: where one projection has no room for a rebuild, none is begun.
func (a *All) Rebuild(ctx context.Context, r Request) ([]Generation, error) {
	var made []Generation
	err := postgres.Tx(ctx, a.db, func(tx *sqlx.Tx) error {
		made = nil
		for _, s := range slices.SortedFunc(slices.Values(a.services), func(x, y *Service) int { return strings.Compare(x.name(), y.name()) }) {
			running, err := s.Running(ctx)
			if err != nil {
				return err
			}
			if !running {
				continue
			}
			others, err := s.locked(ctx, tx)
			if err != nil {
				return err
			}
			if err := s.makeRoom(ctx, tx, r, others); err != nil {
				var refused *ConflictError
				if errors.As(err, &refused) {
					return conflict("projection %s: %s", s.name(), refused.Reason)
				}
				return err
			}
			number, err := s.insert(ctx, tx, Queued, r, nil, nil)
			if err != nil {
				return err
			}
			g, err := s.get(ctx, tx, number, "")
			if err != nil {
				return err
			}
			made = append(made, g)
		}
		if len(made) == 0 {
			return ErrNotRunning
		}
		return nil
	})
	if postgres.State(err) == "23505" {
		return nil, conflict("another rebuild was started at the same moment: see the generations of each projection")
	}
	if err != nil {
		return nil, err
	}
	for _, s := range a.services {
		s.look()
	}
	return made, nil
}

// beginQueued lets a queued generation begin once it is its turn: nothing else is being rebuilt, and nothing that was
// queued before it waits for a process that is there.
func (s *Service) beginQueued(ctx context.Context, g Generation) (bool, error) {
	starts, err := projection.LogStarts(ctx, s.Log, s.Definition.Topic, s.AcceptLogStart)
	if err != nil {
		return false, err
	}
	err = postgres.Tx(ctx, s.DB, func(tx *sqlx.Tx) error {
		var first []string
		if err := tx.SelectContext(ctx, &first, `
SELECT g.projection || ' ' || g.state FROM public.projection_generations g JOIN public.projections p ON p.projection = g.projection
WHERE (g.projection, g.generation) <> ($1, $2) AND (g.state IN ('filling', 'indexing') OR g.state = 'ready' AND (g.swap_wanted OR g.proof_wanted)
	OR g.state = 'queued' AND g.generation < $2 AND p.run_at > clock_timestamp() - $3 * interval '1 second')
ORDER BY g.projection, g.generation FOR UPDATE OF g`, g.Projection, g.Number, runLimit.Seconds()); err != nil {
			return fmt.Errorf("look what comes before: %w", err)
		}
		if len(first) > 0 {
			return fmt.Errorf("%w: it waits for %s", errNotYet, strings.Join(first, ", "))
		}
		now, err := s.get(ctx, tx, g.Number, "FOR UPDATE OF g")
		switch {
		case errors.Is(err, ErrNotFound) || err == nil && now.State != Queued:
			return errStatesChanged
		case err != nil:
			return err
		}
		if err := s.setState(ctx, tx, g.Number, Filling); err != nil {
			return err
		}
		return s.makeTables(ctx, tx, g.Number, starts)
	})
	if errors.Is(err, errStatesChanged) {
		return false, nil
	}
	return err == nil, err
}

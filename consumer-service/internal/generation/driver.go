package generation

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/tidemark/tidemark/shared/loop"
	"github.com/tidemark/tidemark/shared/postgres"
	"github.com/tidemark/tidemark/shared/schema"
)

const (
	stepEvery = 250 * time.Millisecond
	heartbeat = 2 * time.Second
)

// try is what the driver remembers of a step that did not work.
type try struct {
	after time.Time
	wait  time.Duration
}

// Drive takes the steps of every generation until ctx ends, whenever this process holds the lock.
func (s *Service) Drive(ctx context.Context) {
	s.Metrics.begin(s.name())
	for ctx.Err() == nil {
		if err := s.hold(ctx); err != nil && ctx.Err() == nil {
			s.Logger.Debug("cannot drive", "err", err)
		}
		_ = loop.Sleep(ctx, time.Second) // the loop looks at ctx
	}
}

// hold drives for as long as this process has the lock. The server ends a session that is silent for ten
// seconds, so a process that was stopped does not keep it.
func (s *Service) hold(ctx context.Context) error {
	conn, err := s.Long.Connx(ctx)
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	defer func() {
		_ = conn.Raw(func(any) error { return driver.ErrBadConn }) // closing it gives the lock up
		_ = conn.Close()
	}()
	if _, err := conn.ExecContext(ctx, `SET idle_session_timeout = 10000`); err != nil {
		return fmt.Errorf("bound the session: %w", err)
	}
	for {
		var got bool
		if err := conn.GetContext(ctx, &got, `SELECT pg_try_advisory_lock(hashtextextended($1, 0))`, "tidemark driver "+s.name()); err != nil {
			return fmt.Errorf("take the driver's lock: %w", err)
		}
		if got {
			break
		}
		if err := loop.Sleep(ctx, 500*time.Millisecond); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var running sync.WaitGroup
	running.Go(func() {
		defer cancel()
		s.sample(ctx)
	})
	running.Go(func() {
		defer cancel()
		s.steps(ctx)
	})
	for ctx.Err() == nil {
		if _, err = conn.ExecContext(ctx, `SELECT 1`); err != nil {
			break
		}
		_ = loop.Sleep(ctx, heartbeat) // the loop looks at ctx
	}
	cancel()
	running.Wait()
	return err
}

func (s *Service) steps(ctx context.Context) {
	s.kick.Every(ctx, stepEvery, func(ctx context.Context) {
		for more := true; more && ctx.Err() == nil; {
			var err error
			if more, err = s.stepAll(ctx); err != nil && ctx.Err() == nil {
				s.Logger.Warn("cannot see to the generations", "projection", s.name(), "err", err)
				_ = loop.Sleep(ctx, time.Second) // the loop looks at ctx
			}
		}
	})
}

// stepAll takes one step of each generation that is due. It reports whether there is more to do at once.
func (s *Service) stepAll(ctx context.Context) (more bool, err error) {
	if s.quiet() {
		return false, nil
	}
	all, err := s.rows(ctx)
	if err != nil {
		return false, err
	}
	for _, g := range all {
		t := s.tries[g.Number]
		if t != nil && time.Now().Before(t.after) {
			continue
		}
		moved, err := s.stepGeneration(ctx, g)
		switch {
		case err == nil:
			if moved || t != nil {
				delete(s.tries, g.Number)
			}
			more = more || moved
		case ctx.Err() != nil:
			return false, ctx.Err()
		default:
			s.failed(ctx, g, err)
		}
	}
	return more, nil
}

// failed notes a step that did not work, and when to try it again.
func (s *Service) failed(ctx context.Context, g Generation, err error) {
	t := s.tries[g.Number]
	if t == nil {
		t = &try{}
		s.tries[g.Number] = t
	}
	first := t.wait == 0
	t.wait = min(max(2*t.wait, stepEvery), 10*time.Second)
	if errors.Is(err, errNotCaughtUp) {
		t.wait = stepEvery // nobody is held up by looking
	}
	t.after = time.Now().Add(t.wait)
	waits := errors.Is(err, errNotYet) || errors.Is(err, errNotCaughtUp)
	switch {
	case !waits:
		s.Logger.Warn("a step of a rebuild failed and is tried again", "projection", s.name(), "generation", g.Number, "state", g.State, "err", err)
	case first:
		s.Logger.Info("a step of a rebuild waits", "projection", s.name(), "generation", g.Number, "state", g.State, "reason", err.Error())
	default:
		s.Logger.Debug("a step of a rebuild waits", "projection", s.name(), "generation", g.Number, "state", g.State, "reason", err.Error())
	}
	if err := s.note(ctx, g.Number, err.Error()); err != nil {
		s.Logger.Debug("cannot note what went wrong", "err", err)
	}
}

// stepGeneration takes the step that g's state asks for, and reports whether it moved.
func (s *Service) stepGeneration(ctx context.Context, g Generation) (moved bool, err error) {
	if g.State != Serving {
		delete(s.tidy, g.Number)
	}
	switch g.State {
	case Serving:
		s.Metrics.serving.WithLabelValues(s.name()).Set(float64(g.Number))
		return false, s.tidyUp(ctx, g)
	case Swapping: // this process drives and swaps nothing now: whoever set the mark is dead, or was stopped
		s.Logger.Warn("the mark of a swap is taken back", "projection", s.name(), "generation", g.Number)
		return true, s.takeBack(ctx, g.Number, g.Epoch)
	case Queued:
		return s.beginQueued(ctx, g)
	case Dropping:
		return true, s.drop(ctx, g)
	case Filling:
		return s.filled(ctx, g)
	case Indexing:
		err := s.whileInState(ctx, g, func(ctx context.Context) error { return s.index(ctx, g) })
		if err != nil {
			return false, err
		}
		return s.advance(ctx, g, Ready)
	case Ready, Standby:
		if !g.ProofWanted && !g.SwapWanted {
			return false, nil
		}
		return s.proveAndSwap(ctx, g)
	}
	return false, nil
}

// filled moves a generation on that has caught up with the log, or is at its point.
func (s *Service) filled(ctx context.Context, g Generation) (bool, error) {
	var rows []struct {
		Partition int32
		Next      int64
		CaughtUp  bool
	}
	if err := s.DB.SelectContext(ctx, &rows, `
SELECT partition, next_offset AS next, caught_up_at IS NOT NULL AS caughtup FROM `+postgres.Qualified(g.Schema, schema.Progress)+` WHERE topic = $1`, s.topic()); err != nil {
		return false, fmt.Errorf("see how far generation %d is: %w", g.Number, err)
	}
	for _, r := range rows {
		if g.Stops == nil && !r.CaughtUp || g.Stops != nil && r.Next < g.Stops[r.Partition] {
			return false, nil
		}
	}
	if g.Stops != nil {
		return s.advance(ctx, g, Held)
	}
	return s.advance(ctx, g, Indexing)
}

// advance changes the state, where it is still what the step began with.
func (s *Service) advance(ctx context.Context, g Generation, to State) (bool, error) {
	res, err := s.DB.ExecContext(ctx, s.in(`
UPDATE public.projection_generations SET state = $3, state_since = clock_timestamp(),
	fill_ms = CASE state WHEN 'filling' THEN extract(epoch FROM clock_timestamp() - state_since) * 1000 ELSE fill_ms END,
	index_ms = CASE state WHEN 'indexing' THEN extract(epoch FROM clock_timestamp() - state_since) * 1000 ELSE index_ms END, proof_wanted = proof_wanted OR $3 = 'ready' AND swap_wanted
WHERE projection = {projection} AND generation = $1 AND state = $2`), g.Number, g.State, to)
	if err != nil {
		return false, fmt.Errorf("note that generation %d is %s: %w", g.Number, to, err)
	}
	n, err := res.RowsAffected()
	if err == nil && n > 0 {
		s.Logger.Info("a generation changes its state", "projection", s.name(), "generation", g.Number, "state", to)
	}
	return n > 0, err
}

// proofAge is how old a proof may be when a swap is tried again.
const proofAge = 30 * time.Second

func (s *Service) proveAndSwap(ctx context.Context, g Generation) (bool, error) {
	newLog, err := s.replacesLog(ctx, g)
	if err != nil {
		return false, err
	}
	if newLog { // there is nothing to verify it against
		return s.swapIn(ctx, g)
	}
	if g.ProofWanted || g.Proof == nil || time.Since(g.Proof.At) > max(proofAge, 5*time.Duration(g.Proof.TookMs)*time.Millisecond) {
		var proof Proof
		err := s.whileInState(ctx, g, func(ctx context.Context) (err error) {
			proof, err = s.prove(ctx, g)
			return err
		})
		if err != nil {
			return false, err
		}
		if err := s.saveProof(ctx, g.Number, proof); err != nil {
			return false, err
		}
		s.Metrics.proofs.WithLabelValues(s.name(), outcome(proof.OK)).Inc()
		if !proof.OK {
			s.Logger.Error("a generation's proof does not hold", "projection", s.name(), "generation", g.Number, "finding", proof.Finding)
			return true, nil
		}
		s.Logger.Info("a generation is proved", "projection", s.name(), "generation", g.Number, "took_ms", proof.TookMs)
		if !g.SwapWanted {
			return true, nil
		}
	}
	return s.swapIn(ctx, g)
}

func (s *Service) swapIn(ctx context.Context, g Generation) (bool, error) {
	if err := s.swap(ctx, g); err != nil {
		if errors.Is(err, errStatesChanged) {
			return false, nil // the next look tells what is so now
		}
		return false, err
	}
	delete(s.tries, g.Number)
	return true, nil
}

func outcome(ok bool) string {
	if ok {
		return "held"
	}
	return "failed"
}

// whileInState runs a long step for as long as the generation is in the state that it began with: who cancels a
// rebuild need not wait for a proof or an index.
func (s *Service) whileInState(ctx context.Context, g Generation, do func(context.Context) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var watching sync.WaitGroup
	watching.Go(func() {
		for loop.Sleep(ctx, 500*time.Millisecond) == nil {
			if now, err := s.get(ctx, s.DB, g.Number, ""); errors.Is(err, ErrNotFound) || err == nil && now.State != g.State {
				cancel()
			}
		}
	})
	err := do(ctx)
	cancel()
	watching.Wait()
	return err
}

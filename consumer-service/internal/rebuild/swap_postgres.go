package rebuild

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/tidemark/tidemark/consumer-service/internal/projection"
	"github.com/tidemark/tidemark/shared/postgres"
)

const (
	// reachLimit is how long the writers wait for the side to reach what they have written.
	reachLimit = time.Second
	// lockLimit is how long a reader may wait behind the swap that waits for another reader.
	lockLimit = 500 * time.Millisecond
	// vacuumLimit is how long a swap waits for a vacuum to give way, before anybody else has to wait for anything.
	vacuumLimit = 5 * time.Second
)

var (
	// errNotYet says that a step is not possible now and will be.
	errNotYet = errors.New("not yet")
	// errGone says that the states are no longer those that the step began with.
	errGone = errors.New("the generations' states have changed")
)

// swapping is one swap under way.
type swapping struct {
	*Service
	conn    *sqlx.Conn // of its own: its locks and limits end with it
	tables  []string
	serving Generation
	side    Generation
	mark    int64 // the epoch that the serving generation was marked with
}

// swap puts g in the place of the serving generation, or leaves everything as it was and says why.
func (s *Service) swap(ctx context.Context, g Generation) (err error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	conn, err := s.Long.Connx(ctx)
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	defer func() {
		// Its session holds a lock, and perhaps a transaction that failed: it is closed, not given back.
		_ = conn.Raw(func(any) error { return driver.ErrBadConn }) // this is how database/sql is told
		_ = conn.Close()
	}()
	w := &swapping{Service: s, conn: conn, side: g}
	if w.tables, err = s.tables(ctx, conn); err != nil {
		return err
	}
	// A stopped driver holds nobody up: the server ends its transaction, and its lock goes with it.
	if _, err := conn.ExecContext(ctx, fmt.Sprintf(`SET lock_timeout = %d; SET idle_in_transaction_session_timeout = 1000; SET idle_session_timeout = 10000`, lockLimit.Milliseconds())); err != nil {
		return fmt.Errorf("set the limits of a swap: %w", err)
	}
	if err := w.awaitAudit(ctx); err != nil {
		return err
	}
	if err := w.endVacuum(ctx); err != nil {
		return err
	}
	if err := w.near(ctx); err != nil {
		return err
	}
	if err := w.fence(ctx); err != nil {
		return err
	}
	start := time.Now()
	err = w.reach(ctx)
	if err == nil {
		err = w.move(ctx)
	}
	if err == nil {
		s.Logger.Info("generations are swapped", "generation", g.Number, "was", w.serving.Number, "writers_waited_ms", time.Since(start).Milliseconds())
		s.Metrics.swaps.WithLabelValues("done").Inc()
		return nil
	}
	s.Metrics.swaps.WithLabelValues("given_up").Inc()
	if back := w.unfence(ctx); back != nil {
		return errors.Join(err, back)
	}
	return err
}

// awaitAudit keeps audits out until the swap is over: one reads every row under the locks of a reader.
func (w *swapping) awaitAudit(ctx context.Context) error {
	for end := time.Now().Add(10 * time.Second); ; {
		var got bool
		if err := w.conn.GetContext(ctx, &got, `SELECT pg_try_advisory_lock($1)`, int64(projection.AuditLock)); err != nil {
			return fmt.Errorf("keep audits out: %w", err)
		}
		if got {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("%w: an audit is running", errNotYet)
		}
		if err := sleep(ctx, 50*time.Millisecond); err != nil {
			return err
		}
	}
}

// endVacuum makes the server's own vacuum of the tables end: it gives way to whoever has waited for deadlock_timeout, a
// second, which is longer than a swap may wait. This wait is for a lock that no reader and no writer is held up by. One
// against the wraparound of transaction ids gives way to nobody, nor does a VACUUM by hand.
func (w *swapping) endVacuum(ctx context.Context) error {
	_, err := w.conn.ExecContext(ctx, fmt.Sprintf(`
BEGIN; SET LOCAL lock_timeout = %d; LOCK TABLE %s IN SHARE UPDATE EXCLUSIVE MODE; COMMIT`, vacuumLimit.Milliseconds(), strings.Join(w.moved(), ", ")))
	if postgres.State(err) == "55P03" {
		return fmt.Errorf("%w: a vacuum, or a change of the tables, is under way (%w)", errNotYet, err)
	}
	if err != nil {
		return fmt.Errorf("see that no vacuum is under way: %w", err)
	}
	return nil
}

// moved names all tables that change their schema, in the order of their locks.
func (w *swapping) moved() []string {
	var both []string
	for _, schema := range []string{projection.Public, w.side.Schema} {
		for _, t := range w.tables {
			both = append(both, schema+"."+t)
		}
	}
	return both
}

// fence is (a): from its commit on, nothing more is written to the serving tables.
func (w *swapping) fence(ctx context.Context) error {
	err := postgres.Tx(ctx, w.conn, func(tx *sqlx.Tx) error {
		all, err := w.locked(ctx, tx)
		if err != nil {
			return err
		}
		for _, g := range all {
			switch {
			case g.State == Serving:
				w.serving = g
			case g.Number == w.side.Number && (g.State == Ready || g.State == Standby) && g.SwapWanted:
				w.side = g
			case g.Number == w.side.Number:
				return errGone
			}
		}
		if w.serving.Schema == "" {
			return errGone
		}
		if err := tx.GetContext(ctx, &w.mark, `
UPDATE public.generations SET state = 'swapping', swapping_since = clock_timestamp(), epoch = nextval('public.projection_epochs')
WHERE generation = $1 RETURNING epoch`, w.serving.Number); err != nil {
			return fmt.Errorf("mark the serving generation: %w", err)
		}
		for _, statement := range []string{
			`SELECT FROM public.projection_progress ORDER BY topic, partition FOR UPDATE`,
			fmt.Sprintf(`UPDATE public.projection_progress SET epoch = %d`, w.mark),
		} {
			if _, err := tx.ExecContext(ctx, statement); err != nil {
				return fmt.Errorf("fence the writers: %w", err)
			}
		}
		return nil
	})
	if state := postgres.State(err); state == "55P03" || state == "40P01" {
		return fmt.Errorf("%w: a writer holds its progress (%w)", errNotYet, err)
	}
	return err
}

// nearly is how many records the side may be behind when the writers are fenced: some moments' work.
const nearly = 1000

// near waits until it is worth while to make the writers wait: a lane that has just begun, or is held to a
// rate, would let them wait in vain.
func (w *swapping) near(ctx context.Context) error {
	return w.within(ctx, nearly, 5*time.Second)
}

// reach is (b).
func (w *swapping) reach(ctx context.Context) error {
	return w.within(ctx, 0, reachLimit)
}

// within waits until the side is no more than most records behind.
func (w *swapping) within(ctx context.Context, most int64, limit time.Duration) error {
	for end := time.Now().Add(limit); ; {
		var behind int64
		if err := w.conn.GetContext(ctx, &behind, `
SELECT coalesce(sum(greatest(a.next_offset - b.next_offset, 0)), 0)::bigint
FROM public.projection_progress a JOIN `+w.side.Schema+`.projection_progress b ON b.topic = a.topic AND b.partition = a.partition`); err != nil {
			return fmt.Errorf("see how far the side is: %w", err)
		}
		if behind <= most {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("%w: generation %d is %d records behind the one that serves after %s", errNotYet, w.side.Number, behind, limit)
		}
		if err := sleep(ctx, 5*time.Millisecond); err != nil {
			return err
		}
	}
}

// move is (c), in two messages: what is checked, and then everything else, so that no time passes between
// the locks and the commit but the server's own.
func (w *swapping) move(ctx context.Context) error {
	if _, err := w.conn.ExecContext(ctx, `BEGIN`); err != nil {
		return fmt.Errorf("begin: %w", err)
	}
	var states []struct {
		Generation int
		State      State
		Epoch      int64
	}
	err := w.conn.SelectContext(ctx, &states, `SELECT generation, state, epoch FROM public.generations ORDER BY generation FOR UPDATE`)
	if err != nil {
		return fmt.Errorf("look at the states again: %w", err)
	}
	stands, there := false, false
	for _, g := range states {
		stands = stands || g.Generation == w.serving.Number && g.State == Swapping && g.Epoch == w.mark
		there = there || g.Generation == w.side.Number && g.State == w.side.State
	}
	if !stands || !there {
		return errGone
	}
	_, err = w.conn.ExecContext(ctx, w.script())
	if state := postgres.State(err); state == "55P03" || state == "57014" || state == "40P01" {
		return fmt.Errorf("%w: a transaction holds the tables (%w)", errNotYet, err)
	}
	if err != nil {
		return fmt.Errorf("move the tables: %w", err)
	}
	return nil
}

// script is the rest of (c). It waits for all locks together no longer than lockLimit.
func (w *swapping) script() string {
	var out, in []string
	away := projection.SideSchema(w.serving.Number)
	for _, t := range w.tables {
		out = append(out, fmt.Sprintf("ALTER TABLE public.%s SET SCHEMA %s;", t, away))
		in = append(in, fmt.Sprintf("ALTER TABLE %s.%s SET SCHEMA public;", w.side.Schema, t))
	}
	return fmt.Sprintf(`
SET LOCAL statement_timeout = %[1]d;
LOCK TABLE %[2]s IN ACCESS EXCLUSIVE MODE;
SET LOCAL statement_timeout = 0;
UPDATE %[6]s.projection_progress b
SET log_end = greatest(a.log_end, b.log_end), log_end_at = greatest(a.log_end_at, b.log_end_at), caught_up_at = greatest(a.caught_up_at, b.caught_up_at)
FROM public.projection_progress a WHERE a.topic = b.topic AND a.partition = b.partition AND b.next_offset >= a.next_offset;
CREATE SCHEMA IF NOT EXISTS %[3]s;
%[4]s
%[5]s
WITH old AS (SELECT group_name, cluster_id FROM public.generations WHERE generation = %[7]d)
UPDATE public.generations g SET group_name = old.group_name, cluster_id = coalesce(g.cluster_id, old.cluster_id) FROM old WHERE g.generation = %[8]d;
UPDATE public.generations SET state = 'dropping' WHERE generation = %[8]d;
UPDATE public.generations SET state = 'standby', state_since = clock_timestamp(), swapping_since = NULL, group_name = NULL,
	schema_name = '%[3]s', epoch = nextval('public.projection_epochs'), swap_wanted = false, proof_wanted = false, rate_limit = NULL
WHERE generation = %[7]d;
UPDATE public.generations SET state = 'serving', state_since = clock_timestamp(), schema_name = 'public',
	epoch = nextval('public.projection_epochs'), swap_wanted = false, proof_wanted = false, rate_limit = NULL
WHERE generation = %[8]d;
UPDATE public.projection_progress SET epoch = (SELECT epoch FROM public.generations WHERE generation = %[8]d);
UPDATE %[3]s.projection_progress SET epoch = (SELECT epoch FROM public.generations WHERE generation = %[7]d);
DELETE FROM public.generation_lanes WHERE generation = %[8]d;
DELETE FROM public.generation_progress WHERE generation IN (%[7]d, %[8]d);
COMMIT`, lockLimit.Milliseconds(), strings.Join(w.moved(), ", "), away, strings.Join(out, "\n"), strings.Join(in, "\n"), w.side.Schema,
		w.serving.Number, w.side.Number)
}

// unfence takes the mark back: the writers go on under the epoch that they were fenced with.
func (w *swapping) unfence(ctx context.Context) error {
	// The swap may have been cut short because ctx ended; the writers must not wait for that.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	_, _ = w.conn.ExecContext(ctx, `ROLLBACK`) // where the connection is gone, so is the transaction
	return w.takeBack(ctx, w.serving.Number, w.mark)
}

// takeBack ends the mark that bears this epoch, and no other.
func (s *Service) takeBack(ctx context.Context, number int, mark int64) error {
	if _, err := s.DB.ExecContext(ctx, `
UPDATE public.generations SET state = 'serving', swapping_since = NULL WHERE generation = $1 AND state = 'swapping' AND epoch = $2`, number, mark); err != nil {
		return fmt.Errorf("take the mark back: %w", err)
	}
	return nil
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

package generation

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/tidemark/tidemark/consumer-service/internal/projection"
	"github.com/tidemark/tidemark/shared/loop"
	"github.com/tidemark/tidemark/shared/postgres"
	"github.com/tidemark/tidemark/shared/schema"
)

const (
	// reachLimit is how long the writers wait for the candidate to reach what they have written.
	reachLimit = time.Second
	// lockLimit is how long a reader may wait behind the swap that waits for another reader.
	lockLimit = 500 * time.Millisecond
	// vacuumLimit is how long a swap waits for a vacuum to give way, before anybody else has to wait for anything.
	vacuumLimit = 5 * time.Second
)

var (
	// errNotYet says that a step is not possible now and will be.
	errNotYet = errors.New("not yet")
	// errStatesChanged says that the states are no longer those that the step began with.
	errStatesChanged = errors.New("the generations' states have changed")
)

// swapping is one swap under way.
type swapping struct {
	*Service
	conn      *sqlx.Conn // of its own: its locks and limits end with it
	serving   Generation
	candidate Generation
	newLog    bool  // the candidate is filled from another topic: offsets of the two mean different records
	mark      int64 // the epoch that the serving generation was marked with
}

// swap puts g in the place of the serving generation, or leaves everything as it was and says why. Where g replaces another
// log, nothing is compared with the serving generation's progress or taken over from it, and that one is held afterwards.
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
	newLog, err := s.replacesLog(ctx, g)
	if err != nil {
		return err
	}
	w := &swapping{Service: s, conn: conn, candidate: g, newLog: newLog}
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
	if err := w.awaitNearlyCaughtUp(ctx); err != nil {
		return err
	}
	if err := w.fence(ctx); err != nil {
		return err
	}
	start := time.Now()
	err = w.awaitCaughtUp(ctx)
	if err == nil {
		err = w.move(ctx)
	}
	if err == nil {
		s.Logger.Info("generations are swapped", "projection", s.name(), "generation", g.Number, "was", w.serving.Number, "writers_waited_ms", time.Since(start).Milliseconds())
		s.Metrics.swaps.WithLabelValues(s.name(), "done").Inc()
		return nil
	}
	s.Metrics.swaps.WithLabelValues(s.name(), "given_up").Inc()
	if back := w.unfence(ctx); back != nil {
		return errors.Join(err, back)
	}
	return err
}

// awaitAudit keeps audits out until the swap is over: one reads every row under the locks of a reader.
func (w *swapping) awaitAudit(ctx context.Context) error {
	for end := time.Now().Add(10 * time.Second); ; {
		var got bool
		if err := w.conn.GetContext(ctx, &got, `SELECT pg_try_advisory_lock(hashtextextended($1, 0))`, projection.AuditLock(w.name())); err != nil {
			return fmt.Errorf("keep audits out: %w", err)
		}
		if got {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("%w: an audit is running", errNotYet)
		}
		if err := loop.Sleep(ctx, 50*time.Millisecond); err != nil {
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

// moved names all tables that change their schema, in the order of their locks. Days do not: whoever reads or vacuums one
// of them holds nobody up.
func (w *swapping) moved() []string {
	return append(w.locks(w.Service.serving()), w.locks(w.candidate.Schema)...)
}

// locks names the tables of a generation as LOCK TABLE takes them, without the days of one that is partitioned.
func (s *Service) locks(in string) []string {
	var out []string
	for _, t := range s.Definition.All() {
		out = append(out, "ONLY "+postgres.Qualified(in, t))
	}
	return out
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
			case g.Number == w.candidate.Number && (g.State == Ready || g.State == Standby) && g.SwapWanted:
				w.candidate = g
			case g.Number == w.candidate.Number:
				return errStatesChanged
			}
		}
		if w.serving.Schema == "" || w.newLog != otherTopic(w.serving, w.candidate) {
			return errStatesChanged
		}
		if err := tx.GetContext(ctx, &w.mark, w.in(`
UPDATE public.projection_generations SET state = 'swapping', swapping_since = clock_timestamp(), epoch = public.next_projection_epoch()
WHERE projection = {projection} AND generation = $1 RETURNING epoch`), w.serving.Number); err != nil {
			return fmt.Errorf("mark the serving generation: %w", err)
		}
		for _, statement := range []string{
			w.in(`SELECT FROM {serving}.projection_progress ORDER BY topic, partition FOR UPDATE`),
			fmt.Sprintf(w.in(`UPDATE {serving}.projection_progress SET epoch = %d`), w.mark),
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

// nearly is how many records the candidate may be behind when the writers are fenced: some moments' work.
const nearly = 1000

// awaitNearlyCaughtUp waits until it is worth while to make the writers wait: a worker that has just begun, or is held to a
// rate, would let them wait in vain.
func (w *swapping) awaitNearlyCaughtUp(ctx context.Context) error {
	return w.awaitBehind(ctx, nearly, 5*time.Second)
}

// awaitCaughtUp is (b).
func (w *swapping) awaitCaughtUp(ctx context.Context) error {
	return w.awaitBehind(ctx, 0, reachLimit)
}

// awaitBehind waits until the candidate is no more than most records behind.
func (w *swapping) awaitBehind(ctx context.Context, most int64, limit time.Duration) error {
	if w.newLog {
		return nil
	}
	for end := time.Now().Add(limit); ; {
		var behind int64
		if err := w.conn.GetContext(ctx, &behind, `
SELECT coalesce(sum(greatest(a.next_offset - b.next_offset, 0)), 0)::bigint
FROM `+postgres.Qualified(w.Service.serving(), schema.Progress)+` a JOIN `+postgres.Qualified(w.candidate.Schema, schema.Progress)+` b ON b.topic = a.topic AND b.partition = a.partition`); err != nil {
			return fmt.Errorf("see how far the candidate is: %w", err)
		}
		if behind <= most {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("%w: generation %d is %d records behind the one that serves after %s", errNotYet, w.candidate.Number, behind, limit)
		}
		if err := loop.Sleep(ctx, 5*time.Millisecond); err != nil {
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
	err := w.conn.SelectContext(ctx, &states, w.in(`
SELECT generation, state, epoch FROM public.projection_generations WHERE projection = {projection} ORDER BY generation FOR UPDATE`))
	if err != nil {
		return fmt.Errorf("look at the states again: %w", err)
	}
	stands, there := false, false
	for _, g := range states {
		stands = stands || g.Generation == w.serving.Number && g.State == Swapping && g.Epoch == w.mark
		there = there || g.Generation == w.candidate.Number && g.State == w.candidate.State
	}
	if !stands || !there {
		return errStatesChanged
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

// mergeWatermarks lets the candidate know what the serving generation knew of the log they have in common.
const mergeWatermarks = `
UPDATE {candidate}.projection_progress b
SET log_end = greatest(a.log_end, b.log_end), log_end_at = greatest(a.log_end_at, b.log_end_at), caught_up_at = greatest(a.caught_up_at, b.caught_up_at)
FROM {serving}.projection_progress a WHERE a.topic = b.topic AND a.partition = b.partition AND b.next_offset >= a.next_offset;`

// script is the rest of (c). It waits for all locks together no longer than lockLimit.
func (w *swapping) script() string {
	var moves, views []string
	away := w.schemaOf(w.serving.Number)
	for _, t := range w.Definition.All() {
		moves = append(moves, fmt.Sprintf("ALTER TABLE %s SET SCHEMA %s;", postgres.Qualified(w.Service.serving(), t), postgres.Quoted(away)))
	}
	for _, t := range w.Definition.All() {
		moves = append(moves, fmt.Sprintf("ALTER TABLE %s SET SCHEMA %s;", postgres.Qualified(w.candidate.Schema, t), postgres.Quoted(w.Service.serving())))
	}
	old, merged := Standby, w.in(mergeWatermarks)
	if w.newLog {
		old, merged = Held, ""
	}
	for _, v := range w.Definition.Views {
		views = append(views, v.Statement(w.Service.serving()))
	}
	return strings.NewReplacer(
		"{merge watermarks}", strings.ReplaceAll(merged, "{candidate}", postgres.Quoted(w.candidate.Schema)), "{old state}", string(old),
		"{limit}", fmt.Sprint(lockLimit.Milliseconds()), "{moved}", strings.Join(w.moved(), ", "), "{away}", postgres.Quoted(away),
		"{away name}", away, "{comment}", projection.SchemaComment(w.Definition), "{moves}", strings.Join(moves, "\n"), "{views}", strings.Join(views, "\n"),
		"{projection}", "'"+w.name()+"'", "{serving}", postgres.Quoted(w.Service.serving()), "{serving name}", w.Service.serving(),
		"{candidate}", postgres.Quoted(w.candidate.Schema), "{old}", fmt.Sprint(w.serving.Number), "{new}", fmt.Sprint(w.candidate.Number),
	).Replace(`
SET LOCAL statement_timeout = {limit};
LOCK TABLE {moved} IN ACCESS EXCLUSIVE MODE;
SET LOCAL statement_timeout = 0;
{merge watermarks}
CREATE SCHEMA IF NOT EXISTS {away};
COMMENT ON SCHEMA {away} IS '{comment}';
{moves}
{views}
WITH old AS (SELECT group_name, cluster_id FROM public.projection_generations WHERE projection = {projection} AND generation = {old})
UPDATE public.projection_generations g SET group_name = old.group_name, cluster_id = coalesce(g.cluster_id, old.cluster_id) FROM old
WHERE g.projection = {projection} AND g.generation = {new};
UPDATE public.projection_generations SET state = 'dropping' WHERE projection = {projection} AND generation = {new};
UPDATE public.projection_generations SET state = '{old state}', state_since = clock_timestamp(), swapping_since = NULL, group_name = NULL,
	schema_name = '{away name}', epoch = public.next_projection_epoch(), swap_wanted = false, proof_wanted = false, rate_limit = NULL
WHERE projection = {projection} AND generation = {old};
UPDATE public.projection_generations SET state = 'serving', state_since = clock_timestamp(), schema_name = '{serving name}',
	epoch = public.next_projection_epoch(), swap_wanted = false, proof_wanted = false, rate_limit = NULL
WHERE projection = {projection} AND generation = {new};
UPDATE {serving}.projection_progress SET epoch = (SELECT epoch FROM public.projection_generations WHERE projection = {projection} AND generation = {new});
UPDATE {away}.projection_progress SET epoch = (SELECT epoch FROM public.projection_generations WHERE projection = {projection} AND generation = {old});
DELETE FROM public.generation_workers WHERE projection = {projection} AND generation = {new};
DELETE FROM public.generation_progress WHERE projection = {projection} AND generation IN ({old}, {new});
COMMIT`)
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
	if _, err := s.DB.ExecContext(ctx, s.in(`
UPDATE public.projection_generations SET state = 'serving', swapping_since = NULL
WHERE projection = {projection} AND generation = $1 AND state = 'swapping' AND epoch = $2`), number, mark); err != nil {
		return fmt.Errorf("take the mark back: %w", err)
	}
	return nil
}

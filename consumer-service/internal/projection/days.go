package projection

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/tidemark/tidemark/shared/postgres"
	"github.com/tidemark/tidemark/shared/schema"
)

// A main table that is partitioned by day has a table for each UTC day that has rows. The days of a generation stand in
// the schema <projection>_g<number>, whether it serves or not, and never move: a swap moves the parents. A day is made by
// the first writer that needs it, as a table of its own that is then attached, which holds up no reader. It is dropped
// once no partition can still be given a record that belongs to it.

// dayCache remembers which days a generation has, in one epoch of it.
type dayCache struct {
	mu    sync.Mutex
	epoch int64
	known map[string]bool
}

// missing returns those of days that are not known to be there in epoch.
func (c *dayCache) missing(epoch int64, days []string) []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.epoch != epoch {
		return days
	}
	return slices.DeleteFunc(slices.Clone(days), func(d string) bool { return c.known[d] })
}

func (c *dayCache) made(epoch int64, days []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.epoch != epoch {
		c.epoch, c.known = epoch, map[string]bool{}
	}
	for _, d := range days {
		c.known[d] = true
	}
}

func (c *dayCache) forget() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.epoch, c.known = 0, nil
}

const dayForm = "20060102"

// days are those of the rows, in their order.
func (b *batch) days() []string {
	seen := map[string]bool{}
	for _, i := range b.placed {
		seen[b.rows.KeyTime(i).UTC().Format(dayForm)] = true
	}
	days := make([]string, 0, len(seen))
	for d := range seen {
		days = append(days, d)
	}
	slices.Sort(days)
	return days
}

// ensureDays makes the tables of the batch's days where they are missing.
func (s store) ensureDays(ctx context.Context, epoch int64, b batch) error {
	if s.def.Main.Spec().Day == "" {
		return nil
	}
	missing := s.days.missing(epoch, b.days())
	if len(missing) == 0 {
		return nil
	}
	err := postgres.Tx(ctx, s.db, func(tx *sqlx.Tx) error {
		g, err := s.ownGeneration(ctx, tx, epoch)
		if err != nil {
			return err
		}
		in := schema.Candidate(s.def.Name, g.Number)
		// One at a time: two writers that make the same day would wait for each other and then fail.
		if _, err := tx.ExecContext(ctx, `SELECT pg_advisory_xact_lock(hashtextextended($1, 0))`, "tidemark days "+in); err != nil {
			return fmt.Errorf("wait for whoever makes days: %w", err)
		}
		if err := EnsureSchema(ctx, tx, s.def, g.Number); err != nil {
			return err
		}
		attached, err := s.attachedDays(ctx, tx)
		if err != nil {
			return err
		}
		for _, day := range missing {
			if slices.Contains(attached, day) {
				continue
			}
			if err := s.makeDay(ctx, tx, in, day); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	s.days.made(epoch, missing)
	return nil
}

// ownGeneration holds the generation's row as it is, or says that the epoch is over.
func (s store) ownGeneration(ctx context.Context, tx *sqlx.Tx, epoch int64) (generation, error) {
	var g generation
	if err := tx.GetContext(ctx, &g, s.in(selectGeneration+` FOR SHARE OF g`)); err != nil {
		return g, fmt.Errorf("hold the generation: %w", err)
	}
	if g.Epoch != epoch {
		return g, errFenced
	}
	return g, nil
}

func (s store) dayTable(day string) string { return s.def.Main.Spec().Name + "_" + day }

func (s store) makeDay(ctx context.Context, tx *sqlx.Tx, in, day string) error {
	start, err := time.Parse(dayForm, day)
	if err != nil {
		return fmt.Errorf("read the day %s: %w", day, err)
	}
	name := postgres.Qualified(in, s.dayTable(day))
	for _, statement := range []string{
		fmt.Sprintf(s.in(`CREATE TABLE %s (LIKE {main} INCLUDING DEFAULTS INCLUDING CONSTRAINTS)`), name),
		fmt.Sprintf(s.in(`ALTER TABLE {main} ATTACH PARTITION %s FOR VALUES FROM ('%s') TO ('%s')`), name,
			start.Format(time.RFC3339), start.AddDate(0, 0, 1).Format(time.RFC3339)),
	} {
		if _, err := tx.ExecContext(ctx, statement); err != nil {
			return fmt.Errorf("make the table of day %s: %w", day, err)
		}
	}
	return nil
}

// attachedDays are the days that the generation's main table has.
func (s store) attachedDays(ctx context.Context, q querier) ([]string, error) {
	return AttachedDays(ctx, q, s.def, s.schema)
}

// AttachedDays are the days that the main table in schema has, in their order.
func AttachedDays(ctx context.Context, q querier, def *Definition, in string) ([]string, error) {
	spec := def.Main.Spec()
	var names []string
	if err := q.SelectContext(ctx, &names, `
SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
WHERE i.inhparent = to_regclass($1) ORDER BY c.relname`, postgres.Qualified(in, spec.Name)); err != nil {
		return nil, fmt.Errorf("look for the days of %s: %w", spec.Name, err)
	}
	var days []string
	for _, n := range names {
		if day, ok := strings.CutPrefix(n, spec.Name+"_"); ok {
			days = append(days, day)
		}
	}
	return days, nil
}

// dropDays drops each day that no partition can still be given a record of, and books its rows as dropped, in one
// transaction a day. It reports how many went.
func (s store) dropDays(ctx context.Context, epoch int64) (dropped int, err error) {
	if s.def.Retention == 0 {
		return 0, nil
	}
	days, err := s.attachedDays(ctx, s.db)
	if err != nil {
		return 0, err
	}
	for _, day := range days {
		gone, err := s.dropDay(ctx, epoch, day)
		if err != nil || !gone {
			return dropped, err // later days are not older
		}
		dropped++
	}
	return dropped, nil
}

func (s store) dropDay(ctx context.Context, epoch int64, day string) (gone bool, err error) {
	start, err := time.Parse(dayForm, day)
	if err != nil {
		return false, nil //nolint:nilerr // somebody else's table
	}
	passed := start.AddDate(0, 0, 2).Add(s.def.Retention)
	err = postgres.Tx(ctx, s.db, func(tx *sqlx.Tx) error {
		g, err := s.ownGeneration(ctx, tx, epoch)
		if err != nil {
			return err
		}
		if ready, err := s.allPassed(ctx, tx, epoch, passed, ""); err != nil || !ready {
			return err
		}
		// The rows are counted before anybody is made to wait: none is added any more.
		table := postgres.Qualified(schema.Candidate(s.def.Name, g.Number), s.dayTable(day))
		var rows []struct{ Partition, N int64 }
		if err := tx.SelectContext(ctx, &rows, `SELECT partition, count(*) AS n FROM `+table+` GROUP BY partition ORDER BY partition`); err != nil {
			return fmt.Errorf("count the rows of day %s: %w", day, err)
		}
		// The table is locked before the progress rows, as everywhere: a writer that waits for its progress row has the table.
		if _, err := tx.ExecContext(ctx, s.in(`SET LOCAL lock_timeout = '1s'; LOCK TABLE ONLY {main} IN ACCESS EXCLUSIVE MODE`)); err != nil {
			return fmt.Errorf("lock the table of day %s: %w", day, err)
		}
		if ready, err := s.allPassed(ctx, tx, epoch, passed, "FOR UPDATE"); err != nil || !ready {
			return err
		}
		for _, r := range rows {
			if _, err := tx.ExecContext(ctx, s.in(`
UPDATE {g}.projection_progress SET dropped = dropped + $3 WHERE topic = $1 AND partition = $2`), s.def.Topic.Name, r.Partition, r.N); err != nil {
				return fmt.Errorf("book the rows of day %s: %w", day, err)
			}
		}
		if _, err := tx.ExecContext(ctx, `DROP TABLE `+table); err != nil {
			return fmt.Errorf("drop day %s: %w", day, err)
		}
		gone = true
		return nil
	})
	return gone && err == nil, err
}

// allPassed reports whether every partition has passed a log time, its progress read in the order of partitions.
func (s store) allPassed(ctx context.Context, tx *sqlx.Tx, epoch int64, at time.Time, lock string) (bool, error) {
	var rows []struct {
		Epoch   int64
		Reached *time.Time
	}
	if err := tx.SelectContext(ctx, &rows, s.in(`
SELECT epoch, greatest(last_created_at, caught_up_at) AS reached
FROM {g}.projection_progress WHERE topic = $1 ORDER BY partition `+lock), s.def.Topic.Name); err != nil {
		return false, fmt.Errorf("read the progress: %w", err)
	}
	for _, r := range rows {
		if r.Epoch != epoch {
			return false, errFenced
		}
		if r.Reached == nil || r.Reached.Before(at) {
			return false, nil
		}
	}
	return true, nil
}

// SchemaComment is the comment that marks a schema as a generation's own.
func SchemaComment(def *Definition) string { return "Tidemark: a generation of " + def.Name }

// EnsureSchema makes that schema, or refuses one that is there and is not Tidemark's.
func EnsureSchema(ctx context.Context, tx *sqlx.Tx, def *Definition, generation int) error {
	name := schema.Candidate(def.Name, generation)
	// The table itself is asked: to_regnamespace may answer from a cache that does not know what another session has just made.
	var found []*string
	if err := tx.SelectContext(ctx, &found, `
SELECT obj_description(oid, 'pg_namespace') FROM pg_namespace WHERE nspname = $1`, name); err != nil {
		return fmt.Errorf("look for the schema %s: %w", name, err)
	}
	if len(found) > 0 {
		if comment := found[0]; comment == nil || *comment != SchemaComment(def) {
			return refuse("the schema %s is there and is not Tidemark's: rename or drop it", name)
		}
		return nil
	}
	if _, err := tx.ExecContext(ctx, fmt.Sprintf(`CREATE SCHEMA %[1]s; COMMENT ON SCHEMA %[1]s IS '%[2]s'`, postgres.Quoted(name), SchemaComment(def))); err != nil {
		return fmt.Errorf("make the schema %s: %w", name, err)
	}
	return nil
}

package rebuild

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"

	"github.com/tidemark/tidemark/consumer-service/internal/projection"
	"github.com/tidemark/tidemark/shared/kafka"
	"github.com/tidemark/tidemark/shared/postgres"
)

// Moved are the tables of a generation, in the order in which they are locked. Those that this schema
// version does not have are passed over.
var Moved = []string{"projection_progress", "timestamp_records", "dead_letters", "projection_audits", "receipt_outbox"}

// tables are those of Moved that are there.
func (s *Service) tables(ctx context.Context, q querier) ([]string, error) {
	var found []string
	if err := q.SelectContext(ctx, &found, `
SELECT m.name FROM unnest($1::text[]) WITH ORDINALITY AS m (name, n)
WHERE to_regclass('public.' || m.name) IS NOT NULL ORDER BY m.n`, list(Moved)); err != nil {
		return nil, fmt.Errorf("look for the tables: %w", err)
	}
	return found, nil
}

// list prints names as an array of text.
func list(names []string) string { return "{" + strings.Join(names, ",") + "}" }

// makeTables gives a generation its schema, its tables, with primary keys and rights as those in public,
// and a progress row for each partition.
func (s *Service) makeTables(ctx context.Context, tx *sqlx.Tx, number int) error {
	tables, err := s.tables(ctx, tx)
	if err != nil {
		return err
	}
	schema := projection.SideSchema(number)
	statements := []string{`CREATE SCHEMA ` + schema}
	for _, t := range tables {
		statements = append(statements, fmt.Sprintf(`CREATE TABLE %s.%s (LIKE public.%s INCLUDING ALL EXCLUDING INDEXES)`, schema, t, t))
		var more []string
		// Keys from the start: a fill checks them, too. Everything else that is an index comes after the bulk.
		if err := tx.SelectContext(ctx, &more, `
SELECT format('ALTER TABLE %s.%I ADD CONSTRAINT %I %s', $2::text, $1::text, c.conname, pg_get_constraintdef(c.oid))
FROM pg_constraint c WHERE c.conrelid = ('public.' || $1)::regclass AND c.contype = 'p'
UNION ALL
SELECT format('ALTER TABLE %s.%I SET (%s)', $2::text, $1::text, array_to_string(r.reloptions, ', '))
FROM pg_class r WHERE r.oid = ('public.' || $1)::regclass AND r.reloptions IS NOT NULL
UNION ALL
SELECT format('GRANT %s ON %s.%I TO %s%s', a.privilege_type, $2::text, $1::text,
	CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END, CASE WHEN a.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END)
FROM pg_class r CROSS JOIN aclexplode(r.relacl) a WHERE r.oid = ('public.' || $1)::regclass AND a.grantee <> r.relowner`, t, schema); err != nil {
			return fmt.Errorf("read what public.%s is like: %w", t, err)
		}
		statements = append(statements, more...)
	}
	for _, statement := range statements {
		if _, err := tx.ExecContext(ctx, statement); err != nil {
			return fmt.Errorf("make the tables of generation %d: %w", number, err)
		}
	}
	partitions, starts := postgres.Int8s(s.Partitions), postgres.Int8s(s.Partitions)
	for p := range s.Partitions {
		partitions.Int8(int64(p))
		starts.Int8(s.AcceptLogStart[int32(p)])
	}
	if _, err := tx.ExecContext(ctx, `
INSERT INTO `+schema+`.projection_progress (topic, partition, epoch, first_offset, next_offset)
SELECT $1, n.partition, g.epoch, n.start, n.start
FROM unnest($2::bigint[], $3::bigint[]) AS n (partition, start), public.generations g WHERE g.generation = $4`,
		s.Topic, partitions.Bytes(), starts.Bytes(), number); err != nil {
		return fmt.Errorf("give each partition its progress: %w", err)
	}
	return nil
}

// unbound refuses where something points at a moved table: after a swap it would point at the old one.
func (s *Service) unbound(ctx context.Context, tx *sqlx.Tx) error {
	var bound []string
	if err := tx.SelectContext(ctx, &bound, `
SELECT DISTINCT format('%s %s', CASE v.relkind WHEN 'm' THEN 'materialized view' ELSE 'view' END, v.oid::regclass)
FROM unnest($1::text[]) AS m (name) JOIN pg_depend d ON d.refclassid = 'pg_class'::regclass AND d.refobjid = to_regclass('public.' || m.name)
	JOIN pg_rewrite w ON d.classid = 'pg_rewrite'::regclass AND w.oid = d.objid JOIN pg_class v ON v.oid = w.ev_class AND v.relkind IN ('v', 'm')
UNION
SELECT format('foreign key %s of %s', c.conname, c.conrelid::regclass)
FROM unnest($1::text[]) AS m (name) JOIN pg_constraint c ON c.contype = 'f' AND c.confrelid = to_regclass('public.' || m.name)
ORDER BY 1`, list(Moved)); err != nil {
		return fmt.Errorf("look for views on the tables: %w", err)
	}
	if len(bound) > 0 {
		return conflict("%s would stay with the old tables in a swap: drop it first and make it anew afterwards", strings.Join(bound, ", "))
	}
	return nil
}

// index makes the indexes that public's tables have and the side's do not. One that a killed try left
// half made is dropped first.
func (s *Service) index(ctx context.Context, g Generation) error {
	var invalid []string
	if err := s.Long.SelectContext(ctx, &invalid, `
SELECT format('DROP INDEX CONCURRENTLY %s', i.indexrelid::regclass)
FROM pg_index i JOIN pg_class t ON t.oid = i.indrelid WHERE t.relnamespace = to_regnamespace($1) AND NOT i.indisvalid`, g.Schema); err != nil {
		return fmt.Errorf("look for half made indexes: %w", err)
	}
	var missing []string
	if err := s.Long.SelectContext(ctx, &missing, `
SELECT regexp_replace(regexp_replace(pg_get_indexdef(i.indexrelid), '^CREATE (UNIQUE )?INDEX ', 'CREATE \1INDEX CONCURRENTLY '),
	' ON (ONLY )?public\.', format(' ON %s.', $1::text))
FROM pg_index i JOIN pg_class t ON t.oid = i.indrelid JOIN pg_class x ON x.oid = i.indexrelid
WHERE t.relnamespace = 'public'::regnamespace AND t.relname = ANY ($2::text[]) AND NOT i.indisprimary AND i.indisvalid
	AND NOT EXISTS (SELECT FROM pg_index o JOIN pg_class y ON y.oid = o.indexrelid
		WHERE y.relnamespace = to_regnamespace($1) AND y.relname = x.relname AND o.indisvalid)
ORDER BY x.relname`, g.Schema, list(Moved)); err != nil {
		return fmt.Errorf("look for missing indexes: %w", err)
	}
	for _, statement := range append(invalid, missing...) {
		s.Logger.Info("an index is made anew", "generation", g.Number, "statement", statement)
		if _, err := s.Long.ExecContext(ctx, statement); err != nil {
			return fmt.Errorf("%s: %w", statement, err)
		}
	}
	for _, t := range []string{"timestamp_records", "dead_letters"} {
		if _, err := s.Long.ExecContext(ctx, `ANALYZE `+g.Schema+`.`+t); err != nil {
			return fmt.Errorf("analyze %s.%s: %w", g.Schema, t, err)
		}
	}
	return nil
}

// drop removes a generation: its tables, its consumer group, its row.
func (s *Service) drop(ctx context.Context, g Generation) error {
	if err := s.dropTables(ctx, g.Number); err != nil {
		return err
	}
	if err := s.Log.DeleteGroup(ctx, SideGroup(s.Group, g.Number)); err != nil {
		if errors.Is(err, kafka.ErrGroupInUse) {
			return errNotYet // the lanes are on their way out
		}
		return err
	}
	if _, err := s.DB.ExecContext(ctx, `DELETE FROM public.generations WHERE generation = $1 AND state = 'dropping'`, g.Number); err != nil {
		return fmt.Errorf("forget generation %d: %w", g.Number, err)
	}
	s.Logger.Info("a generation is gone", "generation", g.Number)
	return nil
}

// tidyUp removes what a generation that serves has left at the side: an empty schema and a consumer group.
func (s *Service) tidyUp(ctx context.Context, g Generation) error {
	if s.tidy[g.Number] {
		return nil
	}
	if err := s.Log.DeleteGroup(ctx, SideGroup(s.Group, g.Number)); errors.Is(err, kafka.ErrGroupInUse) {
		return errNotYet
	} else if err != nil {
		return err
	}
	var empty bool
	if err := s.DB.GetContext(ctx, &empty, `
SELECT to_regnamespace($1) IS NOT NULL AND NOT EXISTS (SELECT FROM pg_class WHERE relnamespace = to_regnamespace($1))`, projection.SideSchema(g.Number)); err != nil {
		return fmt.Errorf("look for the schema that was left: %w", err)
	}
	if empty {
		if _, err := s.DB.ExecContext(ctx, `DROP SCHEMA `+projection.SideSchema(g.Number)); err != nil {
			return fmt.Errorf("drop the schema that was left: %w", err)
		}
	}
	// What was noted at the very moment of the swap.
	for _, table := range []string{"generation_lanes", "generation_progress"} {
		if _, err := s.DB.ExecContext(ctx, `DELETE FROM public.`+table+` WHERE generation = $1`, g.Number); err != nil {
			return fmt.Errorf("forget what was noted of generation %d: %w", g.Number, err)
		}
	}
	s.tidy[g.Number] = true
	return nil
}

// dropTables removes the schema of a generation. Writers that are at it end first, and find it gone.
func (s *Service) dropTables(ctx context.Context, number int) error {
	schema := projection.SideSchema(number)
	return postgres.Tx(ctx, s.Long, func(tx *sqlx.Tx) error {
		var there []string
		if err := tx.SelectContext(ctx, &there, `
SELECT $1 || '.' || m.name FROM unnest($2::text[]) WITH ORDINALITY AS m (name, n)
WHERE to_regclass($1 || '.' || m.name) IS NOT NULL ORDER BY m.n`, schema, list(Moved)); err != nil {
			return fmt.Errorf("look for the tables of generation %d: %w", number, err)
		}
		statements := []string{`SET LOCAL lock_timeout = '5s'`}
		if len(there) > 0 {
			statements = append(statements, `LOCK TABLE `+strings.Join(there, ", ")+` IN ACCESS EXCLUSIVE MODE`)
		}
		for _, statement := range append(statements, `DROP SCHEMA IF EXISTS `+schema+` CASCADE`) {
			if _, err := tx.ExecContext(ctx, statement); err != nil {
				return fmt.Errorf("drop the tables of generation %d: %w", number, err)
			}
		}
		return nil
	})
}

// quoted prints a name as Postgres wants it.
func quoted(name string) string { return pq.QuoteIdentifier(name) }

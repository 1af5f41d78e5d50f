package generation

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"strings"

	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"

	"github.com/tidemark/tidemark/consumer-service/internal/projection"
	"github.com/tidemark/tidemark/shared/kafka"
	"github.com/tidemark/tidemark/shared/postgres"
	"github.com/tidemark/tidemark/shared/schema"
)

// makeTables gives a generation its schema, its tables, with primary keys and rights as those that serve, and a progress
// row for each partition, where its log starts.
func (s *Service) makeTables(ctx context.Context, tx *sqlx.Tx, number int, starts map[int32]int64) error {
	in := s.schemaOf(number)
	if err := projection.EnsureSchema(ctx, tx, s.Definition, number); err != nil {
		var refusal *projection.Refusal
		if errors.As(err, &refusal) {
			return conflict("%s", refusal.Reason)
		}
		return err
	}
	var statements []string
	for _, t := range s.Definition.All() {
		statement := fmt.Sprintf(`CREATE TABLE %s (LIKE %s INCLUDING ALL EXCLUDING INDEXES)`, postgres.Qualified(in, t), postgres.Qualified(s.serving(), t))
		if main := s.Definition.Main.Spec(); t == main.Name && main.Day != "" {
			statement += fmt.Sprintf(` PARTITION BY RANGE (%s)`, postgres.Quoted(main.Day))
		}
		statements = append(statements, statement)
		var more []string
		// Keys from the start: a fill checks them, too. Everything else that is an index comes after the bulk.
		if err := tx.SelectContext(ctx, &more, `
SELECT format('ALTER TABLE %I.%I ADD CONSTRAINT %I %s', $2::text, $1::text, c.conname, pg_get_constraintdef(c.oid))
FROM pg_constraint c WHERE c.conrelid = $3::regclass AND c.contype = 'p'
UNION ALL
SELECT format('ALTER TABLE %I.%I SET (%s)', $2::text, $1::text, array_to_string(r.reloptions, ', '))
FROM pg_class r WHERE r.oid = $3::regclass AND r.reloptions IS NOT NULL
UNION ALL
SELECT format('GRANT %s ON %I.%I TO %s%s', a.privilege_type, $2::text, $1::text,
	CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END, CASE WHEN a.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END)
FROM pg_class r CROSS JOIN aclexplode(r.relacl) a WHERE r.oid = $3::regclass AND a.grantee <> r.relowner`, t, in, postgres.Qualified(s.serving(), t)); err != nil {
			return fmt.Errorf("read what %s is like: %w", t, err)
		}
		statements = append(statements, more...)
	}
	for _, statement := range statements {
		if _, err := tx.ExecContext(ctx, statement); err != nil {
			return fmt.Errorf("make the tables of generation %d: %w", number, err)
		}
	}
	return s.makeProgress(ctx, tx, number, starts)
}

func (s *Service) makeProgress(ctx context.Context, tx *sqlx.Tx, number int, first map[int32]int64) error {
	partitions, starts := postgres.Int8s(s.partitionCount()), postgres.Int8s(s.partitionCount())
	for p := range s.partitionCount() {
		partitions.Int8(int64(p))
		starts.Int8(first[int32(p)])
	}
	if _, err := tx.ExecContext(ctx, s.in(`
INSERT INTO `+postgres.Qualified(s.schemaOf(number), schema.Progress)+` (topic, partition, epoch, first_offset, next_offset)
SELECT $1, n.partition, g.epoch, n.start, n.start
FROM unnest($2::bigint[], $3::bigint[]) AS n (partition, start), public.projection_generations g WHERE g.projection = {projection} AND g.generation = $4`),
		s.topic(), partitions.Bytes(), starts.Bytes(), number); err != nil {
		return fmt.Errorf("give each partition its progress: %w", err)
	}
	return nil
}

// refuseBound refuses where something points at a moved table that is not the definition's own: after a swap it would
// point at the old one.
func (s *Service) refuseBound(ctx context.Context, tx *sqlx.Tx) error {
	own := []string{} // nil would be NULL
	for _, v := range s.Definition.Views {
		own = append(own, v.Name)
	}
	var bound []string
	if err := tx.SelectContext(ctx, &bound, `
SELECT DISTINCT format('%s %s', CASE v.relkind WHEN 'm' THEN 'materialized view' ELSE 'view' END, v.oid::regclass)
FROM unnest($1::text[]) AS m (name) JOIN pg_depend d ON d.refclassid = 'pg_class'::regclass AND d.refobjid = to_regclass(format('%I.%I', $2::text, m.name))
	JOIN pg_rewrite w ON d.classid = 'pg_rewrite'::regclass AND w.oid = d.objid JOIN pg_class v ON v.oid = w.ev_class AND v.relkind IN ('v', 'm')
WHERE NOT (v.relnamespace = to_regnamespace($2) AND v.relkind = 'v' AND v.relname = ANY ($3::text[]))
UNION
SELECT format('foreign key %s of %s', c.conname, c.conrelid::regclass)
FROM unnest($1::text[]) AS m (name) JOIN pg_constraint c ON c.contype = 'f' AND c.confrelid = to_regclass(format('%I.%I', $2::text, m.name))
ORDER BY 1`, pq.Array(s.Definition.All()), s.serving(), pq.Array(own)); err != nil {
		return fmt.Errorf("look for views on the tables: %w", err)
	}
	if len(bound) > 0 {
		return conflict("%s would stay with the old tables in a swap: drop it first and make it anew afterwards", strings.Join(bound, ", "))
	}
	return nil
}

// index makes the indexes that the serving tables have and the candidate's do not. One that a killed try left
// half made is dropped first.
func (s *Service) index(ctx context.Context, g Generation) error {
	var invalid []string
	if err := s.Long.SelectContext(ctx, &invalid, `
SELECT format('DROP INDEX CONCURRENTLY %s', i.indexrelid::regclass)
FROM pg_index i JOIN pg_class t ON t.oid = i.indrelid JOIN pg_class x ON x.oid = i.indexrelid
WHERE t.relnamespace = to_regnamespace($1) AND NOT i.indisvalid AND x.relkind = 'i'`, g.Schema); err != nil {
		return fmt.Errorf("look for half made indexes: %w", err)
	}
	statements := invalid
	for _, of := range []func(context.Context, Generation) ([]string, error){s.missingIndexes, s.missingPartitioned} {
		missing, err := of(ctx, g)
		if err != nil {
			return err
		}
		statements = append(statements, missing...)
	}
	conn, release, err := s.session(ctx, g)
	if err != nil {
		return err
	}
	defer release()
	for _, statement := range statements {
		s.Logger.Info("an index is made anew", "projection", s.name(), "generation", g.Number, "statement", statement)
		if _, err := conn.ExecContext(ctx, statement); err != nil {
			return fmt.Errorf("%s: %w", statement, err)
		}
	}
	for _, t := range append(s.Definition.Tables(), schema.DeadLetters) {
		if _, err := conn.ExecContext(ctx, `ANALYZE `+postgres.Qualified(g.Schema, t)); err != nil {
			return fmt.Errorf("analyze %s.%s: %w", g.Schema, t, err)
		}
	}
	return nil
}

// session is a connection for the long steps of a rebuild. Where the rebuild has a rate limit, the server takes one process
// for each of their statements and no helpers: who sets a limit wants the rest of the machine for readers, and an index or a
// proof would else take every core. The caller releases it.
func (s *Service) session(ctx context.Context, g Generation) (conn *sqlx.Conn, release func(), err error) {
	if conn, err = s.Long.Connx(ctx); err != nil {
		return nil, nil, fmt.Errorf("take a connection: %w", err)
	}
	if g.RateLimit == nil {
		return conn, func() { _ = conn.Close() }, nil // an error of a connection that is given back is its next user's
	}
	discard := func() {
		_ = conn.Raw(func(any) error { return driver.ErrBadConn }) // this is how database/sql is told
		_ = conn.Close()
	}
	if _, err := conn.ExecContext(ctx, `SET max_parallel_workers_per_gather = 0; SET max_parallel_maintenance_workers = 0`); err != nil {
		discard()
		return nil, nil, fmt.Errorf("hold a session to one process: %w", err)
	}
	return conn, discard, nil // what it was set to ends with it
}

// missingIndexes are the statements that make the indexes of tables that are not partitioned.
func (s *Service) missingIndexes(ctx context.Context, g Generation) (statements []string, err error) {
	if err := s.Long.SelectContext(ctx, &statements, `
SELECT regexp_replace(regexp_replace(pg_get_indexdef(i.indexrelid), '^CREATE (UNIQUE )?INDEX ', 'CREATE \1INDEX CONCURRENTLY '),
	' ON ' || quote_ident($3) || '\.', format(' ON %I.', $1::text))
FROM pg_index i JOIN pg_class t ON t.oid = i.indrelid JOIN pg_class x ON x.oid = i.indexrelid
WHERE t.relnamespace = to_regnamespace($3) AND t.relname = ANY ($2::text[]) AND t.relkind = 'r' AND NOT i.indisprimary AND i.indisvalid
	AND NOT EXISTS (SELECT FROM pg_index o JOIN pg_class y ON y.oid = o.indexrelid
		WHERE y.relnamespace = to_regnamespace($1) AND y.relname = x.relname AND o.indisvalid)
ORDER BY x.relname`, g.Schema, pq.Array(s.Definition.All()), s.serving()); err != nil {
		return nil, fmt.Errorf("look for missing indexes: %w", err)
	}
	return statements, nil
}

// missingPartitioned are the statements that make the indexes of a table that is partitioned by day: of the parent only,
// then concurrently of each day, which is then attached. A day that is made meanwhile gets its own from the parent.
func (s *Service) missingPartitioned(ctx context.Context, g Generation) (statements []string, err error) {
	main := s.Definition.Main.Spec()
	if main.Day == "" {
		return nil, nil
	}
	var wanted []struct{ Name, Parent, Day string }
	if err := s.Long.SelectContext(ctx, &wanted, `
SELECT x.relname AS name,
	regexp_replace(regexp_replace(pg_get_indexdef(i.indexrelid), '^CREATE (UNIQUE )?INDEX ', 'CREATE \1INDEX IF NOT EXISTS '),
		' ON (ONLY )?' || quote_ident($3) || '\.', format(' ON ONLY %I.', $1::text)) AS parent,
	regexp_replace(pg_get_indexdef(i.indexrelid), '^CREATE (UNIQUE )?INDEX .* ON (ONLY )?' || quote_ident($3) || '\.' || quote_ident($2), 'CREATE \1INDEX CONCURRENTLY IF NOT EXISTS {index} ON {day}') AS day
FROM pg_index i JOIN pg_class t ON t.oid = i.indrelid JOIN pg_class x ON x.oid = i.indexrelid
WHERE t.relnamespace = to_regnamespace($3) AND t.relname = $2 AND NOT i.indisprimary
ORDER BY x.relname`, g.Schema, main.Name, s.serving()); err != nil {
		return nil, fmt.Errorf("look for missing indexes: %w", err)
	}
	days, err := projection.AttachedDays(ctx, s.Long, s.Definition, g.Schema)
	if err != nil {
		return nil, err
	}
	for _, w := range wanted {
		statements = append(statements, w.Parent)
		for _, day := range days {
			index := w.Name + "_" + day
			var attached bool
			if err := s.Long.GetContext(ctx, &attached, `
SELECT EXISTS (SELECT FROM pg_inherits h JOIN pg_index c ON c.indexrelid = h.inhrelid
	WHERE h.inhparent = to_regclass($1) AND c.indrelid = to_regclass($2))`,
				postgres.Qualified(g.Schema, w.Name), postgres.Qualified(g.Schema, main.Name+"_"+day)); err != nil {
				return nil, fmt.Errorf("look for the index of day %s: %w", day, err)
			}
			if attached {
				continue
			}
			statements = append(statements,
				strings.NewReplacer("{index}", postgres.Quoted(index), "{day}", postgres.Qualified(g.Schema, main.Name+"_"+day)).Replace(w.Day),
				fmt.Sprintf(`ALTER INDEX %s ATTACH PARTITION %s`, postgres.Qualified(g.Schema, w.Name), postgres.Qualified(g.Schema, index)))
		}
	}
	return statements, nil
}

// drop removes a generation: its tables, its consumer group, its row.
func (s *Service) drop(ctx context.Context, g Generation) error {
	if err := s.dropTables(ctx, g.Number); err != nil {
		return err
	}
	if err := s.Log.DeleteGroup(ctx, CandidateGroup(s.Group, g.Number)); err != nil {
		if errors.Is(err, kafka.ErrGroupInUse) {
			return errNotYet // the workers are on their way out
		}
		return err
	}
	if _, err := s.DB.ExecContext(ctx, s.in(`
DELETE FROM public.projection_generations WHERE projection = {projection} AND generation = $1 AND state = 'dropping'`), g.Number); err != nil {
		return fmt.Errorf("forget generation %d: %w", g.Number, err)
	}
	s.Logger.Info("a generation is gone", "projection", s.name(), "generation", g.Number)
	return nil
}

// tidyUp removes what a generation that serves has left of its time as a candidate: an empty schema and a consumer group.
// A schema that holds its days stays.
func (s *Service) tidyUp(ctx context.Context, g Generation) error {
	if s.tidy[g.Number] {
		return nil
	}
	if err := s.Log.DeleteGroup(ctx, CandidateGroup(s.Group, g.Number)); errors.Is(err, kafka.ErrGroupInUse) {
		return errNotYet
	} else if err != nil {
		return err
	}
	in := s.schemaOf(g.Number)
	var empty bool
	if err := s.DB.GetContext(ctx, &empty, `
SELECT to_regnamespace($1) IS NOT NULL AND NOT EXISTS (SELECT FROM pg_class WHERE relnamespace = to_regnamespace($1))
	AND coalesce(obj_description(to_regnamespace($1)::oid, 'pg_namespace') = $2, false)`, in, projection.SchemaComment(s.Definition)); err != nil {
		return fmt.Errorf("look for the schema that was left: %w", err)
	}
	if empty && s.Definition.Main.Spec().Day == "" {
		if _, err := s.DB.ExecContext(ctx, `DROP SCHEMA `+postgres.Quoted(in)); err != nil {
			return fmt.Errorf("drop the schema that was left: %w", err)
		}
	}
	// What was noted at the very moment of the swap.
	for _, table := range []string{"generation_workers", "generation_progress"} {
		if _, err := s.DB.ExecContext(ctx, s.in(`DELETE FROM public.`+table+` WHERE projection = {projection} AND generation = $1`), g.Number); err != nil {
			return fmt.Errorf("forget what was noted of generation %d: %w", g.Number, err)
		}
	}
	s.tidy[g.Number] = true
	return nil
}

// dropTables removes the schema of a generation. Writers that are at it end first, and find it gone.
func (s *Service) dropTables(ctx context.Context, number int) error {
	in := s.schemaOf(number)
	return postgres.Tx(ctx, s.Long, func(tx *sqlx.Tx) error {
		var there []string
		if err := tx.SelectContext(ctx, &there, `
SELECT m.name FROM unnest($2::text[]) WITH ORDINALITY AS m (name, n)
WHERE to_regclass(format('%I.%I', $1::text, m.name)) IS NOT NULL ORDER BY m.n`, in, pq.Array(s.Definition.All())); err != nil {
			return fmt.Errorf("look for the tables of generation %d: %w", number, err)
		}
		statements := []string{`SET LOCAL lock_timeout = '5s'`}
		if len(there) > 0 {
			statements = append(statements, `LOCK TABLE `+postgres.Qualified(in, there...)+` IN ACCESS EXCLUSIVE MODE`)
		}
		for _, statement := range append(statements, `DROP SCHEMA IF EXISTS `+postgres.Quoted(in)+` CASCADE`) {
			if _, err := tx.ExecContext(ctx, statement); err != nil {
				return fmt.Errorf("drop the tables of generation %d: %w", number, err)
			}
		}
		return nil
	})
}

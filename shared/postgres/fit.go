package postgres

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/jmoiron/sqlx"
)

// LeastVersion of PostgreSQL is the oldest one that its makers still mend and that has all that Tidemark's statements use.
const LeastVersion = 15

// UnfitError says why a database that answers will not do. CauseOf knows it.
type UnfitError struct{ Cause }

func (e *UnfitError) Error() string { return e.Found }

func unfit(found, do string) error { return &UnfitError{Cause{found, do}} }

// CheckFit looks at what Tidemark expects of a database before it makes a table there or reads one: its version and
// encoding, where the tables stand, what the user may do, and whether sessions are its own. It returns *UnfitError for what
// an operator must mend. Whoever writes needs rights that a reader does not. The pool must have two connections to spare.
func CheckFit(ctx context.Context, db *sqlx.DB, writes bool) error {
	var is struct {
		Version  int    `db:"version"`
		Encoding string `db:"encoding"`
		Astray   bool   `db:"astray"` // whether the table of versions stands in the schema of the user's name
		Public   bool   `db:"public"` // whether the schema is there
		Usage    bool   `db:"usage"`
		Create   bool   `db:"create"`
		Schemas  bool   `db:"schemas"` // whether the user may make schemas
	}
	err := db.GetContext(ctx, &is, `
WITH public AS (SELECT oid FROM pg_namespace WHERE nspname = 'public')
SELECT current_setting('server_version_num')::int / 10000 AS version,
       current_setting('server_encoding') AS encoding,
       to_regclass('public.goose_db_version') IS NULL AND to_regclass(quote_ident(current_user) || '.goose_db_version') IS NOT NULL AS astray,
       EXISTS (SELECT FROM public) AS public,
       coalesce((SELECT has_schema_privilege(oid, 'USAGE') FROM public), false) AS usage,
       coalesce((SELECT has_schema_privilege(oid, 'CREATE') FROM public), false) AS create,
       has_database_privilege(current_database(), 'CREATE') AS schemas`)
	if err != nil {
		return fmt.Errorf("look at the database: %w", err)
	}
	switch {
	case is.Version < LeastVersion:
		return unfit(fmt.Sprintf("the database is PostgreSQL %d, and at least %d is needed", is.Version, LeastVersion), "upgrade PostgreSQL")
	case is.Encoding != "UTF8":
		return unfit(fmt.Sprintf("the database's encoding is %s, and UTF8 is needed", is.Encoding), "make a database by CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0, and name it in DB_URL")
	case is.Astray:
		return unfit("an older release has made its tables in the schema of the user's name, and they must stand in public", "drop that schema's tables, the log has everything they hold; they are made anew in public")
	case !is.Public:
		return unfit("the database has no schema public", "CREATE SCHEMA public, and let the user of DB_URL create in it")
	case !is.Usage, writes && !is.Create:
		return unfit("the user of DB_URL may not make or use tables in the schema public", "GRANT USAGE, CREATE ON SCHEMA public TO the user of DB_URL, or make that user the owner of the database")
	case writes && !is.Schemas:
		return unfit("the user of DB_URL may not make schemas in the database, which hold the tables of projections", "GRANT CREATE ON DATABASE to the user of DB_URL, or make that user its owner")
	}
	return checkSession(ctx, db)
}

// checkSession finds out whether a connection keeps its session: a pooler in transaction mode gives it to others meanwhile.
// So while another connection holds a session in a transaction, the first one must still have the one that it had.
func checkSession(ctx context.Context, db *sqlx.DB) (err error) {
	one, err := db.Connx(ctx)
	if err != nil {
		return fmt.Errorf("look at the session: %w", err)
	}
	defer func() { err = errors.Join(err, one.Close()) }()
	other, err := db.Connx(ctx)
	if err != nil {
		return fmt.Errorf("look at the session: %w", err)
	}
	defer func() { err = errors.Join(err, other.Close()) }()
	session := func(of sqlx.QueryerContext) (pid int, err error) {
		return pid, of.QueryRowxContext(ctx, `SELECT pg_backend_pid()`).Scan(&pid)
	}
	for range 3 { // a busy pooler may give another one away
		before, err := session(one)
		if err != nil {
			return fmt.Errorf("look at the session: %w", err)
		}
		tx, err := other.BeginTxx(ctx, &sql.TxOptions{ReadOnly: true}) // which a standby takes too
		if err != nil {
			return fmt.Errorf("look at the session: %w", err)
		}
		held, err := session(tx)
		if err != nil {
			return errors.Join(fmt.Errorf("look at the session: %w", err), tx.Rollback())
		}
		after, err := session(one)
		if err := errors.Join(err, tx.Rollback()); err != nil {
			return fmt.Errorf("look at the session: %w", err)
		}
		if before != after || held == before {
			return unfit("DB_URL leads to a pooler in transaction mode, and Tidemark needs sessions of its own: it holds session locks and prepares statements",
				"set pool_mode = session for this database, or name PostgreSQL itself in DB_URL")
		}
	}
	return nil
}

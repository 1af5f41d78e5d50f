// Package schema holds the migrations of the database, the version that every service needs, and the order in which
// tables are locked.
//
// consumer-service applies the migrations (Apply); the other services wait until Check says that the
// database is at their version. No migration is edited once it is merged.
//
// # Tables of a projection
//
// Every projection has a schema in which its serving tables stand, whichever generation serves: public for
// timestamps, else the projection's name. Another generation N has the same tables in <projection>_gN. Three
// of the tables are the same for every projection (Progress, DeadLetters, Audits); the others are its own.
// A migration of such tables runs for each schema that a generation has, whatever that generation is doing:
// public.in_each_generation does it.
//
// # Lock order
//
// A transaction that locks tables of one projection names them in the order of LockOrder; one that locks
// tables of two generations takes the serving one first. Rows are locked after tables, progress rows in the
// order of partitions before any other.
package schema

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"

	"github.com/jmoiron/sqlx"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"
)

//go:embed migrations/*.sql
var embedded embed.FS

// Migrations are the numbered files, for tests that want a database as an older release left it.
func Migrations() fs.FS {
	files, err := fs.Sub(embedded, "migrations")
	if err != nil { // the name is valid
		panic(err)
	}
	return files
}

// Wanted is the version that this release's services read and write. A database behind it is waited for,
// since consumer-service migrates it; one ahead of it belongs to a newer release.
const Wanted = 11

// ErrNewer says that a newer release has migrated the database.
var ErrNewer = errors.New("the database's schema is newer than this binary")

// Version returns the newest migration that was applied, 0 where there is none yet.
func Version(ctx context.Context, db *sqlx.DB) (int64, error) {
	var exists bool
	if err := db.GetContext(ctx, &exists, `SELECT to_regclass('public.goose_db_version') IS NOT NULL`); err != nil {
		return 0, fmt.Errorf("look for the schema: %w", err)
	}
	if !exists {
		return 0, nil
	}
	var version int64
	if err := db.GetContext(ctx, &version, `SELECT coalesce(max(version_id), 0) FROM public.goose_db_version WHERE is_applied`); err != nil {
		return 0, fmt.Errorf("read the schema's version: %w", err)
	}
	return version, nil
}

// Check reports whether the database is at the wanted version; ErrNewer where it is ahead.
func Check(ctx context.Context, db *sqlx.DB) (ready bool, err error) {
	v, err := Version(ctx, db)
	switch {
	case err != nil:
		return false, err
	case v > Wanted:
		return false, fmt.Errorf("%w: it is at version %d and this release knows %d: run the release that migrated it, or a newer one", ErrNewer, v, Wanted)
	}
	return v == Wanted, nil
}

// Apply brings db to the wanted version. Several processes may call it at once: one migrates under a session
// lock, the others wait. A newer schema is ErrNewer and is left as it is.
func Apply(ctx context.Context, db *sqlx.DB) error {
	if _, err := Check(ctx, db); err != nil {
		return err
	}
	locker, err := lock.NewPostgresSessionLocker()
	if err != nil {
		return fmt.Errorf("make the migration lock: %w", err)
	}
	p, err := goose.NewProvider(goose.DialectPostgres, db.DB, Migrations(), goose.WithSessionLocker(locker))
	if err != nil {
		return fmt.Errorf("read the migrations: %w", err)
	}
	if _, err := p.Up(ctx); err != nil {
		return fmt.Errorf("migrate: %w", err)
	}
	return nil
}

// Tables that every projection has, in every generation.
const (
	Progress    = "projection_progress"
	DeadLetters = "dead_letters"
	Audits      = "projection_audits"
)

// LockOrder returns all tables of a projection whose own are given, in the order in which they are locked:
// progress first, since it is what readers and writers begin with.
func LockOrder(own []string) []string {
	order := make([]string, 0, len(own)+3)
	order = append(order, Progress)
	order = append(order, own...)
	return append(order, DeadLetters, Audits)
}

// Candidate names the schema of a generation that does not serve.
func Candidate(projection string, generation int) string {
	return fmt.Sprintf("%s_g%d", projection, generation)
}

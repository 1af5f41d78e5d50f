// Package migrations brings a database to the schema of this release. The consumer-service applies
// them; the other services wait for the version they need. None is edited once it is merged.
package migrations

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"

	"github.com/jmoiron/sqlx"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"

	"github.com/tidemark/tidemark/shared/postgres"
)

//go:embed *.sql
var files embed.FS

// Apply brings db to postgres.SchemaVersionWanted. Several processes may call it at once: one
// migrates under a session lock, the others wait. A newer schema is postgres.ErrNewerSchema and is
// left as it is.
func Apply(ctx context.Context, db *sqlx.DB) error {
	if _, err := postgres.CheckSchema(ctx, db); err != nil {
		return err
	}
	if err := checkGenerations(ctx, db); err != nil {
		return err
	}
	locker, err := lock.NewPostgresSessionLocker()
	if err != nil {
		return fmt.Errorf("make the migration lock: %w", err)
	}
	p, err := goose.NewProvider(goose.DialectPostgres, db.DB, files, goose.WithSessionLocker(locker))
	if err != nil {
		return fmt.Errorf("read the migrations: %w", err)
	}
	if _, err := p.Up(ctx); err != nil {
		return fmt.Errorf("migrate: %w", err)
	}
	return nil
}

// SecondGenerationError says that migrations wait: they know the tables in public only, and there are
// others that have to stay the same.
type SecondGenerationError struct {
	Generation int
	State      string
}

func (e *SecondGenerationError) Error() string {
	return fmt.Sprintf("migrations wait while there is a second generation: drop generation %d (%s) with DELETE /api/v1/generations/%d or tidemark rebuild cancel, then they run by themselves", e.Generation, e.State, e.Generation)
}

// checkGenerations returns *SecondGenerationError where migrations are pending and must wait. Before
// version 2 there is one generation.
func checkGenerations(ctx context.Context, db *sqlx.DB) error {
	v, err := postgres.SchemaVersion(ctx, db)
	if err != nil || v < 2 || v >= postgres.SchemaVersionWanted {
		return err
	}
	var other struct {
		Generation int
		State      string
	}
	err = db.GetContext(ctx, &other, `
SELECT generation, state FROM public.generations WHERE state NOT IN ('serving', 'swapping') ORDER BY generation DESC LIMIT 1`)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return nil
	case err != nil:
		return fmt.Errorf("look for a second generation: %w", err)
	}
	return &SecondGenerationError{other.Generation, other.State}
}

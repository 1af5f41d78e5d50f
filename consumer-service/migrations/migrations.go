// Package migrations brings a database to the schema of this release. The consumer-service applies
// them; the other services wait for the version they need. None is edited once it is merged.
package migrations

import (
	"context"
	"embed"
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

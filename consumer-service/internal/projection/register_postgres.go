package projection

import (
	"context"
	"fmt"

	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"

	"github.com/tidemark/tidemark/shared/postgres"
)

// Register writes what the definitions are into the table projections, where query-service reads it, and gives each its
// first generation. Their tables must be there. It may be called by several processes at once.
func Register(ctx context.Context, db *sqlx.DB, definitions []*Definition) error {
	return postgres.Tx(ctx, db, func(tx *sqlx.Tx) error {
		for _, d := range definitions {
			main := d.Main.Spec()
			var ticket *string
			if d.Ticket != "" {
				ticket = &d.Ticket
			}
			if _, err := tx.ExecContext(ctx, `
INSERT INTO public.projections AS p (projection, topic, schema_name, tables, main_table, ticket_column) VALUES ($1, $2, $3, $4, $5, $6)
ON CONFLICT (projection) DO UPDATE SET topic = excluded.topic, schema_name = excluded.schema_name, tables = excluded.tables,
	main_table = excluded.main_table, ticket_column = excluded.ticket_column
WHERE (p.topic, p.schema_name, p.tables, p.main_table, p.ticket_column)
	IS DISTINCT FROM (excluded.topic, excluded.schema_name, excluded.tables, excluded.main_table, excluded.ticket_column)`,
				d.Name, d.Topic.Name, d.ServingSchema(), pq.Array(d.Tables()), main.Name, ticket); err != nil {
				return fmt.Errorf("note the projection %s: %w", d.Name, err)
			}
			if _, err := tx.ExecContext(ctx, `
INSERT INTO public.projection_generations (projection, generation, schema_name, state) SELECT $1, 0, $2, 'serving'
WHERE NOT EXISTS (SELECT FROM public.projection_generations WHERE projection = $1)
ON CONFLICT DO NOTHING`, d.Name, d.ServingSchema()); err != nil {
				return fmt.Errorf("note the first generation of %s: %w", d.Name, err)
			}
		}
		return nil
	})
}

// NoteRefusal notes why a process does not go on with these projections. Readers are told until one goes on with them.
func NoteRefusal(ctx context.Context, db *sqlx.DB, reason string, projections ...string) error {
	if _, err := db.ExecContext(ctx, `
UPDATE public.projections SET refusal = $1, refused_at = clock_timestamp() WHERE projection = ANY ($2)`, printable(reason), pq.Array(projections)); err != nil {
		return fmt.Errorf("note the refusal: %w", err)
	}
	return nil
}

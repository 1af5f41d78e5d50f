// Package testdb gives each test a database of its own with this release's schema, and plays the
// consumer: it writes rows and moves progress in one transaction, as the promise to readers is.
package testdb

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/shared/event"
	"github.com/tidemark/tidemark/shared/instant"
	"github.com/tidemark/tidemark/shared/position"
	"github.com/tidemark/tidemark/shared/postgres/postgrestest"
	"github.com/tidemark/tidemark/shared/schema"
	"github.com/tidemark/tidemark/shared/topic"
)

// Partitions of the topic, each with a progress row from the start.
const Partitions = 4

// DB is one test's database.
type DB struct {
	*sqlx.DB
	URL string
}

// New makes a database with the schema. It is dropped when the test ends.
func New(t *testing.T) *DB {
	t.Helper()
	db := open(t, postgrestest.Migrated(t))
	db.begin(t)
	return db
}

// Empty makes a database without anything in it.
func Empty(t *testing.T) *DB {
	t.Helper()
	return open(t, postgrestest.New(t))
}

func open(t *testing.T, address string) *DB {
	t.Helper()
	db, err := sqlx.Connect("postgres", address)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, db.Close()) })
	return &DB{db, address}
}

// Migrate brings the database to this release's schema, and gives each partition of timestamps its progress
// row. Of the other projections none is begun.
func (db *DB) Migrate(t *testing.T) {
	t.Helper()
	require.NoError(t, schema.Apply(t.Context(), db.DB))
	db.begin(t)
}

func (db *DB) begin(t *testing.T) {
	t.Helper()
	db.Run(t, "timestamps")
	db.Must(t, `INSERT INTO projection_progress (topic, partition, epoch, first_offset, next_offset)
		SELECT $1, p, g.epoch, 0, 0 FROM projection_generations g, generate_series(0, $2 - 1) p WHERE g.projection = 'timestamps'`, topic.TimestampCommand.Name, Partitions)
}

// Run makes a projection look as if a process ran it for the next hour.
func (db *DB) Run(t *testing.T, projection string) {
	t.Helper()
	db.Must(t, `UPDATE projections SET run_at = now() + interval '1 hour' WHERE projection = $1`, projection)
}

// Define makes a projection that no release knows: a schema, a main table, and the rows that say so, with
// progress of two partitions from the start. Nothing runs it yet.
func (db *DB) Define(t *testing.T, name string) (topic string) {
	t.Helper()
	topic = name + ".event.v1"
	db.Must(t, `SELECT make_projection_schema($1)`, name)
	db.Must(t, `CREATE TABLE `+name+`.all_`+name+` (event_id uuid PRIMARY KEY, colour text, created_at timestamptz NOT NULL, partition integer NOT NULL, "offset" bigint NOT NULL)`)
	db.Must(t, `INSERT INTO projections (projection, topic, schema_name, tables, main_table, ticket_column) VALUES ($1, $2, $1, ARRAY['all_' || $1], 'all_' || $1, 'event_id')`, name, topic)
	db.Must(t, `INSERT INTO projection_generations (projection, generation, schema_name, state, group_name) VALUES ($1, 0, $1, 'serving', 'group.' || $1)`, name)
	db.Must(t, `INSERT INTO `+name+`.projection_progress (topic, partition, epoch, first_offset, next_offset)
		SELECT $2, p, g.epoch, 0, 0 FROM projection_generations g, generate_series(0, 1) p WHERE g.projection = $1`, name, topic)
	return topic
}

// BeginEndpoints begins the projection endpoints with one partition that has caught up.
func (db *DB) BeginEndpoints(t *testing.T) {
	t.Helper()
	db.Run(t, "endpoints")
	db.Must(t, `INSERT INTO endpoints.projection_progress (topic, partition, epoch, first_offset, next_offset, log_end, log_end_at, caught_up_at)
		SELECT $1, 0, g.epoch, 0, 0, 0, now(), now() FROM projection_generations g WHERE g.projection = 'endpoints'`, topic.EndpointCommand.Name)
}

// PutEndpoint projects a put as the next record of endpoints, and returns its ticket. The document must be
// complete, as command-service writes it.
func (db *DB) PutEndpoint(t *testing.T, id uuid.UUID, document, by string) uuid.UUID {
	t.Helper()
	e, wrong := event.ParseEndpoint([]byte(document))
	require.Empty(t, wrong)
	tags, err := json.Marshal(append([]string{}, e.Tags...))
	require.NoError(t, err)
	ticket := db.commandEndpoint(t, id, "put", document, by)
	db.Must(t, `INSERT INTO endpoints.current_endpoints
		SELECT endpoint_id, false, $2, $3, $4, $5, $6, $7, document, created_at, created_at, sent_by, command_id, partition, "offset" FROM endpoints.endpoint_commands WHERE command_id = $1
		ON CONFLICT (endpoint_id) DO UPDATE SET deleted = false, url = excluded.url, name = excluded.name, group_name = excluded.group_name, tags = excluded.tags,
			interval_seconds = excluded.interval_seconds, enabled = excluded.enabled, document = excluded.document,
			created_at = coalesce(current_endpoints.created_at, excluded.created_at), changed_at = excluded.changed_at, changed_by = excluded.changed_by,
			command_id = excluded.command_id, partition = excluded.partition, "offset" = excluded."offset"`,
		ticket, e.URL, e.Name, e.Group, string(tags), int(e.Interval.Seconds()), e.Enabled)
	return ticket
}

// DeleteEndpoint projects a delete as the next record of endpoints, and returns its ticket.
func (db *DB) DeleteEndpoint(t *testing.T, id uuid.UUID, by string) uuid.UUID {
	t.Helper()
	ticket := db.commandEndpoint(t, id, "delete", "", by)
	db.Must(t, `UPDATE endpoints.current_endpoints e SET deleted = true, url = NULL, name = NULL, group_name = NULL, tags = NULL, interval_seconds = NULL,
			enabled = NULL, document = NULL, created_at = NULL, changed_at = c.created_at, changed_by = c.sent_by, command_id = c.command_id, partition = c.partition, "offset" = c."offset"
		FROM endpoints.endpoint_commands c WHERE c.command_id = $1 AND e.endpoint_id = c.endpoint_id`, ticket)
	return ticket
}

func (db *DB) commandEndpoint(t *testing.T, id uuid.UUID, kind, document, by string) uuid.UUID {
	t.Helper()
	ticket := uuid.Must(uuid.NewV7())
	db.Must(t, `WITH at AS (
			UPDATE endpoints.projection_progress SET next_offset = next_offset + 1, log_end = next_offset + 1, applied = applied + 1 WHERE partition = 0 RETURNING next_offset - 1 AS o
		) INSERT INTO endpoints.endpoint_commands SELECT $1, $2, $3, nullif($4, ''), $5, now(), 0, o FROM at`, id, ticket, kind, document, by)
	return ticket
}

// Must executes a statement.
func (db *DB) Must(t *testing.T, query string, args ...any) {
	t.Helper()
	_, err := db.Exec(query, args...)
	require.NoError(t, err)
}

// At is a position of the topic.
func At(partition int32, offset int64) position.Position {
	return position.Position{Topic: topic.TimestampCommand.Name, Partition: partition, Offset: offset}
}

// Row is what Project writes.
type Row struct {
	ID    uuid.UUID
	Stamp time.Time
}

// Project writes rows as the next records of a partition, and its progress, in one transaction.
func (db *DB) Project(ctx context.Context, partition int32, rows ...Row) error {
	tx, err := db.BeginTxx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }() // after a commit it does nothing
	var next int64
	if err := tx.GetContext(ctx, &next, `SELECT next_offset FROM projection_progress WHERE topic = $1 AND partition = $2 FOR UPDATE`, topic.TimestampCommand.Name, partition); err != nil {
		return err
	}
	ids, stamps := make([]string, len(rows)), make([]string, len(rows))
	for i, r := range rows {
		ids[i], stamps[i] = r.ID.String(), instant.Format(r.Stamp)
	}
	if _, err := tx.ExecContext(ctx, `
		INSERT INTO timestamp_records
		SELECT id, stamp, now(), $3, $4 + n - 1 FROM unnest(string_to_array($1, ' ')::uuid[], string_to_array($2, ' ')::timestamptz[]) WITH ORDINALITY AS r (id, stamp, n)`,
		strings.Join(ids, " "), strings.Join(stamps, " "), partition, next); err != nil {
		return fmt.Errorf("rows from %d: %w", next, err)
	}
	if _, err := tx.ExecContext(ctx, `UPDATE projection_progress SET next_offset = next_offset + $3, applied = applied + $3, updated_at = now() WHERE topic = $1 AND partition = $2`,
		topic.TimestampCommand.Name, partition, len(rows)); err != nil {
		return err
	}
	return tx.Commit()
}

// Reject writes a dead letter as the next record of a partition.
func (db *DB) Reject(t *testing.T, partition int32, payload []byte, headers, reason string) {
	t.Helper()
	db.Must(t, `WITH at AS (
			UPDATE projection_progress SET next_offset = next_offset + 1, rejected = rejected + 1 WHERE topic = $1 AND partition = $2 RETURNING next_offset - 1 AS o
		) INSERT INTO dead_letters SELECT $1, $2, o, $3, $4, 'decode', $5, '2026-01-02T03:04:05Z' FROM at`,
		topic.TimestampCommand.Name, partition, payload, headers, reason)
}

// Skip passes an offset that holds no record.
func (db *DB) Skip(t *testing.T, partition int32) { t.Helper(); db.pass(t, partition, "skipped") }

// Duplicate passes an offset whose record another row stands for.
func (db *DB) Duplicate(t *testing.T, partition int32) {
	t.Helper()
	db.pass(t, partition, "duplicate")
}

func (db *DB) pass(t *testing.T, partition int32, outcome string) {
	t.Helper()
	db.Must(t, `UPDATE projection_progress SET next_offset = next_offset + 1, `+outcome+` = `+outcome+` + 1 WHERE topic = $1 AND partition = $2`,
		topic.TimestampCommand.Name, partition)
}

// StartOver begins a new epoch: the rows are gone and every partition is read from its start.
func (db *DB) StartOver(ctx context.Context) error {
	tx, err := db.BeginTxx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }() // after a commit it does nothing
	for _, s := range []string{
		`LOCK TABLE projection_progress, timestamp_records, dead_letters IN ACCESS EXCLUSIVE MODE`,
		`UPDATE projection_generations SET epoch = next_projection_epoch() WHERE projection = 'timestamps'`,
		`UPDATE projection_progress SET epoch = (SELECT epoch FROM projection_generations WHERE projection = 'timestamps'), next_offset = first_offset, applied = 0, duplicate = 0, rejected = 0, skipped = 0`,
		`DELETE FROM timestamp_records`,
	} {
		if _, err := tx.ExecContext(ctx, s); err != nil {
			return err
		}
	}
	return tx.Commit()
}

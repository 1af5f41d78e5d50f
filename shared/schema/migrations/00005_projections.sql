-- +goose Up

-- Everything about a generation is by projection from here on. A process of the release before knows the tables under
-- their old names: generations and receipt_outbox are new tables to it that are not there (SQLSTATE 42P01), so one that
-- still runs waits, unready, and writes nothing.

-- Tables first, in the order in which that release's writers lock them.
LOCK TABLE projection_progress, timestamp_records, dead_letters, projection_audits, receipt_outbox, generations IN ACCESS EXCLUSIVE MODE;

-- What is projected, as consumer-service's definitions say; query-service reads tables and tickets by it.
CREATE TABLE projections (
    projection    text PRIMARY KEY,
    topic         text NOT NULL UNIQUE,
    schema_name   text NOT NULL UNIQUE,
    tables        text[] NOT NULL,
    main_table    text NOT NULL,
    ticket_column text,
    run_at        timestamptz,
    refusal       text NOT NULL DEFAULT '',
    refused_at    timestamptz
);
COMMENT ON TABLE projections IS 'One row a projection: a topic and the tables that are computed from it. consumer-service writes it when it starts.';
COMMENT ON COLUMN projections.projection IS 'Its name.';
COMMENT ON COLUMN projections.topic IS 'The topic that it reads.';
COMMENT ON COLUMN projections.schema_name IS 'Where the tables of its serving generation stand.';
COMMENT ON COLUMN projections.tables IS 'Its own tables, in the order in which they are locked: the main table, then the derived ones.';
COMMENT ON COLUMN projections.main_table IS 'The table with one row for each applied record.';
COMMENT ON COLUMN projections.ticket_column IS 'The column of the main table that holds the ticket of the command; empty where records have none.';
COMMENT ON COLUMN projections.run_at IS 'When a process that runs this projection was last there, by the database''s clock.';
COMMENT ON COLUMN projections.refusal IS 'Why a process refuses to go on with it, in words; empty where none does.';
COMMENT ON COLUMN projections.refused_at IS 'When that was written, by the database''s clock. It counts where it is newer than the last watermark.';
INSERT INTO projections (projection, topic, schema_name, tables, main_table, ticket_column)
VALUES ('timestamps', 'timestamp.command.v1', 'public', '{timestamp_records}', 'timestamp_records', 'id');

-- Epochs are drawn from one sequence, and never lie behind the database's clock in microseconds: a restored backup or a
-- failover that lost commits then gives none a second time.
-- +goose StatementBegin
CREATE FUNCTION next_projection_epoch() RETURNS bigint LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    one_at_a_time CONSTANT bigint := 8388346167795082088; -- "tidepoch" as a number; held for microseconds
    epoch bigint;
BEGIN
    PERFORM pg_advisory_lock(one_at_a_time);
    epoch := setval('public.projection_epochs', greatest(nextval('public.projection_epochs'), (extract(epoch FROM clock_timestamp()) * 1000000)::bigint));
    PERFORM pg_advisory_unlock(one_at_a_time);
    RETURN epoch;
END $$;
-- +goose StatementEnd
COMMENT ON SEQUENCE projection_epochs IS 'The last epoch that was drawn; next_projection_epoch() draws them. None is ever used twice.';

ALTER TABLE generations RENAME TO projection_generations;
UPDATE projection_generations SET state = 'serving', swapping_since = NULL WHERE state = 'swapping';
ALTER TABLE generation_progress DROP CONSTRAINT generation_progress_generation_fkey;
ALTER TABLE generation_lanes DROP CONSTRAINT generation_lanes_generation_fkey;
ALTER TABLE projection_generations DROP CONSTRAINT generations_pkey;
ALTER TABLE projection_generations
    ADD COLUMN projection text NOT NULL DEFAULT 'timestamps' REFERENCES projections,
    ALTER COLUMN epoch SET DEFAULT next_projection_epoch(),
    DROP CONSTRAINT generations_state_check,
    ADD CONSTRAINT projection_generations_state_check CHECK (state IN
        ('queued', 'serving', 'swapping', 'filling', 'indexing', 'ready', 'standby', 'held', 'dropping')),
    ADD CONSTRAINT projection_generations_pkey PRIMARY KEY (projection, generation);
ALTER TABLE projection_generations ALTER COLUMN projection DROP DEFAULT;
ALTER TABLE projection_generations RENAME CONSTRAINT generations_schema_name_key TO projection_generations_schema_name_key;
ALTER TABLE projection_generations RENAME CONSTRAINT generations_rate_limit_check TO projection_generations_rate_limit_check;
DROP INDEX one_generation_serves, one_rebuild_at_a_time, one_way_back;
CREATE UNIQUE INDEX one_generation_serves ON projection_generations (projection) WHERE state IN ('serving', 'swapping');
CREATE UNIQUE INDEX one_rebuild_at_a_time ON projection_generations (projection) WHERE state IN ('queued', 'filling', 'indexing', 'ready');
CREATE UNIQUE INDEX one_standby ON projection_generations (projection) WHERE state = 'standby';
COMMENT ON TABLE projection_generations IS 'Every set of projected tables that there is, by projection. One of each serves.';
COMMENT ON COLUMN projection_generations.projection IS 'The projection whose tables these are.';
COMMENT ON COLUMN projection_generations.generation IS 'Its number.';
COMMENT ON COLUMN projection_generations.schema_name IS 'Where its tables are: the projection''s own schema for the one that serves, else <projection>_g and its number.';
COMMENT ON COLUMN projection_generations.state IS 'serving (swapping for the moment of a swap), queued (waits for the rebuild of another projection), filling, indexing, ready, standby (a rollback returns to it), held (filled to a point) or dropping.';
COMMENT ON COLUMN projection_generations.epoch IS 'The fencing token of its writers; no other epoch is the same number.';
COMMENT ON COLUMN projection_generations.group_name IS 'The consumer group that it is projected under; empty until something served.';
COMMENT ON COLUMN projection_generations.proof_wanted IS 'Whether it is to be verified.';
COMMENT ON COLUMN projection_generations.swap_wanted IS 'Whether it is to serve as soon as it is verified.';
COMMENT ON COLUMN projection_generations.proof IS 'Its newest parity proof, as the API gives it.';
COMMENT ON SEQUENCE generation_numbers IS 'Numbers of generations of all projections. None is ever used twice.';

ALTER TABLE projection_groups DROP CONSTRAINT projection_groups_pkey;
ALTER TABLE projection_groups
    ADD COLUMN projection text NOT NULL DEFAULT 'timestamps' REFERENCES projections,
    ADD CONSTRAINT projection_groups_pkey PRIMARY KEY (projection, group_name);
ALTER TABLE projection_groups ALTER COLUMN projection DROP DEFAULT;
COMMENT ON TABLE projection_groups IS 'Every group name that ever served a projection. One that was replaced is never taken again.';
COMMENT ON COLUMN projection_groups.projection IS 'The projection that it served.';
COMMENT ON COLUMN projection_groups.group_name IS 'KAFKA_GROUP_ID; with a full stop and the projection''s name behind it for all but timestamps.';

ALTER TABLE generation_progress DROP CONSTRAINT generation_progress_pkey;
ALTER TABLE generation_progress
    ADD COLUMN projection text NOT NULL DEFAULT 'timestamps',
    ADD CONSTRAINT generation_progress_pkey PRIMARY KEY (projection, generation),
    ADD FOREIGN KEY (projection, generation) REFERENCES projection_generations ON DELETE CASCADE;
ALTER TABLE generation_progress ALTER COLUMN projection DROP DEFAULT;
COMMENT ON COLUMN generation_progress.projection IS 'Its projection.';
COMMENT ON COLUMN generation_progress.eta_seconds IS 'Until it has caught up, at the rate at which its lag shrinks; empty where it does not.';

-- Processes report each second; what they said last is not worth keeping.
DROP TABLE generation_lanes;
CREATE TABLE generation_workers (
    projection text NOT NULL,
    generation integer NOT NULL,
    worker     uuid NOT NULL,
    seen_at    timestamptz NOT NULL,
    kafka      double precision NOT NULL,
    consumer   double precision NOT NULL,
    postgres   double precision NOT NULL,
    throttle   double precision NOT NULL,
    note       text NOT NULL DEFAULT '',
    noted_at   timestamptz,
    PRIMARY KEY (projection, generation, worker),
    FOREIGN KEY (projection, generation) REFERENCES projection_generations ON DELETE CASCADE
);
COMMENT ON TABLE generation_workers IS 'Where the processes that fill a generation spent their time of late, one row each.';
COMMENT ON COLUMN generation_workers.projection IS 'The generation''s projection.';
COMMENT ON COLUMN generation_workers.generation IS 'The generation''s number.';
COMMENT ON COLUMN generation_workers.worker IS 'One process'' part in the fill.';
COMMENT ON COLUMN generation_workers.seen_at IS 'When it last wrote this row.';
COMMENT ON COLUMN generation_workers.kafka IS 'Share of the time in which it waited for records, 0 to 1.';
COMMENT ON COLUMN generation_workers.consumer IS 'Share in which it decoded and sorted.';
COMMENT ON COLUMN generation_workers.postgres IS 'Share in which it wrote.';
COMMENT ON COLUMN generation_workers.throttle IS 'Share in which its rate limit held it back.';
COMMENT ON COLUMN generation_workers.note IS 'Its last trouble, in words.';
COMMENT ON COLUMN generation_workers.noted_at IS 'When that was.';

-- Receipts of all projections and generations wait in one table, which no swap moves.
CREATE TABLE projection_receipt_outbox (
    receipt_id   bigint NOT NULL DEFAULT nextval('public.receipt_ids') PRIMARY KEY,
    projection   text NOT NULL,
    group_name   text NOT NULL,
    generation   integer NOT NULL,
    epoch        bigint NOT NULL,
    served       boolean NOT NULL,
    topic        text NOT NULL,
    partition    integer NOT NULL,
    from_offset  bigint NOT NULL,
    next_offset  bigint NOT NULL,
    outcomes     text NOT NULL,
    caught_up_at timestamptz,
    decided_at   timestamptz NOT NULL DEFAULT now()
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 10000); -- a queue: most of it is gone soon
CREATE INDEX projection_receipt_outbox_by_projection ON projection_receipt_outbox (projection, receipt_id);
COMMENT ON TABLE projection_receipt_outbox IS 'Receipts that are not in projection.receipt.v1 yet. A row goes when the log has acknowledged it.';
COMMENT ON COLUMN projection_receipt_outbox.receipt_id IS 'Its number, which no other receipt has.';
COMMENT ON COLUMN projection_receipt_outbox.projection IS 'The projection that decided.';
COMMENT ON COLUMN projection_receipt_outbox.group_name IS 'The consumer group that the batch was projected under.';
COMMENT ON COLUMN projection_receipt_outbox.generation IS 'Generation that the batch was written to.';
COMMENT ON COLUMN projection_receipt_outbox.epoch IS 'Epoch that it was written in.';
COMMENT ON COLUMN projection_receipt_outbox.served IS 'Whether that generation served then.';
COMMENT ON COLUMN projection_receipt_outbox.topic IS 'Topic of the batch.';
COMMENT ON COLUMN projection_receipt_outbox.partition IS 'Its partition.';
COMMENT ON COLUMN projection_receipt_outbox.from_offset IS 'First offset of the batch.';
COMMENT ON COLUMN projection_receipt_outbox.next_offset IS 'First offset past it; the same where the receipt only says that the partition is caught up and idle.';
COMMENT ON COLUMN projection_receipt_outbox.outcomes IS 'What became of each offset, as runs in their order: [{"outcome", "count"}].';
COMMENT ON COLUMN projection_receipt_outbox.caught_up_at IS 'Up to when every accepted record is known to have an outcome; of a receipt without offsets only.';
COMMENT ON COLUMN projection_receipt_outbox.decided_at IS 'When the batch''s transaction began, by the database''s clock.';

COMMENT ON COLUMN projection_progress.epoch IS 'The fencing token of the writers that may write.';
COMMENT ON COLUMN projection_audits.epoch IS 'Epoch that was audited; an audit of another says nothing about this one.';
COMMENT ON COLUMN dead_letters.reason_code IS 'decode: the value is no event of the topic. misplaced: it stands in a partition that is not its key''s, or its key is not its value''s. time: its key''s time lies more than a day ahead. refused: Postgres refuses the row. decided: it could be read now, and was decided on while it could not.';

-- in_each_generation runs a template for every schema in which a generation of the projection has tables (of all
-- projections for null): {schema} in it stands for the schema. So a migration of such tables waits for nothing, and
-- no standby is given up for an upgrade.
-- +goose StatementBegin
CREATE FUNCTION in_each_generation(of text, template text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    of_generation text;
BEGIN
    UPDATE public.projection_generations SET state = 'serving', swapping_since = NULL
    WHERE state = 'swapping' AND (of IS NULL OR projection = of);
    FOR of_generation IN
        SELECT g.schema_name FROM public.projection_generations g
        WHERE (of IS NULL OR g.projection = of) AND to_regclass(format('%I.projection_progress', g.schema_name)) IS NOT NULL
        ORDER BY g.projection, g.generation
    LOOP
        EXECUTE replace(template, '{schema}', quote_ident(of_generation));
    END LOOP;
END $$;
-- +goose StatementEnd

-- The generations that do not serve: their schemas are named after the projection.
-- +goose StatementBegin
DO $$
DECLARE
    g record;
    named text;
BEGIN
    FOR g IN SELECT generation, schema_name FROM public.projection_generations WHERE schema_name <> 'public' ORDER BY generation LOOP
        named := 'timestamps_g' || g.generation;
        IF to_regnamespace(named) IS NOT NULL THEN
            RAISE EXCEPTION 'schema % is there and is not Tidemark''s: rename or drop it, then the migration runs by itself', named;
        END IF;
        IF to_regnamespace(g.schema_name) IS NOT NULL THEN
            EXECUTE format('ALTER SCHEMA %I RENAME TO %I', g.schema_name, named);
            EXECUTE format('COMMENT ON SCHEMA %I IS %L', named, 'Tidemark: a generation of timestamps');
        END IF;
        UPDATE public.projection_generations SET schema_name = named WHERE generation = g.generation;
    END LOOP;
END $$;
-- +goose StatementEnd

-- +goose StatementBegin
SELECT in_each_generation(NULL, $template$
    ALTER TABLE {schema}.projection_progress
        ADD COLUMN expired bigint NOT NULL DEFAULT 0,
        ADD COLUMN dropped bigint NOT NULL DEFAULT 0,
        DROP CONSTRAINT every_offset_has_an_outcome,
        ADD CONSTRAINT every_offset_has_an_outcome CHECK (next_offset - first_offset = applied + duplicate + rejected + expired + skipped);
    ALTER TABLE {schema}.projection_audits
        ADD COLUMN expired bigint NOT NULL DEFAULT 0,
        ADD COLUMN dropped bigint NOT NULL DEFAULT 0;
    INSERT INTO public.projection_receipt_outbox (receipt_id, projection, group_name, generation, epoch, served, topic, partition, from_offset, next_offset, outcomes, decided_at)
    SELECT receipt_id, 'timestamps', group_name, generation, epoch, '{schema}' = 'public', topic, partition, from_offset, next_offset, outcomes, decided_at
    FROM {schema}.receipt_outbox;
    DROP TABLE {schema}.receipt_outbox;
    COMMENT ON COLUMN {schema}.projection_progress.expired IS 'Records that are older than the projection keeps.';
    COMMENT ON COLUMN {schema}.projection_progress.dropped IS 'Applied records whose rows went with their day.';
    COMMENT ON COLUMN {schema}.projection_audits.expired IS 'See first_offset.';
    COMMENT ON COLUMN {schema}.projection_audits.dropped IS 'See first_offset.';
$template$);
-- +goose StatementEnd

-- New epochs for all, so that a writer of the release before is fenced as well as lost.
UPDATE projection_generations SET epoch = next_projection_epoch();
-- +goose StatementBegin
SELECT in_each_generation(NULL, $template$
    UPDATE {schema}.projection_progress SET epoch = (SELECT g.epoch FROM public.projection_generations g WHERE quote_ident(g.schema_name) = '{schema}');
$template$);
-- +goose StatementEnd

-- make_projection_schema gives a projection its schema, with the tables that every projection has. Its own tables follow
-- in the migration that calls this.
-- +goose StatementBegin
CREATE FUNCTION make_projection_schema(named text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    t text;
BEGIN
    IF to_regnamespace(named) IS NOT NULL THEN
        RAISE EXCEPTION 'schema % is there and is not Tidemark''s: rename or drop it, then the migration runs by itself', named;
    END IF;
    EXECUTE format('CREATE SCHEMA %I', named);
    FOREACH t IN ARRAY ARRAY['projection_progress', 'dead_letters', 'projection_audits'] LOOP
        EXECUTE format('CREATE TABLE %I.%I (LIKE public.%I INCLUDING ALL)', named, t, t);
    END LOOP;
    EXECUTE format('ALTER TABLE %I.projection_progress SET (fillfactor = 50)', named);
END $$;
-- +goose StatementEnd

-- +goose Down
-- +goose StatementBegin
DO $$ BEGIN RAISE EXCEPTION 'this migration is not undone: restore the backup that was made before it, or rebuild from the log'; END $$;
-- +goose StatementEnd

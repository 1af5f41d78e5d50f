-- +goose Up

-- Who this database is: a group's committed offsets carry it, so that two databases on one group are told apart.
CREATE TABLE database_identity (
    only_one    boolean PRIMARY KEY DEFAULT true CHECK (only_one),
    database_id uuid NOT NULL DEFAULT gen_random_uuid()
);
INSERT INTO database_identity DEFAULT VALUES;

-- Epochs count how often any generation was started over. They are never used twice.
CREATE SEQUENCE projection_epochs AS bigint;

-- A generation is one set of projected tables. The serving one is always in public.
CREATE TABLE generations (
    generation  integer PRIMARY KEY,
    schema_name text NOT NULL UNIQUE,
    state       text NOT NULL CHECK (state IN ('serving')),
    epoch       bigint NOT NULL DEFAULT nextval('projection_epochs'),
    group_name  text,
    cluster_id  text,
    started_at  timestamptz
);
INSERT INTO generations (generation, schema_name, state) VALUES (0, 'public', 'serving');

-- Every group name that ever served this database. One that was replaced is never taken again.
CREATE TABLE projection_groups (
    group_name      text PRIMARY KEY,
    first_served_at timestamptz NOT NULL DEFAULT now(),
    replaced_at     timestamptz
);

-- The rows. Of two records with one id the lowest (created_at, partition, offset) is the row.
CREATE TABLE timestamp_records (
    id              uuid NOT NULL PRIMARY KEY,
    event_timestamp timestamptz NOT NULL,
    created_at      timestamptz NOT NULL,
    partition       integer NOT NULL,
    "offset"        bigint NOT NULL
);

CREATE TABLE dead_letters (
    topic         text NOT NULL,
    partition     integer NOT NULL,
    "offset"      bigint NOT NULL,
    payload       bytea,
    headers       jsonb NOT NULL,
    reason_code   text NOT NULL,
    reason        text NOT NULL,
    first_seen_at timestamptz NOT NULL,
    PRIMARY KEY (topic, partition, "offset")
);

-- How far the projection is, and the fence of its writers: a batch commits only where its epoch and
-- its first offset are those found here. Room in each page keeps the updates on it.
CREATE TABLE projection_progress (
    topic           text NOT NULL,
    partition       integer NOT NULL,
    epoch           bigint NOT NULL,
    first_offset    bigint NOT NULL,
    next_offset     bigint NOT NULL,
    last_offset     bigint,
    last_created_at timestamptz,
    last_record_hash bigint,
    applied         bigint NOT NULL DEFAULT 0,
    duplicate       bigint NOT NULL DEFAULT 0,
    rejected        bigint NOT NULL DEFAULT 0,
    skipped         bigint NOT NULL DEFAULT 0,
    log_end         bigint,
    log_end_at      timestamptz,
    caught_up_at    timestamptz,
    updated_at      timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (topic, partition),
    CONSTRAINT every_offset_has_an_outcome CHECK (next_offset - first_offset = applied + duplicate + rejected + skipped)
) WITH (fillfactor = 50);

-- The newest audit of each partition: what the counts say against what the tables hold.
CREATE TABLE projection_audits (
    topic              text NOT NULL,
    partition          integer NOT NULL,
    audited_at         timestamptz NOT NULL,
    took_ms            double precision NOT NULL,
    epoch              bigint NOT NULL,
    first_offset       bigint NOT NULL,
    next_offset        bigint NOT NULL,
    applied            bigint NOT NULL,
    duplicate          bigint NOT NULL,
    rejected           bigint NOT NULL,
    skipped            bigint NOT NULL,
    rows_found         bigint NOT NULL,
    dead_letters_found bigint NOT NULL,
    rows_ahead         bigint NOT NULL,
    ok                 boolean NOT NULL,
    finding            text NOT NULL,
    PRIMARY KEY (topic, partition)
);

-- +goose Down
DROP TABLE projection_audits, projection_progress, dead_letters, timestamp_records, projection_groups, generations, database_identity;
DROP SEQUENCE projection_epochs;

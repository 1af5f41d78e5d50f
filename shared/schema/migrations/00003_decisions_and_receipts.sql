-- +goose Up

-- What was decided on dead letters: one row a position, the first decision on it, as the log has it. It belongs to the
-- log and to no generation, so there is one for the database.
CREATE TABLE dead_letter_decisions (
    topic              text NOT NULL,
    partition          integer NOT NULL,
    "offset"           bigint NOT NULL,
    decision           text NOT NULL CHECK (decision IN ('redrive', 'discard')),
    command_id         uuid,
    note               text NOT NULL,
    decided_by         text NOT NULL,
    decided_at         timestamptz NOT NULL,
    decision_partition integer NOT NULL,
    decision_offset    bigint NOT NULL,
    PRIMARY KEY (topic, partition, "offset")
);

-- How far the log of decisions is in that table: everything below next_offset.
CREATE TABLE decision_progress (
    partition   integer NOT NULL PRIMARY KEY,
    next_offset bigint NOT NULL
);

-- Receipts that are not in the log yet. A generation has its own outbox; the numbers are one sequence for all of them,
-- so that a number means one receipt whatever schema it is in.
CREATE SEQUENCE receipt_ids AS bigint;
CREATE TABLE receipt_outbox (
    receipt_id  bigint NOT NULL DEFAULT nextval('public.receipt_ids') PRIMARY KEY,
    group_name  text NOT NULL,
    generation  integer NOT NULL,
    epoch       bigint NOT NULL,
    topic       text NOT NULL,
    partition   integer NOT NULL,
    from_offset bigint NOT NULL,
    next_offset bigint NOT NULL,
    outcomes    text NOT NULL,
    decided_at  timestamptz NOT NULL DEFAULT now()
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 10000); -- a queue: most of it is gone soon

-- +goose Down
DROP TABLE receipt_outbox, decision_progress, dead_letter_decisions;
DROP SEQUENCE receipt_ids;

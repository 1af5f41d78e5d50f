-- +goose Up

-- What a generation is doing. The one that serves is serving, or swapping for the moment of a swap; its
-- tables are in public. Any other has a schema of its own, named after its number.
ALTER TABLE generations DROP CONSTRAINT generations_state_check;
ALTER TABLE generations
    ADD CONSTRAINT generations_state_check CHECK (state IN
        ('serving', 'swapping', 'filling', 'indexing', 'ready', 'standby', 'held', 'dropping')),
    ADD COLUMN state_since    timestamptz NOT NULL DEFAULT now(),
    ADD COLUMN requested_at   timestamptz NOT NULL DEFAULT now(),
    ADD COLUMN swapping_since timestamptz,
    ADD COLUMN swap_wanted    boolean NOT NULL DEFAULT false,
    ADD COLUMN proof_wanted   boolean NOT NULL DEFAULT false,
    ADD COLUMN rate_limit     integer CHECK (rate_limit > 0),
    ADD COLUMN point          text,
    ADD COLUMN stops          jsonb,
    ADD COLUMN proof          jsonb;

-- Numbers are never used twice: a process that slept must not take a new generation for an old one.
CREATE SEQUENCE generation_numbers AS integer;

CREATE UNIQUE INDEX one_generation_serves ON generations ((true)) WHERE state IN ('serving', 'swapping');
CREATE UNIQUE INDEX one_rebuild_at_a_time ON generations ((true)) WHERE state IN ('filling', 'indexing', 'ready');
CREATE UNIQUE INDEX one_way_back ON generations ((true)) WHERE state = 'standby';

-- How a generation that does not serve comes along, as its driver last saw it.
CREATE TABLE generation_progress (
    generation    integer PRIMARY KEY REFERENCES generations ON DELETE CASCADE,
    sampled_at    timestamptz NOT NULL,
    rate          double precision NOT NULL,
    eta_seconds   double precision,
    bottleneck    text NOT NULL,
    stalled_since timestamptz,
    note          text NOT NULL DEFAULT '',
    noted_at      timestamptz
);

-- Where the processes that fill a generation spent their time of late, one row each.
CREATE TABLE generation_lanes (
    generation integer NOT NULL REFERENCES generations ON DELETE CASCADE,
    lane       uuid NOT NULL,
    seen_at    timestamptz NOT NULL,
    kafka      double precision NOT NULL,
    consumer   double precision NOT NULL,
    postgres   double precision NOT NULL,
    throttle   double precision NOT NULL,
    note       text NOT NULL DEFAULT '',
    noted_at   timestamptz,
    PRIMARY KEY (generation, lane)
);

-- +goose Down
DROP TABLE generation_lanes, generation_progress;
DROP INDEX one_generation_serves, one_rebuild_at_a_time, one_way_back;
DROP SEQUENCE generation_numbers;
ALTER TABLE generations DROP CONSTRAINT generations_state_check;
ALTER TABLE generations
    DROP COLUMN state_since, DROP COLUMN requested_at, DROP COLUMN swapping_since, DROP COLUMN swap_wanted,
    DROP COLUMN proof_wanted, DROP COLUMN rate_limit, DROP COLUMN point, DROP COLUMN stops, DROP COLUMN proof,
    ADD CONSTRAINT generations_state_check CHECK (state IN ('serving'));

-- +goose Up

ALTER TABLE projection_generations
    ADD COLUMN fill_ms  double precision,
    ADD COLUMN index_ms double precision;
COMMENT ON COLUMN projection_generations.fill_ms IS 'How long it read the log until it had caught up, or was at its point, in milliseconds; empty until then.';
COMMENT ON COLUMN projection_generations.index_ms IS 'How long the indexes took that come after that, in milliseconds; empty until they are made.';

-- +goose Down
ALTER TABLE projection_generations DROP COLUMN fill_ms, DROP COLUMN index_ms;

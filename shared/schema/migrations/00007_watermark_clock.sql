-- +goose Up

-- Watermarks bear the database's clock, as whoever says how old they are compares with it.
-- +goose StatementBegin
SELECT in_each_generation(NULL, $template$
    COMMENT ON COLUMN {schema}.projection_progress.log_end_at IS 'When that was, by the database''s clock, read before the log was asked. Once it is older than some seconds nobody knows the lag.';
    COMMENT ON COLUMN {schema}.projection_progress.caught_up_at IS 'The latest time, by the same clock, up to which every accepted record is known to have an outcome.';
$template$);
-- +goose StatementEnd

-- +goose Down
SELECT 1;

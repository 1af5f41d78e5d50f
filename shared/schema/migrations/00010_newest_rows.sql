-- +goose NO TRANSACTION
-- +goose Up

-- The newest rows are found by log time, whatever their ids are. The index holds two times for each 128 pages, since rows
-- come into the table about in the order of the log. autosummarize: a range without its two times is read by everyone.
--
-- The serving table's index is built while writers write. It waits for the transactions that were open when it began, a
-- backup's included. One that a killed try left half made is dropped first. The other generations' writers wait for
-- their builds, about 70 ms for a million rows.
DROP INDEX CONCURRENTLY IF EXISTS public.timestamp_records_created_at_idx;
CREATE INDEX CONCURRENTLY timestamp_records_created_at_idx ON public.timestamp_records USING brin (created_at) WITH (autosummarize = on);
-- +goose StatementBegin
SELECT public.in_each_generation('timestamps', $template$
    CREATE INDEX IF NOT EXISTS timestamp_records_created_at_idx ON {schema}.timestamp_records USING brin (created_at) WITH (autosummarize = on);
$template$);
-- +goose StatementEnd

-- +goose Down
-- +goose StatementBegin
SELECT public.in_each_generation('timestamps', $template$
    DROP INDEX {schema}.timestamp_records_created_at_idx;
$template$);
-- +goose StatementEnd

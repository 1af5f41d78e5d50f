-- +goose Up

-- Dead letters are listed newest first, and counted among the newest. The name is what LIKE gives a copy of the table.
-- +goose StatementBegin
SELECT in_each_generation(NULL, $template$
    CREATE INDEX dead_letters_first_seen_at_partition_offset_idx ON {schema}.dead_letters (first_seen_at, partition, "offset");
$template$);
-- +goose StatementEnd

-- +goose Down
-- +goose StatementBegin
SELECT in_each_generation(NULL, $template$
    DROP INDEX {schema}.dead_letters_first_seen_at_partition_offset_idx;
$template$);
-- +goose StatementEnd

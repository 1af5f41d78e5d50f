-- +goose Up

SELECT make_projection_schema('endpoints');

-- The main table: every put and delete that was accepted.
CREATE TABLE endpoints.endpoint_commands (
    endpoint_id uuid NOT NULL,
    command_id  uuid NOT NULL,
    kind        text NOT NULL,
    document    text,
    sent_by     text NOT NULL,
    created_at  timestamptz NOT NULL,
    partition   integer NOT NULL,
    "offset"    bigint NOT NULL,
    PRIMARY KEY (endpoint_id, command_id)
);
CREATE INDEX endpoint_commands_by_ticket ON endpoints.endpoint_commands (command_id);
COMMENT ON TABLE endpoints.endpoint_commands IS 'Every put and delete of an endpoint that was accepted. Of two records with one key, the lowest offset is the row.';
COMMENT ON COLUMN endpoints.endpoint_commands.endpoint_id IS 'The endpoint that it is about.';
COMMENT ON COLUMN endpoints.endpoint_commands.command_id IS 'The command''s id, which is its ticket.';
COMMENT ON COLUMN endpoints.endpoint_commands.kind IS 'put or delete.';
COMMENT ON COLUMN endpoints.endpoint_commands.document IS 'Of a put, the endpoint as it came, members that this release does not know included; JSON, kept as text.';
COMMENT ON COLUMN endpoints.endpoint_commands.sent_by IS 'Name of the API key that sent it; empty without keys.';
COMMENT ON COLUMN endpoints.endpoint_commands.created_at IS 'When the log accepted the record, by the log''s clock, to the millisecond.';
COMMENT ON COLUMN endpoints.endpoint_commands.partition IS 'Partition of endpoint.command.v1.';
COMMENT ON COLUMN endpoints.endpoint_commands."offset" IS 'Offset in that partition.';

-- Derived: the endpoints as they are now. One that was deleted leaves its row, so that two generations can be compared.
CREATE TABLE endpoints.current_endpoints (
    endpoint_id      uuid NOT NULL PRIMARY KEY,
    deleted          boolean NOT NULL,
    url              text,
    name             text,
    group_name       text,
    tags             text,
    interval_seconds integer,
    enabled          boolean,
    document         text,
    created_at       timestamptz,
    changed_at       timestamptz NOT NULL,
    changed_by       text NOT NULL,
    command_id       uuid NOT NULL,
    partition        integer NOT NULL,
    "offset"         bigint NOT NULL
) WITH (fillfactor = 50);
CREATE INDEX current_endpoints_by_name ON endpoints.current_endpoints (name, endpoint_id) WHERE NOT deleted;
COMMENT ON TABLE endpoints.current_endpoints IS 'The endpoints as they are now, folded from endpoint_commands in the order of the log.';
COMMENT ON COLUMN endpoints.current_endpoints.endpoint_id IS 'Its id, which derives from the ticket of the command that made it.';
COMMENT ON COLUMN endpoints.current_endpoints.deleted IS 'Whether the last command was a delete; the columns from url to created_at are empty then.';
COMMENT ON COLUMN endpoints.current_endpoints.url IS 'What is to be checked.';
COMMENT ON COLUMN endpoints.current_endpoints.name IS 'What people call it.';
COMMENT ON COLUMN endpoints.current_endpoints.group_name IS 'The group that it belongs to; may be empty.';
COMMENT ON COLUMN endpoints.current_endpoints.tags IS 'Its tags, a JSON array of texts in the order in which they came.';
COMMENT ON COLUMN endpoints.current_endpoints.interval_seconds IS 'Time between two checks, in seconds.';
COMMENT ON COLUMN endpoints.current_endpoints.enabled IS 'Whether it is to be checked.';
COMMENT ON COLUMN endpoints.current_endpoints.document IS 'The endpoint as the last put has it; JSON, kept as text.';
COMMENT ON COLUMN endpoints.current_endpoints.created_at IS 'Log time of the put that made it, or made it anew after a delete.';
COMMENT ON COLUMN endpoints.current_endpoints.changed_at IS 'Log time of the last command about it.';
COMMENT ON COLUMN endpoints.current_endpoints.changed_by IS 'Name of the API key that sent that command; empty without keys.';
COMMENT ON COLUMN endpoints.current_endpoints.command_id IS 'Ticket of that command.';
COMMENT ON COLUMN endpoints.current_endpoints.partition IS 'Partition of the last record that was folded into this row.';
COMMENT ON COLUMN endpoints.current_endpoints."offset" IS 'Offset of that record.';

INSERT INTO projections (projection, topic, schema_name, tables, main_table, ticket_column)
VALUES ('endpoints', 'endpoint.command.v1', 'endpoints', '{endpoint_commands,current_endpoints}', 'endpoint_commands', 'command_id');
INSERT INTO projection_generations (projection, generation, schema_name, state) VALUES ('endpoints', 0, 'endpoints', 'serving');

-- +goose Down
DROP SCHEMA endpoints CASCADE;
DELETE FROM projection_generations WHERE projection = 'endpoints';
DELETE FROM projections WHERE projection = 'endpoints';

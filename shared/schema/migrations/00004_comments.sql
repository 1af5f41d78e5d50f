-- +goose Up

-- What every table and column is, for psql's \d+ and docs/schema.md.

COMMENT ON SEQUENCE projection_epochs IS 'Epochs of all generations. None is ever used twice.';

COMMENT ON TABLE database_identity IS 'Who this database is. A consumer group''s committed offsets carry the id, so that two databases on one group are told apart.';
COMMENT ON COLUMN database_identity.only_one IS 'Keeps the table at one row.';
COMMENT ON COLUMN database_identity.database_id IS 'Made with the database; a restored backup has it too.';

COMMENT ON TABLE projection_groups IS 'Every group name that ever served this database. One that was replaced is never taken again.';
COMMENT ON COLUMN projection_groups.group_name IS 'KAFKA_GROUP_ID.';
COMMENT ON COLUMN projection_groups.first_served_at IS 'When it took over, by the database''s clock.';
COMMENT ON COLUMN projection_groups.replaced_at IS 'When another name took over; empty for the one that serves.';

COMMENT ON TABLE timestamp_records IS 'The rows, one for each command id. Of two records of the log with one id, the lowest (created_at, partition, offset) is the row.';
COMMENT ON COLUMN timestamp_records.id IS 'The command''s id, which is its ticket.';
COMMENT ON COLUMN timestamp_records.event_timestamp IS 'The instant that was stamped, to the microsecond.';
COMMENT ON COLUMN timestamp_records.created_at IS 'When the log accepted the record, by the log''s clock, to the millisecond.';
COMMENT ON COLUMN timestamp_records.partition IS 'Partition of timestamp.command.v1.';
COMMENT ON COLUMN timestamp_records."offset" IS 'Offset in that partition.';

COMMENT ON TABLE dead_letters IS 'Records that cannot be read, or that Postgres refuses. Their offsets are passed; nothing waits for them.';
COMMENT ON COLUMN dead_letters.topic IS 'Topic of the record.';
COMMENT ON COLUMN dead_letters.partition IS 'Its partition.';
COMMENT ON COLUMN dead_letters."offset" IS 'Its offset.';
COMMENT ON COLUMN dead_letters.payload IS 'The record''s value, byte for byte; empty where it had none.';
COMMENT ON COLUMN dead_letters.headers IS 'Its headers, in order: [{"key", "value"}], or key_base64 and value_base64 for what is no text.';
COMMENT ON COLUMN dead_letters.reason_code IS 'decode: the value is no event of the topic. refused: Postgres refuses the row.';
COMMENT ON COLUMN dead_letters.reason IS 'Why, in words that depend on the record alone.';
COMMENT ON COLUMN dead_letters.first_seen_at IS 'When the log accepted the record, so that a rebuild gives the same.';

COMMENT ON TABLE projection_progress IS 'How far each partition is projected, and the fence of its writers: a batch commits only where its epoch and first offset are those found here.';
COMMENT ON COLUMN projection_progress.topic IS 'Topic that is projected.';
COMMENT ON COLUMN projection_progress.partition IS 'Its partition.';
COMMENT ON COLUMN projection_progress.epoch IS 'Epoch of the writers that may write.';
COMMENT ON COLUMN projection_progress.first_offset IS 'Where this epoch began to read.';
COMMENT ON COLUMN projection_progress.next_offset IS 'Every offset below it has an outcome; reading goes on here.';
COMMENT ON COLUMN projection_progress.last_offset IS 'Offset of the last record that was projected; it is compared with the log before reading goes on.';
COMMENT ON COLUMN projection_progress.last_created_at IS 'Log time of that record.';
COMMENT ON COLUMN projection_progress.last_record_hash IS 'FNV-1a of its key and value.';
COMMENT ON COLUMN projection_progress.applied IS 'Records that are the row of their id.';
COMMENT ON COLUMN projection_progress.duplicate IS 'Records whose id''s row is another record''s.';
COMMENT ON COLUMN projection_progress.rejected IS 'Records that are dead letters.';
COMMENT ON COLUMN projection_progress.skipped IS 'Offsets that hold no record: markers of transactions.';
COMMENT ON COLUMN projection_progress.log_end IS 'Where the log ended when it was last asked, each second.';
COMMENT ON COLUMN projection_progress.log_end_at IS 'When that was, by the consumer''s clock.';
COMMENT ON COLUMN projection_progress.caught_up_at IS 'The latest time up to which every accepted record is known to have an outcome.';
COMMENT ON COLUMN projection_progress.updated_at IS 'When the progress last moved, by the database''s clock.';

COMMENT ON TABLE projection_audits IS 'The newest audit of each partition: what the counts say against what the tables hold, in one snapshot.';
COMMENT ON COLUMN projection_audits.topic IS 'Topic.';
COMMENT ON COLUMN projection_audits.partition IS 'Partition.';
COMMENT ON COLUMN projection_audits.audited_at IS 'When, by the database''s clock.';
COMMENT ON COLUMN projection_audits.took_ms IS 'How long the count took on the server, in milliseconds.';
COMMENT ON COLUMN projection_audits.epoch IS 'Epoch that was audited; an audit of another says nothing about this one.';
COMMENT ON COLUMN projection_audits.first_offset IS 'As in projection_progress at that moment, like the five that follow.';
COMMENT ON COLUMN projection_audits.next_offset IS 'See first_offset.';
COMMENT ON COLUMN projection_audits.applied IS 'See first_offset.';
COMMENT ON COLUMN projection_audits.duplicate IS 'See first_offset.';
COMMENT ON COLUMN projection_audits.rejected IS 'See first_offset.';
COMMENT ON COLUMN projection_audits.skipped IS 'See first_offset.';
COMMENT ON COLUMN projection_audits.rows_found IS 'Rows between first_offset and next_offset; should be applied.';
COMMENT ON COLUMN projection_audits.dead_letters_found IS 'Dead letters below next_offset; should be rejected.';
COMMENT ON COLUMN projection_audits.rows_ahead IS 'Rows at or past next_offset: an earlier epoch''s, waiting to be recognised.';
COMMENT ON COLUMN projection_audits.ok IS 'Whether all of it agrees.';
COMMENT ON COLUMN projection_audits.finding IS 'What does not, in words; empty where ok.';

COMMENT ON SEQUENCE generation_numbers IS 'Numbers of generations. None is ever used twice.';
COMMENT ON SEQUENCE receipt_ids IS 'Numbers of receipts, one sequence for the outboxes of all generations.';

COMMENT ON TABLE generations IS 'Every set of projected tables that there is. One serves, in the schema public.';
COMMENT ON COLUMN generations.generation IS 'Its number.';
COMMENT ON COLUMN generations.schema_name IS 'Where its tables are: public for the one that serves, else tidemark_g and its number.';
COMMENT ON COLUMN generations.state IS 'serving (swapping for the moment of a swap), filling, indexing, ready, standby (the way back), held (filled to a point) or dropping.';
COMMENT ON COLUMN generations.epoch IS 'How often it was started over, as a number that no other has.';
COMMENT ON COLUMN generations.group_name IS 'KAFKA_GROUP_ID that it is projected under; empty until something served.';
COMMENT ON COLUMN generations.cluster_id IS 'Cluster whose log it was computed from.';
COMMENT ON COLUMN generations.started_at IS 'When this epoch began, by the database''s clock.';
COMMENT ON COLUMN generations.state_since IS 'When its state last changed.';
COMMENT ON COLUMN generations.requested_at IS 'When somebody asked for it.';
COMMENT ON COLUMN generations.swapping_since IS 'When the mark of a swap under way was set. One older than five seconds is taken back by anybody.';
COMMENT ON COLUMN generations.swap_wanted IS 'Whether it is to serve as soon as its proof holds.';
COMMENT ON COLUMN generations.proof_wanted IS 'Whether it is to be proved.';
COMMENT ON COLUMN generations.rate_limit IS 'Most records a second while it is filled; empty is no limit.';
COMMENT ON COLUMN generations.point IS 'The time or position that it is filled to, as it was asked for; empty where it follows the log.';
COMMENT ON COLUMN generations.stops IS 'By partition, the first offset past that point.';
COMMENT ON COLUMN generations.proof IS 'Its newest proof, as the API gives it.';

COMMENT ON TABLE generation_progress IS 'How a generation that does not serve comes along, as its driver last saw it.';
COMMENT ON COLUMN generation_progress.generation IS 'Its number.';
COMMENT ON COLUMN generation_progress.sampled_at IS 'When it was looked at.';
COMMENT ON COLUMN generation_progress.rate IS 'Records a second over the last seconds.';
COMMENT ON COLUMN generation_progress.eta_seconds IS 'Until it is level, at the rate at which its lag shrinks; empty where it does not.';
COMMENT ON COLUMN generation_progress.bottleneck IS 'What most of the time goes to: kafka, consumer, postgres, throttle or none.';
COMMENT ON COLUMN generation_progress.stalled_since IS 'Since when nothing has moved although there is something to read.';
COMMENT ON COLUMN generation_progress.note IS 'The last trouble, in words.';
COMMENT ON COLUMN generation_progress.noted_at IS 'When that was.';

COMMENT ON TABLE generation_lanes IS 'Where the processes that fill a generation spent their time of late, one row each.';
COMMENT ON COLUMN generation_lanes.generation IS 'The generation''s number.';
COMMENT ON COLUMN generation_lanes.lane IS 'One process'' lane.';
COMMENT ON COLUMN generation_lanes.seen_at IS 'When it last wrote this row.';
COMMENT ON COLUMN generation_lanes.kafka IS 'Share of the time in which it waited for records, 0 to 1.';
COMMENT ON COLUMN generation_lanes.consumer IS 'Share in which it decoded and sorted.';
COMMENT ON COLUMN generation_lanes.postgres IS 'Share in which it wrote.';
COMMENT ON COLUMN generation_lanes.throttle IS 'Share in which its limit held it back.';
COMMENT ON COLUMN generation_lanes.note IS 'Its last trouble, in words.';
COMMENT ON COLUMN generation_lanes.noted_at IS 'When that was.';

COMMENT ON TABLE dead_letter_decisions IS 'What was decided on dead letters: the first decision on each position, as deadletter.command.v1 has it. It belongs to the log, and so to all generations.';
COMMENT ON COLUMN dead_letter_decisions.topic IS 'Topic of the dead letter''s record.';
COMMENT ON COLUMN dead_letter_decisions.partition IS 'Its partition.';
COMMENT ON COLUMN dead_letter_decisions."offset" IS 'Its offset.';
COMMENT ON COLUMN dead_letter_decisions.decision IS 'redrive or discard.';
COMMENT ON COLUMN dead_letter_decisions.command_id IS 'Ticket of the command that was issued instead; redrives only.';
COMMENT ON COLUMN dead_letter_decisions.note IS 'Why, in the words of who decided; may be empty.';
COMMENT ON COLUMN dead_letter_decisions.decided_by IS 'Id of the API key; empty without keys.';
COMMENT ON COLUMN dead_letter_decisions.decided_at IS 'Log time of the decision.';
COMMENT ON COLUMN dead_letter_decisions.decision_partition IS 'Partition of deadletter.command.v1 where the decision is.';
COMMENT ON COLUMN dead_letter_decisions.decision_offset IS 'Its offset there.';

COMMENT ON TABLE decision_progress IS 'How far deadletter.command.v1 is read.';
COMMENT ON COLUMN decision_progress.partition IS 'Its partition.';
COMMENT ON COLUMN decision_progress.next_offset IS 'Every decision below it is in dead_letter_decisions.';

COMMENT ON TABLE receipt_outbox IS 'Receipts that are not in projection.receipt.v1 yet. A row goes when the log has acknowledged it.';
COMMENT ON COLUMN receipt_outbox.receipt_id IS 'Its number, which no other receipt of any generation has.';
COMMENT ON COLUMN receipt_outbox.group_name IS 'KAFKA_GROUP_ID that the batch was projected under.';
COMMENT ON COLUMN receipt_outbox.generation IS 'Generation that the batch was written to.';
COMMENT ON COLUMN receipt_outbox.epoch IS 'Epoch that it was written in.';
COMMENT ON COLUMN receipt_outbox.topic IS 'Topic of the batch.';
COMMENT ON COLUMN receipt_outbox.partition IS 'Its partition.';
COMMENT ON COLUMN receipt_outbox.from_offset IS 'First offset of the batch.';
COMMENT ON COLUMN receipt_outbox.next_offset IS 'First offset past it.';
COMMENT ON COLUMN receipt_outbox.outcomes IS 'What became of each offset, as runs in their order: [{"outcome", "count"}].';
COMMENT ON COLUMN receipt_outbox.decided_at IS 'When the batch''s transaction began, by the database''s clock.';

-- +goose Down
-- Comments do no harm.
SELECT 1;

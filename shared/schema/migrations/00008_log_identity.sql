-- +goose Up

-- A topic that is deleted and made again has another id under its old name. Tables and decisions know the one that they were
-- computed from; what stands here without one takes the id that is found first.
ALTER TABLE public.projection_generations
    ADD COLUMN topic_id text,
    ADD COLUMN new_log boolean NOT NULL DEFAULT false;
COMMENT ON COLUMN public.projection_generations.topic_id IS 'Kafka''s id of the topic that it was computed from; empty until it was first read.';
COMMENT ON COLUMN public.projection_generations.new_log IS 'Whether it was filled from a topic that was made anew and accepted (ACCEPT_NEW_LOG), and so was never verified against the generation before it.';
COMMENT ON COLUMN public.projection_generations.state IS 'serving (swapping for the moment of a swap), queued (waits for the rebuild of another projection), filling, indexing, ready, standby (a rollback returns to it), held (filled to a point, or computed from a topic that was replaced; it never serves) or dropping.';

ALTER TABLE public.decision_progress ADD COLUMN topic_id text;
COMMENT ON COLUMN public.decision_progress.topic_id IS 'Kafka''s id of the log of decisions that was read; empty until it was first asked for.';

-- +goose Down
SELECT 1;

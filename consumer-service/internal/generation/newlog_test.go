package generation

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// newLog has a generation filled from another topic, which holds less than the one before, and brings it to where it may serve.
func (b *bundle) newLog(t *testing.T) Generation {
	t.Helper()
	number, err := b.FillNewLog(t.Context(), "topic-2", "cluster-2")
	require.NoError(t, err)
	g := b.get(t, number)
	require.Equal(t, Filling, g.State)
	b.exec(t, `INSERT INTO `+g.Schema+`.timestamp_records (id, event_timestamp, created_at, partition, "offset") SELECT gen_random_uuid(), now(), now(), 0, 0`)
	b.exec(t, `UPDATE `+g.Schema+`.projection_progress SET next_offset = 1 - partition, applied = 1 - partition, log_end = 1 - partition, caught_up_at = '2026-01-01'`)
	return g
}

// A generation that is filled from a new log serves without a proof, takes nothing over from the one before, and that one
// is held: it never serves again.
func TestANewLogIsSwappedInUnverifiedAndTheOldGenerationIsHeld(t *testing.T) {
	t.Parallel()
	b := setup(t)
	standby := b.ready(t, Request{Swap: true})
	b.drive(t)
	require.Equal(t, Serving, b.get(t, standby.Number).State)
	require.Equal(t, Standby, b.get(t, 0).State)

	g := b.newLog(t)
	require.Equal(t, Held, b.get(t, 0).State, "nothing can feed a standby of the former log")
	again, err := b.FillNewLog(t.Context(), "topic-2", "cluster-2")
	require.NoError(t, err)
	require.Equal(t, g.Number, again, "one generation, however many processes ask")
	b.drive(t)
	g = b.get(t, g.Number)
	require.Equal(t, Serving, g.State, g.Progress.Note)
	require.True(t, g.NewLog)
	require.Nil(t, g.Proof)
	require.Equal(t, "topic-2", g.TopicID)
	var rows, ends int
	b.one(t, &rows, `SELECT count(*) FROM public.timestamp_records`)
	require.Equal(t, 1, rows)
	b.one(t, &ends, `SELECT count(*) FROM public.projection_progress WHERE log_end <= 1 AND caught_up_at = '2026-01-01'`)
	require.Equal(t, partitions, ends, "the ends of the former log say nothing about the new one")
	var cluster string
	b.one(t, &cluster, `SELECT cluster_id FROM projection_generations WHERE generation = $1`, g.Number)
	require.Equal(t, "cluster-2", cluster)

	old := b.get(t, standby.Number)
	require.Equal(t, Held, old.State)
	b.one(t, &rows, `SELECT count(*) FROM `+old.Schema+`.timestamp_records`)
	require.Equal(t, partitions*(perEach-dead), rows, "old rows are kept")
	for _, ask := range []func() (Generation, error){
		func() (Generation, error) { return b.Swap(t.Context(), old.Number) },
		func() (Generation, error) { return b.Prove(t.Context(), old.Number) },
	} {
		_, err = ask()
		require.ErrorContains(t, err, "computed from another log (topic id topic-1)")
	}
	again, err = b.FillNewLog(t.Context(), "topic-2", "cluster-2")
	require.NoError(t, err)
	require.Equal(t, g.Number, again, "what is accepted means nothing once it serves")

	// A rebuild of the new log is verified as any other, and the mark is not handed on.
	b.log.ID = "topic-2"
	next, err := b.Start(t.Context(), Request{})
	require.NoError(t, err)
	require.False(t, next.NewLog)
	require.Equal(t, "topic-2", next.TopicID)
	_, err = b.Drop(t.Context(), old.Number)
	require.NoError(t, err)
}

// What is being rebuilt from the former log goes, and a generation from the new one cannot be verified.
func TestARebuildOfTheFormerLogIsDropped(t *testing.T) {
	t.Parallel()
	b := setup(t)
	former, err := b.Start(t.Context(), Request{Swap: true})
	require.NoError(t, err)
	g := b.newLog(t)
	require.Equal(t, Dropping, b.get(t, former.Number).State)
	b.exec(t, `UPDATE projection_generations SET state = 'ready', swap_wanted = false WHERE generation = $1`, g.Number)
	_, err = b.Prove(t.Context(), g.Number)
	require.ErrorContains(t, err, "nothing to verify it against")
}

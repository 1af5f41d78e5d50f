package generation

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/consumer-service/internal/projection"
	"github.com/tidemark/tidemark/shared/await"
	"github.com/tidemark/tidemark/shared/postgres"
)

// swapOf is a swap that has not begun, on a connection of its own.
func (b *bundle) swapOf(t *testing.T, g Generation) *swapping {
	t.Helper()
	conn, err := b.Long.Connx(t.Context())
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, conn.Close()) })
	return &swapping{Service: b.Service, conn: conn, candidate: g}
}

// The fence comes first: from its commit on a writer of the epoch before moves no progress row, so it writes nothing.
func TestASwapFencesTheWritersBeforeAnythingMoves(t *testing.T) {
	t.Parallel()
	b := setup(t)
	g := b.ready(t, Request{Swap: true})
	before := b.get(t, 0).Epoch
	w := b.swapOf(t, g)
	require.NoError(t, w.fence(t.Context()))
	require.Greater(t, w.mark, before)
	var epochs []int64
	require.NoError(t, b.DB.Select(&epochs, `SELECT DISTINCT epoch FROM public.projection_progress`))
	require.Equal(t, []int64{w.mark}, epochs)

	// It is taken back: the writers go on under the epoch that they were fenced with.
	require.NoError(t, w.unfence(t.Context()))
	require.Equal(t, Serving, b.get(t, 0).State)
	require.Equal(t, w.mark, b.get(t, 0).Epoch)
}

// What the writers wrote before they were fenced is in the candidate before it serves.
func TestASwapWaitsForTheRecordsThatTheCandidateHasNotRead(t *testing.T) {
	t.Parallel()
	b := setup(t)
	g := b.ready(t, Request{Swap: true})
	b.exec(t, `UPDATE public.projection_progress SET next_offset = next_offset + 1, skipped = skipped + 1`)
	before := b.get(t, 0).Epoch
	require.ErrorIs(t, b.swap(t.Context(), b.get(t, g.Number)), errNotYet)
	require.Equal(t, Serving, b.get(t, 0).State)
	require.Greater(t, b.get(t, 0).Epoch, before, "the writers were fenced, since a few records take no time")
	b.copied2(t, g)
	require.NoError(t, b.swap(t.Context(), b.get(t, g.Number)))
	require.Equal(t, Serving, b.get(t, g.Number).State)
}

// A reading transaction locks tables in the order of shared/schema, progress first and the serving generation before a candidate.
// So does a swap: while it waits for the first table it holds none of the others, and a reader that goes on in that order is
// neither held up nor part of a deadlock.
func TestASwapThatWaitsHoldsNoTableThatAReaderComesToLater(t *testing.T) {
	t.Parallel()
	b := setup(t)
	g := b.ready(t, Request{Swap: true})
	tables := append(b.locks(b.serving()), b.locks(g.Schema)...)
	reader, err := b.Long.BeginTxx(t.Context(), nil)
	require.NoError(t, err)
	_, err = reader.ExecContext(t.Context(), `LOCK TABLE `+tables[0]+` IN ACCESS SHARE MODE`)
	require.NoError(t, err)
	swapped := make(chan error, 1)
	go func() { swapped <- b.swap(t.Context(), g) }()
	await.Until(t, func() bool {
		var waiting bool
		b.one(t, &waiting, `SELECT EXISTS (SELECT FROM pg_locks l JOIN pg_database d ON d.oid = l.database
			WHERE d.datname = current_database() AND l.mode = 'AccessExclusiveLock' AND NOT l.granted)`)
		return waiting || len(swapped) > 0
	})
	for _, table := range tables[1:] {
		_, err = reader.ExecContext(t.Context(), `LOCK TABLE `+table+` IN ACCESS SHARE MODE NOWAIT`)
		require.NoError(t, err, "%s is held while the swap waits for %s", table, tables[0])
	}
	require.ErrorIs(t, <-swapped, errNotYet)
	require.NoError(t, reader.Rollback())
	require.NoError(t, b.swap(t.Context(), b.get(t, g.Number)))
}

// The whole order, written down once more: readers rely on it.
func TestTheOrderOfLocksIsThatOfReaders(t *testing.T) {
	t.Parallel()
	b := setup(t)
	w := &swapping{Service: b.Service, candidate: Generation{Schema: "timestamps_g1"}}
	var want []string
	for _, in := range []string{"public", "timestamps_g1"} {
		for _, table := range []string{"projection_progress", "timestamp_records", "dead_letters", "projection_audits"} {
			want = append(want, "ONLY "+postgres.Qualified(in, table))
		}
	}
	require.Equal(t, want, w.moved())
}

// An audit reads every row under the locks of a reader: a swap waits for its end before anybody is made to wait.
func TestASwapWaitsForAnAudit(t *testing.T) {
	t.Parallel()
	b := setup(t)
	g := b.ready(t, Request{Swap: true})
	before := b.get(t, 0)
	audit, err := b.DB.BeginTxx(t.Context(), nil)
	require.NoError(t, err)
	_, err = audit.ExecContext(t.Context(), `SELECT pg_advisory_xact_lock(hashtextextended($1, 0))`, projection.AuditLock("timestamps"))
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond) // in which a swap would be over
	defer cancel()
	require.Error(t, b.swap(ctx, g))
	require.Equal(t, before, b.get(t, 0), "the writers were not even fenced")
	require.NoError(t, audit.Rollback())
	require.NoError(t, b.swap(t.Context(), g))
}

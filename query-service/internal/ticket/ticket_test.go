package ticket

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/tidemark/tidemark/query-service/internal/deadletter"
	"github.com/tidemark/tidemark/query-service/internal/projection"
	"github.com/tidemark/tidemark/query-service/internal/testdb"
	"github.com/tidemark/tidemark/shared/config"
	"github.com/tidemark/tidemark/shared/position"
	"github.com/tidemark/tidemark/shared/postgres"
	"github.com/tidemark/tidemark/shared/topic"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func setup(t *testing.T) (*testdb.DB, *Finder) {
	t.Helper()
	db := testdb.New(t)
	c := config.DefaultPostgres()
	c.URL = db.URL
	own, err := postgres.Open(c, "test", postgres.ReaderLimits) // as the service does
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, own.Close()) })
	catalog, registry := projection.NewCatalog(own), prometheus.NewRegistry()
	watch := projection.NewWatch(projection.NextOffsets(own, catalog), catalog.Label, registry, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); watch.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	return db, NewFinder(projection.NewReader(own, catalog, watch, registry))
}

func find(t *testing.T, f *Finder, id uuid.UUID, at position.Position) Ticket {
	t.Helper()
	found, err := f.Find(t.Context(), id, projection.Want{Position: at})
	require.NoError(t, err)
	require.Equal(t, id, found.ID)
	return found
}

func TestAppliedIsARowAtThePosition(t *testing.T) {
	t.Parallel()
	db, f := setup(t)
	id := uuid.New()
	require.NoError(t, db.Project(t.Context(), 1, testdb.Row{ID: uuid.New(), Stamp: time.Now()}, testdb.Row{ID: id, Stamp: time.Now()}))
	for _, at := range []position.Position{testdb.At(1, 1), {}} { // its position is not needed
		found := find(t, f, id, at)
		require.Equal(t, Applied, found.State)
		require.Equal(t, "timestamps", found.Projection)
		require.Equal(t, testdb.At(1, 1), *found.Position)
		require.Equal(t, id, found.Row.Record.ID)
		require.NotZero(t, found.Epoch)
		require.Nil(t, found.AsOf)
	}
}

func TestDuplicateIsARowAtAnotherPosition(t *testing.T) {
	t.Parallel()
	db, f := setup(t)
	id := uuid.New()
	require.NoError(t, db.Project(t.Context(), 0, testdb.Row{ID: id, Stamp: time.Now()}))
	db.Duplicate(t, 2)
	found := find(t, f, id, testdb.At(2, 0))
	require.Equal(t, Duplicate, found.State)
	require.Equal(t, testdb.At(2, 0), *found.Position)
	require.Equal(t, testdb.At(0, 0), found.Row.Position)
}

func TestRejectedIsADeadLetterAtThePosition(t *testing.T) {
	t.Parallel()
	db, f := setup(t)
	db.Reject(t, 3, []byte("{"), "{}", "it is no JSON")
	found := find(t, f, uuid.New(), testdb.At(3, 0))
	require.Equal(t, Rejected, found.State)
	require.Equal(t, "decode", found.ReasonCode)
	require.Equal(t, "it is no JSON", found.Reason)
	require.Equal(t, deadletter.Open, found.Letter)
	require.Nil(t, found.Row)
	require.Nil(t, found.RedrivenAs)
}

// A record that was redriven under its own ticket, and came through, is what the client wanted.
func TestADeadLetterThatWasRedrivenUnderItsTicketIsApplied(t *testing.T) {
	t.Parallel()
	db, f := setup(t)
	id, other := uuid.New(), uuid.New()
	db.Reject(t, 3, []byte("{"), "{}", "it is no JSON")
	decide := func(as uuid.UUID) {
		db.Must(t, `DELETE FROM dead_letter_decisions`)
		db.Must(t, `INSERT INTO dead_letter_decisions (topic, partition, "offset", decision, command_id, note, decided_by, decided_at, decision_partition, decision_offset)
			VALUES ($1, 3, 0, 'redrive', $2, '', 'somebody', now(), 0, 0)`, topic.TimestampCommand.Name, as)
	}
	decide(other)
	found := find(t, f, id, testdb.At(3, 0))
	require.Equal(t, Rejected, found.State)
	require.Equal(t, other, *found.RedrivenAs)

	decide(id)
	require.Equal(t, Rejected, find(t, f, id, testdb.At(3, 0)).State, "not through yet")
	require.NoError(t, db.Project(t.Context(), 1, testdb.Row{ID: id, Stamp: time.Now()}))
	found = find(t, f, id, testdb.At(3, 0))
	require.Equal(t, Applied, found.State)
	require.Equal(t, testdb.At(1, 0), *found.Position)
}

func TestPendingIsAPositionThatIsNotPassed(t *testing.T) {
	t.Parallel()
	db, f := setup(t)
	id := uuid.New()
	found := find(t, f, id, testdb.At(1, 0))
	require.Equal(t, Pending, found.State)
	require.Nil(t, found.Reached)
	db.Skip(t, 1)
	found = find(t, f, id, testdb.At(1, 1))
	require.Equal(t, Pending, found.State)
	require.Equal(t, testdb.At(1, 0), *found.Reached)
	require.Equal(t, "timestamps", found.Projection)
}

func TestUnknownSaysWhy(t *testing.T) {
	t.Parallel()
	db, f := setup(t)
	id := uuid.New()
	db.Skip(t, 1)
	found := find(t, f, id, testdb.At(1, 0))
	require.Equal(t, Unknown, found.State)
	require.Contains(t, found.Reason, "neither a row nor a dead letter")

	db.Must(t, `UPDATE projection_progress SET first_offset = 10, next_offset = 11, skipped = 1 WHERE partition = 2`)
	found = find(t, f, id, testdb.At(2, 5))
	require.Equal(t, Unknown, found.State)
	require.Contains(t, found.Reason, "before offset 10")

	found = find(t, f, id, position.Position{})
	require.Equal(t, Unknown, found.State)
	require.Nil(t, found.AsOf, "no partition was read to its end yet")
	db.Must(t, `UPDATE projection_progress SET caught_up_at = CASE partition WHEN 0 THEN '2026-01-02T03:04:05Z'::timestamptz ELSE now() END, log_end_at = now()`)
	found = find(t, f, id, position.Position{})
	require.Equal(t, Unknown, found.State)
	require.Equal(t, "2026-01-02T03:04:05Z", found.AsOf.UTC().Format(time.RFC3339), "the least of its partitions")
}

// Tickets of one group do not mix, whatever became of each.
func TestTicketsOfOneTransactionKeepTheirOwnAnswers(t *testing.T) {
	t.Parallel()
	db, f := setup(t)
	rows := make([]testdb.Row, 20)
	for i := range rows {
		rows[i] = testdb.Row{ID: uuid.New(), Stamp: time.Now()}
	}
	require.NoError(t, db.Project(t.Context(), 0, rows...))
	db.Reject(t, 1, []byte("{"), "{}", "it is no JSON")
	type answer struct {
		Ticket
		err error
	}
	answers := make(chan answer, 60)
	ask := func(id uuid.UUID, at position.Position) {
		go func() {
			found, err := f.Find(t.Context(), id, projection.Want{Position: at})
			answers <- answer{found, err}
		}()
	}
	lost := uuid.New()
	want := map[uuid.UUID]State{lost: Rejected}
	ask(lost, testdb.At(1, 0))
	for i, r := range rows {
		want[r.ID] = Applied
		ask(r.ID, testdb.At(0, int64(i)))
		late := uuid.New()
		want[late] = Pending
		ask(late, testdb.At(0, int64(len(rows)+i)))
	}
	for range want {
		a := <-answers
		require.NoError(t, a.err)
		require.Equal(t, want[a.ID], a.State)
		if a.State == Applied {
			require.Equal(t, a.ID, a.Row.Record.ID)
		}
	}
}

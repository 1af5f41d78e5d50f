package decision

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/shared/await"
	"github.com/tidemark/tidemark/shared/kafka/kafkatest"
	"github.com/tidemark/tidemark/shared/topic"
)

// book runs one on real tables until the test ends, and returns it with its refusals.
func (f *former) book(t *testing.T, accepts string) (b *Book, refused chan string, stop func()) {
	t.Helper()
	refused = make(chan string, 1)
	b = New(Options{
		Log: f.log, Store: f.store, Topic: topic.DeadLetterCommand.Name, Partitions: 3, Logger: slog.New(slog.DiscardHandler), Every: time.Millisecond,
		TopicID: f.log.TopicID, Accepts: func(id string) bool { return id == accepts }, Since: func(string) time.Time { return f.since },
		Refuse: func(reason string) { refused <- reason },
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); b.Run(ctx) }()
	stop = func() { cancel(); <-done }
	t.Cleanup(stop)
	return b, refused, stop
}

type former struct {
	log   *kafkatest.Log
	store *Postgres
	since time.Time
}

func (f *former) decided(t *testing.T) (n int) {
	t.Helper()
	require.NoError(t, f.store.DB.GetContext(t.Context(), &n, `SELECT count(*) FROM public.dead_letter_decisions`))
	return n
}

// A log of decisions that was made anew is refused with nothing changed; accepted, what the former one decided is forgotten,
// and the acceptance means nothing for the next one.
func TestALogOfDecisionsThatWasMadeAnewIsRefusedOrAccepted(t *testing.T) {
	t.Parallel()
	f := &former{log: kafkatest.NewLog(3), store: &Postgres{database(t)}}
	f.log.Add(1, day, string(discard(0, 5)))
	b, _, stop := f.book(t, "")
	require.NoError(t, b.CatchUp(t.Context()))
	stop()
	require.Equal(t, 1, f.decided(t))

	again := kafkatest.NewLog(3)
	again.ID = "topic-2"
	again.Add(1, day, string(discard(0, 7)))
	f.log = again
	b, refused, stop := f.book(t, "")
	ctx, cancel := context.WithCancel(t.Context())
	waiting := make(chan error, 1)
	go func() { waiting <- b.CatchUp(ctx) }()
	require.Contains(t, <-refused, "ACCEPT_NEW_LOG=deadletter.command.v1@topic-2")
	cancel()
	require.Error(t, <-waiting)
	stop()
	require.Equal(t, 1, f.decided(t))

	b, _, stop = f.book(t, "topic-2")
	require.NoError(t, b.CatchUp(t.Context()))
	require.Empty(t, b.Of(topic.TimestampCommand.Name, 0, 5, 6))
	require.NotEmpty(t, b.Of(topic.TimestampCommand.Name, 0, 7, 8))
	require.Equal(t, 1, f.decided(t))
	stop()

	f.log.ID = "topic-3"
	b, refused, _ = f.book(t, "topic-2")
	go func() { _ = b.CatchUp(t.Context()) }()
	require.Contains(t, <-refused, "topic-3")
}

// Under way it is refused within some seconds, and before anything is read from it.
func TestALogOfDecisionsThatIsMadeAnewUnderWayIsRefused(t *testing.T) {
	t.Parallel()
	f := &former{log: kafkatest.NewLog(3), store: &Postgres{database(t)}}
	f.log.Add(1, day, string(discard(0, 5)))
	b, refused, _ := f.book(t, "")
	require.NoError(t, b.CatchUp(t.Context()))

	again := kafkatest.NewLog(3)
	again.ID = "topic-2"
	for offset := range int64(4) {
		again.Add(1, day, string(discard(0, 7+offset)))
	}
	f.log.MakeAnew(again)
	require.Contains(t, <-refused, "ACCEPT_NEW_LOG=deadletter.command.v1@topic-2")
	require.Empty(t, b.Of(topic.TimestampCommand.Name, 0, 7, 11))
	require.Equal(t, 1, f.decided(t))
}

// Decisions on letters of a topic that was replaced count no longer, in memory and in the tables, also where they are the
// first ones on a position that was decided on since.
func TestDecisionsOnAFormerTopicDoNotCount(t *testing.T) {
	t.Parallel()
	f := &former{log: kafkatest.NewLog(3), store: &Postgres{database(t)}}
	f.log.Add(1, day, string(discard(0, 5)))
	f.log.Add(1, day, string(discard(0, 6)))
	f.log.Add(2, day.Add(time.Hour), string(discard(0, 6)))
	b, _, _ := f.book(t, "")
	require.NoError(t, b.CatchUp(t.Context()))
	require.Equal(t, 2, f.decided(t))

	f.since = day.Add(time.Minute)
	b.Reread()
	require.NoError(t, b.CatchUp(t.Context()))
	require.Len(t, b.Of(topic.TimestampCommand.Name, 0, 0, 10), 1)
	require.Equal(t, 1, f.decided(t))
	var at time.Time
	await.NoError(t, func() error {
		return f.store.DB.GetContext(t.Context(), &at, `SELECT decided_at FROM public.dead_letter_decisions`)
	})
	require.True(t, at.Equal(day.Add(time.Hour)))
}

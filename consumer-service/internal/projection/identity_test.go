package projection

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
)

// accepting takes one topic, once ready has no error.
type accepting struct {
	id     string
	ready  error
	filled []string
}

func (a *accepting) Accepted(_ context.Context, _, id string) (bool, error) {
	return id == a.id, a.ready
}

func (a *accepting) Fill(_ context.Context, id, _ string) (int, error) {
	a.filled = append(a.filled, id)
	return 7, nil
}

func (b *bundle) refusal(t *testing.T) (reason string) {
	t.Helper()
	require.NoError(t, b.DB.GetContext(t.Context(), &reason, `SELECT refusal FROM public.projections WHERE projection = 'timestamps'`))
	return reason
}

// A generation without an id takes the one that is there; another id is refused at the start of a session, with no row
// written, even where the last record is the same.
func TestAnotherTopicIsRefusedBeforeAnythingIsWritten(t *testing.T) {
	t.Parallel()
	b := setup(t, 2)
	b.log.Add(0, day, value(uuid.New(), day))
	require.NoError(t, b.join(t))
	b.readAll(t)
	g, err := b.store.generation(t.Context())
	require.NoError(t, err)
	require.Equal(t, "topic-1", *g.TopicID)
	before := b.dump(t)

	b.log.ID = "topic-2"
	b.log.Add(1, day, value(uuid.New(), day))
	var refusal *Refusal
	require.ErrorAs(t, b.join(t), &refusal)
	require.Contains(t, refusal.Reason, "ACCEPT_NEW_LOG=timestamp.command.v1@topic-2")
	require.False(t, refusal.Final)
	require.Equal(t, before, b.dump(t))
}

// Under way it is refused within some seconds, and readers are told.
func TestATopicThatIsMadeAnewUnderWayIsRefused(t *testing.T) {
	t.Parallel()
	b := setup(t, 2)
	require.NoError(t, b.join(t))
	w := &watch{tails: map[int32]int64{}}
	b.log.ID = "topic-2"
	b.looks.at = time.Time{}
	require.Error(t, b.look(t.Context(), w))
	require.Contains(t, (<-b.stopped).Reason, "deleted and made anew")
	require.Contains(t, b.refusal(t), "deleted and made anew")
	require.Contains(t, b.ready.Reasons(), Part("timestamps", PartAssignment))
}

// A broker that has just started may not know a topic yet: only the third look believes it, in a session or between two.
func TestATopicThatIsMissingIsRefusedAtTheThirdLook(t *testing.T) {
	t.Parallel()
	b := setup(t, 2)
	require.NoError(t, b.join(t))
	b.CleanUp()
	w := &watch{tails: map[int32]int64{}}
	look := func() error {
		b.looks.at = time.Time{} // as if some seconds had passed
		return b.look(t.Context(), w)
	}
	b.log.ID = ""
	require.ErrorIs(t, look(), errNoTopic)
	require.ErrorIs(t, b.look(t.Context(), w), nil, "looks that follow at once are one")
	require.ErrorIs(t, look(), errNoTopic)
	b.log.ID = "topic-1"
	require.NoError(t, look())
	b.log.ID = ""
	require.ErrorIs(t, look(), errNoTopic)
	require.ErrorIs(t, look(), errNoTopic)
	require.Empty(t, b.stopped)
	require.ErrorContains(t, look(), "is not there")
	require.Contains(t, (<-b.stopped).Reason, "the id topic-1")
}

// Where the operator accepts the other topic, the projector writes nothing and waits: readers hear of it, and the generation
// that is filled from it is asked for once what is waited for has come.
func TestAnAcceptedTopicIsWaitedFor(t *testing.T) {
	t.Parallel()
	b := setup(t, 2)
	a := &accepting{id: "topic-2", ready: errors.New("command-service has not noted it yet")}
	b.NewLog = a
	b.log.Add(0, day, value(uuid.New(), day))
	require.NoError(t, b.join(t))
	b.readAll(t)
	before := b.dump(t)
	b.log.ID = "topic-2"

	b.looks.at = time.Time{}
	require.Error(t, b.look(t.Context(), &watch{tails: map[int32]int64{}}))
	require.True(t, b.session.ended, "the session ends and the next one waits")
	for _, tc := range []struct {
		ready  error
		words  string
		filled []string
	}{{a.ready, "has not noted it yet", nil}, {nil, "generation 7 is filled from it", []string{"topic-2"}}} {
		a.ready = tc.ready
		var accepted *newLogAccepted
		require.ErrorAs(t, b.join(t), &accepted)
		require.NoError(t, b.awaitNewLog(t.Context(), accepted))
		require.Contains(t, b.refusal(t), tc.words)
		require.Equal(t, tc.filled, a.filled)
	}
	require.Empty(t, b.stopped)
	require.Equal(t, before, b.dump(t))

	// What serves after the swap knows the topic, whatever is still accepted.
	b.exec(t, `UPDATE projection_generations SET topic_id = 'topic-2', cluster_id = 'cluster-1'`)
	require.NoError(t, b.join(t))
	require.Empty(t, b.refusal(t))
	b.log.ID = "topic-3"
	var refusal *Refusal
	require.ErrorAs(t, b.join(t), &refusal)
}

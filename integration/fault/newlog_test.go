package fault_test

import (
	"context"
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/integration/story"
)

// A topic that is deleted and made anew shuts the door and is refused by the projection, and readers are told. Once an operator
// accepts it, the new log is projected as it is: what was decided on dead letters of the former one does not concern records
// that have their offsets now.
func TestANewLogServesOnceItIsAccepted(t *testing.T) {
	s := onKafka(t)
	door, consumer := s.Door(), s.Consumer("")
	reader := s.Reader()
	_, err := s.Log.Write(story.Message{Partition: 3, Key: "x", Value: []byte("no JSON")})
	require.NoError(t, err)
	ticket, err := s.Client.Stamp(t.Context(), door.URL(), "2001-01-01T00:00:00Z")
	require.NoError(t, err)
	s.RequireProjected(s.DB)
	a, err := s.Client.Send(t.Context(), http.MethodPost, door.URL()+"/api/v1/deadletters/discard", fmt.Sprintf(`{"positions":["%s/3@0"],"note":"nobody's"}`, story.Topic), "Content-Type", "application/json")
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, a.Status, a)

	require.NoError(t, s.Log.Delete())
	require.NoError(t, s.Log.Create(12, nil))
	id := uuid.New()
	_, err = s.Log.Write(story.Message{Partition: 3, Key: id.String(), Value: command(id, "2002-02-02T00:00:00Z")})
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), story.Patience)
	defer cancel()
	a, err = s.Client.Until(ctx, http.StatusServiceUnavailable, door.URL()+"/ready")
	require.NoError(t, err)
	accepted := regexp.MustCompile(`ACCEPT_NEW_LOG=(` + regexp.QuoteMeta(story.Topic) + `@[\w-]{22})`).FindStringSubmatch(a.String())
	require.NotNil(t, accepted, a)
	a, err = s.Client.Do(t.Context(), http.MethodPost, door.URL()+"/app", "")
	require.NoError(t, err)
	require.Equal(t, http.StatusServiceUnavailable, a.Status)
	require.Equal(t, "/problems/log-unsafe", a.Text("type"))
	s.RequireRefused(consumer, s.DB, madeAnew...)
	for _, at := range []string{ticket.Position, story.Topic + "/3@40"} { // one that the former log had, and one that it had not
		a, err = s.Client.Until(ctx, http.StatusServiceUnavailable, reader.URL()+"/api/v1/timestamp/"+ticket.ID+"?position="+at)
		require.NoError(t, err)
		require.Contains(t, a.String(), madeAnew[0], at)
	}

	t.Log("a restart changes nothing")
	s.Stop(door)
	require.NoError(t, door.Start(t.Context(), nil))
	require.NoError(t, story.Eventually(ctx, "wait for the door's reason", func(ctx context.Context) error {
		a, err := s.Client.Get(ctx, door.URL()+"/ready")
		if err == nil && !strings.Contains(a.String(), accepted[0]) {
			err = fmt.Errorf("it says %s", a)
		}
		return err
	}))

	t.Log("accepted by both")
	s.Stop(door)
	s.Stop(consumer)
	require.NoError(t, door.Start(t.Context(), map[string]string{"ACCEPT_NEW_LOG": accepted[1]}))
	require.NoError(t, consumer.Start(t.Context(), map[string]string{"ACCEPT_NEW_LOG": accepted[1]}))
	s.Ready(door)
	_, err = s.Client.Stamp(t.Context(), door.URL(), "2003-03-03T00:00:00Z")
	require.NoError(t, err)
	s.Ready(consumer)
	s.RequireProjected(s.DB)
	s.RequireCleanAudit(s.DB)
}

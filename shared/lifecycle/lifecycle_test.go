package lifecycle

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestStopRunsLastInFirstOutAndJoinsErrors(t *testing.T) {
	t.Parallel()
	var order []string
	var s Stack
	for _, name := range []string{"database", "server"} {
		s.Add(name, func(context.Context) error {
			order = append(order, name)
			return errors.New(name + " failed")
		})
	}
	err := s.Stop(time.Second)
	require.ErrorContains(t, err, "stop server: server failed")
	require.ErrorContains(t, err, "stop database: database failed")
	require.Equal(t, []string{"server", "database"}, order)
	require.NoError(t, s.Stop(time.Second), "a second stop finds nothing to do")
}

func TestStopGoesOnPastACleanupThatHangs(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var s Stack
		reached := false
		release := make(chan struct{})
		s.Add("database", func(context.Context) error { reached = true; return nil })
		s.Add("server", func(context.Context) error { <-release; return nil })
		err := s.Stop(time.Second)
		require.ErrorContains(t, err, "stop server: not done within 1s")
		synctest.Wait()
		require.True(t, reached)
		close(release)
	})
}

func TestALoopStopsInItsTurn(t *testing.T) {
	t.Parallel()
	told, tell := context.WithCancel(t.Context())
	var s Stack
	ended := make(chan struct{})
	s.Go(told, "loop", func(ctx context.Context) { <-ctx.Done(); close(ended) })
	s.Add("server", func(context.Context) error {
		select {
		case <-ended:
			return errors.New("the loop ended before its turn")
		case <-time.After(20 * time.Millisecond):
			return nil
		}
	})
	tell()
	require.NoError(t, s.Stop(time.Second))
	<-ended
}

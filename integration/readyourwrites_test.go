package integration_test

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/integration/stack"
	"github.com/tidemark/tidemark/integration/story"
)

// Whoever sends the position of a POST with a GET never gets an answer from before it: ten thousand times, by clients
// side by side, each GET as soon as its POST is answered. On the embedded broker it is two thousand times.
func TestReadYourWrites(t *testing.T) {
	const clients = 20
	writes := 10_000
	if story.Kind() == stack.Embedded {
		writes = 2_000
	}
	s := story.New(t)
	stack := up(t, s)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	client := story.NewClient(time.Minute)
	t.Cleanup(client.Close)

	errs := make(chan error, clients)
	var all sync.WaitGroup
	for c := range clients {
		all.Go(func() {
			for i := range writes / clients {
				at := time.Date(2009, 9, 28, 19, 3, 12, 0, time.UTC).Add(time.Duration(c*writes+i) * time.Second).Format(time.RFC3339)
				if err := writeAndRead(ctx, client, client.Stamp, stack, at); err != nil {
					errs <- err
					return
				}
			}
		})
	}
	all.Wait()
	close(errs)
	require.NoError(t, <-errs)
	require.Equal(t, writes, lines(s.RequireProjected(s.DB).Rows))
}

// stamping is Stamp or StampOnce of a client.
type stamping func(ctx context.Context, commandURL, at string, headers ...string) (story.Ticket, error)

func writeAndRead(ctx context.Context, client *story.Client, stamp stamping, stack addresses, at string) error {
	ticket, err := stamp(ctx, stack.command, at)
	if err != nil {
		return err
	}
	a, err := client.Get(ctx, stack.query+"/api/v1/timestamp/"+ticket.ID+"?wait=30s", "Tidemark-Position", ticket.Position)
	if err != nil {
		return err
	}
	if a.Status != http.StatusOK || a.Text("event_timestamp") != at {
		return fmt.Errorf("the read of %s at %s, stamped %s, was answered %s", ticket.ID, ticket.Position, at, a)
	}
	a, err = client.Get(ctx, stack.query+"/api/v1/tickets/"+ticket.ID+"?position="+ticket.Position)
	if err != nil {
		return err
	}
	if a.Status != http.StatusOK || a.Text("state") != "applied" || a.Text("position") != ticket.Position {
		return fmt.Errorf("the ticket %s at %s was answered %s", ticket.ID, ticket.Position, a)
	}
	return nil
}

package freeport_test

import (
	"context"
	"net"
	"os/exec"
	"sync"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/shared/freeport"
)

func TestAPortIsHandedOutOnce(t *testing.T) {
	t.Parallel()
	port, err := freeport.Find(t.Context())
	require.NoError(t, err)
	// Another process would meet the same refusal.
	_, err = new(net.ListenConfig).ListenPacket(t.Context(), "udp", freeport.Address(port))
	require.ErrorIs(t, err, syscall.EADDRINUSE)
}

// Children inherit every open socket until they run their own program. About one port of a hundred could not be
// listened on here when Find had listened on it itself.
func TestAPortCanBeListenedOnWhileChildrenAreForked(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	var forking sync.WaitGroup
	for range 4 {
		forking.Go(func() {
			for ctx.Err() == nil {
				_ = exec.CommandContext(ctx, "true").Run()
			}
		})
	}
	defer forking.Wait()
	defer cancel()
	for range 2000 {
		port, err := freeport.Find(t.Context())
		require.NoError(t, err)
		l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", freeport.Address(port))
		require.NoError(t, err)
		require.NoError(t, l.Close())
	}
}

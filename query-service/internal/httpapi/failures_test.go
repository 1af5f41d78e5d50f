package httpapi

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/query-service/internal/projection"
)

func TestBusyAndDownAreToldApart(t *testing.T) {
	t.Parallel()
	f := NewFailures(slog.New(slog.DiscardHandler))
	busy := f.Of(t.Context(), fmt.Errorf("read: %w", &projection.BusyError{ShortOf: "connections", Err: context.DeadlineExceeded}))
	require.Equal(t, http.StatusServiceUnavailable, busy.Status)
	require.Equal(t, "/problems/busy", busy.Type)
	require.Equal(t, "busy", busy.Outcome)
	require.NotEmpty(t, busy.RetryAfter)
	require.NotContains(t, busy.Detail, "down")

	down := f.Of(t.Context(), &net.OpError{Op: "dial", Err: errors.New("connection refused")})
	require.Equal(t, http.StatusServiceUnavailable, down.Status)
	require.Equal(t, "/problems/database-down", down.Type)

	gone, cancel := context.WithCancel(t.Context())
	cancel()
	require.Equal(t, statusClientGone, f.Of(gone, context.Canceled).Status)
}

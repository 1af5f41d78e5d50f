package client_test

import (
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/tidemark/internal/client"
)

func TestAnOutcomeIsUnknownOnlyAfterSomethingWasSent(t *testing.T) {
	t.Parallel()
	handler := http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
	plain, secret := httptest.NewServer(handler), httptest.NewTLSServer(handler)
	secret.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	t.Cleanup(plain.Close)
	t.Cleanup(secret.Close)
	for url, unknown := range map[string]bool{
		plain.URL: true, "http://127.0.0.1:1": false, "http://nowhere.invalid:7080": false, secret.URL: false,
	} {
		services := client.DefaultServices()
		services.URLs["command-service"] = url
		c := client.New(services)
		_, err := c.Stamp(t.Context(), "", "")
		var unreachable *client.Unreachable
		require.ErrorAs(t, err, &unreachable)
		require.Equal(t, unknown, unreachable.Unknown(), "%s: %v", url, err)
		err = c.StampStream(t.Context(), strings.NewReader("{}\n"), func(int) {}, func() {}, func(client.LineAnswer) {})
		require.ErrorAs(t, err, &unreachable)
		require.Equal(t, unknown, unreachable.Unknown(), "the stream to %s: %v", url, err)
		c.Close()
	}
}

package peer

import (
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
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
		c, err := NewClient(Options{CommandURL: url, ConsumerURL: url, Log: slog.New(slog.DiscardHandler)})
		require.NoError(t, err)
		key := uuid.Must(uuid.NewV7())
		_, err = c.Stamp(t.Context(), "", key)
		var refused *Refusal
		require.ErrorAs(t, err, &refused)
		require.Equal(t, 503, refused.Status)
		if unknown {
			require.Contains(t, refused.Detail, "nobody knows")
			require.Equal(t, key.String(), refused.Key)
		} else {
			require.Contains(t, refused.Detail, "does not answer at "+url)
			require.Empty(t, refused.Ticket, "there is nothing to ask after")
		}
		c.Close()
	}
}

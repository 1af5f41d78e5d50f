package telemetry

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestLoggerCarriesTheCorrelationID(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	log, err := NewLogger(&out, "command-service", "info")
	require.NoError(t, err)
	log.DebugContext(t.Context(), "hidden")
	log.With("topic", "t").InfoContext(WithCorrelationID(t.Context(), "abc"), "accepted")
	var line map[string]any
	require.NoError(t, json.Unmarshal(out.Bytes(), &line))
	require.Equal(t, "abc", line["correlation_id"])
	require.Equal(t, "command-service", line["service"])
	require.Equal(t, "t", line["topic"])

	_, err = NewLogger(&out, "x", "loud")
	require.ErrorContains(t, err, `"loud" is none of debug, info, warn, error`)
}

func TestSecretsAreHidden(t *testing.T) {
	t.Parallel()
	var b bytes.Buffer
	log, err := NewLogger(&b, "test", "debug", "hunter2", "hunter2-and-more", "abc")
	require.NoError(t, err)
	log = log.With("with", "hunter2").WithGroup("group")
	log.Info("the password is hunter2-and-more", "text", "tmk_k3v5oq2mda_fjq7wxzk2m3n4p5q6r7s8t9u", "err", fmt.Errorf("dial postgres://me:p@ss@db:5432/x: %w", errors.New("hunter2")),
		"dsn", "host=db password=secret1 user=me", "quoted", "password='secret 2' x", "query", "postgres://db/x?password=secret3&user=me", "list", []string{"amqp://a:secret4@b"},
		"nested", slog.GroupValue(slog.String("deep", "hunter2")), "short", "abc", "url", "http://127.0.0.1:7080/x@y", "n", 42)
	said := b.String()
	for _, secret := range []string{"hunter2", "fjq7", "p@ss", "secret1", "secret 2", "secret3", "secret4", "and-more"} {
		require.NotContains(t, said, secret)
	}
	for _, kept := range []string{"tmk_k3v5oq2mda_***", "postgres://me:***@db:5432/x", "user=me", `"short":"abc"`, "http://127.0.0.1:7080/x@y", `"n":42`, `"msg":"the password is ***"`} {
		require.Contains(t, said, kept)
	}
}

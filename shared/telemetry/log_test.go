package telemetry

import (
	"bytes"
	"encoding/json"
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

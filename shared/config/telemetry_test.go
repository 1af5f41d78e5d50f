package config

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestTelemetryTellsItsMistakes(t *testing.T) {
	t.Parallel()
	require.NoError(t, DefaultTelemetry().Validate())
	for words, change := range map[string]func(*Telemetry){
		`OTEL_EXPORTER_OTLP_ENDPOINT="collector:4318" is no URL`: func(t *Telemetry) { t.Endpoint = "collector:4318" },
		`OTEL_EXPORTER_OTLP_PROTOCOL="grpc" is not spoken`:       func(t *Telemetry) { t.Protocol = "grpc" },
		`OTEL_TRACES_EXPORTER="jaeger" is not known`:             func(t *Telemetry) { t.Traces = "jaeger" },
		`OTEL_METRICS_EXPORTER="prometheus" is not known`:        func(t *Telemetry) { t.Metrics = "prometheus" },
		`OTEL_TRACES_SAMPLER="sometimes" is not known`:           func(t *Telemetry) { t.Sampler = "sometimes" },
		`OTEL_TRACES_SAMPLER_ARG="2" is no share`:                func(t *Telemetry) { t.SamplerArg = "2" },
		`OTEL_TRACES_SAMPLER_ARG="NaN" is no share`:              func(t *Telemetry) { t.SamplerArg = "NaN" },
		`OTEL_METRIC_EXPORT_INTERVAL=60 is below 100`:            func(t *Telemetry) { t.MetricInterval = 60 },
		`OTEL_EXPORTER_OTLP_HEADERS is not name=value`:           func(t *Telemetry) { t.Headers = "DD-API-KEY" },
	} {
		c := DefaultTelemetry()
		change(&c)
		err := c.Validate()
		require.ErrorContains(t, err, words)
		require.NotContains(t, err.Error(), "DD-API-KEY", "a header may be a secret")
	}
	c := DefaultTelemetry()
	c.Headers = "dd-api-key=a%3Db, x = y "
	headers, err := c.HeaderMap()
	require.NoError(t, err)
	require.Equal(t, map[string]string{"dd-api-key": "a=b", "x": "y"}, headers)
}

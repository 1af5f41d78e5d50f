package config

import (
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// Telemetry says where traces and metrics are sent to, by the names that the OpenTelemetry specification gives these
// settings. What it names and this struct does not (timeouts, batch sizes, resource attributes) the OpenTelemetry SDK
// reads itself.
type Telemetry struct {
	Endpoint       string `env:"OTEL_EXPORTER_OTLP_ENDPOINT" desc:"base URL of an OTLP receiver over HTTP, such as http://collector:4318; empty sends nothing"`
	Headers        string `env:"OTEL_EXPORTER_OTLP_HEADERS" desc:"headers for the receiver, name=value by commas" secret:"true"`
	Protocol       string `env:"OTEL_EXPORTER_OTLP_PROTOCOL" desc:"http/protobuf, the only one that is spoken"`
	Traces         string `env:"OTEL_TRACES_EXPORTER" desc:"otlp, or none to send no traces"`
	Metrics        string `env:"OTEL_METRICS_EXPORTER" desc:"otlp, or none to send no metrics"`
	Sampler        string `env:"OTEL_TRACES_SAMPLER" desc:"which traces are kept: always_on, always_off, traceidratio, or one of them after parentbased_"`
	SamplerArg     string `env:"OTEL_TRACES_SAMPLER_ARG" desc:"share of the traces that traceidratio keeps, 0 to 1; all unless given"`
	MetricInterval int    `env:"OTEL_METRIC_EXPORT_INTERVAL" desc:"milliseconds between two exports of the metrics"`
}

// DefaultTelemetry sends nothing; with an endpoint it sends everything, metrics each minute.
func DefaultTelemetry() Telemetry {
	return Telemetry{Protocol: "http/protobuf", Traces: "otlp", Metrics: "otlp", Sampler: "parentbased_always_on", MetricInterval: 60_000}
}

// Ratio is the share of traces that a ratio sampler keeps.
func (t Telemetry) Ratio() (float64, error) {
	if t.SamplerArg == "" {
		return 1, nil
	}
	r, err := strconv.ParseFloat(t.SamplerArg, 64)
	if err != nil || !(r >= 0 && r <= 1) { // also not a number
		return 0, fmt.Errorf("OTEL_TRACES_SAMPLER_ARG=%q is no share from 0 to 1", t.SamplerArg)
	}
	return r, nil
}

// HeaderMap is Headers taken apart; values are percent-decoded, as the specification wants.
func (t Telemetry) HeaderMap() (map[string]string, error) {
	out := map[string]string{}
	for pair := range strings.SplitSeq(t.Headers, ",") {
		if strings.TrimSpace(pair) == "" {
			continue
		}
		name, value, ok := strings.Cut(pair, "=")
		plain, err := url.PathUnescape(strings.TrimSpace(value))
		if name = strings.TrimSpace(name); !ok || name == "" || err != nil {
			return nil, errors.New("OTEL_EXPORTER_OTLP_HEADERS is not name=value, by commas, with anything unusual percent-encoded")
		}
		out[name] = plain
	}
	return out, nil
}

// Validate checks what is set, whether it is used or not.
func (t Telemetry) Validate() error {
	var errs []error
	if u, err := url.Parse(t.Endpoint); t.Endpoint != "" && (err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "") {
		errs = append(errs, fmt.Errorf("OTEL_EXPORTER_OTLP_ENDPOINT=%q is no URL such as http://collector:4318", t.Endpoint))
	}
	if t.Protocol != "http/protobuf" {
		errs = append(errs, fmt.Errorf("OTEL_EXPORTER_OTLP_PROTOCOL=%q is not spoken: http/protobuf is, on port 4318 of most receivers", t.Protocol))
	}
	for name, value := range map[string]string{"OTEL_TRACES_EXPORTER": t.Traces, "OTEL_METRICS_EXPORTER": t.Metrics} {
		if value != "otlp" && value != "none" {
			errs = append(errs, fmt.Errorf("%s=%q is not known: otlp or none", name, value))
		}
	}
	if !slices.Contains([]string{"always_on", "always_off", "traceidratio"}, strings.TrimPrefix(t.Sampler, "parentbased_")) {
		errs = append(errs, fmt.Errorf("OTEL_TRACES_SAMPLER=%q is not known: always_on, always_off, traceidratio, or one of them after parentbased_", t.Sampler))
	}
	if t.MetricInterval < 100 {
		errs = append(errs, fmt.Errorf("OTEL_METRIC_EXPORT_INTERVAL=%d is below 100 (milliseconds)", t.MetricInterval))
	}
	_, ratio := t.Ratio()
	_, headers := t.HeaderMap()
	return errors.Join(append(errs, ratio, headers)...)
}

package telemetry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	bridge "go.opentelemetry.io/contrib/bridges/prometheus"
	"go.opentelemetry.io/otel/exporters/otlp/otlpmetric/otlpmetrichttp"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	semconv "go.opentelemetry.io/otel/semconv/v1.41.0"
	"go.opentelemetry.io/otel/trace"

	"github.com/tidemark/tidemark/shared/config"
)

// Exporter sends a service's traces and the metrics of its registry to an OTLP receiver. Without an endpoint it does
// nothing and costs nothing. While the receiver is down, what would be sent is dropped, one log line says so, and the
// service is not held up.
type Exporter struct {
	tracer   trace.Tracer
	client   *http.Client
	shutdown []func(context.Context) error
}

// ExportOptions say what an exporter sends and where. All are required but Registry.
type ExportOptions struct {
	Config   config.Telemetry    // where the receiver is and what is sent to it
	Service  string              // the service's name, for the receiver
	Registry prometheus.Gatherer // the metrics that are sent; none unless given
	Log      *slog.Logger        // where a receiver that is down is reported
}

// NewExporter begins to export what the configuration asks for. It does not connect. Stop ends it.
func NewExporter(ctx context.Context, o ExportOptions) (_ *Exporter, err error) {
	e := &Exporter{}
	c := o.Config
	if c.Endpoint == "" {
		return e, nil
	}
	headers, err := c.HeaderMap()
	if err != nil {
		return nil, err
	}
	from, err := resource.New(ctx, resource.WithTelemetrySDK(), resource.WithHost(),
		resource.WithAttributes(semconv.ServiceName(o.Service), semconv.ServiceNamespace("tidemark"), semconv.ServiceVersion(Version)),
		resource.WithFromEnv()) // OTEL_RESOURCE_ATTRIBUTES has the last word
	if err != nil && !errors.Is(err, resource.ErrPartialResource) {
		return nil, fmt.Errorf("describe this process to the OTLP receiver: %w", err)
	}
	e.client = &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{Proxy: http.ProxyFromEnvironment, MaxIdleConnsPerHost: 2, IdleConnTimeout: time.Minute}}
	base := strings.TrimSuffix(c.Endpoint, "/")
	if c.Traces == "otlp" {
		if err := e.traces(ctx, base+"/v1/traces", headers, from, o); err != nil {
			return nil, err
		}
	}
	if c.Metrics == "otlp" && o.Registry != nil {
		if err := e.metrics(ctx, base+"/v1/metrics", headers, from, o); err != nil {
			return nil, errors.Join(err, e.Stop(ctx))
		}
	}
	o.Log.Info("telemetry is sent", "endpoint", c.Endpoint, "traces", c.Traces, "metrics", c.Metrics, "sampler", c.Sampler)
	return e, nil
}

func (e *Exporter) traces(ctx context.Context, url string, headers map[string]string, from *resource.Resource, o ExportOptions) error {
	exporter, err := otlptracehttp.New(ctx, otlptracehttp.WithEndpointURL(url), otlptracehttp.WithHeaders(headers),
		otlptracehttp.WithHTTPClient(e.client), otlptracehttp.WithRetry(otlptracehttp.RetryConfig{Enabled: true, InitialInterval: time.Second, MaxInterval: 5 * time.Second, MaxElapsedTime: 15 * time.Second}))
	if err != nil {
		return fmt.Errorf("OTLP traces: %w", err)
	}
	sampler, err := sampler(o.Config)
	if err != nil {
		return err
	}
	provider := sdktrace.NewTracerProvider(sdktrace.WithResource(from), sdktrace.WithSampler(sampler),
		sdktrace.WithBatcher(&spansOut{SpanExporter: exporter, receiverLog: receiverLog{log: o.Log, what: "traces"}}))
	e.tracer = provider.Tracer("github.com/tidemark/tidemark", trace.WithInstrumentationVersion(Version))
	e.shutdown = append(e.shutdown, provider.Shutdown)
	return nil
}

func (e *Exporter) metrics(ctx context.Context, url string, headers map[string]string, from *resource.Resource, o ExportOptions) error {
	exporter, err := otlpmetrichttp.New(ctx, otlpmetrichttp.WithEndpointURL(url), otlpmetrichttp.WithHeaders(headers), otlpmetrichttp.WithHTTPClient(e.client))
	if err != nil {
		return fmt.Errorf("OTLP metrics: %w", err)
	}
	provider := metric.NewMeterProvider(metric.WithResource(from), metric.WithReader(metric.NewPeriodicReader(
		&metricsOut{Exporter: exporter, receiverLog: receiverLog{log: o.Log, what: "metrics"}},
		metric.WithInterval(time.Duration(o.Config.MetricInterval)*time.Millisecond),
		metric.WithProducer(bridge.NewMetricProducer(bridge.WithGatherer(o.Registry))),
	)))
	e.shutdown = append(e.shutdown, provider.Shutdown)
	return nil
}

// Tracer makes spans; nil where none are exported, so that a caller can leave out the work before them.
func (e *Exporter) Tracer() trace.Tracer { return e.tracer }

// Stop sends what is left and ends.
func (e *Exporter) Stop(ctx context.Context) error {
	var errs []error
	for _, shutdown := range e.shutdown {
		errs = append(errs, shutdown(ctx))
	}
	if e.client != nil {
		e.client.CloseIdleConnections()
	}
	return errors.Join(errs...)
}

func sampler(c config.Telemetry) (sdktrace.Sampler, error) {
	ratio, err := c.Ratio()
	if err != nil {
		return nil, err
	}
	name, parent := strings.CutPrefix(c.Sampler, "parentbased_")
	s := sdktrace.AlwaysSample()
	switch name {
	case "always_off":
		s = sdktrace.NeverSample()
	case "traceidratio":
		s = sdktrace.TraceIDRatioBased(ratio)
	}
	if parent {
		s = sdktrace.ParentBased(s)
	}
	return s, nil
}

// receiverLog logs that the receiver is down, once, and once that it is back. The SDK itself would write a line of plain
// text for each failed export.
type receiverLog struct {
	log  *slog.Logger
	what string
	down atomic.Bool
}

func (c *receiverLog) exported(err error) {
	switch {
	case err != nil && !c.down.Swap(true):
		c.log.Warn("telemetry cannot be sent and is dropped", "what", c.what, "err", err)
	case err == nil && c.down.Swap(false):
		c.log.Info("telemetry is sent again", "what", c.what)
	}
}

type spansOut struct {
	sdktrace.SpanExporter
	receiverLog
}

func (o *spansOut) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	o.exported(o.SpanExporter.ExportSpans(ctx, spans))
	return nil
}

type metricsOut struct {
	metric.Exporter
	receiverLog
}

func (o *metricsOut) Export(ctx context.Context, m *metricdata.ResourceMetrics) error {
	o.exported(o.Exporter.Export(ctx, m))
	return nil
}

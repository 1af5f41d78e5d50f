package telemetry

import (
	"context"
	"net/http"

	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
)

// TraceHeader is the W3C trace context of HTTP requests and of the log's records.
const TraceHeader = "traceparent"

// Traceparent writes the span of ctx as a traceparent, or "" where there is none that is sampled: the log keeps its
// headers for ever, and nobody will ever look for the others.
func Traceparent(ctx context.Context) string {
	if !trace.SpanContextFromContext(ctx).IsSampled() {
		return ""
	}
	c := propagation.MapCarrier{}
	propagation.TraceContext{}.Inject(ctx, c)
	return c[TraceHeader]
}

// RemoteSpan reads a traceparent; the result is not valid where it is none.
func RemoteSpan(traceparent string) trace.SpanContext {
	ctx := propagation.TraceContext{}.Extract(context.Background(), propagation.MapCarrier{TraceHeader: traceparent}) // carries the one value only
	return trace.SpanContextFromContext(ctx)
}

// FromRequest continues the trace that a request belongs to.
func FromRequest(ctx context.Context, h http.Header) context.Context {
	return propagation.TraceContext{}.Extract(ctx, propagation.HeaderCarrier(h))
}

// Transport passes the trace of a request's context on to the server that is asked.
func Transport(base http.RoundTripper) http.RoundTripper { return traced{base} }

type traced struct{ http.RoundTripper }

func (t traced) RoundTrip(r *http.Request) (*http.Response, error) {
	if parent := Traceparent(r.Context()); parent != "" {
		r = r.Clone(r.Context()) // a transport must leave its request as it is
		r.Header.Set(TraceHeader, parent)
	}
	return t.RoundTripper.RoundTrip(r)
}

// CloseIdleConnections is asked for by http.Client.
func (t traced) CloseIdleConnections() {
	if c, ok := t.RoundTripper.(interface{ CloseIdleConnections() }); ok {
		c.CloseIdleConnections()
	}
}

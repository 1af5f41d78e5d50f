package httpapi

import (
	"strconv"

	"github.com/gin-gonic/gin"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	semconv "go.opentelemetry.io/otel/semconv/v1.41.0"
	"go.opentelemetry.io/otel/trace"

	"github.com/tidemark/tidemark/shared/telemetry"
)

// traced makes a server span of each request, named by route pattern, in the trace that the client's traceparent names.
// Requests for health, readiness and metrics make none: machines send them all day.
func traced(tracer trace.Tracer) gin.HandlerFunc {
	return func(c *gin.Context) {
		route := c.FullPath()
		switch route {
		case "/health", "/ready", "/metrics":
			c.Next()
			return
		case "":
			route = "none"
		}
		method := c.Request.Method
		if c.FullPath() == "" {
			method = "any" // anybody may invent one
		}
		ctx, span := tracer.Start(telemetry.FromRequest(c.Request.Context(), c.Request.Header), method+" "+route,
			trace.WithSpanKind(trace.SpanKindServer), trace.WithAttributes(
				semconv.HTTPRequestMethodKey.String(method), semconv.HTTPRoute(route),
				attribute.String("tidemark.correlation_id", telemetry.CorrelationID(c.Request.Context()))))
		defer span.End()
		c.Request = c.Request.WithContext(ctx)
		c.Next()
		status := c.Writer.Status()
		span.SetAttributes(semconv.HTTPResponseStatusCode(status))
		if status >= 500 {
			span.SetStatus(codes.Error, "")
			span.SetAttributes(semconv.ErrorTypeKey.String(strconv.Itoa(status)))
		}
	}
}

package door

import (
	"context"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	semconv "go.opentelemetry.io/otel/semconv/v1.41.0"
	"go.opentelemetry.io/otel/trace"

	"github.com/tidemark/tidemark/shared/kafka"
)

// startSpan begins the span of one Accept. The traceparent of its records names it, so that whoever reads one continues
// the trace. The flight that the commands share with others has a span of its own, which links to each. The span is nil
// where nothing is traced.
func (d *Door) startSpan(ctx context.Context, commands []Command) (context.Context, trace.Span) {
	if d.options.Tracer == nil || len(commands) == 0 {
		return ctx, nil
	}
	ctx, span := d.options.Tracer.Start(ctx, "create "+d.options.Topic, trace.WithSpanKind(trace.SpanKindProducer))
	if !span.IsRecording() {
		span.End()
		return ctx, nil
	}
	span.SetAttributes(semconv.MessagingSystemKafka, semconv.MessagingDestinationName(d.options.Topic), semconv.MessagingOperationName("create"),
		semconv.MessagingOperationTypeCreate)
	if len(commands) == 1 {
		span.SetAttributes(semconv.MessagingKafkaMessageKey(commands[0].Key))
	} else {
		span.SetAttributes(semconv.MessagingBatchMessageCount(len(commands)))
	}
	return ctx, span
}

// endSpan says what became of the first command that was not accepted, else where the first one stands.
func endSpan(span trace.Span, outcomes []Outcome) {
	if span == nil {
		return
	}
	defer span.End()
	for _, o := range outcomes {
		if o.Err != nil {
			span.SetStatus(codes.Error, outcomeOf(o.Err))
			span.SetAttributes(attribute.String("tidemark.outcome", outcomeOf(o.Err)))
			return
		}
	}
	span.SetAttributes(attribute.String("tidemark.outcome", "accepted"), attribute.String("tidemark.position", outcomes[0].Position.String()))
}

// traceFlight makes the span of a flight, where one of its commands at least is traced.
func (d *Door) traceFlight(group []*request, results []kafka.Result, start time.Time) {
	var links []trace.Link
	var failed error
	for _, c := range group {
		if c.span != nil {
			links = append(links, trace.Link{SpanContext: c.span.SpanContext()})
		}
	}
	for i := range results {
		if results[i].Err != nil {
			failed = results[i].Err
		}
	}
	if links == nil {
		return
	}
	// It belongs to no request: its commands have traces of their own.
	_, span := d.options.Tracer.Start(context.Background(), "send "+d.options.Topic, trace.WithSpanKind(trace.SpanKindClient),
		trace.WithTimestamp(start), trace.WithLinks(links...), trace.WithAttributes(semconv.MessagingSystemKafka,
			semconv.MessagingDestinationName(d.options.Topic), semconv.MessagingOperationName("send"), semconv.MessagingOperationTypeSend,
			semconv.MessagingBatchMessageCount(len(results))))
	if failed != nil {
		span.RecordError(failed)
		span.SetStatus(codes.Error, "not every command was acknowledged")
	}
	span.End()
}

package door

import (
	"context"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	semconv "go.opentelemetry.io/otel/semconv/v1.41.0"
	"go.opentelemetry.io/otel/trace"

	"github.com/tidemark/tidemark/shared/kafka"
	"github.com/tidemark/tidemark/shared/position"
	"github.com/tidemark/tidemark/shared/telemetry"
)

// acceptTraced is accept within a span of its own, which the record's traceparent names: whoever reads the record goes
// on from there. The flight that the command shares with others has a span beside them, which links to each.
func (d *Door) acceptTraced(ctx context.Context, m *message.Message) (position.Position, error) {
	ctx, span := d.options.Tracer.Start(ctx, "create "+d.options.Topic, trace.WithSpanKind(trace.SpanKindProducer))
	defer span.End()
	if !span.IsRecording() {
		return d.accept(ctx, m, nil)
	}
	if parent := telemetry.Traceparent(ctx); parent != "" {
		if m.Metadata == nil {
			m.Metadata = message.Metadata{}
		}
		m.Metadata[telemetry.TraceHeader] = parent
	}
	span.SetAttributes(semconv.MessagingSystemKafka, semconv.MessagingDestinationName(d.options.Topic), semconv.MessagingOperationName("create"),
		semconv.MessagingOperationTypeCreate, semconv.MessagingKafkaMessageKey(m.UUID))
	at, err := d.accept(ctx, m, span)
	if err != nil {
		span.SetStatus(codes.Error, outcomeOf(err))
		span.SetAttributes(attribute.String("tidemark.outcome", outcomeOf(err)))
		return at, err
	}
	span.SetAttributes(attribute.String("tidemark.outcome", "accepted"), attribute.String("tidemark.position", at.String()))
	return at, nil
}

// flew makes the span of a flight that had at least one command that is traced. Commands that nobody traces cost it
// nothing but the look.
func (d *Door) flew(group []*command, results []kafka.Result, start time.Time) {
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

package projection

import (
	"context"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	semconv "go.opentelemetry.io/otel/semconv/v1.41.0"
	"go.opentelemetry.io/otel/trace"

	"github.com/tidemark/tidemark/shared/kafka"
	"github.com/tidemark/tidemark/shared/position"
	"github.com/tidemark/tidemark/shared/telemetry"
)

// traceBatch makes the spans of one attempt to write a batch, after it: a batch that no command of is traced then costs
// the look at its headers. There is one span for the batch, linked to its traced commands, with the database's span
// below it; and in each traced command's own trace, once its row is there, one that says where it stood and what became
// of it. The batch with one traced command stands in that command's trace itself, so that a quiet system shows a
// command from the POST to the row in one picture.
func (p *Projector) traceBatch(b batch, o counts, err error, start, wrote time.Time) {
	end := time.Now()
	var links []trace.Link
	var traced []int // indexes of their records
	for i, r := range b.records {
		if from := parentOf(r); from.IsSampled() {
			links = append(links, trace.Link{SpanContext: from})
			traced = append(traced, i)
		}
	}
	if links == nil {
		return
	}
	ctx := context.Background() // what a batch belongs to are its commands' traces, not a request
	if len(links) == 1 {
		ctx = trace.ContextWithRemoteSpanContext(ctx, links[0].SpanContext)
	}
	topic := []attribute.KeyValue{
		semconv.MessagingSystemKafka, semconv.MessagingDestinationName(p.topic()), semconv.MessagingConsumerGroupName(p.Group),
		semconv.MessagingOperationName("project"), semconv.MessagingOperationTypeProcess,
		attribute.Int("tidemark.partition", int(b.partition)),
	}
	ctx, batch := p.Tracer.Start(ctx, "project "+p.topic(), trace.WithSpanKind(trace.SpanKindConsumer), trace.WithTimestamp(start),
		trace.WithLinks(links...), trace.WithAttributes(topic...), trace.WithAttributes(semconv.MessagingBatchMessageCount(len(b.records)),
			attribute.Int64("tidemark.from", b.from), attribute.Int64("tidemark.next", b.next),
			attribute.Int64("tidemark.applied", o.applied), attribute.Int64("tidemark.duplicate", o.duplicate), attribute.Int64("tidemark.rejected", o.rejected)))
	table := p.Definition.Main.Spec().Name
	_, write := p.Tracer.Start(ctx, "INSERT "+table, trace.WithSpanKind(trace.SpanKindClient), trace.WithTimestamp(wrote),
		trace.WithAttributes(semconv.DBSystemNamePostgreSQL, semconv.DBOperationName("INSERT"), semconv.DBCollectionName(table),
			semconv.DBOperationBatchSize(max(len(b.records), 2))))
	if err != nil {
		for _, s := range []trace.Span{write, batch} {
			s.RecordError(err)
			s.SetStatus(codes.Error, "not written")
		}
	}
	write.End(trace.WithTimestamp(end))
	batch.End(trace.WithTimestamp(end))
	if err != nil {
		return // the commands wait
	}
	if o.of == nil {
		o.of = b.outcomes()
	}
	for i, record := range traced {
		at := position.Position{Topic: p.topic(), Partition: b.partition, Offset: b.records[record].Offset}
		_, command := p.Tracer.Start(trace.ContextWithRemoteSpanContext(context.Background(), links[i].SpanContext), "row of "+p.topic(),
			trace.WithSpanKind(trace.SpanKindConsumer), trace.WithTimestamp(start), trace.WithLinks(trace.Link{SpanContext: batch.SpanContext()}),
			trace.WithAttributes(topic...), trace.WithAttributes(
				attribute.String("tidemark.position", at.String()), attribute.String("tidemark.outcome", string(o.of[record])),
				attribute.Float64("tidemark.log_to_row_seconds", end.Sub(b.records[record].Timestamp).Seconds())))
		command.End(trace.WithTimestamp(end))
	}
}

// parentOf is the span that a record's traceparent names.
func parentOf(r kafka.Record) trace.SpanContext {
	for _, h := range r.Headers {
		if string(h.Key) == telemetry.TraceHeader {
			return telemetry.RemoteSpan(string(h.Value))
		}
	}
	return trace.SpanContext{}
}

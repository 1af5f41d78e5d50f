package door

import (
	"context"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/shared/kafka"
	"github.com/tidemark/tidemark/shared/telemetry"
)

// instantly is a log that acknowledges at once.
type instantly struct{}

func (instantly) PublishAll(_ string, msgs ...*message.Message) []kafka.Result {
	return make([]kafka.Result, len(msgs))
}

// BenchmarkAccept is what the door itself costs a command, its log aside.
func BenchmarkAccept(b *testing.B) {
	d, err := New(Options{Topic: "t", Partitions: 12, Log: instantly{}, Metrics: NewMetrics(prometheus.NewRegistry())})
	require.NoError(b, err)
	b.Cleanup(func() { require.NoError(b, d.Close(context.Background())) }) // its own context has ended by then
	d.Open()
	value := []byte(`{"command_id":"01920b5c-7d4e-7cc3-98c4-dc0c0c07398f","event_timestamp":"2009-09-28T19:03:12Z"}`)
	ctx := telemetry.WithCorrelationID(b.Context(), "correlation")
	b.ReportAllocs()
	for b.Loop() {
		if o := d.Accept(ctx, Command{Key: "01920b5c-7d4e-7cc3-98c4-dc0c0c07398f", Value: value}); o[0].Err != nil {
			b.Fatal(o[0].Err)
		}
	}
}

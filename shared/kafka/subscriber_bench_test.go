package kafka

import (
	"testing"

	"github.com/Shopify/sarama"
)

// BenchmarkGather is what it costs to make a batch of records that have arrived.
func BenchmarkGather(b *testing.B) {
	const records = 5_000
	m := &sarama.ConsumerMessage{Key: []byte("key"), Value: []byte("value"), Headers: []*sarama.RecordHeader{
		{Key: []byte("correlationId"), Value: []byte("correlation")}, {Key: []byte("producer"), Value: []byte("bench/1")},
	}}
	b.ReportAllocs()
	for b.Loop() {
		batch := Batch{Records: make([]Record, 0, records)}
		for range records {
			batch.add(m)
		}
	}
}

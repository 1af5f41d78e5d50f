package kafka

import (
	"encoding/binary"

	"github.com/Shopify/sarama"
)

// PartitionOf returns the partition of key among n, as Java's default partitioner chooses it: the
// positive part of murmur2 modulo n. Whoever else writes or reads a topic by key finds the same one.
func PartitionOf(key []byte, n int32) int32 {
	return int32(murmur2(key)&0x7fffffff) % n
}

// murmur2 is the 32-bit hash of org.apache.kafka.common.utils.Utils, seed included.
func murmur2(data []byte) uint32 {
	const m, seed = 0x5bd1e995, 0x9747b28c
	h := seed ^ uint32(len(data))
	for ; len(data) >= 4; data = data[4:] {
		k := binary.LittleEndian.Uint32(data) * m
		h = h*m ^ (k^k>>24)*m
	}
	switch len(data) {
	case 3:
		h ^= uint32(data[2]) << 16
		fallthrough
	case 2:
		h ^= uint32(data[1]) << 8
		fallthrough
	case 1:
		h = (h ^ uint32(data[0])) * m
	}
	h = (h ^ h>>13) * m
	return h ^ h>>15
}

// murmur2Partitioner is PartitionOf for Sarama's own producers; a record without a key goes anywhere.
type murmur2Partitioner struct{ keyless sarama.Partitioner }

var _ sarama.DynamicConsistencyPartitioner = murmur2Partitioner{}

// NewPartitioner is the Producer.Partitioner of every Sarama configuration that writes to the log:
// Sarama's default differs from Java's, and one id would sit in two partitions.
func NewPartitioner(topic string) sarama.Partitioner {
	return murmur2Partitioner{keyless: sarama.NewRandomPartitioner(topic)}
}

func (p murmur2Partitioner) Partition(m *sarama.ProducerMessage, n int32) (int32, error) {
	if m.Key == nil {
		return p.keyless.Partition(m, n)
	}
	key, err := m.Key.Encode()
	if err != nil {
		return -1, err
	}
	return PartitionOf(key, n), nil
}

func (murmur2Partitioner) RequiresConsistency() bool { return true }

func (murmur2Partitioner) MessageRequiresConsistency(m *sarama.ProducerMessage) bool {
	return m.Key != nil
}

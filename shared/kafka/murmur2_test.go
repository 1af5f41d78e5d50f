package kafka

import (
	_ "embed"
	"strconv"
	"strings"
	"testing"

	"github.com/Shopify/sarama"
	"github.com/stretchr/testify/require"
)

// Written by org.apache.kafka.common.utils.Utils of kafka-clients 4.1.1: key, murmur2, partition of 12, of 48.
//
//go:embed testdata/murmur2.golden
var javaMurmur2 string

func TestKeysGoWhereJavaPutsThem(t *testing.T) {
	t.Parallel()
	lines := strings.Split(strings.TrimRight(javaMurmur2, "\n"), "\n")
	require.Len(t, lines, 50)
	for _, line := range lines {
		f := strings.Split(line, "\t")
		key := []byte(f[0])
		require.Equal(t, f[1], strconv.Itoa(int(int32(murmur2(key)))), f[0])
		require.Equal(t, f[2], strconv.Itoa(int(PartitionOf(key, 12))), f[0])
		require.Equal(t, f[3], strconv.Itoa(int(PartitionOf(key, 48))), f[0])

		p, err := NewPartitioner("any").Partition(&sarama.ProducerMessage{Key: sarama.ByteEncoder(key)}, 12)
		require.NoError(t, err)
		require.Equal(t, f[2], strconv.Itoa(int(p)))
	}
}

func TestKeylessMessagesSpread(t *testing.T) {
	t.Parallel()
	seen := map[int32]bool{}
	p := NewPartitioner("any")
	for range 200 {
		n, err := p.Partition(&sarama.ProducerMessage{}, 4)
		require.NoError(t, err)
		seen[n] = true
	}
	require.Len(t, seen, 4)
}

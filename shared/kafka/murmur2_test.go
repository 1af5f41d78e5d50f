package kafka

import (
	_ "embed"
	"strconv"
	"strings"
	"testing"

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
	}
}

package broker

import (
	"encoding/binary"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// batchOf encodes an uncompressed batch whose records have these timestamp deltas.
func batchOf(deltas ...int64) []byte {
	var records []byte
	for i, delta := range deltas {
		record := kmsg.Record{TimestampDelta64: delta, OffsetDelta: int32(i), Key: []byte("k"), Value: []byte("v")}
		record.Length = int32(len(record.AppendTo(nil)) - 1)
		records = record.AppendTo(records)
	}
	batch := kmsg.RecordBatch{Magic: 2, FirstTimestamp: 1000, MaxTimestamp: 9000, NumRecords: int32(len(deltas)), LastOffsetDelta: int32(len(deltas) - 1), Records: records}
	batch.Length = int32(len(batch.AppendTo(nil)) - lengthBeforeBatch)
	raw := batch.AppendTo(nil)
	binary.BigEndian.PutUint32(raw[atCRC:], checksum(raw))
	return raw
}

func TestStampedBatch(t *testing.T) {
	t.Parallel()
	stamps, err := newStamper(time.Now)
	require.NoError(t, err)
	for _, deltas := range [][]int64{{0}, {0, 0, 0}, {5}, {0, 1, 2}, {0, -1_000_000_000_000, 1 << 40}, {-3, 0, 0}} {
		raw, err := stamps.batch(batchOf(deltas...), 123456789)
		require.NoError(t, err)
		require.Equal(t, checksum(raw), binary.BigEndian.Uint32(raw[atCRC:]))
		var batch kmsg.RecordBatch
		require.NoError(t, batch.ReadFrom(raw))
		require.EqualValues(t, len(raw)-lengthBeforeBatch, batch.Length)
		require.EqualValues(t, 123456789, batch.FirstTimestamp)
		require.EqualValues(t, 123456789, batch.MaxTimestamp)
		require.EqualValues(t, len(deltas), batch.NumRecords)
		rest := batch.Records
		for i := range deltas {
			length, n := binary.Varint(rest)
			var record kmsg.Record
			require.NoError(t, record.ReadFrom(rest[:n+int(length)]))
			require.Zero(t, record.TimestampDelta64)
			require.EqualValues(t, i, record.OffsetDelta)
			require.Equal(t, "v", string(record.Value))
			rest = rest[n+int(length):]
		}
		require.Empty(t, rest)
	}
}

// Whatever a client sends, the stamper neither panics nor makes a damaged batch look sound.
func FuzzStamp(f *testing.F) {
	f.Add(batchOf(0))
	f.Add(batchOf(0, 7, -7))
	f.Add([]byte{})
	stamps, err := newStamper(time.Now)
	require.NoError(f, err)
	f.Fuzz(func(t *testing.T, raw []byte) {
		sound := len(raw) >= batchHeader && checksum(raw) == binary.BigEndian.Uint32(raw[atCRC:])
		stamped, err := stamps.batch(slices.Clone(raw), 42)
		if err != nil {
			require.Nil(t, stamped)
			return
		}
		require.True(t, sound)
		again, err := stamps.batch(slices.Clone(stamped), 42)
		require.NoError(t, err)
		require.Equal(t, stamped, again)

		// The same bytes with a fitting checksum reach the records.
		if len(raw) >= batchHeader {
			binary.BigEndian.PutUint32(raw[atCRC:], checksum(raw))
			_, _ = stamps.batch(raw, 42)
		}
	})
}

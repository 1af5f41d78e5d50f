package kafka

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/Shopify/sarama"
)

// Gap says what stands in a range of offsets that a read-committed consumer passed over.
type Gap struct {
	Markers int64 // transaction markers
	Aborted int64 // records of aborted transactions
	Missing int64 // nothing at all: compacted, deleted or lost
	Records int64 // committed records: these may not be passed over
}

// RecordAt returns the record at offset, or found false where the log holds another thing there (a marker, a record of an
// aborted transaction) or nothing.
func (r *Reader) RecordAt(ctx context.Context, topic string, partition int32, offset int64) (rec Record, found bool, err error) {
	records, _, err := r.ReadFrom(ctx, topic, partition, offset)
	if err != nil || len(records) == 0 || records[0].Offset != offset {
		return Record{}, false, err
	}
	return records[0], true, nil
}

// fetched is a record of a batch as a consumer would be given it.
func fetched(b *sarama.RecordBatch, one *sarama.Record) Record {
	when := b.FirstTimestamp.Add(one.TimestampDelta)
	if b.LogAppendTime {
		when = b.MaxTimestamp
	}
	r := Record{Offset: b.FirstOffset + one.OffsetDelta, Timestamp: when.UTC(), Key: one.Key, Value: one.Value}
	for _, h := range one.Headers {
		r.Headers = append(r.Headers, Header{Key: h.Key, Value: h.Value})
	}
	return r
}

// ReadFrom returns some committed records from offset on, in the order of their offsets, and where to
// read on: past markers and aborted records, too, so that whoever reads up to a stable end comes there.
// Nothing is waited for: at the log's end there are no records and next is offset.
func (r *Reader) ReadFrom(ctx context.Context, topic string, partition int32, offset int64) (records []Record, next int64, err error) {
	blocks, aborted, next, err := r.fetch(ctx, topic, partition, offset)
	if err != nil {
		return nil, offset, err
	}
	for _, b := range blocks {
		switch {
		case b.Control:
			aborted = closed(aborted, b)
		case !isAborted(aborted, b):
			for _, one := range b.Records {
				if b.FirstOffset+one.OffsetDelta >= offset { // a batch is given whole, also where it begins before
					records = append(records, fetched(b, one))
				}
			}
		}
		next = max(next, b.LastOffset()+1)
	}
	return records, next, nil
}

// Explain says what stands in [from, to), which a read-committed consumer passed over or has not been
// given yet.
func (r *Reader) Explain(ctx context.Context, topic string, partition int32, from, to int64) (Gap, error) {
	var g Gap
	for at := from; at < to; {
		blocks, aborted, _, err := r.fetch(ctx, topic, partition, at)
		if err != nil {
			return Gap{}, err
		}
		start := at
		for _, b := range blocks {
			end := min(b.LastOffset()+1, to)
			if b.FirstOffset >= to {
				break
			}
			if b.FirstOffset > at {
				g.Missing += b.FirstOffset - at
				at = b.FirstOffset
			}
			switch {
			case b.Control:
				aborted = closed(aborted, b)
				g.Markers += max(end-at, 0)
			case end > at:
				var there int64
				for _, one := range b.Records {
					if o := b.FirstOffset + one.OffsetDelta; o >= at && o < to {
						there++
					}
				}
				g.Missing += end - at - there
				if isAborted(aborted, b) {
					g.Aborted += there
				} else {
					g.Records += there
				}
			}
			at = max(at, end)
		}
		if at == start {
			g.Missing += to - at
			break
		}
	}
	return g, nil
}

func isAborted(aborted []*sarama.AbortedTransaction, b *sarama.RecordBatch) bool {
	return b.IsTransactional && slices.ContainsFunc(aborted, func(t *sarama.AbortedTransaction) bool {
		return t.ProducerID == b.ProducerID && t.FirstOffset <= b.FirstOffset
	})
}

// closed leaves out the transaction that marker ends.
func closed(aborted []*sarama.AbortedTransaction, marker *sarama.RecordBatch) []*sarama.AbortedTransaction {
	i := slices.IndexFunc(aborted, func(t *sarama.AbortedTransaction) bool {
		return t.ProducerID == marker.ProducerID && t.FirstOffset <= marker.FirstOffset
	})
	if i < 0 {
		return aborted
	}
	return slices.Delete(slices.Clone(aborted), i, i+1)
}

// fetch reads raw record batches from offset on, up to the stable end, and the aborted transactions among
// them, without Sarama's consumer, which hides markers. Nothing stands in [offset, from).
func (r *Reader) fetch(ctx context.Context, topic string, partition int32, offset int64) (batches []*sarama.RecordBatch, aborted []*sarama.AbortedTransaction, from int64, err error) {
	for size := int32(64 << 10); ; {
		block, err := ask(ctx, r, func(c sarama.Client) (*sarama.FetchResponseBlock, error) {
			return fetchBlock(c, topic, partition, offset, size)
		})
		if err != nil || block == nil {
			return nil, nil, offset, err
		}
		partial := block.Partial
		for _, set := range block.RecordsSet {
			switch b := set.RecordBatch; {
			case b == nil: // of a format that no broker since Kafka 4 has
			case b.PartialTrailingRecord:
				partial = true
			default:
				batches = append(batches, b)
			}
		}
		switch {
		case len(batches) > 0:
			return batches, block.AbortedTransactions, offset, nil
		case partial && size < 256<<20:
			size *= 8
		case block.LastRecordsBatchOffset != nil:
			// Only batches that compaction has emptied, which Sarama leaves out. It names where the last of them begins,
			// which may be before offset, and not where it ends: so the next offset is asked for, until they are past.
			offset = max(offset, *block.LastRecordsBatchOffset) + 1
		default:
			return nil, nil, offset, nil
		}
	}
}

// fetchBlock makes one request for size bytes; the block is nil where offset is outside the log.
func fetchBlock(c sarama.Client, topic string, partition int32, offset int64, size int32) (*sarama.FetchResponseBlock, error) {
	leader, err := c.Leader(topic, partition)
	if err != nil {
		return nil, fmt.Errorf("find the leader of %s/%d: %w", topic, partition, err)
	}
	request := &sarama.FetchRequest{Version: 4, MaxWaitTime: 100, MinBytes: 1, MaxBytes: size, Isolation: sarama.ReadCommitted}
	request.AddBlock(topic, partition, offset, size, -1)
	res, err := leader.Fetch(request)
	if err != nil {
		_ = leader.Close()
		_ = c.RefreshMetadata(topic)
		return nil, fmt.Errorf("read %s/%d at %d: %w", topic, partition, offset, err)
	}
	block := res.GetBlock(topic, partition)
	switch {
	case block == nil:
		return nil, fmt.Errorf("read %s/%d at %d: %w", topic, partition, offset, sarama.ErrIncompleteResponse)
	case errors.Is(block.Err, sarama.ErrOffsetOutOfRange):
		return nil, nil
	case block.Err != sarama.ErrNoError:
		_ = c.RefreshMetadata(topic)
		return nil, fmt.Errorf("read %s/%d at %d: %w", topic, partition, offset, block.Err)
	}
	return block, nil
}

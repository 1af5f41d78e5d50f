package broker

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// Where the fields of a version 2 record batch lie (Kafka's protocol guide, "Record Batch").
const (
	atLength         = 8
	atMagic          = 16
	atCRC            = 17
	atAttributes     = 21
	atFirstTimestamp = 27
	atMaxTimestamp   = 35
	atRecordCount    = 57
	batchHeader      = 61

	compressionBits   = 0x07
	logAppendTimeBit  = 0x08
	smallestRecord    = 7 // length, attributes, two deltas, key length, value length, header count: a byte each
	lengthBeforeBatch = 12
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// errClaimsLogTime is Kafka's own refusal of a producer that says its times are the log's.
var errClaimsLogTime = errors.New("producers must not set the timestamp type to LogAppendTime")

// stamper gives produced records the broker's clock as their time, which is what
// message.timestamp.type=LogAppendTime asks for and kfake leaves undone.
//
// Kafka itself sets a bit that tells readers to take the batch's last timestamp for every record. kfake would answer
// that bit with batches whose checksum no longer fits, so the same is said without it: the batch's first and last
// timestamps are the clock, and every record's distance from the first is zero.
type stamper struct {
	now        func() time.Time
	decompress kgo.Decompressor
	compress   map[kgo.CompressionCodecType]kgo.Compressor
}

func newStamper(now func() time.Time) (*stamper, error) {
	s := &stamper{
		now:        now,
		decompress: kgo.DefaultDecompressor(),
		compress:   make(map[kgo.CompressionCodecType]kgo.Compressor),
	}
	for codecType, codec := range map[kgo.CompressionCodecType]kgo.CompressionCodec{
		kgo.CodecGzip:   kgo.GzipCompression(),
		kgo.CodecSnappy: kgo.SnappyCompression(),
		kgo.CodecLz4:    kgo.Lz4Compression(),
		kgo.CodecZstd:   kgo.ZstdCompression(),
	} {
		compressor, err := kgo.DefaultCompressor(codec)
		if err != nil {
			return nil, fmt.Errorf("make compressor: %w", err)
		}
		s.compress[codecType] = compressor
	}
	return s, nil
}

// request stamps every batch of a produce request in place. When one of them claims the log's time for itself, nothing of
// the request may be written and the answer for the client is returned.
func (s *stamper) request(req *kmsg.ProduceRequest) (*kmsg.ProduceResponse, error) {
	now := s.now().UnixMilli()
	for t := range req.Topics {
		partitions := req.Topics[t].Partitions
		for p := range partitions {
			stamped, err := s.batch(partitions[p].Records, now)
			if errors.Is(err, errClaimsLogTime) {
				return refusal(req)
			}
			if err != nil {
				continue // Damaged: left as it came, and kfake says what is wrong with it.
			}
			partitions[p].Records = stamped
		}
	}
	return nil, nil
}

// batch returns raw with now as the time of each of its records; it may write into raw. Any error but errClaimsLogTime
// says that raw is no sound batch.
func (s *stamper) batch(raw []byte, now int64) ([]byte, error) {
	if len(raw) < batchHeader || raw[atMagic] != 2 || int(binary.BigEndian.Uint32(raw[atLength:])) != len(raw)-lengthBeforeBatch {
		return nil, errors.New("no version 2 record batch")
	}
	if checksum(raw) != binary.BigEndian.Uint32(raw[atCRC:]) {
		return nil, errors.New("checksum differs")
	}
	attributes := binary.BigEndian.Uint16(raw[atAttributes:])
	if attributes&logAppendTimeBit != 0 {
		return nil, errClaimsLogTime
	}
	codec := kgo.CompressionCodecType(attributes & compressionBits)
	records, err := s.decompress.Decompress(raw[batchHeader:], codec)
	if err != nil {
		return nil, fmt.Errorf("decompress: %w", err)
	}
	level, changed, err := zeroTimestampDeltas(records, int(int32(binary.BigEndian.Uint32(raw[atRecordCount:]))))
	if err != nil {
		return nil, err
	}
	if changed {
		if compressor, ok := s.compress[codec]; ok {
			var used kgo.CompressionCodecType
			if level, used = compressor.Compress(new(bytes.Buffer), level); used != codec {
				return nil, errors.New("compress again")
			}
		}
		raw = append(raw[:batchHeader:batchHeader], level...)
		binary.BigEndian.PutUint32(raw[atLength:], uint32(len(raw)-lengthBeforeBatch))
	}
	binary.BigEndian.PutUint64(raw[atFirstTimestamp:], uint64(now))
	binary.BigEndian.PutUint64(raw[atMaxTimestamp:], uint64(now))
	binary.BigEndian.PutUint32(raw[atCRC:], checksum(raw))
	return raw, nil
}

func checksum(raw []byte) uint32 { return crc32.Checksum(raw[atAttributes:], castagnoli) }

// zeroTimestampDeltas returns records with every timestamp delta zero, and whether that changed any of them. The result
// may be records itself and is never longer than it.
func zeroTimestampDeltas(records []byte, count int) (level []byte, changed bool, err error) {
	if count < 1 || count > len(records)/smallestRecord {
		return nil, false, fmt.Errorf("%d records in %d bytes", count, len(records))
	}
	rest := records
	for range count {
		length, lengthBytes := binary.Varint(rest)
		if lengthBytes <= 0 || length < 2 || length > int64(len(rest)-lengthBytes) {
			return nil, false, errors.New("record longer than its batch")
		}
		record := rest[lengthBytes : lengthBytes+int(length)]
		rest = rest[lengthBytes+int(length):]
		delta, deltaBytes := binary.Varint(record[1:]) // record[0]: attributes
		if deltaBytes <= 0 {
			return nil, false, errors.New("record without a timestamp")
		}
		if delta != 0 && !changed {
			// All records before this one are right as they are.
			changed = true
			done := len(records) - len(rest) - lengthBytes - int(length)
			level = append(make([]byte, 0, len(records)), records[:done]...)
		}
		if changed {
			level = binary.AppendVarint(level, length-int64(deltaBytes)+1)
			level = append(level, record[0], 0)
			level = append(level, record[1+deltaBytes:]...)
		}
	}
	if len(rest) > 0 {
		return nil, false, errors.New("bytes after the last record")
	}
	if !changed {
		return records, false, nil
	}
	return level, true, nil
}

// refusal answers every partition of req with Kafka's INVALID_TIMESTAMP. A producer that wants no acknowledgement gets
// its connection closed instead, as from Kafka.
func refusal(req *kmsg.ProduceRequest) (*kmsg.ProduceResponse, error) {
	if req.Acks == 0 {
		return nil, errClaimsLogTime
	}
	message := errClaimsLogTime.Error()
	resp := req.ResponseKind().(*kmsg.ProduceResponse)
	for _, topic := range req.Topics {
		answer := kmsg.NewProduceResponseTopic()
		answer.Topic, answer.TopicID = topic.Topic, topic.TopicID
		for _, partition := range topic.Partitions {
			refused := kmsg.NewProduceResponseTopicPartition()
			refused.Partition = partition.Partition
			refused.ErrorCode = kerr.InvalidTimestamp.Code
			refused.BaseOffset = -1
			refused.ErrorMessage = &message
			answer.Partitions = append(answer.Partitions, refused)
		}
		resp.Topics = append(resp.Topics, answer)
	}
	return resp, nil
}

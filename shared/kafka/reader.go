package kafka

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/Shopify/sarama"

	"github.com/tidemark/tidemark/shared/config"
)

// Bounds are the ends of one partition's log. Offsets in [Start, Stable) can be read now; what lies
// between Stable and the high watermark belongs to transactions that are still open.
type Bounds struct{ Start, Stable int64 }

// Committed is what a group committed for one partition; Offset is -1 where it never did.
type Committed struct {
	Offset   int64
	Metadata string
}

// Reader asks the brokers for what stands in the log, without being a member of a group. It connects when it is first
// used, and again after a loss. It is safe for concurrent use. A call returns as soon as its context ends, also while a
// broker hangs (see ask). An error means that the broker did not answer properly; what it did answer is never an error.
type Reader struct {
	kafka    config.Kafka
	clientID string

	mu      sync.Mutex
	current *connection // nil while there is none
	attempt *connecting // under way, where there is one
	closed  bool
}

// NewReader returns a reader that has not connected yet.
func NewReader(k config.Kafka, clientID string) *Reader {
	return &Reader{kafka: k, clientID: clientID}
}

// ClusterID returns the id of the cluster that answers.
func (r *Reader) ClusterID(ctx context.Context) (string, error) {
	return ask(ctx, r, func(c sarama.Client) (string, error) {
		b, err := anyBroker(c)
		if err != nil {
			return "", err
		}
		res, err := b.GetMetadata(&sarama.MetadataRequest{Version: 5, Topics: []string{}})
		if err != nil {
			_ = b.Close()
			return "", fmt.Errorf("ask for the cluster id: %w", err)
		}
		if res.ClusterID == nil {
			return "", errors.New("the broker names no cluster id")
		}
		return *res.ClusterID, nil
	})
}

// ErrNoTopic says that a topic is not there.
var ErrNoTopic = sarama.ErrUnknownTopicOrPartition

// Partitions returns how many partitions topic has; the error is ErrNoTopic where it is not there.
func (r *Reader) Partitions(ctx context.Context, topic string) (int, error) {
	return ask(ctx, r, func(c sarama.Client) (int, error) {
		if err := c.RefreshMetadata(topic); err != nil {
			return 0, fmt.Errorf("ask for the partitions of %s: %w", topic, err)
		}
		p, err := c.Partitions(topic)
		if err != nil {
			return 0, fmt.Errorf("ask for the partitions of %s: %w", topic, err)
		}
		return len(p), nil
	})
}

// Bounds returns the bounds of the named partitions, asked of their leaders.
func (r *Reader) Bounds(ctx context.Context, topic string, partitions []int32) (map[int32]Bounds, error) {
	starts, err := r.ends(ctx, topic, partitions, sarama.OffsetOldest)
	if err != nil {
		return nil, err
	}
	ends, err := r.StableEnds(ctx, topic, partitions)
	if err != nil {
		return nil, err
	}
	out := make(map[int32]Bounds, len(partitions))
	for _, p := range partitions {
		out[p] = Bounds{Start: starts[p], Stable: ends[p]}
	}
	return out, nil
}

// StableEnds returns the last stable offset of each partition: an OffsetRequest of its own, because
// Sarama's GetOffset asks for the high watermark, which includes open transactions.
func (r *Reader) StableEnds(ctx context.Context, topic string, partitions []int32) (map[int32]int64, error) {
	return r.ends(ctx, topic, partitions, sarama.OffsetNewest)
}

// OffsetsAt returns, for each partition, the first offset whose record has a log time of at or later, and
// the stable end where there is none.
func (r *Reader) OffsetsAt(ctx context.Context, topic string, partitions []int32, at time.Time) (map[int32]int64, error) {
	ends, err := r.StableEnds(ctx, topic, partitions)
	if err != nil {
		return nil, err
	}
	found, err := r.ends(ctx, topic, partitions, max(at.UnixMilli(), 0))
	if err != nil {
		return nil, err
	}
	for p, offset := range found {
		if offset < 0 || offset > ends[p] {
			found[p] = ends[p]
		}
	}
	return found, nil
}

// FirstStampedFrom returns, of each partition, the offset of the first record whose time is t or later; -1 where there
// is none.
func (r *Reader) FirstStampedFrom(ctx context.Context, topic string, partitions []int32, t time.Time) (map[int32]int64, error) {
	return r.ends(ctx, topic, partitions, t.UnixMilli())
}

// DeleteGroup removes a consumer group that has no members, with all that it committed. One that is not
// there is no error; one that has members still is ErrGroupInUse.
func (r *Reader) DeleteGroup(ctx context.Context, group string) error {
	_, err := ask(ctx, r, func(c sarama.Client) (struct{}, error) { return struct{}{}, deleteGroup(c, group) })
	return err
}

func deleteGroup(c sarama.Client, group string) error {
	// The admin is not closed: closing it would close the client, which is the reader's.
	admin, err := sarama.NewClusterAdminFromClient(c)
	if err != nil {
		return fmt.Errorf("delete group %s: %w", group, err)
	}
	err = admin.DeleteConsumerGroup(group)
	switch {
	case err == nil, errors.Is(err, sarama.ErrGroupIDNotFound):
		return nil
	case errors.Is(err, sarama.ErrNonEmptyGroup):
		return ErrGroupInUse
	case errors.Is(err, sarama.ErrNotCoordinatorForConsumer):
		_ = c.RefreshCoordinator(group)
	}
	return fmt.Errorf("delete group %s: %w", group, err)
}

// ErrGroupInUse says that a consumer group has members.
var ErrGroupInUse = errors.New("the consumer group has members")

func (r *Reader) ends(ctx context.Context, topic string, partitions []int32, at int64) (map[int32]int64, error) {
	return ask(ctx, r, func(c sarama.Client) (map[int32]int64, error) { return ends(ctx, c, topic, partitions, at) })
}

func ends(ctx context.Context, c sarama.Client, topic string, partitions []int32, at int64) (map[int32]int64, error) {
	requests := map[*sarama.Broker]*sarama.OffsetRequest{}
	for _, p := range partitions {
		leader, err := c.Leader(topic, p)
		if err != nil {
			return nil, fmt.Errorf("find the leader of %s/%d: %w", topic, p, err)
		}
		if requests[leader] == nil {
			requests[leader] = &sarama.OffsetRequest{Version: 2, IsolationLevel: sarama.ReadCommitted}
		}
		requests[leader].AddBlock(topic, p, at, 1)
	}
	out := make(map[int32]int64, len(partitions))
	for leader, request := range requests {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		res, err := leader.GetAvailableOffsets(request)
		if err != nil {
			_ = leader.Close()
			_ = c.RefreshMetadata(topic) // the leader may be another by now; the caller asks again
			return nil, fmt.Errorf("ask for the ends of %s: %w", topic, err)
		}
		for p, block := range res.Blocks[topic] {
			if block.Err != sarama.ErrNoError {
				_ = c.RefreshMetadata(topic)
				return nil, fmt.Errorf("ask for the end of %s/%d: %w", topic, p, block.Err)
			}
			out[p] = block.Offset
		}
	}
	for _, p := range partitions {
		if _, ok := out[p]; !ok {
			return nil, fmt.Errorf("ask for the end of %s/%d: %w", topic, p, sarama.ErrIncompleteResponse)
		}
	}
	return out, nil
}

// Committed returns what group has committed for the partitions.
func (r *Reader) Committed(ctx context.Context, group, topic string, partitions []int32) (map[int32]Committed, error) {
	return ask(ctx, r, func(c sarama.Client) (map[int32]Committed, error) { return committed(c, group, topic, partitions) })
}

func committed(c sarama.Client, group, topic string, partitions []int32) (map[int32]Committed, error) {
	coordinator, err := c.Coordinator(group)
	if err != nil {
		return nil, fmt.Errorf("find the coordinator of group %s: %w", group, err)
	}
	request := &sarama.OffsetFetchRequest{Version: 1, ConsumerGroup: group}
	for _, p := range partitions {
		request.AddPartition(topic, p)
	}
	res, err := coordinator.FetchOffset(request)
	if err != nil {
		_ = coordinator.Close()
		_ = c.RefreshCoordinator(group)
		return nil, fmt.Errorf("fetch the offsets of group %s: %w", group, err)
	}
	out := make(map[int32]Committed, len(partitions))
	for _, p := range partitions {
		block := res.GetBlock(topic, p)
		if block == nil {
			return nil, fmt.Errorf("fetch the offsets of group %s: %w", group, sarama.ErrIncompleteResponse)
		}
		if block.Err != sarama.ErrNoError {
			_ = c.RefreshCoordinator(group)
			return nil, fmt.Errorf("fetch the offset of group %s for %s/%d: %w", group, topic, p, block.Err)
		}
		out[p] = Committed{Offset: block.Offset, Metadata: block.Metadata}
	}
	return out, nil
}

// anyBroker returns a broker that can be asked for what every broker knows.
func anyBroker(c sarama.Client) (*sarama.Broker, error) {
	b := c.LeastLoadedBroker()
	if b == nil {
		return nil, sarama.ErrOutOfBrokers
	}
	return b, opened(b, c.Config())
}

func opened(b *sarama.Broker, c *sarama.Config) error {
	if ok, _ := b.Connected(); ok {
		return nil
	}
	if err := b.Open(c); err != nil && !errors.Is(err, sarama.ErrAlreadyConnected) {
		return fmt.Errorf("connect to %s: %w", b.Addr(), err)
	}
	_, err := b.Connected()
	return err
}

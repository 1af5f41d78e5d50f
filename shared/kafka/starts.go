package kafka

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/Shopify/sarama"

	"github.com/tidemark/tidemark/shared/position"
	"github.com/tidemark/tidemark/shared/topic"
)

// TrimmedError says that partitions of a topic that is kept forever have lost their beginning. The records are gone. Who
// has read them goes on; whoever starts now must not.
type TrimmedError struct {
	Topic  string
	Starts map[int32]int64 // by partition, of those that start past where they may
	// Acceptable says that ACCEPT_LOG_START can name these starts.
	Acceptable bool
}

func (e *TrimmedError) Error() string {
	var found, accept []string
	for _, p := range slices.Sorted(maps.Keys(e.Starts)) {
		at := fmt.Sprintf("%s/%d", e.Topic, p)
		found = append(found, fmt.Sprintf("%s starts at offset %d", at, e.Starts[p]))
		accept = append(accept, fmt.Sprintf("%s@%d", at, e.Starts[p]))
	}
	words := strings.Join(found, ", ") + ": records were deleted from a log that is kept forever; reading goes on, but a restart would refuse this log: "
	if !e.Acceptable {
		return words + "bring the records back before it"
	}
	return words + "if their loss is known and accepted, set ACCEPT_LOG_START=" + strings.Join(accept, ",") + " before it: rows that are there stay"
}

// ParseStarts reads the entries of ACCEPT_LOG_START, topic/partition@offset each, by topic and partition.
func ParseStarts(entries []string) (map[string]map[int32]int64, error) {
	out := map[string]map[int32]int64{}
	for _, entry := range entries {
		at, err := position.Parse(entry)
		if err != nil {
			return nil, fmt.Errorf("ACCEPT_LOG_START: %w", err)
		}
		if out[at.Topic] == nil {
			out[at.Topic] = map[int32]int64{}
		}
		out[at.Topic][at.Partition] = at.Offset
	}
	return out, nil
}

// CheckStart returns a *TrimmedError where a partition of a topic that is kept forever starts past the offset that
// accepted names for it, 0 where it names none; nil where no setting accepts another. Any other error means that the broker did not answer.
func (r *Reader) CheckStart(ctx context.Context, t topic.Spec, accepted map[int32]int64) error {
	if t.Kept != topic.Forever {
		return nil
	}
	partitions := make([]int32, t.Partitions)
	for p := range partitions {
		partitions[p] = int32(p)
	}
	starts, err := r.ends(ctx, t.Name, partitions, sarama.OffsetOldest)
	if err != nil {
		return err
	}
	maps.DeleteFunc(starts, func(p int32, start int64) bool { return start <= accepted[p] })
	if len(starts) == 0 {
		return nil
	}
	return &TrimmedError{Topic: t.Name, Starts: starts, Acceptable: accepted != nil}
}

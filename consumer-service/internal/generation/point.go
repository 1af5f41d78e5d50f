package generation

import (
	"context"
	"time"

	"github.com/tidemark/tidemark/shared/position"
)

// resolve turns a point into the offsets at which each partition ends. Only what is in the log already
// is taken: the same point gives the same tables, whenever it is asked for.
func (s *Service) resolve(ctx context.Context, to *Point) (stops map[int32]int64, name *string, err error) {
	switch {
	case to == nil:
		return nil, nil, nil
	case (to.Time == nil) == (to.Position == ""):
		return nil, nil, noPoint("to names a time or a position, one of the two")
	}
	all := s.partitions()
	bounds, err := s.Log.Bounds(ctx, s.topic(), all)
	if err != nil {
		return nil, nil, err
	}
	var until time.Time
	var at *position.Position
	if to.Time != nil {
		until = *to.Time
		if until.After(time.Now()) {
			return nil, nil, noPoint("%s lies in the future: name a time up to now", until.Format(time.RFC3339Nano))
		}
		t := until.UTC().Format(time.RFC3339Nano)
		name = &t
	} else {
		p, err := position.Parse(to.Position)
		if err != nil {
			return nil, nil, noPoint("to.position: %s", err)
		}
		if p.Topic != s.topic() || p.Partition < 0 || int(p.Partition) >= s.partitionCount() {
			return nil, nil, noPoint("%s is no partition of %s, which has %d", p, s.topic(), s.partitionCount())
		}
		if b := bounds[p.Partition]; p.Offset < b.Start || p.Offset >= b.Stable {
			return nil, nil, noPoint("%s is outside the log: %s/%d has the offsets from %d up to, not including, %d", p, p.Topic, p.Partition, b.Start, b.Stable)
		}
		r, found, err := s.Log.RecordAt(ctx, s.topic(), p.Partition, p.Offset)
		if err != nil {
			return nil, nil, err
		}
		if !found {
			return nil, nil, noPoint("%s holds no record: name the offset of one", p)
		}
		until, at = r.Timestamp, &p
		t := p.String()
		name = &t
	}
	// Log times are whole milliseconds: the first one after the point is one later.
	stops, err = s.Log.OffsetsAt(ctx, s.topic(), all, until.Truncate(time.Millisecond).Add(time.Millisecond))
	if err != nil {
		return nil, nil, err
	}
	some := false
	for p := range stops {
		if at != nil && p == at.Partition {
			stops[p] = at.Offset + 1
		}
		stops[p] = max(stops[p], bounds[p].Start)
		some = some || stops[p] > bounds[p].Start
	}
	if !some {
		return nil, nil, noPoint("the log holds nothing up to %s: it begins later", *name)
	}
	return stops, name, nil
}

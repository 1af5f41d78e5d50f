package deadletter

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/tidemark/tidemark/shared/event"
	"github.com/tidemark/tidemark/shared/instant"
	"github.com/tidemark/tidemark/shared/position"
	"github.com/tidemark/tidemark/shared/topic"
)

// decisions is what the log says was decided, read from deadletter.command.v1 as far as catchUp came. Whoever decides reads on
// first, so nothing is read before the first request and nobody follows the topic meanwhile. A decision takes some 250 bytes.
// It belongs to whoever has the desk's turn.
type decisions struct {
	log   Log
	topic topic.Spec // with the count of its partitions

	next map[int32]int64 // read up to here
	made map[position.Position]event.DecisionRecord
}

// catchUp reads what the log has now. What it read before an error stays read, so that the next request goes on from there.
func (d *decisions) catchUp(ctx context.Context) error {
	all := make([]int32, d.topic.Partitions)
	for i := range all {
		all[i] = int32(i)
	}
	ends, err := d.log.StableEnds(ctx, d.topic.Name, all)
	if err != nil {
		return fmt.Errorf("see how far decisions go: %w", err)
	}
	for p, end := range ends {
		if d.next[p] > end { // the topic was made anew
			d.next, d.made = nil, nil
		}
	}
	if d.next == nil {
		d.next, d.made = map[int32]int64{}, map[position.Position]event.DecisionRecord{}
	}
	for _, p := range slices.Sorted(maps.Keys(ends)) {
		for at := d.next[p]; at < ends[p]; at = d.next[p] {
			records, next, err := d.log.ReadFrom(ctx, d.topic.Name, p, at)
			if err != nil {
				return fmt.Errorf("read decisions: %w", err)
			}
			if next <= at {
				return fmt.Errorf("%s/%d gives nothing at offset %d and ends at %d", d.topic.Name, p, at, ends[p])
			}
			for _, r := range records {
				c, err := event.DecodeDeadLetterCommand(r.Value)
				if err != nil {
					continue // it decides nothing
				}
				c.Note, c.By = "", "" // the read side has the words
				one := event.DecisionRecord{DeadLetterCommand: c, At: r.Timestamp, Partition: p, Offset: r.Offset}
				if had, decided := d.made[c.Position]; !decided || one.Before(had) {
					d.made[c.Position] = one
				}
			}
			d.next[p] = next
		}
	}
	return nil
}

// place is where a decision stands.
func (d *decisions) place(r event.DecisionRecord) position.Position {
	return position.Position{Topic: d.topic.Name, Partition: r.Partition, Offset: r.Offset}
}

// DecidedError names every letter that was decided on before. Nothing was written.
type DecidedError struct{ Letters []Decided }

// Decided is one of them, and what was decided.
type Decided struct {
	event.DecisionRecord
	Place position.Position // of the decision
}

func (e *DecidedError) Error() string {
	return fmt.Sprintf("%d letters are decided on, the first: %s: %s", len(e.Letters), e.Letters[0].Position, e.Letters[0])
}

// String says what was decided, and when.
func (d Decided) String() string {
	if d.Decision == event.Redrive {
		return fmt.Sprintf("it was redriven at %s as ticket %s, in %s", instant.Format(d.At), d.CommandID, d.Place)
	}
	return fmt.Sprintf("it was discarded at %s, in %s", instant.Format(d.At), d.Place)
}

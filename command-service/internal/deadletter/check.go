package deadletter

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/tidemark/tidemark/command-service/internal/door"
	"github.com/tidemark/tidemark/shared/position"
)

// check finds what is broken before anything is written. A position that the log has not come to yet is:
// the record that will stand there would be rejected before anybody has seen it.
func (d *Desk) check(ctx context.Context, jobs []*job, given []string, readable bool) error {
	partitions := map[string][]int32{} // by topic
	seen := map[position.Position]bool{}
	for _, j := range jobs {
		switch {
		case j.broken != "":
		case seen[j.Letter]:
			j.broken = "the position is named twice"
		default:
			seen[j.Letter] = true
			if of := partitions[j.Letter.Topic]; !slices.Contains(of, j.Letter.Partition) {
				partitions[j.Letter.Topic] = append(of, j.Letter.Partition)
			}
		}
	}
	for name, of := range partitions {
		ends, err := askLog(ctx, func() (map[int32]int64, error) { return d.options.Log.StableEnds(ctx, name, of) })
		if err != nil {
			return err
		}
		for _, j := range jobs {
			if end := ends[j.Letter.Partition]; j.broken == "" && j.Letter.Topic == name && j.Letter.Offset >= end {
				j.broken = fmt.Sprintf("the log has no such record: this partition ends at offset %d", end)
			}
		}
	}
	if !readable {
		if err := d.read(ctx, jobs); err != nil {
			return err
		}
	}
	var broken []Broken
	for i, j := range jobs {
		if j.broken != "" {
			broken = append(broken, Broken{given[i], j.broken})
		}
	}
	if len(broken) > 0 {
		return &BrokenError{broken}
	}
	return nil
}

// read finds the letters whose records can be read.
func (d *Desk) read(ctx context.Context, jobs []*job) error {
	reasons, err := askLog(ctx, func() ([]string, error) {
		reasons, errs := make([]string, len(jobs)), make([]error, len(jobs))
		var all sync.WaitGroup
		for i, j := range jobs {
			if j.broken != "" || j.topic.decode == nil {
				continue
			}
			all.Go(func() {
				record, found, err := d.options.Log.RecordAt(ctx, j.Letter.Topic, j.Letter.Partition, j.Letter.Offset)
				switch {
				case err != nil:
					errs[i] = err
				case !found:
					reasons[i] = "the log has no record at this offset"
				case j.topic.decode(record.Value) == nil:
					reasons[i] = `the record can be read, so it is most likely no dead letter; if the read side lists it as one, send "readable": true`
				}
			})
		}
		all.Wait()
		return reasons, errors.Join(errs...)
	})
	if err != nil {
		return err
	}
	for i, reason := range reasons {
		if reason != "" {
			jobs[i].broken = reason
		}
	}
	return nil
}

// askLog returns what the log answers, or door.ErrDown once ctx ends: a question to a broker that hangs may take longer.
func askLog[T any](ctx context.Context, question func() (T, error)) (T, error) {
	type answer struct {
		value T
		err   error
	}
	answers := make(chan answer, 1)
	go func() {
		value, err := question()
		answers <- answer{value, err}
	}()
	var a answer
	select {
	case a = <-answers:
	case <-ctx.Done():
		a.err = ctx.Err()
	}
	if a.err != nil {
		var none T
		return none, fmt.Errorf("%w: %w", door.ErrDown, a.err)
	}
	return a.value, nil
}

// Package kafkatest has a log in memory that takes what a kafka.Publisher publishes and answers what a kafka.Reader is asked, for
// what a real log cannot be made to do on demand. The tests of shared/kafka hold it to what they hold those two to, so a test that
// uses it learns nothing untrue.
package kafkatest

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/tidemark/tidemark/shared/kafka"
)

// Log is one topic. Its fields may be changed while nobody asks.
type Log struct {
	Cluster string
	ID      string                   // of the topic; empty where it is not there
	Start   int64                    // of every partition; what stands below it is gone
	Records map[int32][]kafka.Record // by partition, in the order of their offsets
	Commits map[int32]kafka.Committed
	Members map[string]bool // groups that cannot be deleted
	Deleted []string        // groups

	Takes time.Duration                                      // how long a PublishAll takes
	Fault func(m *message.Message) (written bool, err error) // what befalls a message on its way: an error, and whether it is in the log all the same; nothing unless given

	mu      sync.Mutex
	passed  map[int32][]passed
	flights []int
	err     error
	asked   int
}

// passed is an offset that holds no committed record.
type passed struct {
	offset int64
	what   kafka.Gap // one of its counts is 1
}

// NewLog returns a log without records, of which no group has committed anything.
func NewLog(partitions int) *Log {
	l := &Log{
		Cluster: "cluster-1", ID: "topic-1", Records: map[int32][]kafka.Record{}, Commits: map[int32]kafka.Committed{}, Members: map[string]bool{},
		passed: map[int32][]passed{},
	}
	for p := range int32(partitions) {
		l.Records[p], l.Commits[p] = nil, kafka.Committed{Offset: -1}
	}
	return l
}

// Add writes a record to the end of a partition.
func (l *Log) Add(partition int32, at time.Time, value string) kafka.Record {
	l.mu.Lock()
	defer l.mu.Unlock()
	r := kafka.Record{Offset: l.stable(partition), Timestamp: at, Key: []byte("k"), Value: []byte(value)}
	l.Records[partition] = append(l.Records[partition], r)
	return r
}

// MakeAnew puts another topic in the place of this one, which holds what other holds. Nobody uses other afterwards.
func (l *Log) MakeAnew(other *Log) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ID, l.Start, l.Records, l.passed = other.ID, other.Start, other.Records, other.passed
}

// Pass writes to the end of a partition what a consumer passes over: aborted records, then markers, then offsets that hold
// nothing.
func (l *Log) Pass(partition int32, what kafka.Gap) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for range what.Aborted {
		l.passed[partition] = append(l.passed[partition], passed{l.stable(partition), kafka.Gap{Aborted: 1}})
	}
	for range what.Markers {
		l.passed[partition] = append(l.passed[partition], passed{l.stable(partition), kafka.Gap{Markers: 1}})
	}
	for range what.Missing {
		l.passed[partition] = append(l.passed[partition], passed{l.stable(partition), kafka.Gap{Missing: 1}})
	}
}

// Fail makes every question from now on fail with err; nil makes them succeed again.
func (l *Log) Fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.err = err
}

// Asked is how often the ends were asked for.
func (l *Log) Asked() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.asked
}

// Commit is what a session commits.
func (l *Log) Commit(offsets map[int32]kafka.Committed) {
	l.mu.Lock()
	defer l.mu.Unlock()
	maps.Copy(l.Commits, offsets)
}

func (l *Log) stable(p int32) (end int64) {
	if n := len(l.Records[p]); n > 0 {
		end = l.Records[p][n-1].Offset + 1
	}
	if n := len(l.passed[p]); n > 0 {
		end = max(end, l.passed[p][n-1].offset+1)
	}
	return end
}

// ClusterID is kafka.Reader's.
func (l *Log) ClusterID(context.Context) (string, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.Cluster, l.err
}

// TopicID is what the cluster calls the topic.
func (l *Log) TopicID(context.Context, string) (string, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.ID, l.err
}

// Bounds is kafka.Reader's.
func (l *Log) Bounds(_ context.Context, _ string, partitions []int32) (map[int32]kafka.Bounds, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.asked++
	out := map[int32]kafka.Bounds{}
	for _, p := range partitions {
		out[p] = kafka.Bounds{Start: l.Start, Stable: l.stable(p)}
	}
	return out, l.err
}

// StableEnds is kafka.Reader's.
func (l *Log) StableEnds(ctx context.Context, topic string, partitions []int32) (map[int32]int64, error) {
	bounds, err := l.Bounds(ctx, topic, partitions)
	out := map[int32]int64{}
	for p, b := range bounds {
		out[p] = b.Stable
	}
	return out, err
}

// OffsetsAt is kafka.Reader's.
func (l *Log) OffsetsAt(_ context.Context, _ string, partitions []int32, at time.Time) (map[int32]int64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := map[int32]int64{}
	for _, p := range partitions {
		out[p] = l.stable(p)
		for _, r := range l.Records[p] {
			if r.Offset >= l.Start && !r.Timestamp.Before(at) {
				out[p] = r.Offset
				break
			}
		}
	}
	return out, l.err
}

// Committed is kafka.Reader's; all groups have committed the same.
func (l *Log) Committed(context.Context, string, string, []int32) (map[int32]kafka.Committed, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return maps.Clone(l.Commits), l.err
}

// RecordAt is kafka.Reader's.
func (l *Log) RecordAt(_ context.Context, _ string, p int32, offset int64) (kafka.Record, bool, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	r, found := l.at(p, offset)
	return r, found, l.err
}

func (l *Log) at(p int32, offset int64) (kafka.Record, bool) {
	i := slices.IndexFunc(l.Records[p], func(r kafka.Record) bool { return r.Offset == offset })
	if i < 0 || offset < l.Start {
		return kafka.Record{}, false
	}
	return l.Records[p][i], true
}

// ReadFrom is kafka.Reader's. It goes two offsets at a time.
func (l *Log) ReadFrom(_ context.Context, _ string, p int32, offset int64) (records []kafka.Record, next int64, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	next = max(min(offset+2, l.stable(p)), offset)
	for o := offset; o < next; o++ {
		if r, there := l.at(p, o); there {
			records = append(records, r)
		}
	}
	return records, next, l.err
}

// Explain is kafka.Reader's.
func (l *Log) Explain(_ context.Context, _ string, p int32, from, to int64) (g kafka.Gap, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for o := from; o < to; o++ {
		i := slices.IndexFunc(l.passed[p], func(x passed) bool { return x.offset == o })
		switch _, there := l.at(p, o); {
		case there:
			g.Records++
		case i < 0 || o < l.Start:
			g.Missing++
		default:
			what := l.passed[p][i].what
			g.Markers, g.Aborted, g.Missing = g.Markers+what.Markers, g.Aborted+what.Aborted, g.Missing+what.Missing
		}
	}
	return g, l.err
}

// DeleteGroup is kafka.Reader's.
func (l *Log) DeleteGroup(_ context.Context, group string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.Members[group] {
		return kafka.ErrGroupInUse
	}
	l.Deleted = append(l.Deleted, group)
	return l.err
}

package event

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/tidemark/tidemark/shared/instant"
)

// Outcome is what became of the record at one offset.
type Outcome string

// The outcomes.
const (
	Applied   Outcome = "applied"   // the record is the row of its key
	Duplicate Outcome = "duplicate" // another record with its key is the row
	Rejected  Outcome = "rejected"  // it is a dead letter
	Expired   Outcome = "expired"   // it is older than the projection keeps
	Skipped   Outcome = "skipped"   // the offset holds no record
)

// Run is Count offsets in a row that have one outcome.
type Run struct {
	Outcome Outcome `json:"outcome"`
	Count   int64   `json:"count"`
}

// Receipt says what was decided of the offsets [From, Next) of one partition, and when; its topic is
// topic.ProjectionReceipt. The receipts of one group, generation and epoch cover every offset that it has passed; a
// receipt may come more than once.
//
// A receipt without offsets, where Next is From, says that the partition is idle and caught up. Silence after it means
// that no process reads the partition.
type Receipt struct {
	Group      string
	Generation int
	Epoch      int64
	Served     bool // whether the generation served when it was decided
	Topic      string
	Partition  int32
	From, Next int64
	Outcomes   []Run      // in the order of offsets; nil where there are none
	CaughtUpAt *time.Time // every record accepted before it has an outcome; set where there are no offsets, and only there
	DecidedAt  time.Time  // by the database's clock, whole microseconds
}

// Key is the record key of r.
func (r Receipt) Key() string { return fmt.Sprintf("%s/%d", r.Topic, r.Partition) }

type receipt struct {
	Group      string `json:"group"`
	Generation int    `json:"generation"`
	Epoch      int64  `json:"epoch"`
	Served     bool   `json:"served"`
	Topic      string `json:"topic"`
	Partition  int32  `json:"partition"`
	From       int64  `json:"from"`
	Next       int64  `json:"next"`
	Outcomes   []Run  `json:"outcomes"`
	CaughtUpAt string `json:"caught_up_at,omitempty"`
	DecidedAt  string `json:"decided_at"`
}

// AppendReceipt appends the record value of r: {"group":"…","generation":0,"epoch":1,"served":true,"topic":"…",
// "partition":3,"from":17,"next":20,"outcomes":[{"outcome":"applied","count":3}],"decided_at":"…"}, with caught_up_at
// before decided_at and an empty list of outcomes where it has no offsets.
func AppendReceipt(dst []byte, r Receipt) []byte {
	raw := receipt{
		Group: r.Group, Generation: r.Generation, Epoch: r.Epoch, Served: r.Served, Topic: r.Topic, Partition: r.Partition,
		From: r.From, Next: r.Next, Outcomes: r.Outcomes, DecidedAt: instant.Format(r.DecidedAt),
	}
	if raw.Outcomes == nil {
		raw.Outcomes = []Run{}
	}
	if r.CaughtUpAt != nil {
		raw.CaughtUpAt = instant.Format(*r.CaughtUpAt)
	}
	return appendJSON(dst, raw)
}

// DecodeReceipt reads a record value, and checks that its outcomes cover its offsets.
func DecodeReceipt(value []byte) (Receipt, error) {
	var raw receipt
	if err := json.Unmarshal(value, &raw); err != nil {
		return Receipt{}, fmt.Errorf("the value is no JSON object of a receipt: %w", err)
	}
	r := Receipt{
		Group: raw.Group, Generation: raw.Generation, Epoch: raw.Epoch, Served: raw.Served, Topic: raw.Topic, Partition: raw.Partition,
		From: raw.From, Next: raw.Next, Outcomes: raw.Outcomes,
	}
	var err error
	if r.DecidedAt, err = instant.Parse(raw.DecidedAt); err != nil {
		return Receipt{}, fmt.Errorf("decided_at: %w", err)
	}
	if raw.CaughtUpAt != "" {
		at, err := instant.Parse(raw.CaughtUpAt)
		if err != nil {
			return Receipt{}, fmt.Errorf("caught_up_at: %w", err)
		}
		r.CaughtUpAt = &at
	}
	if r.Topic == "" || r.Partition < 0 || r.From < 0 || r.Next < r.From {
		return Receipt{}, errors.New("the value names no offsets of a partition")
	}
	if (r.Next == r.From) != (r.CaughtUpAt != nil) {
		return Receipt{}, errors.New("a receipt has either offsets or caught_up_at")
	}
	if err := covers(r.Outcomes, r.Next-r.From); err != nil {
		return Receipt{}, err
	}
	if len(r.Outcomes) == 0 {
		r.Outcomes = nil
	}
	return r, nil
}

func covers(runs []Run, offsets int64) error {
	var sum int64
	for _, r := range runs {
		switch r.Outcome {
		case Applied, Duplicate, Rejected, Expired, Skipped:
		default:
			return fmt.Errorf("the outcome %.40q is not known", string(r.Outcome))
		}
		if r.Count < 1 || r.Count > math.MaxInt64-sum {
			return fmt.Errorf("a run of %d offsets is none", r.Count)
		}
		sum += r.Count
	}
	if sum != offsets {
		return fmt.Errorf("%d offsets and %d outcomes", offsets, sum)
	}
	return nil
}

// AppendRuns appends runs as they stand in a receipt's value.
func AppendRuns(dst []byte, runs []Run) []byte {
	if runs == nil {
		runs = []Run{}
	}
	return appendJSON(dst, runs)
}

// DecodeRuns reads what AppendRuns writes, for so many offsets; nil where there are none.
func DecodeRuns(text []byte, offsets int64) ([]Run, error) {
	var runs []Run
	if err := json.Unmarshal(text, &runs); err != nil {
		return nil, fmt.Errorf("the text is no list of outcomes: %w", err)
	}
	if len(runs) == 0 {
		runs = nil
	}
	return runs, covers(runs, offsets)
}

// appendJSON is json.Marshal without the escapes that only web pages need. Shapes of this package
// always marshal.
func appendJSON(dst []byte, shape any) []byte {
	b := bytes.NewBuffer(dst)
	e := json.NewEncoder(b)
	e.SetEscapeHTML(false)
	if err := e.Encode(shape); err != nil {
		panic(fmt.Sprintf("event: %v", err)) // a shape that cannot be written is a mistake in this package
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n"))
}

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

// Outcome is what became of one offset.
type Outcome string

// The outcomes.
const (
	Applied   Outcome = "applied"   // the record is the row of its id
	Duplicate Outcome = "duplicate" // another record is
	Rejected  Outcome = "rejected"  // it is a dead letter
	Skipped   Outcome = "skipped"   // the offset holds no record
)

// Run is so many offsets in a row with one outcome.
type Run struct {
	Outcome Outcome `json:"outcome"`
	Count   int64   `json:"count"`
}

// Receipt is a record of topic.ProjectionReceipt. It says what was decided of the offsets [From, Next) of one partition, when it was decided. The
// receipts of one group, generation and epoch cover every offset that it has passed; a receipt may come
// more than once, and then every time with the same bytes.
type Receipt struct {
	Group      string
	Generation int
	Epoch      int64
	Topic      string
	Partition  int32
	From, Next int64
	Outcomes   []Run     // in the order of offsets
	DecidedAt  time.Time // by the database's clock, whole microseconds
}

// Key is the record key of r.
func (r Receipt) Key() string { return fmt.Sprintf("%s/%d", r.Topic, r.Partition) }

type receipt struct {
	Group      string `json:"group"`
	Generation int    `json:"generation"`
	Epoch      int64  `json:"epoch"`
	Topic      string `json:"topic"`
	Partition  int32  `json:"partition"`
	From       int64  `json:"from"`
	Next       int64  `json:"next"`
	Outcomes   []Run  `json:"outcomes"`
	DecidedAt  string `json:"decided_at"`
}

// AppendReceipt appends the record value of r: {"group":"…","generation":0,"epoch":1,"topic":"…",
// "partition":3,"from":17,"next":20,"outcomes":[{"outcome":"applied","count":3}],"decided_at":"…"}.
func AppendReceipt(dst []byte, r Receipt) []byte {
	return appendJSON(dst, receipt{
		r.Group, r.Generation, r.Epoch, r.Topic, r.Partition, r.From, r.Next, r.Outcomes, instant.Format(r.DecidedAt),
	})
}

// DecodeReceipt reads a record value, and checks that its outcomes cover its offsets.
func DecodeReceipt(value []byte) (Receipt, error) {
	var raw receipt
	if err := json.Unmarshal(value, &raw); err != nil {
		return Receipt{}, fmt.Errorf("the value is no JSON object of a receipt: %w", err)
	}
	at, err := instant.Parse(raw.DecidedAt)
	if err != nil {
		return Receipt{}, fmt.Errorf("decided_at: %w", err)
	}
	if raw.Topic == "" || raw.Partition < 0 || raw.From < 0 || raw.Next <= raw.From {
		return Receipt{}, errors.New("the value names no offsets of a partition")
	}
	if err := covers(raw.Outcomes, raw.Next-raw.From); err != nil {
		return Receipt{}, err
	}
	return Receipt{
		raw.Group, raw.Generation, raw.Epoch, raw.Topic, raw.Partition, raw.From, raw.Next, raw.Outcomes, at,
	}, nil
}

func covers(runs []Run, offsets int64) error {
	var sum int64
	for _, r := range runs {
		switch r.Outcome {
		case Applied, Duplicate, Rejected, Skipped:
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
func AppendRuns(dst []byte, runs []Run) []byte { return appendJSON(dst, runs) }

// DecodeRuns reads what AppendRuns writes, for so many offsets.
func DecodeRuns(text []byte, offsets int64) ([]Run, error) {
	var runs []Run
	if err := json.Unmarshal(text, &runs); err != nil {
		return nil, fmt.Errorf("the text is no list of outcomes: %w", err)
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

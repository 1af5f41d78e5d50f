package story

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
)

// Outcomes counts what became of a partition's records.
type Outcomes struct{ Applied, Duplicate, Rejected int64 }

// Expected is what a log must lead to, by the rules alone.
type Expected struct {
	// Rows is what Dump.Rows must be.
	Rows string
	// Outcomes by partition, for partitions that have records.
	Outcomes map[int32]Outcomes
	// DeadLetters are the positions of the rejected records, by partition and offset.
	DeadLetters []string
	// Count is the number of rows.
	Count int
}

// Rules are what a story adds to the rules of the house.
type Rules struct {
	// Refuses tells which readable records the database of this story does not take.
	Refuses func(id uuid.UUID, at time.Time) bool
	// Decided tells, by position, which records stay rejected though they can be read.
	Decided func(position string) bool
}

type candidate struct {
	Record
	line string // of Dump.Rows
}

// Expect computes what a projection of these records holds: of two records with one id the lowest by (log time,
// partition, offset) is the row and applied, the others are duplicates; what cannot be read is rejected.
func Expect(records []Record, rules Rules) Expected {
	o := NewOracle(rules)
	o.Add(records...)
	return o.Expected()
}

// Oracle is Expect for a log that grows: records are added as they are read, each once, in any order.
type Oracle struct {
	rules    Rules
	rows     map[uuid.UUID]candidate
	outcomes map[int32]Outcomes
	dead     []Record
}

// NewOracle returns one that has read nothing.
func NewOracle(rules Rules) *Oracle {
	return &Oracle{rules: rules, rows: map[uuid.UUID]candidate{}, outcomes: map[int32]Outcomes{}}
}

// Add reads more of the log.
func (o *Oracle) Add(records ...Record) {
	for _, r := range records {
		id, at, err := decode(r.Value)
		if err != nil || o.rules.Refuses != nil && o.rules.Refuses(id, at) || o.rules.Decided != nil && o.rules.Decided(r.Position()) {
			o.count(r.Partition, Outcomes{Rejected: 1})
			o.dead = append(o.dead, r)
			continue
		}
		c := candidate{r, fmt.Sprintf("%s\t%s\t%s\t%d\t%d\n", id, canonical(at), canonical(r.Time), r.Partition, r.Offset)}
		held, ok := o.rows[id]
		switch {
		case !ok:
			o.rows[id] = c
			o.count(c.Partition, Outcomes{Applied: 1})
		case earlier(c, held) < 0:
			o.rows[id] = c
			o.count(c.Partition, Outcomes{Applied: 1})
			o.count(held.Partition, Outcomes{Applied: -1, Duplicate: 1})
		default:
			o.count(c.Partition, Outcomes{Duplicate: 1})
		}
	}
}

func (o *Oracle) count(partition int32, more Outcomes) {
	had := o.outcomes[partition]
	o.outcomes[partition] = Outcomes{had.Applied + more.Applied, had.Duplicate + more.Duplicate, had.Rejected + more.Rejected}
}

// Has tells whether a row bears that id.
func (o *Oracle) Has(id uuid.UUID) bool {
	_, ok := o.rows[id]
	return ok
}

// Expected returns what a projection of all that was added holds.
func (o *Oracle) Expected() Expected {
	e := Expected{Outcomes: maps.Clone(o.outcomes), Count: len(o.rows)}
	slices.SortFunc(o.dead, func(a, b Record) int {
		return cmp.Or(cmp.Compare(a.Partition, b.Partition), cmp.Compare(a.Offset, b.Offset))
	})
	for _, r := range o.dead {
		e.DeadLetters = append(e.DeadLetters, r.Position())
	}
	ids := slices.SortedFunc(maps.Keys(o.rows), func(a, b uuid.UUID) int { return slices.Compare(a[:], b[:]) })
	var text strings.Builder
	for _, id := range ids {
		text.WriteString(o.rows[id].line)
	}
	e.Rows = text.String()
	return e
}

func earlier(a, b candidate) int {
	return cmp.Or(a.Time.Compare(b.Time), cmp.Compare(a.Partition, b.Partition), cmp.Compare(a.Offset, b.Offset))
}

// canonical is how dumps write an instant.
func canonical(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000000Z") }

// decode reads a value the plain way, with none of Tidemark's code.
func decode(value []byte) (uuid.UUID, time.Time, error) {
	var raw struct {
		CommandID      string `json:"command_id"`
		EventTimestamp string `json:"event_timestamp"`
	}
	if err := json.Unmarshal(value, &raw); err != nil {
		return uuid.Nil, time.Time{}, err
	}
	if len(raw.CommandID) != 36 {
		return uuid.Nil, time.Time{}, fmt.Errorf("command_id %q is no UUID", raw.CommandID)
	}
	id, err := uuid.Parse(raw.CommandID)
	if err != nil {
		return uuid.Nil, time.Time{}, err
	}
	at, err := time.Parse(time.RFC3339, strings.ToUpper(raw.EventTimestamp))
	if err != nil {
		return uuid.Nil, time.Time{}, err
	}
	if at = at.UTC().Truncate(time.Microsecond); at.Year() < 1 || at.Year() > 9999 {
		return uuid.Nil, time.Time{}, fmt.Errorf("year %d", at.Year())
	}
	return id, at, nil
}

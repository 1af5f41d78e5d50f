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
	// Derived is what Dump.Derived must be.
	Derived string
	// Outcomes by partition, for partitions that have records.
	Outcomes map[int32]Outcomes
	// DeadLetters are the positions of the rejected records, by partition and offset.
	DeadLetters []string
	// Count is the number of rows.
	Count int
}

// Rules are what a story adds to the rules of the house.
type Rules struct {
	// Refuses tells which readable timestamps the database of this story does not take.
	Refuses func(id uuid.UUID, at time.Time) bool
	// Decided tells, by position, which records stay rejected though they can be read.
	Decided func(position string) bool
}

type candidate struct {
	Record
	readable
	line string // of Dump.Rows
}

// Expect computes what the timestamps of these records are: of two records with one id the lowest by (log time,
// partition, offset) is the row and applied, the others are duplicates; what cannot be read is rejected.
func Expect(records []Record, rules Rules) Expected { return Timestamps.Expect(records, rules) }

// Expect computes what the projection of these records holds.
func (p Projection) Expect(records []Record, rules Rules) Expected {
	o := NewOracle(p, rules)
	o.Add(records...)
	return o.Expected()
}

// Oracle is Expect for a log that grows: records are added as they are read, each once, in any order.
type Oracle struct {
	projection Projection
	rules      Rules
	rows       map[string]candidate // by their keys in the main table
	tickets    map[uuid.UUID]bool   // of all rows
	outcomes   map[int32]Outcomes
	dead       []Record
}

// NewOracle returns one that has read nothing.
func NewOracle(p Projection, rules Rules) *Oracle {
	return &Oracle{projection: p, rules: rules, rows: map[string]candidate{}, tickets: map[uuid.UUID]bool{}, outcomes: map[int32]Outcomes{}}
}

// Add reads more of the log.
func (o *Oracle) Add(records ...Record) {
	for _, r := range records {
		read, err := o.projection.read(r)
		if err != nil || o.rules.Refuses != nil && o.rules.Refuses(read.ticket, read.at) || o.rules.Decided != nil && o.rules.Decided(r.Position()) {
			o.count(r.Partition, Outcomes{Rejected: 1})
			o.dead = append(o.dead, r)
			continue
		}
		c := candidate{r, read, fmt.Sprintf("%s\t%s\t%d\t%d\n", read.text, canonical(r.Time), r.Partition, r.Offset)}
		o.tickets[c.ticket] = true
		held, ok := o.rows[c.key]
		switch {
		case !ok:
			o.rows[c.key] = c
			o.count(c.Partition, Outcomes{Applied: 1})
		case o.projection.earlier(c.Record, held.Record) < 0:
			o.rows[c.key] = c
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

// Has tells whether a row bears that ticket.
func (o *Oracle) Has(ticket uuid.UUID) bool { return o.tickets[ticket] }

// Expected returns what a projection of all that was added holds.
func (o *Oracle) Expected() Expected {
	e := Expected{Outcomes: maps.Clone(o.outcomes), Count: len(o.rows)}
	slices.SortFunc(o.dead, func(a, b Record) int {
		return cmp.Or(cmp.Compare(a.Partition, b.Partition), cmp.Compare(a.Offset, b.Offset))
	})
	for _, r := range o.dead {
		e.DeadLetters = append(e.DeadLetters, r.Position())
	}
	rows := make([]candidate, 0, len(o.rows))
	var text strings.Builder
	for _, key := range slices.Sorted(maps.Keys(o.rows)) { // lower-case UUIDs are in the order of their bytes
		rows = append(rows, o.rows[key])
		text.WriteString(o.rows[key].line)
	}
	e.Rows = text.String()
	if o.projection.fold != nil {
		e.Derived = o.projection.fold(rows)
	}
	return e
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

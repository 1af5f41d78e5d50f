package story

import (
	"cmp"
	"encoding/json"
	"fmt"
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
}

type candidate struct {
	Record
	id uuid.UUID
	at time.Time
}

// Expect computes what a projection of these records holds: of two records with one id the lowest by (log time,
// partition, offset) is the row and applied, the others are duplicates; what cannot be read is rejected.
func Expect(records []Record, rules Rules) Expected {
	e := Expected{Outcomes: map[int32]Outcomes{}}
	rows := map[uuid.UUID]candidate{}
	var read []candidate
	var dead []Record
	for _, r := range records {
		id, at, err := decode(r.Value)
		if err != nil || rules.Refuses != nil && rules.Refuses(id, at) {
			o := e.Outcomes[r.Partition]
			o.Rejected++
			e.Outcomes[r.Partition] = o
			dead = append(dead, r)
			continue
		}
		c := candidate{Record: r, id: id, at: at}
		read = append(read, c)
		if held, ok := rows[id]; !ok || earlier(c, held) < 0 {
			rows[id] = c
		}
	}
	for _, c := range read {
		o := e.Outcomes[c.Partition]
		if row := rows[c.id]; row.Partition == c.Partition && row.Offset == c.Offset {
			o.Applied++
		} else {
			o.Duplicate++
		}
		e.Outcomes[c.Partition] = o
	}
	ids := make([]uuid.UUID, 0, len(rows))
	for id := range rows {
		ids = append(ids, id)
	}
	slices.SortFunc(ids, func(a, b uuid.UUID) int { return slices.Compare(a[:], b[:]) })
	slices.SortFunc(dead, func(a, b Record) int {
		return cmp.Or(cmp.Compare(a.Partition, b.Partition), cmp.Compare(a.Offset, b.Offset))
	})
	for _, r := range dead {
		e.DeadLetters = append(e.DeadLetters, r.Position())
	}
	var text strings.Builder
	for _, id := range ids {
		c := rows[id]
		fmt.Fprintf(&text, "%s\t%s\t%s\t%d\t%d\n", id, canonical(c.at), canonical(c.Time), c.Partition, c.Offset)
	}
	e.Rows, e.Count = text.String(), len(rows)
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

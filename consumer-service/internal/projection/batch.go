package projection

import (
	"bytes"
	"cmp"
	"encoding/base64"
	"encoding/json"
	"hash/fnv"
	"slices"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"

	"github.com/tidemark/tidemark/shared/event"
	"github.com/tidemark/tidemark/shared/kafka"
)

// batch is a run of one partition's records made ready for the database.
type batch struct {
	partition int32
	from      int64 // where the projection must be for this batch to fit
	next      int64 // where it is afterwards
	records   []kafka.Record
	entries   []entry  // those that decode, by (id, created, offset)
	letters   []letter // those that do not, by offset
	skipped   int64    // offsets in [from, next) that hold no record
}

// entry is a record that decodes.
type entry struct {
	id      uuid.UUID
	event   time.Time
	created time.Time // the log's time
	offset  int64
	record  int // index in the batch's records
}

// letter is a record that becomes a dead letter.
type letter struct {
	record int
	code   string
	reason string
}

// Reason codes of dead letters.
const (
	reasonDecode  = "decode"  // the value is no event of the topic
	reasonRefused = "refused" // Postgres refuses the row
	reasonDecided = "decided" // it could be read now, and somebody has decided on it while it could not
)

// prepare decodes records, which come in the order of their offsets, and sorts what decodes by id, so
// that two writers of the same ids never wait for each other in a circle.
func prepare(partition int32, from int64, records []kafka.Record) batch {
	last := records[len(records)-1].Offset
	b := batch{
		partition: partition, from: from, next: last + 1, records: records,
		entries: make([]entry, 0, len(records)), skipped: last + 1 - from - int64(len(records)),
	}
	for i, r := range records {
		c, err := event.DecodeTimestampCommand(r.Value)
		if err != nil {
			b.letters = append(b.letters, letter{record: i, code: reasonDecode, reason: err.Error()})
			continue
		}
		b.entries = append(b.entries, entry{id: c.CommandID, event: c.EventTimestamp, created: r.Timestamp, offset: r.Offset, record: i})
	}
	slices.SortFunc(b.entries, func(x, y entry) int {
		if c := bytes.Compare(x.id[:], y.id[:]); c != 0 {
			return c
		}
		if c := x.created.Compare(y.created); c != 0 {
			return c
		}
		return cmp.Compare(x.offset, y.offset)
	})
	return b
}

// decide takes out of the entries what was decided on: it stays a dead letter, whatever the code can do
// with it now. A record that still does not decode keeps its own reason.
func (b *batch) decide(decided map[int64]event.Decision) {
	if len(decided) == 0 {
		return
	}
	had := len(b.letters)
	b.entries = slices.DeleteFunc(b.entries, func(e entry) bool {
		d, ok := decided[e.offset]
		if ok {
			b.letters = append(b.letters, letter{record: e.record, code: reasonDecided, reason: decisions[d]})
		}
		return ok
	})
	if len(b.letters) > had {
		slices.SortFunc(b.letters, func(x, y letter) int { return cmp.Compare(x.record, y.record) })
	}
}

var decisions = map[event.Decision]string{
	event.Redrive: "the record was issued again as a new command",
	event.Discard: "the record was discarded",
}

// receipt writes what became of each offset of the batch, in their order; fates are those of its records.
func (b *batch) receipt(fates []event.Outcome) string {
	var runs []event.Run
	add := func(o event.Outcome, n int64) {
		if last := len(runs) - 1; last >= 0 && runs[last].Outcome == o {
			runs[last].Count += n
		} else {
			runs = append(runs, event.Run{Outcome: o, Count: n})
		}
	}
	at := b.from
	for i, r := range b.records {
		if r.Offset > at {
			add(event.Skipped, r.Offset-at)
		}
		add(fates[i], 1)
		at = r.Offset + 1
	}
	return string(event.AppendRuns(nil, runs))
}

// fastReceipt is the receipt of a batch that goes the fast way.
func (b *batch) fastReceipt() string {
	if len(b.letters) == 0 && b.skipped == 0 { // as nearly always
		return string(event.AppendRuns(nil, []event.Run{{Outcome: event.Applied, Count: int64(len(b.records))}}))
	}
	return b.receipt(b.fates())
}

// fates are the outcomes of the records where none is a duplicate: what decodes is applied.
func (b *batch) fates() []event.Outcome {
	fates := make([]event.Outcome, len(b.records))
	for i := range fates {
		fates[i] = event.Applied
	}
	for _, l := range b.letters {
		fates[l.record] = event.Rejected
	}
	return fates
}

// below reports how many of the records lie below offset.
func below(records []kafka.Record, offset int64) int {
	i, _ := slices.BinarySearchFunc(records, offset, func(r kafka.Record, o int64) int { return cmp.Compare(r.Offset, o) })
	return i
}

func (b *batch) last() kafka.Record { return b.records[len(b.records)-1] }

// repeats reports whether an id occurs twice.
func (b *batch) repeats() bool {
	for i := 1; i < len(b.entries); i++ {
		if b.entries[i].id == b.entries[i-1].id {
			return true
		}
	}
	return false
}

// recordHash tells two records apart that stand at one offset: FNV-1a of the key and the value.
func recordHash(r kafka.Record) int64 {
	h := fnv.New64a()
	_, _ = h.Write(r.Key) // never fails
	_, _ = h.Write([]byte{0})
	_, _ = h.Write(r.Value)
	return int64(h.Sum64())
}

// headersJSON prints headers as an array, in their order, since names may repeat. A part that is no
// text that Postgres can hold is given in base64 under a name that says so.
func headersJSON(headers []kafka.Header) string {
	out := make([]map[string]string, len(headers))
	for i, h := range headers {
		m := map[string]string{}
		for name, part := range map[string][]byte{"key": h.Key, "value": h.Value} {
			if utf8.Valid(part) && bytes.IndexByte(part, 0) < 0 {
				m[name] = string(part)
			} else {
				m[name+"_base64"] = base64.StdEncoding.EncodeToString(part)
			}
		}
		out[i] = m
	}
	text, err := json.Marshal(out)
	if err != nil { // strings always marshal
		return "[]"
	}
	return string(text)
}

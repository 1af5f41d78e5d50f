package projection

import (
	"bytes"
	"cmp"
	"encoding/base64"
	"encoding/json"
	"hash/fnv"
	"slices"
	"unicode/utf8"

	"github.com/tidemark/tidemark/shared/event"
	"github.com/tidemark/tidemark/shared/kafka"
	"github.com/tidemark/tidemark/shared/postgres"
)

// batch is a run of one partition's records made ready for the database.
type batch struct {
	partition int32
	from      int64 // where the progress must be for this batch to fit
	next      int64 // where it is afterwards
	records   []kafka.Record
	rows      Rows     // what decodes
	placed    []int    // the rows that are to stand, by key
	letters   []Letter // by record
	expired   []int    // records that are older than the projection keeps
	skipped   int64    // offsets in [from, next) that hold no record
}

// prepare decodes records, which come in the order of their offsets. Rows are sorted by key, so that two writers of the
// same keys never wait for each other in a circle.
func (d *Definition) prepare(partition int32, from int64, records []kafka.Record) batch {
	last := records[len(records)-1].Offset
	b := batch{partition: partition, from: from, next: last + 1, records: records, skipped: last + 1 - from - int64(len(records))}
	b.rows, b.letters, b.expired = d.Main.Read(Reading{
		Partition: partition, Partitions: int32(d.Topic.Partitions), Keyed: d.Kind == Keyed, Retention: d.Retention, Records: records,
	})
	b.placed = make([]int, b.rows.Len())
	for i := range b.placed {
		b.placed[i] = i
	}
	return b
}

// decide makes a dead letter of what was decided on: it stays one, whatever the code can do with it now. A record that still
// does not decode keeps its own reason.
func (b *batch) decide(decided map[int64]event.Decision) {
	if len(decided) == 0 {
		return
	}
	var letters []Letter
	isDecided := func(record int) bool {
		d, ok := decided[b.records[record].Offset]
		if ok {
			letters = append(letters, Letter{record, ReasonDecided, decisions[d]})
		}
		return ok
	}
	for _, i := range b.placed {
		isDecided(b.rows.Record(i))
	}
	b.expired = slices.DeleteFunc(b.expired, isDecided)
	b.reject(letters)
}

var decisions = map[event.Decision]string{
	event.Redrive: "the record was redriven as a new command",
	event.Discard: "the record was discarded",
}

// reject makes records dead letters that were to be rows.
func (b *batch) reject(letters []Letter) {
	if len(letters) == 0 {
		return
	}
	rejected := make(map[int]bool, len(letters))
	for _, l := range letters {
		rejected[l.Record] = true
	}
	b.placed = slices.DeleteFunc(slices.Clone(b.placed), func(i int) bool { return rejected[b.rows.Record(i)] })
	b.letters = append(slices.Clone(b.letters), letters...)
	slices.SortFunc(b.letters, func(x, y Letter) int { return cmp.Compare(x.Record, y.Record) })
}

// receipt writes what became of each offset of the batch, in their order; of has the outcomes of its records.
func (b *batch) receipt(of []event.Outcome) string {
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
		add(of[i], 1)
		at = r.Offset + 1
	}
	return string(event.AppendRuns(nil, runs))
}

// fastReceipt is the receipt of a batch that goes the fast way.
func (b *batch) fastReceipt() string {
	if len(b.placed) == len(b.records) && b.skipped == 0 { // as nearly always
		return string(event.AppendRuns(nil, []event.Run{{Outcome: event.Applied, Count: int64(len(b.records))}}))
	}
	return b.receipt(b.outcomes())
}

// outcomes are those of the records where none is a duplicate: what is to be a row is applied.
func (b *batch) outcomes() []event.Outcome {
	out := make([]event.Outcome, len(b.records))
	for i := range out {
		out[i] = event.Applied
	}
	for _, l := range b.letters {
		out[l.Record] = event.Rejected
	}
	for _, record := range b.expired {
		out[record] = event.Expired
	}
	return out
}

// below reports how many of the records lie below offset.
func below(records []kafka.Record, offset int64) int {
	i, _ := slices.BinarySearchFunc(records, offset, func(r kafka.Record, o int64) int { return cmp.Compare(r.Offset, o) })
	return i
}

func (b *batch) last() kafka.Record { return b.records[len(b.records)-1] }

// of is the record that row i is made of.
func (b *batch) of(i int) kafka.Record { return b.records[b.rows.Record(i)] }

// repeats reports whether a key occurs twice.
func (b *batch) repeats() bool {
	for n := 1; n < len(b.placed); n++ {
		if b.rows.Same(b.placed[n-1], b.placed[n]) {
			return true
		}
	}
	return false
}

// places are the log times and offsets of rows, as arrays.
func (b *batch) places(of []int) (created, offsets []byte) {
	times, at := postgres.Timestamps(len(of)), postgres.Int8s(len(of))
	for _, i := range of {
		r := b.of(i)
		times.Timestamp(r.Timestamp)
		at.Int8(r.Offset)
	}
	return times.Bytes(), at.Bytes()
}

type letterArrays struct {
	offsets, payloads, headers, codes, reasons, seen postgres.Array
}

func (b *batch) letterArrays() letterArrays {
	n := len(b.letters)
	a := letterArrays{postgres.Int8s(n), postgres.Byteas(n), postgres.Texts(n), postgres.Texts(n), postgres.Texts(n), postgres.Timestamps(n)}
	for _, l := range b.letters {
		r := b.records[l.Record]
		a.offsets.Int8(r.Offset)
		a.payloads.Bytea(r.Value)
		a.headers.Text(headersJSON(r.Headers))
		a.codes.Text(l.Code)
		a.reasons.Text(printable(l.Reason))
		a.seen.Timestamp(r.Timestamp)
	}
	return a
}

// printable is a text as Postgres can hold it.
func printable(s string) string {
	if utf8.ValidString(s) && !bytes.ContainsRune([]byte(s), 0) {
		return s
	}
	return string(bytes.ReplaceAll(bytes.ToValidUTF8([]byte(s), []byte("\uFFFD")), []byte{0}, []byte("\uFFFD")))
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

package projection

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/tidemark/tidemark/shared/kafka"
	"github.com/tidemark/tidemark/shared/postgres"
)

// MainTable is a main table whose rows are made of values of type E, one a record.
type MainTable[E any] struct {
	Name string
	// Decode reads a record. An error makes the record a dead letter, now and in every rebuild: its text becomes the
	// reason, so it must depend on the record alone.
	Decode func(kafka.Record) (E, error)
	// Key are the columns of the primary key, and Columns the others beside created_at, partition and offset. Decode bounds
	// the length of a text that another index than the primary key holds: a candidate has such indexes only after it is
	// filled, and one that is too long for them would never be indexed.
	Key, Columns []Column[E]
	// Compare orders values by their key, the same way in every process: writers that meet take rows in this order.
	Compare func(a, b *E) int
	// RecordKey is the key that a value's record must have; of a keyed projection.
	RecordKey func(*E) string
	// Day names the column of Key by whose UTC day the table is partitioned, and KeyTime is its value.
	Day     string
	KeyTime func(*E) time.Time
	// Fold folds applied records, in the order of their offsets, into the derived tables in schema, as one step of
	// tx. What the tables hold afterwards must not depend on how the records were cut into calls.
	Fold func(ctx context.Context, tx *sqlx.Tx, schema string, applied []Applied[E]) error
	// Label names a value in a log line.
	Label func(*E) string
}

// Column is one column of a main table: its name, the type of its values, and how a value is appended to an array.
type Column[E any] struct {
	Name   string
	Type   Type
	Append func(*postgres.Array, *E)
}

// Type is a Postgres type that values travel as.
type Type struct {
	name  string
	array func(capacity int) postgres.Array
}

// Types of columns.
var (
	UUID        = Type{"uuid", postgres.UUIDs}
	Timestamptz = Type{"timestamptz", postgres.Timestamps}
	Bigint      = Type{"bigint", postgres.Int8s}
	Text        = Type{"text", postgres.Texts}
)

// Applied is a record whose row stands, as it is folded.
type Applied[E any] struct {
	Value     *E
	Partition int32
	Offset    int64
	Created   time.Time // log time
}

// aheadLimit is how far the time of a key may lie ahead of the log time.
const aheadLimit = 24 * time.Hour

// Spec implements Main.
func (t *MainTable[E]) Spec() MainSpec {
	spec := MainSpec{Name: t.Name, Day: t.Day, Folds: t.Fold != nil}
	for _, c := range t.Key {
		spec.Key = append(spec.Key, c.Name)
	}
	for _, c := range slices.Concat(t.Key, t.Columns) {
		spec.Columns = append(spec.Columns, ColumnSpec{c.Name, c.Type.name})
	}
	return spec
}

type rowOf[E any] struct {
	value   E
	created time.Time
	offset  int64
	record  int
}

type rowsOf[E any] struct {
	table *MainTable[E]
	rows  []rowOf[E]
}

// Read implements Main.
func (t *MainTable[E]) Read(in Reading) (_ Rows, letters []Letter, expired []int) {
	out := &rowsOf[E]{table: t, rows: make([]rowOf[E], 0, len(in.Records))}
	for i, r := range in.Records {
		value, err := t.Decode(r)
		if err != nil {
			letters = append(letters, Letter{i, ReasonDecode, err.Error()})
			continue
		}
		if in.Keyed {
			if reason := t.misplaced(in, r, &value); reason != "" {
				letters = append(letters, Letter{i, ReasonMisplaced, reason})
				continue
			}
		}
		if t.Day != "" {
			switch at := t.KeyTime(&value); {
			case at.After(r.Timestamp.Add(aheadLimit)):
				letters = append(letters, Letter{i, ReasonTime, fmt.Sprintf("its time is %s and the log took it at %s: more than a day ahead", at.UTC().Format(time.RFC3339Nano), r.Timestamp.Format(time.RFC3339Nano))})
				continue
			case in.Retention > 0 && at.Before(r.Timestamp.Add(-in.Retention)):
				expired = append(expired, i)
				continue
			}
		}
		out.rows = append(out.rows, rowOf[E]{value, r.Timestamp, r.Offset, i})
	}
	slices.SortFunc(out.rows, func(a, b rowOf[E]) int {
		if c := t.Compare(&a.value, &b.value); c != 0 {
			return c
		}
		if c := a.created.Compare(b.created); c != 0 && !in.Keyed {
			return c
		}
		return cmp.Compare(a.offset, b.offset)
	})
	return out, letters, expired
}

// misplaced says what is wrong with the place of a record, or "".
func (t *MainTable[E]) misplaced(in Reading, r kafka.Record, value *E) string {
	key := t.RecordKey(value)
	if string(r.Key) != key {
		return fmt.Sprintf("its key is %.80q and its value's is %.80q", r.Key, key)
	}
	if p := kafka.PartitionOf(r.Key, in.Partitions); p != in.Partition {
		return fmt.Sprintf("it stands in partition %d and its key belongs to partition %d", in.Partition, p)
	}
	return ""
}

func (r *rowsOf[E]) Len() int                { return len(r.rows) }
func (r *rowsOf[E]) Record(i int) int        { return r.rows[i].record }
func (r *rowsOf[E]) KeyTime(i int) time.Time { return r.table.KeyTime(&r.rows[i].value) }
func (r *rowsOf[E]) Describe(i int) string   { return r.table.Label(&r.rows[i].value) }

func (r *rowsOf[E]) Same(i, j int) bool {
	return r.table.Compare(&r.rows[i].value, &r.rows[j].value) == 0
}

func (r *rowsOf[E]) Arrays(of []int) []any {
	out := make([]any, 0, len(r.table.Key)+len(r.table.Columns))
	for _, columns := range [][]Column[E]{r.table.Key, r.table.Columns} {
		for _, c := range columns {
			a := c.Type.array(len(of))
			for _, i := range of {
				c.Append(&a, &r.rows[i].value)
			}
			out = append(out, a.Bytes())
		}
	}
	return out
}

func (r *rowsOf[E]) Fold(ctx context.Context, tx *sqlx.Tx, schema string, partition int32, of []int) error {
	applied := make([]Applied[E], len(of))
	for n, i := range of {
		row := &r.rows[i]
		applied[n] = Applied[E]{&row.value, partition, row.offset, row.created}
	}
	return r.table.Fold(ctx, tx, schema, applied)
}

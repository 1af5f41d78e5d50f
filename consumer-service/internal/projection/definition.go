package projection

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/tidemark/tidemark/shared/kafka"
	"github.com/tidemark/tidemark/shared/postgres"
	"github.com/tidemark/tidemark/shared/schema"
	"github.com/tidemark/tidemark/shared/topic"
)

// Definition is one projection: a topic, and the tables that are computed from it. Its tables are made by a
// migration of shared/schema, which also writes its row in the table projections.
type Definition struct {
	Name   string     // of the projection
	Schema string     // where its serving tables stand; Name unless given
	Topic  topic.Spec // what it reads; no two projections read one topic
	// BaseGroup says that its consumer group is KAFKA_GROUP_ID itself; the others' have their name behind it.
	BaseGroup bool
	Kind      Kind
	Main      Main
	// Ticket is the column of the main table that holds the ticket of the command; empty where records have none.
	Ticket string
	// Derived tables are folded from the applied records, in lock order. A spread projection has none.
	Derived []Derived
	// Views are made anew by a swap, since a view follows a table that moves.
	Views []View
	// Retention is how long a record is kept after its key's time; 0 keeps it forever. It needs a main table that is
	// partitioned by day.
	Retention time.Duration
}

// Kind says where the records of one key of the main table can stand.
type Kind int

const (
	// Spread records of one key may stand in several partitions. The one with the lowest (log time, partition,
	// offset) is the row.
	Spread Kind = iota
	// Keyed records of one key stand in one partition, since the key of the main table contains the record's. The one
	// with the lowest offset is the row. A record in another partition than its key's is a dead letter.
	Keyed
)

// Derived is a table that is folded from applied records. Each of its rows bears partition and offset of the last record
// that was folded into it, in columns of those names.
type Derived struct {
	Name string
	Key  []string // the columns of its primary key
}

// View is a view on the projection's tables.
type View struct {
	Name  string
	Query string // with {schema} where the schema of the tables stands
}

// Statement makes the view, or makes it anew with the rights that it has, in schema.
func (v View) Statement(in string) string {
	return fmt.Sprintf(`CREATE OR REPLACE VIEW %s AS %s;`, postgres.Qualified(in, v.Name), strings.ReplaceAll(v.Query, "{schema}", postgres.Quoted(in)))
}

// Main is a projection's main table: one row for each applied record. MainTable implements it.
type Main interface {
	Spec() MainSpec
	// Read decodes the records of one partition. What becomes a row is sorted by key; what does not is a letter, or
	// expired. What becomes of a record depends on that record alone.
	Read(in Reading) (Rows, []Letter, []int)
}

// MainSpec names the columns of a main table beside created_at, partition and offset, which all of them have.
type MainSpec struct {
	Name    string
	Key     []string // the first of Columns: the primary key
	Columns []ColumnSpec
	// Day is the column of the primary key by whose UTC day the table is partitioned; empty where it is not.
	Day string
	// Folds reports whether derived tables are folded from its rows.
	Folds bool
}

// ColumnSpec is one column and the Postgres type of its values.
type ColumnSpec struct{ Name, Type string }

// Reading is what Main.Read is given.
type Reading struct {
	Partition  int32
	Partitions int32 // of the topic
	Keyed      bool
	Retention  time.Duration
	Records    []kafka.Record
}

// Letter is a record that becomes a dead letter.
type Letter struct {
	Record int // its index in the batch
	Code   string
	Reason string // in words that depend on the record alone
}

// Reason codes of dead letters.
const (
	ReasonDecode    = "decode"    // the value is no event of the topic
	ReasonMisplaced = "misplaced" // the record is not in its key's partition, or its key is not its value's
	ReasonTime      = "time"      // its key's time lies more than a day after its log time
	ReasonRefused   = "refused"   // Postgres refuses the row, or what is folded from it
	ReasonDecided   = "decided"   // it could be read now, and was decided on while it could not
)

// Rows are the decoded records of one batch, by key; of one key by the rule that decides which record is the row.
type Rows interface {
	Len() int
	// Record is the index of row i's record in the batch.
	Record(i int) int
	// Same reports whether rows i and j have one key.
	Same(i, j int) bool
	// KeyTime is the time that is part of row i's key, where the table is partitioned by day.
	KeyTime(i int) time.Time
	// Arrays are the values of the named rows, one binary Postgres array for each of MainSpec.Columns.
	Arrays(of []int) []any
	// Fold folds the named rows, whose offsets rise, into the derived tables in schema.
	Fold(ctx context.Context, tx *sqlx.Tx, schema string, partition int32, of []int) error
	// Describe names row i in a log line at debug: its command id where it has one, else its key.
	Describe(i int) string
}

// Tables are the projection's own tables, in lock order: the main table, then the derived ones.
func (d *Definition) Tables() []string {
	tables := []string{d.Main.Spec().Name}
	for _, t := range d.Derived {
		tables = append(tables, t.Name)
	}
	return tables
}

// All are all tables of a generation of the projection, in lock order.
func (d *Definition) All() []string { return schema.LockOrder(d.Tables()) }

// ServingSchema is where the tables of the serving generation stand.
func (d *Definition) ServingSchema() string {
	if d.Schema == "" {
		return d.Name
	}
	return d.Schema
}

// GroupOf is the consumer group of the projection where KAFKA_GROUP_ID is base.
func (d *Definition) GroupOf(base string) string {
	if d.BaseGroup {
		return base
	}
	return base + "." + d.Name
}

func (d *Definition) validate() error {
	spec := d.Main.Spec()
	switch {
	case d.Name == "" || d.Topic.Name == "":
		return errors.New("a projection needs a name and a topic")
	case spec.Name == "" || len(spec.Key) == 0:
		return fmt.Errorf("projection %s: its main table needs a name and a key", d.Name)
	case d.Kind == Spread && (len(d.Derived) > 0 || spec.Folds):
		return fmt.Errorf("projection %s: records of one key may stand in several partitions, so nothing can be folded in their order: it must be keyed", d.Name)
	case spec.Folds != (len(d.Derived) > 0):
		return fmt.Errorf("projection %s: derived tables and the function that folds them belong together", d.Name)
	case spec.Day != "" && !slices.Contains(spec.Key, spec.Day):
		return fmt.Errorf("projection %s: %s is partitioned by %s, which must be part of its key", d.Name, spec.Name, spec.Day)
	case d.Retention > 0 && spec.Day == "":
		return fmt.Errorf("projection %s: only a table that is partitioned by day can have a retention", d.Name)
	}
	for i, c := range spec.Key {
		if spec.Columns[i].Name != c {
			return fmt.Errorf("projection %s: the key of %s must be its first columns", d.Name, spec.Name)
		}
	}
	return nil
}

// CheckAll refuses definitions that clash: two of one name, topic or schema, or two tables of one name in one schema.
func CheckAll(definitions []*Definition) error {
	var errs []error
	owner := map[string]string{}
	take := func(what, name, projection string) {
		key := what + " " + name
		if other, taken := owner[key]; taken {
			errs = append(errs, fmt.Errorf("projections %s and %s both have the %s %s: each needs its own", other, projection, what, name))
		}
		owner[key] = projection
	}
	for _, d := range definitions {
		if err := d.validate(); err != nil {
			errs = append(errs, err)
			continue
		}
		take("name", d.Name, d.Name)
		take("topic", d.Topic.Name, d.Name)
		take("schema", d.ServingSchema(), d.Name)
		take("consumer group", d.GroupOf("KAFKA_GROUP_ID"), d.Name)
		for _, t := range d.All() {
			take("table", d.ServingSchema()+"."+t, d.Name)
		}
	}
	return errors.Join(errs...)
}

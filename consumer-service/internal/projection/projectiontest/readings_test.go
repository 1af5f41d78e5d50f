package projectiontest_test

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"
	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/consumer-service/internal/projection"
	"github.com/tidemark/tidemark/consumer-service/internal/projection/projectiontest"
	"github.com/tidemark/tidemark/shared/kafka"
	"github.com/tidemark/tidemark/shared/postgres"
	"github.com/tidemark/tidemark/shared/topic"
)

func TestMain(m *testing.M) { projectiontest.Main(m) }

// The suite's own projection has everything that a definition can have: readings of meters, in a main table that is
// partitioned by day, kept for two days, with an indexed text; totals that are folded record by record, and may not fall
// below zero; a view; and a topic that is written in transactions.
const tables = `
SELECT make_projection_schema('readings');
CREATE TABLE readings.meter_readings (
	meter      text NOT NULL,
	read_at    timestamptz NOT NULL,
	usage      bigint NOT NULL,
	note       text NOT NULL,
	created_at timestamptz NOT NULL,
	partition  integer NOT NULL,
	"offset"   bigint NOT NULL,
	PRIMARY KEY (meter, read_at)
) PARTITION BY RANGE (read_at);
CREATE INDEX meter_readings_by_note ON readings.meter_readings (note);
CREATE TABLE readings.meter_totals (
	meter     text NOT NULL PRIMARY KEY,
	readings  bigint NOT NULL,
	total     bigint NOT NULL CONSTRAINT no_total_below_zero CHECK (total >= 0),
	partition integer NOT NULL,
	"offset"  bigint NOT NULL
);
CREATE VIEW readings.busy_meters AS SELECT meter, total FROM readings.meter_totals WHERE total > 1000;`

type reading struct {
	Meter string    `json:"meter"`
	At    time.Time `json:"at"`
	Usage int64     `json:"usage"`
	Note  string    `json:"note"`
}

type column = projection.Column[reading]

func readings(of topic.Spec) *projection.Definition {
	return &projection.Definition{
		Name: "readings", Topic: of, Kind: projection.Keyed, Retention: 48 * time.Hour,
		Main: &projection.MainTable[reading]{
			Name: "meter_readings", Decode: decode,
			Key: []column{
				{Name: "meter", Type: projection.Text, Append: func(a *postgres.Array, r *reading) { a.Text(r.Meter) }},
				{Name: "read_at", Type: projection.Timestamptz, Append: func(a *postgres.Array, r *reading) { a.Timestamp(r.At) }},
			},
			Columns: []column{
				{Name: "usage", Type: projection.Bigint, Append: func(a *postgres.Array, r *reading) { a.Int8(r.Usage) }},
				{Name: "note", Type: projection.Text, Append: func(a *postgres.Array, r *reading) { a.Text(r.Note) }},
			},
			Compare:   func(a, b *reading) int { return cmp.Or(cmp.Compare(a.Meter, b.Meter), a.At.Compare(b.At)) },
			RecordKey: func(r *reading) string { return r.Meter },
			Day:       "read_at", KeyTime: func(r *reading) time.Time { return r.At },
			Fold: fold, Label: func(r *reading) string { return r.Meter },
		},
		Derived: []projection.Derived{{Name: "meter_totals", Key: []string{"meter"}}},
		Views:   []projection.View{{Name: "busy_meters", Query: `SELECT meter, total FROM {schema}.meter_totals WHERE total > 1000`}},
	}
}

func decode(r kafka.Record) (reading, error) {
	var out reading
	if err := json.Unmarshal(r.Value, &out); err != nil || out.Meter == "" || out.At.IsZero() || len(out.Note) > 100 {
		return out, errors.New("the value is no reading of a meter")
	}
	out.At = out.At.Truncate(time.Microsecond)
	return out, nil
}

func fold(ctx context.Context, tx *sqlx.Tx, schema string, applied []projection.Applied[reading]) error {
	for _, a := range applied {
		if _, err := tx.ExecContext(ctx, `
INSERT INTO `+postgres.Qualified(schema, "meter_totals")+` AS t (meter, readings, total, partition, "offset") VALUES ($1, 1, $2, $3, $4)
ON CONFLICT (meter) DO UPDATE SET readings = t.readings + 1, total = t.total + $2, partition = $3, "offset" = $4`,
			a.Value.Meter, a.Value.Usage, a.Partition, a.Offset); err != nil {
			return fmt.Errorf("add a reading: %w", err)
		}
	}
	return nil
}

func record(r reading) projectiontest.Record {
	value, err := json.Marshal(r)
	if err != nil { // a reading always marshals
		panic(err)
	}
	return projectiontest.Record{Key: []byte(r.Meter), Value: value, Identity: r.Meter + "/" + r.At.String(), Partition: projectiontest.AnyPartition}
}

func sample(r *rand.Rand, at time.Time) reading {
	return reading{
		Meter: fmt.Sprint("meter-", r.IntN(8)), At: at.Add(-time.Duration(r.Int64N(int64(40 * time.Hour)))).UTC().Truncate(time.Microsecond),
		Usage: r.Int64N(100), Note: fmt.Sprint("note ", r.IntN(5)),
	}
}

func TestReadings(t *testing.T) {
	t.Parallel()
	projectiontest.Run(t, readings, projectiontest.Samples{
		Topic:  topic.Spec{Name: "meter.reading.v1", Key: "meter", Kept: topic.Forever, Transactional: true},
		Tables: tables,
		Valid:  func(r *rand.Rand, at time.Time) projectiontest.Record { return record(sample(r, at)) },
		Undecodable: func(r *rand.Rand) projectiontest.Record {
			value := []string{``, `{}`, `[]`, `{"meter":7}`, `{"meter":"meter-1","at":"yesterday"}`, "\xff\x00"}[r.IntN(6)]
			return projectiontest.Record{Key: []byte("meter-1"), Value: []byte(value), Rejected: projectiontest.Decode, Partition: int32(r.IntN(3))}
		},
		Repeat: func(r *rand.Rand, of projectiontest.Record) projectiontest.Record {
			var was reading
			if err := json.Unmarshal(of.Value, &was); err != nil { // it was made by record
				panic(err)
			}
			was.Usage, was.Note = r.Int64N(100), "again"
			return record(was)
		},
		TooLong: func(r *rand.Rand, at time.Time) projectiontest.Record {
			long := make([]byte, 9000)
			for i := range long {
				long[i] = byte(r.Uint32())
			}
			s := sample(r, at)
			s.Meter = base64.StdEncoding.EncodeToString(long) // Postgres cannot compress it below what an index holds
			out := record(s)
			out.Rejected = projectiontest.Refused
			return out
		},
		Unfoldable: func(r *rand.Rand, at time.Time) projectiontest.Record {
			s := sample(r, at)
			s.Usage = -1 << 40
			out := record(s)
			out.Rejected = projectiontest.Refused
			return out
		},
		Doubtful: func(r *rand.Rand, at time.Time) projectiontest.Record {
			s := sample(r, at)
			s.Usage = -r.Int64N(400)
			return record(s)
		},
		At: func(r *rand.Rand, at time.Time) projectiontest.Record {
			s := sample(r, at)
			s.At = at.UTC().Truncate(time.Microsecond).Add(time.Duration(r.IntN(1000)) * time.Microsecond)
			return record(s)
		},
		Stray: func(r *rand.Rand, at time.Time) projectiontest.Record {
			out := record(sample(r, at))
			out.Key, out.Rejected = []byte("another meter"), projectiontest.Misplaced
			return out
		},
	})
}

// Definitions that clash are refused before anything is read, by name.
func TestDefinitionsThatClashAreRefused(t *testing.T) {
	t.Parallel()
	of := func(name, schema, topicName, table string) *projection.Definition {
		d := readings(topic.Spec{Name: topicName, Partitions: 3})
		d.Name, d.Schema = name, schema
		d.Derived[0].Name = table
		return d
	}
	first := of("first", "", "first.v1", "totals")
	require.NoError(t, projection.CheckAll([]*projection.Definition{first, of("second", "", "second.v1", "totals")}), "each has a schema of its own")
	for words, clash := range map[string]*projection.Definition{
		"projections first and first both have the name first":          of("first", "other", "other.v1", "totals"),
		"projections first and second both have the topic first.v1":     of("second", "", "first.v1", "totals"),
		"projections first and second both have the schema first":       of("second", "first", "other.v1", "others"),
		"projections first and second both have the table first.totals": of("second", "first", "other.v1", "totals"),
		"both have the table second.dead_letters":                       of("second", "", "other.v1", "dead_letters"),
	} {
		require.ErrorContains(t, projection.CheckAll([]*projection.Definition{first, clash}), words)
	}
}

package rebuild

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"time"

	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"

	"github.com/tidemark/tidemark/consumer-service/internal/projection"
)

// Proof says whether a generation at the side has what the serving one has, up to one vector of offsets
// that both have passed, in one snapshot.
type Proof struct {
	OK          bool             `json:"ok"`
	At          time.Time        `json:"at"`
	TookMs      float64          `json:"took_ms"`
	Against     int              `json:"against"` // the generation that served
	Vector      map[string]int64 `json:"vector"`  // by topic/partition: everything below was compared
	Tables      []TableProof     `json:"tables"`
	Differences []Difference     `json:"differences"` // the first ones
	Finding     string           `json:"finding"`     // in words; empty where it holds
}

// TableProof compares one table. A hash is the sum of its rows' hashes, so it does not depend on order.
type TableProof struct {
	Table       string `json:"table"`
	OK          bool   `json:"ok"`
	RowsServing int64  `json:"rows_serving"`
	RowsSide    int64  `json:"rows_side"`
	HashServing string `json:"hash_serving"`
	HashSide    string `json:"hash_side"`
}

// Difference is one key whose rows are not the same; a row that is not there is nil.
type Difference struct {
	Table   string  `json:"table"`
	Key     string  `json:"key"`
	Serving *string `json:"serving"`
	Side    *string `json:"side"`
}

// compared are the tables that a proof compares, with their keys and the count that each must have: all
// rows below the progress are of records with that outcome.
var compared = []table{
	{name: "timestamp_records", keys: []string{"id"}, count: "applied"},
	{
		name: "dead_letters", keys: []string{"topic", "partition", "offset"}, count: "rejected",
		// Why a record was rejected that somebody has decided on may be read otherwise since: it is rejected for that.
		join:    `LEFT JOIN public.dead_letter_decisions d ON d.topic = t.topic AND d.partition = t.partition AND d."offset" = t."offset"`,
		columns: map[string]string{"reason_code": "CASE WHEN d.topic IS NULL THEN t.reason_code END", "reason": "CASE WHEN d.topic IS NULL THEN t.reason END"},
	},
}

type table struct {
	name    string
	keys    []string
	count   string
	join    string            // to its rows, t
	columns map[string]string // what is compared in the place of a column
}

// mostDifferences are named at most.
const mostDifferences = 10

// looks is how often a difference is looked at before it is believed.
const looks = 4

// errNotLevel says that it is not the time to compare: a side was never level with the log in its epoch, or one of them
// has read what the other has not, and it matters.
var errNotLevel = errors.New("not level with the log yet")

// prove compares g with the serving generation, and what each says of itself with its tables.
func (s *Service) prove(ctx context.Context, g Generation) (Proof, error) {
	start := time.Now()
	var before Proof
	for look := 1; ; look++ {
		p, err := s.once(ctx, g)
		if err != nil {
			return Proof{}, err
		}
		if p.OK || look > 1 && same(before, p) || look == looks {
			p.TookMs = float64(time.Since(start).Microseconds()) / 1000
			return p, nil
		}
		before = p
		select {
		case <-ctx.Done():
			return Proof{}, ctx.Err()
		case <-time.After(500 * time.Millisecond):
		}
	}
}

// same reports whether two looks found the same: a key that differs in both, or the same words.
func same(a, b Proof) bool {
	for _, d := range a.Differences {
		if slices.ContainsFunc(b.Differences, func(o Difference) bool { return o.Table == d.Table && o.Key == d.Key }) {
			return true
		}
	}
	return len(a.Differences) == 0 && len(b.Differences) == 0
}

// once is one look, in one snapshot. It takes no lock beyond that of a reader.
func (s *Service) once(ctx context.Context, g Generation) (p Proof, err error) {
	tx, err := s.Long.BeginTxx(ctx, &sql.TxOptions{Isolation: sql.LevelRepeatableRead, ReadOnly: true})
	if err != nil {
		return p, fmt.Errorf("begin: %w", err)
	}
	defer func() { _ = tx.Rollback() }() // it wrote nothing
	schemas := [2]string{projection.Public, g.Schema}
	for _, schema := range schemas {
		if _, err := tx.ExecContext(ctx, `LOCK TABLE `+schema+`.projection_progress, `+schema+`.timestamp_records, `+schema+`.dead_letters IN ACCESS SHARE MODE`); err != nil {
			return p, fmt.Errorf("open a snapshot: %w", err)
		}
	}
	if err := tx.GetContext(ctx, &p.At, `SELECT now()`); err != nil {
		return p, fmt.Errorf("open a snapshot: %w", err)
	}
	if err := tx.GetContext(ctx, &p.Against, `SELECT generation FROM public.generations WHERE state IN ('serving', 'swapping')`); err != nil {
		return p, fmt.Errorf("read the serving generation: %w", err)
	}
	var rows []struct {
		Topic                         string
		Partition                     int32
		Serving, Side                 *int64
		Level                         bool
		AppliedServing, AppliedSide   *int64
		RejectedServing, RejectedSide *int64
	}
	if err := tx.SelectContext(ctx, &rows, `
SELECT coalesce(a.topic, b.topic) AS topic, coalesce(a.partition, b.partition) AS partition, a.next_offset AS serving, b.next_offset AS side,
	coalesce(a.caught_up_at IS NOT NULL AND b.caught_up_at IS NOT NULL, false) AS level,
	a.applied AS appliedserving, b.applied AS appliedside, a.rejected AS rejectedserving, b.rejected AS rejectedside
FROM public.projection_progress a FULL JOIN `+g.Schema+`.projection_progress b ON b.topic = a.topic AND b.partition = a.partition
ORDER BY 1, 2`); err != nil {
		return p, fmt.Errorf("read the progress: %w", err)
	}
	p.Vector = map[string]int64{}
	var wrong []string
	v := vector{}
	for _, r := range rows {
		if r.Serving == nil || r.Side == nil {
			wrong = append(wrong, fmt.Sprintf("%s/%d has progress on one side only", r.Topic, r.Partition))
			continue
		}
		if !r.Level {
			return p, errNotLevel
		}
		least := min(*r.Serving, *r.Side)
		p.Vector[fmt.Sprintf("%s/%d", r.Topic, r.Partition)] = least
		v.topics, v.partitions, v.least = append(v.topics, r.Topic), append(v.partitions, r.Partition), append(v.least, least)
		v.next[0], v.next[1] = append(v.next[0], *r.Serving), append(v.next[1], *r.Side)
		v.applied[0], v.applied[1] = append(v.applied[0], *r.AppliedServing), append(v.applied[1], *r.AppliedSide)
		v.rejected[0], v.rejected[1] = append(v.rejected[0], *r.RejectedServing), append(v.rejected[1], *r.RejectedSide)
	}
	for _, t := range compared {
		found, words, differences, err := s.compare(ctx, tx, t, v, schemas)
		if err != nil {
			return p, err
		}
		p.Tables, p.Differences, wrong = append(p.Tables, found), append(p.Differences, differences...), append(wrong, words...)
	}
	p.OK, p.Finding = len(wrong) == 0, strings.Join(wrong, "; ")
	return p, nil
}

// vector is how far both sides are, partition by partition: [0] serves.
type vector struct {
	topics     []string
	partitions []int32
	least      []int64
	next       [2][]int64
	applied    [2][]int64
	rejected   [2][]int64
}

// byPartition spreads offsets so that partition p's stands at p; a partition that is none has a null.
func (v vector) byPartition(offsets []int64) []*int64 {
	var out []*int64
	for i, p := range v.partitions {
		for int(p) >= len(out) {
			out = append(out, nil)
		}
		out[p] = &offsets[i]
	}
	return out
}

// column is one of a table in public.
type column struct {
	Name   string
	Hash   *string // what hashes its type, by seed
	Filled bool    // it cannot be null
}

// read returns the table's columns, in an order that does not depend on how it was made.
func (t table) read(ctx context.Context, q querier) (columns []column, err error) {
	if err := q.SelectContext(ctx, &columns, `
SELECT a.attname AS name, a.attnotnull AS filled, h.hash
FROM pg_attribute a LEFT JOIN (
	SELECT f.proargtypes[0] AS type, min(f.oid::regproc::text) AS hash
	FROM pg_opclass o JOIN pg_am m ON m.oid = o.opcmethod AND m.amname = 'hash'
		JOIN pg_amproc p ON p.amprocfamily = o.opcfamily AND p.amproclefttype = o.opcintype AND p.amprocrighttype = o.opcintype AND p.amprocnum = 2
		JOIN pg_proc f ON f.oid = p.amproc AND f.proargtypes[0] = o.opcintype
	WHERE o.opcdefault GROUP BY 1
) h ON h.type = a.atttypid
WHERE a.attrelid = ('public.' || $1)::regclass AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attname`, t.name); err != nil {
		return nil, fmt.Errorf("read the columns of %s: %w", t.name, err)
	}
	return columns, nil
}

// row is what is compared of a row: all columns.
func (t table) row(columns []column) string {
	var values []string
	for _, c := range columns {
		value, other := t.columns[c.Name]
		if !other {
			value = "t." + quoted(c.Name)
		}
		values = append(values, value)
	}
	return "ROW(" + strings.Join(values, ", ") + ")"
}

// hash is the hash of a row. Where no column can be null, each column's hash is the seed of the next one's: that is the
// same to tell two rows apart by and takes half the time that Postgres needs to make a record and hash it.
func (t table) hash(columns []column) string {
	hash := "0"
	for _, c := range columns {
		if c.Hash == nil || !c.Filled || t.columns[c.Name] != "" {
			return "hash_record_extended(" + t.row(columns) + ", 0)"
		}
		hash = fmt.Sprintf("%s(t.%s, %s)", *c.Hash, quoted(c.Name), hash)
	}
	return hash
}

// compare counts and hashes one table on both sides, each in one pass over it.
func (s *Service) compare(ctx context.Context, tx *sqlx.Tx, of table, v vector, schemas [2]string) (t TableProof, wrong []string, differences []Difference, err error) {
	columns, err := of.read(ctx, tx)
	if err != nil {
		return t, nil, nil, err
	}
	row, hash := of.row(columns), of.hash(columns)
	table := of.name
	t.Table = table
	sides := [2]string{"the serving generation", "the generation at the side"}
	var hashes [2]string
	var counts [2]int64
	var escaped []Difference
	for i, schema := range schemas {
		own := v.applied[i]
		if of.count == "rejected" {
			own = v.rejected[i]
		}
		var found []struct {
			Partition int32
			Below     int64   // the vector
			Hash      *string // of those
			Own       int64   // below the side's own progress
			Rows      int64   // all: what is not below it has no business there
		}
		// Arrays by partition and no join: half the time a row, and the server may take several workers.
		if err := tx.SelectContext(ctx, &found, `
SELECT t.partition, count(*) FILTER (WHERE t."offset" < ($1::bigint[])[t.partition + 1]) AS below,
	sum(`+hash+`) FILTER (WHERE t."offset" < ($1::bigint[])[t.partition + 1])::text AS hash,
	count(*) FILTER (WHERE t."offset" < ($2::bigint[])[t.partition + 1]) AS own,
	count(*) AS rows
FROM `+schema+`.`+table+` t `+of.join+` GROUP BY t.partition ORDER BY t.partition`,
			pq.Array(v.byPartition(v.least)), pq.Array(v.byPartition(v.next[i]))); err != nil {
			return t, nil, nil, fmt.Errorf("hash %s.%s: %w", schema, table, err)
		}
		sum, owned := new(big.Int), map[int32]int64{}
		for _, f := range found {
			counts[i] += f.Below
			if f.Hash != nil {
				one, ok := new(big.Int).SetString(*f.Hash, 10)
				if !ok {
					return t, nil, nil, fmt.Errorf("hash %s.%s: %q is no number", schema, table, *f.Hash)
				}
				sum.Add(sum, one)
			}
			owned[f.Partition] = f.Own
			if ahead := f.Rows - f.Own; ahead > 0 {
				wrong = append(wrong, fmt.Sprintf("%s has %d rows in %s that bear offsets it has not read, or a partition that is none (%d)", sides[i], ahead, table, f.Partition))
			}
		}
		for n, partition := range v.partitions {
			if owned[partition] != own[n] {
				wrong = append(wrong, fmt.Sprintf("%s has %d rows of partition %d in %s and counted %d", sides[i], owned[partition], partition, table, own[n]))
			}
		}
		hashes[i] = sum.String()
		if len(wrong) > 0 {
			more, err := s.ahead(ctx, tx, of, row, v, schema, i)
			if err != nil {
				return t, nil, nil, err
			}
			escaped = append(escaped, more...)
		}
	}
	t.RowsServing, t.RowsSide, t.HashServing, t.HashSide = counts[0], counts[1], hashes[0], hashes[1]
	t.OK = counts[0] == counts[1] && hashes[0] == hashes[1] && len(wrong) == 0
	if counts[0] != counts[1] || hashes[0] != hashes[1] {
		var above bool
		if differences, above, err = s.differences(ctx, tx, of, row, v, schemas); err != nil {
			return t, nil, nil, err
		}
		if above && len(wrong) == 0 {
			return t, nil, nil, errNotLevel
		}
		words := fmt.Sprintf("%s differs: %d rows serve and %d are at the side", table, counts[0], counts[1])
		if len(differences) > 0 {
			words += fmt.Sprintf(", first at key %s", differences[0].Key)
		}
		wrong = append([]string{words}, wrong...)
	}
	differences = append(differences, escaped...)
	return t, wrong, differences[:min(len(differences), mostDifferences)], nil
}

func keyOf(alias string, keys []string) string {
	if len(keys) == 1 {
		return alias + "." + quoted(keys[0]) + "::text"
	}
	return fmt.Sprintf(`%[1]s.topic || '/' || %[1]s.partition || '@' || %[1]s."offset"`, alias)
}

// differences names the first keys whose rows differ below the vector, and says whether all of them are above it on the
// other side: of two records with one id, that side has read the one which is the row, and this side has not come to it.
func (s *Service) differences(ctx context.Context, tx *sqlx.Tx, of table, row string, v vector, schemas [2]string) (found []Difference, above bool, err error) {
	var using []string
	for _, k := range of.keys {
		using = append(using, quoted(k))
	}
	has := func(schema, alias string) string {
		var same []string
		for _, k := range using {
			same = append(same, "t."+k+" = "+alias+"."+k)
		}
		return `EXISTS (SELECT FROM ` + schema + `.` + of.name + ` t JOIN v ON v.partition = t.partition AND t."offset" >= v.least WHERE ` + strings.Join(same, " AND ") + `)`
	}
	side := func(schema string) string {
		return `(SELECT t.*, ` + row + `::text AS whole, ` + keyOf("t", of.keys) + ` AS named FROM ` + schema + `.` + of.name + ` t ` + of.join + ` JOIN v ON v.partition = t.partition AND t."offset" < v.least)`
	}
	var rows []struct {
		Difference
		Above bool
	}
	if err := tx.SelectContext(ctx, &rows, `
WITH v AS (SELECT * FROM unnest($1::integer[], $2::bigint[]) AS v (partition, least))
SELECT '`+of.name+`' AS table, coalesce(a.named, b.named) AS key, a.whole AS serving, b.whole AS side,
	a.whole IS NULL AND `+has(schemas[0], "b")+` OR b.whole IS NULL AND `+has(schemas[1], "a")+` AS above
FROM `+side(schemas[0])+` a FULL JOIN `+side(schemas[1])+` b USING (`+strings.Join(using, ", ")+`)
WHERE a.whole IS DISTINCT FROM b.whole ORDER BY above, `+strings.Join(using, ", ")+` LIMIT $3`, pq.Array(v.partitions), pq.Array(v.least), mostDifferences); err != nil {
		return nil, false, fmt.Errorf("find what differs in %s: %w", of.name, err)
	}
	above = len(rows) > 0
	for _, r := range rows {
		found, above = append(found, r.Difference), above && r.Above
	}
	return found, above, nil
}

// ahead names the first keys of a side that bear offsets it has not read.
func (s *Service) ahead(ctx context.Context, tx *sqlx.Tx, of table, row string, v vector, schema string, i int) ([]Difference, error) {
	var rows []struct{ Key, Whole string }
	if err := tx.SelectContext(ctx, &rows, `
WITH v AS (SELECT * FROM unnest($1::integer[], $2::bigint[]) AS v (partition, next))
SELECT `+keyOf("t", of.keys)+` AS key, `+row+`::text AS whole
FROM `+schema+`.`+of.name+` t `+of.join+` LEFT JOIN v ON v.partition = t.partition
WHERE v.partition IS NULL OR t."offset" >= v.next ORDER BY 1 LIMIT $3`, pq.Array(v.partitions), pq.Array(v.next[i]), mostDifferences); err != nil {
		return nil, fmt.Errorf("find what is ahead in %s: %w", of.name, err)
	}
	var out []Difference
	for _, r := range rows {
		d := Difference{Table: of.name, Key: r.Key}
		if i == 0 {
			d.Serving = &r.Whole
		} else {
			d.Side = &r.Whole
		}
		out = append(out, d)
	}
	return out, nil
}

// saveProof notes a proof. One that does not hold ends the wish to swap.
func (s *Service) saveProof(ctx context.Context, number int, p Proof) error {
	encoded, err := json.Marshal(p)
	if err != nil {
		return fmt.Errorf("write the proof: %w", err)
	}
	if _, err := s.DB.ExecContext(ctx, `
UPDATE public.generations SET proof = $2::text::jsonb, proof_wanted = false, swap_wanted = swap_wanted AND $3
WHERE generation = $1 AND state IN ('ready', 'standby')`, number, string(encoded), p.OK); err != nil {
		return fmt.Errorf("note the proof: %w", err)
	}
	return nil
}

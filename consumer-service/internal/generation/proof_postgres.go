package generation

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
	"github.com/tidemark/tidemark/shared/loop"
	"github.com/tidemark/tidemark/shared/postgres"
	"github.com/tidemark/tidemark/shared/schema"
)

// Proof is the result of a verification: whether a candidate has what the serving generation has, up to one vector of offsets
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
	Table         string `json:"table"`
	OK            bool   `json:"ok"`
	RowsServing   int64  `json:"rows_serving"`
	RowsCandidate int64  `json:"rows_candidate"`
	HashServing   string `json:"hash_serving"`
	HashCandidate string `json:"hash_candidate"`
	LeftOut       int64  `json:"left_out"` // rows of a derived table into which one of the two has folded what the other has not read
}

// Difference is one key whose rows are not the same; a row that is not there is nil.
type Difference struct {
	Table     string  `json:"table"`
	Key       string  `json:"key"`
	Serving   *string `json:"serving"`
	Candidate *string `json:"candidate"`
}

// compared are the tables whose rows are compared one by one, with their keys and the count that each must have: all rows
// below the progress are of records with that outcome. Derived tables are compared by compareDerived.
func (s *Service) compared() []table {
	main := s.Definition.Main.Spec()
	return []table{
		{name: main.Name, keys: main.Key, count: "applied", day: main.Day},
		{
			name: schema.DeadLetters, keys: []string{"topic", "partition", "offset"}, count: "rejected",
			// Why a record was rejected that somebody has decided on may be read otherwise since: it is rejected for that. The
			// words of a reason are for people, and a release may find better ones: what counts is the code.
			join:    `LEFT JOIN public.dead_letter_decisions d ON d.topic = t.topic AND d.partition = t.partition AND d."offset" = t."offset"`,
			columns: map[string]string{"reason_code": "CASE WHEN d.topic IS NULL THEN t.reason_code END", "reason": "NULL::text"},
		},
	}
}

type table struct {
	name    string
	keys    []string
	count   string
	join    string            // to its rows, t
	columns map[string]string // what is compared in the place of a column
	common  []string          // the days that both generations have, of a table that is partitioned by day
	day     string            // the column by whose day it is partitioned; empty where it is not
}

// mostDifferences are named at most.
const mostDifferences = 10

// looks is how often a difference is looked at before it is believed.
const looks = 4

// errNotCaughtUp says that it is not the time to compare: a generation was never caught up in its epoch, or one of the two
// has read what the other has not, and it matters.
var errNotCaughtUp = errors.New("not caught up with the log yet")

// prove compares g with the serving generation, and what each says of itself with its tables.
func (s *Service) prove(ctx context.Context, g Generation) (Proof, error) {
	start := time.Now()
	var before Proof
	for look := 1; ; look++ {
		p, err := s.compareOnce(ctx, g)
		if err != nil {
			return Proof{}, err
		}
		if p.OK || look > 1 && same(before, p) || look == looks {
			p.TookMs = float64(time.Since(start).Microseconds()) / 1000
			return p, nil
		}
		before = p
		if err := loop.Sleep(ctx, 500*time.Millisecond); err != nil {
			return Proof{}, err
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

// compareOnce is one look, in one snapshot. It takes no lock beyond that of a reader.
func (s *Service) compareOnce(ctx context.Context, g Generation) (p Proof, err error) {
	conn, release, err := s.session(ctx, g)
	if err != nil {
		return p, err
	}
	defer release()
	tx, err := conn.BeginTxx(ctx, &sql.TxOptions{Isolation: sql.LevelRepeatableRead, ReadOnly: true})
	if err != nil {
		return p, fmt.Errorf("begin: %w", err)
	}
	defer func() { _ = tx.Rollback() }() // it wrote nothing
	schemas := [2]string{s.serving(), g.Schema}
	for _, in := range schemas {
		if _, err := tx.ExecContext(ctx, `LOCK TABLE `+strings.Join(s.locks(in), ", ")+` IN ACCESS SHARE MODE`); err != nil {
			return p, fmt.Errorf("open a snapshot: %w", err)
		}
	}
	if err := tx.GetContext(ctx, &p.At, `SELECT now()`); err != nil {
		return p, fmt.Errorf("open a snapshot: %w", err)
	}
	if err := tx.GetContext(ctx, &p.Against, s.in(`SELECT generation FROM public.projection_generations WHERE projection = {projection} AND state IN ('serving', 'swapping')`)); err != nil {
		return p, fmt.Errorf("read the serving generation: %w", err)
	}
	var rows []struct {
		Topic                              string
		Partition                          int32
		Serving, Candidate                 *int64
		CaughtUp                           bool
		AppliedServing, AppliedCandidate   *int64
		DroppedServing, DroppedCandidate   *int64
		RejectedServing, RejectedCandidate *int64
	}
	if err := tx.SelectContext(ctx, &rows, s.in(`
SELECT coalesce(a.topic, b.topic) AS topic, coalesce(a.partition, b.partition) AS partition, a.next_offset AS serving, b.next_offset AS candidate,
	coalesce(a.caught_up_at IS NOT NULL AND b.caught_up_at IS NOT NULL, false) AS caughtup,
	a.applied AS appliedserving, b.applied AS appliedcandidate, a.dropped AS droppedserving, b.dropped AS droppedcandidate, a.rejected AS rejectedserving, b.rejected AS rejectedcandidate
FROM {serving}.projection_progress a FULL JOIN `+postgres.Qualified(g.Schema, schema.Progress)+` b ON b.topic = a.topic AND b.partition = a.partition
ORDER BY 1, 2`)); err != nil {
		return p, fmt.Errorf("read the progress: %w", err)
	}
	p.Vector = map[string]int64{}
	var wrong []string
	v := vector{}
	for _, r := range rows {
		if r.Serving == nil || r.Candidate == nil {
			wrong = append(wrong, fmt.Sprintf("%s/%d has progress in one generation only", r.Topic, r.Partition))
			continue
		}
		if !r.CaughtUp {
			return p, errNotCaughtUp
		}
		least := min(*r.Serving, *r.Candidate)
		p.Vector[fmt.Sprintf("%s/%d", r.Topic, r.Partition)] = least
		v.topics, v.partitions, v.least = append(v.topics, r.Topic), append(v.partitions, r.Partition), append(v.least, least)
		v.next[0], v.next[1] = append(v.next[0], *r.Serving), append(v.next[1], *r.Candidate)
		v.applied[0], v.applied[1] = append(v.applied[0], *r.AppliedServing-*r.DroppedServing), append(v.applied[1], *r.AppliedCandidate-*r.DroppedCandidate)
		// Rows of days that only one of the two has are compared by number, where both have read as far.
		if *r.DroppedServing+*r.DroppedCandidate > 0 && *r.Serving == *r.Candidate && *r.AppliedServing != *r.AppliedCandidate {
			wrong = append(wrong, fmt.Sprintf("%s/%d has %d applied records in the serving generation and %d in the candidate, dropped ones included", r.Topic, r.Partition, *r.AppliedServing, *r.AppliedCandidate))
		}
		v.rejected[0], v.rejected[1] = append(v.rejected[0], *r.RejectedServing), append(v.rejected[1], *r.RejectedCandidate)
	}
	days, err := s.commonDays(ctx, tx, schemas)
	if err != nil {
		return p, err
	}
	for _, t := range s.compared() {
		if t.day != "" {
			t.common = days
		}
		found, words, differences, err := s.compare(ctx, tx, t, v, schemas)
		if err != nil {
			return p, err
		}
		p.Tables, p.Differences, wrong = append(p.Tables, found), append(p.Differences, differences...), append(wrong, words...)
	}
	for _, d := range s.Definition.Derived {
		found, words, differences, err := s.compareDerived(ctx, tx, table{name: d.Name, keys: d.Key}, v, schemas)
		if err != nil {
			return p, err
		}
		p.Tables, p.Differences, wrong = append(p.Tables, found), append(p.Differences, differences...), append(wrong, words...)
	}
	p.OK, p.Finding = len(wrong) == 0, strings.Join(wrong, "; ")
	return p, nil
}

// vector is how far both generations are, partition by partition: [0] serves.
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

// column is one of a table.
type column struct {
	Name   string
	Hash   *string // what hashes its type, by seed
	Filled bool    // it cannot be null
}

// columns returns the table's columns, in an order that does not depend on how it was made.
func (s *Service) columns(ctx context.Context, q querier, t table) (columns []column, err error) {
	if err := q.SelectContext(ctx, &columns, `
SELECT a.attname AS name, a.attnotnull AS filled, h.hash
FROM pg_attribute a LEFT JOIN (
	SELECT f.proargtypes[0] AS type, min(f.oid::regproc::text) AS hash
	FROM pg_opclass o JOIN pg_am m ON m.oid = o.opcmethod AND m.amname = 'hash'
		JOIN pg_amproc p ON p.amprocfamily = o.opcfamily AND p.amproclefttype = o.opcintype AND p.amprocrighttype = o.opcintype AND p.amprocnum = 2
		JOIN pg_proc f ON f.oid = p.amproc AND f.proargtypes[0] = o.opcintype
	WHERE o.opcdefault GROUP BY 1
) h ON h.type = a.atttypid
WHERE a.attrelid = $1::regclass AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attname`, postgres.Qualified(s.serving(), t.name)); err != nil {
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
			value = "t." + postgres.Quoted(c.Name)
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
		hash = fmt.Sprintf("%s(t.%s, %s)", *c.Hash, postgres.Quoted(c.Name), hash)
	}
	return hash
}

// compare counts and hashes one table of both generations, each in one pass over it.
func (s *Service) compare(ctx context.Context, tx *sqlx.Tx, of table, v vector, schemas [2]string) (t TableProof, wrong []string, differences []Difference, err error) {
	columns, err := s.columns(ctx, tx, of)
	if err != nil {
		return t, nil, nil, err
	}
	row, hash := of.row(columns), of.hash(columns)
	table := of.name
	t.Table = table
	names := [2]string{"the serving generation", "the candidate"}
	var hashes [2]string
	var counts [2]int64
	var escaped []Difference
	for i, in := range schemas {
		own := v.applied[i]
		if of.count == "rejected" {
			own = v.rejected[i]
		}
		var found []struct {
			Partition int32
			Below     int64   // the vector
			Hash      *string // of those
			Own       int64   // below the generation's own progress
			Rows      int64   // all: what is not below it has no business there
		}
		// Arrays by partition and no join: half the time a row, and the server may take several workers where no rate limit forbids it (see session).
		if err := tx.SelectContext(ctx, &found, `
SELECT t.partition, count(*) FILTER (WHERE t."offset" < ($1::bigint[])[t.partition + 1]`+of.inBoth()+`) AS below,
	sum(`+hash+`) FILTER (WHERE t."offset" < ($1::bigint[])[t.partition + 1]`+of.inBoth()+`)::text AS hash,
	count(*) FILTER (WHERE t."offset" < ($2::bigint[])[t.partition + 1]) AS own,
	count(*) AS rows
FROM `+postgres.Qualified(in, table)+` t `+of.join+` GROUP BY t.partition ORDER BY t.partition`,
			pq.Array(v.byPartition(v.least)), pq.Array(v.byPartition(v.next[i]))); err != nil {
			return t, nil, nil, fmt.Errorf("hash %s.%s: %w", in, table, err)
		}
		sum, owned := new(big.Int), map[int32]int64{}
		for _, f := range found {
			counts[i] += f.Below
			if f.Hash != nil {
				one, ok := new(big.Int).SetString(*f.Hash, 10)
				if !ok {
					return t, nil, nil, fmt.Errorf("hash %s.%s: %q is no number", in, table, *f.Hash)
				}
				sum.Add(sum, one)
			}
			owned[f.Partition] = f.Own
			if ahead := f.Rows - f.Own; ahead > 0 {
				wrong = append(wrong, fmt.Sprintf("%s has %d rows in %s that bear offsets it has not read, or a partition that is none (%d)", names[i], ahead, table, f.Partition))
			}
		}
		for n, partition := range v.partitions {
			if owned[partition] != own[n] {
				wrong = append(wrong, fmt.Sprintf("%s has %d rows of partition %d in %s and counted %d", names[i], owned[partition], partition, table, own[n]))
			}
		}
		hashes[i] = sum.String()
		if len(wrong) > 0 {
			more, err := s.ahead(ctx, tx, of, row, v, in, i)
			if err != nil {
				return t, nil, nil, err
			}
			escaped = append(escaped, more...)
		}
	}
	t.RowsServing, t.RowsCandidate, t.HashServing, t.HashCandidate = counts[0], counts[1], hashes[0], hashes[1]
	t.OK = counts[0] == counts[1] && hashes[0] == hashes[1] && len(wrong) == 0
	if counts[0] != counts[1] || hashes[0] != hashes[1] {
		var above bool
		if differences, above, err = s.differences(ctx, tx, of, row, v, schemas); err != nil {
			return t, nil, nil, err
		}
		if above && len(wrong) == 0 {
			return t, nil, nil, errNotCaughtUp
		}
		words := fmt.Sprintf("%s differs: %d rows serve and the candidate has %d", table, counts[0], counts[1])
		if len(differences) > 0 {
			words += fmt.Sprintf(", first at key %s", differences[0].Key)
		}
		wrong = append([]string{words}, wrong...)
	}
	differences = append(differences, escaped...)
	return t, wrong, differences[:min(len(differences), mostDifferences)], nil
}

// inBoth is the condition that a row's day is one that both generations have.
func (t table) inBoth() string {
	if t.day == "" {
		return ""
	}
	return fmt.Sprintf(` AND to_char(t.%s AT TIME ZONE 'UTC', 'YYYYMMDD') = ANY ('{%s}'::text[])`, postgres.Quoted(t.day), strings.Join(t.common, ","))
}

// commonDays are the days that the main tables of both generations have.
func (s *Service) commonDays(ctx context.Context, tx *sqlx.Tx, schemas [2]string) ([]string, error) {
	if s.Definition.Main.Spec().Day == "" {
		return nil, nil
	}
	serving, err := projection.AttachedDays(ctx, tx, s.Definition, schemas[0])
	if err != nil {
		return nil, err
	}
	candidate, err := projection.AttachedDays(ctx, tx, s.Definition, schemas[1])
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(serving, func(d string) bool { return !slices.Contains(candidate, d) }), nil
}

func keyOf(alias string, of table) string {
	if of.name == schema.DeadLetters {
		return fmt.Sprintf(`%[1]s.topic || '/' || %[1]s.partition || '@' || %[1]s."offset"`, alias)
	}
	parts := make([]string, len(of.keys))
	for i, k := range of.keys {
		parts[i] = alias + "." + postgres.Quoted(k) + "::text"
	}
	return strings.Join(parts, ` || '/' || `)
}

// differences names the first keys whose rows differ below the vector, and says whether all of them are above it on the
// other side: of two records with one id, that side has read the one which is the row, and this side has not come to it.
func (s *Service) differences(ctx context.Context, tx *sqlx.Tx, of table, row string, v vector, schemas [2]string) (found []Difference, above bool, err error) {
	var using []string
	for _, k := range of.keys {
		using = append(using, postgres.Quoted(k))
	}
	has := func(in, alias string) string {
		var same []string
		for _, k := range using {
			same = append(same, "t."+k+" = "+alias+"."+k)
		}
		return `EXISTS (SELECT FROM ` + postgres.Qualified(in, of.name) + ` t JOIN v ON v.partition = t.partition AND t."offset" >= v.least WHERE ` + strings.Join(same, " AND ") + `)`
	}
	rowsOf := func(in string) string {
		return `(SELECT t.*, ` + row + `::text AS whole, ` + keyOf("t", of) + ` AS named FROM ` + postgres.Qualified(in, of.name) + ` t ` + of.join + ` JOIN v ON v.partition = t.partition AND t."offset" < v.least` + of.inBoth() + `)`
	}
	var rows []struct {
		Difference
		Above bool
	}
	if err := tx.SelectContext(ctx, &rows, `
WITH v AS (SELECT * FROM unnest($1::integer[], $2::bigint[]) AS v (partition, least))
SELECT '`+of.name+`' AS table, coalesce(a.named, b.named) AS key, a.whole AS serving, b.whole AS candidate,
	a.whole IS NULL AND `+has(schemas[0], "b")+` OR b.whole IS NULL AND `+has(schemas[1], "a")+` AS above
FROM `+rowsOf(schemas[0])+` a FULL JOIN `+rowsOf(schemas[1])+` b USING (`+strings.Join(using, ", ")+`)
WHERE a.whole IS DISTINCT FROM b.whole ORDER BY above, `+strings.Join(using, ", ")+` LIMIT $3`, pq.Array(v.partitions), pq.Array(v.least), mostDifferences); err != nil {
		return nil, false, fmt.Errorf("find what differs in %s: %w", of.name, err)
	}
	above = len(rows) > 0
	for _, r := range rows {
		found, above = append(found, r.Difference), above && r.Above
	}
	return found, above, nil
}

// ahead names the first keys of a generation that bear offsets it has not read.
func (s *Service) ahead(ctx context.Context, tx *sqlx.Tx, of table, row string, v vector, in string, i int) ([]Difference, error) {
	var rows []struct{ Key, Whole string }
	if err := tx.SelectContext(ctx, &rows, `
WITH v AS (SELECT * FROM unnest($1::integer[], $2::bigint[]) AS v (partition, next))
SELECT `+keyOf("t", of)+` AS key, `+row+`::text AS whole
FROM `+postgres.Qualified(in, of.name)+` t `+of.join+` LEFT JOIN v ON v.partition = t.partition
WHERE v.partition IS NULL OR t."offset" >= v.next ORDER BY 1 LIMIT $3`, pq.Array(v.partitions), pq.Array(v.next[i]), mostDifferences); err != nil {
		return nil, fmt.Errorf("find what is ahead in %s: %w", of.name, err)
	}
	var out []Difference
	for _, r := range rows {
		d := Difference{Table: of.name, Key: r.Key}
		if i == 0 {
			d.Serving = &r.Whole
		} else {
			d.Candidate = &r.Whole
		}
		out = append(out, d)
	}
	return out, nil
}

// compareDerived compares the rows of a derived table into which neither generation has folded a record past the vector,
// byte for byte. The others are left out of this look and counted.
func (s *Service) compareDerived(ctx context.Context, tx *sqlx.Tx, of table, v vector, schemas [2]string) (t TableProof, wrong []string, differences []Difference, err error) {
	columns, err := s.columns(ctx, tx, of)
	if err != nil {
		return t, nil, nil, err
	}
	var using []string
	for _, k := range of.keys {
		using = append(using, postgres.Quoted(k))
	}
	keys := strings.Join(using, ", ")
	rowsOf := func(in, what string) string {
		return `(SELECT ` + what + `, t.` + strings.Join(using, ", t.") + `, coalesce(t."offset" >= v.least, false) AS past
	FROM ` + postgres.Qualified(in, of.name) + ` t LEFT JOIN v ON v.partition = t.partition)`
	}
	const vectors = `WITH v AS (SELECT * FROM unnest($1::integer[], $2::bigint[]) AS v (partition, least)) `
	const compared = `NOT (coalesce(a.past, false) OR coalesce(b.past, false))`
	hash := of.hash(columns) + ` AS h`
	var found struct {
		RowsServing, RowsCandidate int64
		HashServing, HashCandidate string
		LeftOut                    int64
	}
	if err := tx.GetContext(ctx, &found, vectors+`
SELECT count(a.h) FILTER (WHERE `+compared+`) AS rowsserving, count(b.h) FILTER (WHERE `+compared+`) AS rowscandidate,
	coalesce(sum(a.h) FILTER (WHERE `+compared+`), 0)::text AS hashserving, coalesce(sum(b.h) FILTER (WHERE `+compared+`), 0)::text AS hashcandidate,
	count(*) FILTER (WHERE NOT (`+compared+`)) AS leftout
FROM `+rowsOf(schemas[0], hash)+` a FULL JOIN `+rowsOf(schemas[1], hash)+` b USING (`+keys+`)`, pq.Array(v.partitions), pq.Array(v.least)); err != nil {
		return t, nil, nil, fmt.Errorf("hash the derived rows of %s: %w", of.name, err)
	}
	t = TableProof{
		Table: of.name, RowsServing: found.RowsServing, RowsCandidate: found.RowsCandidate,
		HashServing: found.HashServing, HashCandidate: found.HashCandidate, LeftOut: found.LeftOut,
	}
	if t.OK = t.RowsServing == t.RowsCandidate && t.HashServing == t.HashCandidate; t.OK {
		return t, nil, nil, nil
	}
	whole := of.row(columns) + `::text AS whole, ` + keyOf("t", of) + ` AS named`
	if err := tx.SelectContext(ctx, &differences, vectors+`
SELECT '`+of.name+`' AS table, coalesce(a.named, b.named) AS key, a.whole AS serving, b.whole AS candidate
FROM `+rowsOf(schemas[0], whole)+` a FULL JOIN `+rowsOf(schemas[1], whole)+` b USING (`+keys+`)
WHERE a.whole IS DISTINCT FROM b.whole AND `+compared+` ORDER BY `+keys+` LIMIT $3`, pq.Array(v.partitions), pq.Array(v.least), mostDifferences); err != nil {
		return t, nil, nil, fmt.Errorf("find what differs in %s: %w", of.name, err)
	}
	words := fmt.Sprintf("%s differs: %d derived rows serve and the candidate has %d", of.name, t.RowsServing, t.RowsCandidate)
	if len(differences) > 0 {
		words += fmt.Sprintf(", first at key %s", differences[0].Key)
	}
	return t, []string{words}, differences, nil
}

// saveProof notes a proof. One that does not hold ends the request to swap.
func (s *Service) saveProof(ctx context.Context, number int, p Proof) error {
	encoded, err := json.Marshal(p)
	if err != nil {
		return fmt.Errorf("write the proof: %w", err)
	}
	if _, err := s.DB.ExecContext(ctx, s.in(`
UPDATE public.projection_generations SET proof = $2::text::jsonb, proof_wanted = false, swap_wanted = swap_wanted AND $3
WHERE projection = {projection} AND generation = $1 AND state IN ('ready', 'standby')`), number, string(encoded), p.OK); err != nil {
		return fmt.Errorf("note the proof: %w", err)
	}
	return nil
}

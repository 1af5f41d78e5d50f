package story

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	_ "github.com/lib/pq" // the driver
)

// Dump is a projection as text: one line a row, tabs between columns, sorted by key. Two projections are the same when
// their dumps are equal.
type Dump struct {
	Rows        string // the main table; partition and offset are the last columns
	Derived     string // the derived table, where there is one
	Outcomes    string // partition, first_offset, next_offset, applied, duplicate, rejected, skipped; partitions without any left out
	DeadLetters string // topic, partition, offset, payload in hex, headers, reason_code, reason, first_seen_at
	Decisions   string // on letters of its topic: topic, partition, offset, decision, command_id, note, decided_by, decided_at, decision_partition, decision_offset
}

// queries are what the parts of a dump are read with.
func (p Projection) queries() map[string]string {
	return map[string]string{
		"rows": p.rowsSQL, "derived": p.derivedSQL,
		"outcomes": `SELECT concat_ws(E'\t', partition, first_offset, next_offset, applied, duplicate, rejected, skipped)
			FROM ` + p.Schema + `.projection_progress WHERE topic = '` + p.Topic + `' AND next_offset > first_offset ORDER BY partition`,
		"letters": `SELECT concat_ws(E'\t', topic, partition, "offset", coalesce(encode(payload, 'hex'), 'NULL'), headers, reason_code, reason, ` + instantOf("first_seen_at") + `)
			FROM ` + p.Schema + `.dead_letters ORDER BY topic, partition, "offset"`,
		"decisions": `SELECT concat_ws(E'\t', topic, partition, "offset", decision, coalesce(command_id::text, 'NULL'), note, decided_by, ` + instantOf("decided_at") + `, decision_partition, decision_offset)
			FROM public.dead_letter_decisions WHERE topic = '` + p.Topic + `' ORDER BY partition, "offset"`,
	}
}

// ReadDump reads rows, outcomes, dead letters and decisions on them in one snapshot.
func (p Projection) ReadDump(ctx context.Context, db *sql.DB) (_ Dump, err error) {
	tx, err := db.BeginTx(ctx, &sql.TxOptions{Isolation: sql.LevelRepeatableRead, ReadOnly: true})
	if err != nil {
		return Dump{}, fmt.Errorf("dump: %w", err)
	}
	defer func() { err = errors.Join(err, tx.Rollback()) }()
	// Names find their tables anew in each statement, and a swap of generations moves tables under a snapshot.
	locked := p.Schema + "." + strings.Join(append(append([]string{"projection_progress"}, p.Tables...), "dead_letters"), ", "+p.Schema+".")
	if _, err := tx.ExecContext(ctx, `LOCK TABLE `+locked+` IN ACCESS SHARE MODE`); err != nil {
		return Dump{}, fmt.Errorf("dump: %w", err)
	}
	var d Dump
	queries := p.queries()
	for name, text := range map[string]*string{"rows": &d.Rows, "derived": &d.Derived, "outcomes": &d.Outcomes, "letters": &d.DeadLetters, "decisions": &d.Decisions} {
		if queries[name] == "" {
			continue
		}
		if *text, err = lines(ctx, tx, queries[name]); err != nil {
			return Dump{}, fmt.Errorf("dump %s: %w", name, err)
		}
	}
	return d, nil
}

func lines(ctx context.Context, tx *sql.Tx, query string) (string, error) {
	rows, err := tx.QueryContext(ctx, query)
	if err != nil {
		return "", err
	}
	defer func() { _ = rows.Close() }() // Err tells
	var text strings.Builder
	var line string
	for rows.Next() {
		if err := rows.Scan(&line); err != nil {
			return "", err
		}
		text.WriteString(line)
		text.WriteByte('\n')
	}
	return text.String(), rows.Err()
}

// OutcomeLines writes what Dump.Outcomes must be after the log was read from its start up to that vector. skipped are the
// offsets below it that hold no record.
func (e Expected) OutcomeLines(upTo Vector) string {
	var text strings.Builder
	for _, p := range slices.Sorted(maps.Keys(upTo)) {
		if upTo[p] == 0 {
			continue
		}
		o := e.Outcomes[p]
		skipped := upTo[p] - o.Applied - o.Duplicate - o.Rejected
		fmt.Fprintf(&text, "%d\t0\t%d\t%d\t%d\t%d\t%d\n", p, upTo[p], o.Applied, o.Duplicate, o.Rejected, skipped)
	}
	return text.String()
}

// UpTo returns how far the projection was when it was dumped.
func (d Dump) UpTo() (Vector, error) {
	v := Vector{}
	for line := range strings.Lines(d.Outcomes) {
		var partition int32
		var first, next int64
		if _, err := fmt.Sscan(line, &partition, &first, &next); err != nil {
			return nil, fmt.Errorf("read the outcomes %q: %w", line, err)
		}
		v[partition] = next
	}
	return v, nil
}

// Below leaves out the rows at or past that vector: those that were there before the projection was started over, and
// which it has not come to yet.
func (d Dump) Below(upTo Vector) (Dump, error) {
	var kept strings.Builder
	for line := range strings.Lines(d.Rows) {
		columns := strings.Split(strings.TrimSuffix(line, "\n"), "\t")
		var partition int32
		var offset int64
		if _, err := fmt.Sscan(strings.Join(columns[max(0, len(columns)-2):], " "), &partition, &offset); err != nil {
			return Dump{}, fmt.Errorf("read the row %q: %w", line, err)
		}
		if offset < upTo[partition] {
			kept.WriteString(line)
		}
	}
	d.Rows = kept.String()
	return d, nil
}

// deadLetterPositions returns where the dead letters lie, in the dump's order.
func (d Dump) deadLetterPositions() []string {
	var positions []string
	for line := range strings.Lines(d.DeadLetters) {
		columns := strings.SplitN(line, "\t", 4)
		positions = append(positions, fmt.Sprintf("%s/%s@%s", columns[0], columns[1], columns[2]))
	}
	return positions
}

// Compare returns an error that shows where a dump, taken when the projection had passed that vector, is not what is
// expected.
func (e Expected) Compare(upTo Vector, found Dump) error {
	return errors.Join(
		sameLines("rows", e.Rows, found.Rows),
		sameLines("derived rows", e.Derived, found.Derived),
		sameLines("outcomes", e.OutcomeLines(upTo), found.Outcomes),
		sameLines("dead letters", asLines(e.DeadLetters), asLines(found.deadLetterPositions())),
	)
}

// Require is Compare for a test that ends there.
func (e Expected) Require(t testing.TB, upTo Vector, found Dump) {
	t.Helper()
	require.NoError(t, e.Compare(upTo, found))
}

// RequireSame requires two dumps to be equal, and names the first lines in which they are not.
func RequireSame(t testing.TB, wanted, found Dump) {
	t.Helper()
	require.NoError(t, errors.Join(
		sameLines("rows", wanted.Rows, found.Rows),
		sameLines("derived rows", wanted.Derived, found.Derived),
		sameLines("outcomes", wanted.Outcomes, found.Outcomes),
		sameLines("dead letters", wanted.DeadLetters, found.DeadLetters),
		sameLines("decisions", wanted.Decisions, found.Decisions),
	))
}

// sameLines returns an error that shows the first lines of two texts that differ, since the texts may be long.
func sameLines(what, wanted, found string) error {
	if wanted == found {
		return nil
	}
	const most = 10
	missing, unwanted := withoutLines(wanted, found), withoutLines(found, wanted)
	return fmt.Errorf("%s differ: %d lines wanted, %d found\n%d missing, such as:\n%s%d unwanted, such as:\n%s", what,
		strings.Count(wanted, "\n"), strings.Count(found, "\n"),
		len(missing), strings.Join(missing[:min(most, len(missing))], ""),
		len(unwanted), strings.Join(unwanted[:min(most, len(unwanted))], ""))
}

// withoutLines returns the lines of a that b does not have.
func withoutLines(a, b string) []string {
	there := map[string]bool{}
	for line := range strings.Lines(b) {
		there[line] = true
	}
	var rest []string
	for line := range strings.Lines(a) {
		if !there[line] {
			rest = append(rest, line)
		}
	}
	return rest
}

func asLines(items []string) string {
	if len(items) == 0 {
		return ""
	}
	return strings.Join(items, "\n") + "\n"
}

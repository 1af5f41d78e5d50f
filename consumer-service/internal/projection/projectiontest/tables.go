package projectiontest

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/consumer-service/internal/projection"
	"github.com/tidemark/tidemark/shared/await"
	"github.com/tidemark/tidemark/shared/event"
	"github.com/tidemark/tidemark/shared/postgres"
	"github.com/tidemark/tidemark/shared/schema"
)

func (s *stage) exec(t *testing.T, query string, args ...any) {
	t.Helper()
	_, err := s.db.ExecContext(t.Context(), query, args...)
	require.NoError(t, err)
}

func (s *stage) get(t *testing.T, into any, query string, args ...any) {
	t.Helper()
	require.NoError(t, s.db.GetContext(t.Context(), into, query, args...))
}

// table names a table of the serving generation.
func (s *stage) table(name string) string { return postgres.Qualified(s.def.ServingSchema(), name) }

func (s *stage) main() string { return s.table(s.def.Main.Spec().Name) }

func (s *stage) count(t *testing.T, table string) (n int) {
	t.Helper()
	s.get(t, &n, `SELECT count(*) FROM `+table)
	return n
}

// caughtUp waits until the serving generation has everything that is in the log.
func (s *stage) caughtUp(t *testing.T) {
	t.Helper()
	await.NoError(t, func() error {
		ends, err := s.ends(t.Context())
		if err != nil {
			return err
		}
		if !s.stable(ends) {
			return errors.New("a transaction is not ended yet")
		}
		var rows []struct {
			Partition int32
			Next      int64
			CaughtUp  bool
		}
		if err := s.db.SelectContext(t.Context(), &rows, `SELECT partition, next_offset AS next, caught_up_at IS NOT NULL AS caughtup FROM `+s.table(schema.Progress)); err != nil {
			return fmt.Errorf("read the progress: %w", err)
		}
		if len(rows) != partitions {
			return fmt.Errorf("%d partitions have progress", len(rows))
		}
		for _, r := range rows {
			if r.Next != ends[r.Partition] || !r.CaughtUp {
				return fmt.Errorf("partition %d is at %d of %d, caught up: %t", r.Partition, r.Next, ends[r.Partition], r.CaughtUp)
			}
		}
		return nil
	})
}

// dump is all that the serving generation says, byte for byte, in a canonical order.
func (s *stage) dump(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	add := func(table, query string) {
		var lines []string
		require.NoError(t, s.db.SelectContext(t.Context(), &lines, query))
		fmt.Fprintf(&b, "%s: %d rows\n%s\n", table, len(lines), strings.Join(lines, "\n"))
	}
	for _, table := range append(s.def.Tables(), schema.DeadLetters) {
		add(table, `SELECT t::text FROM `+s.table(table)+` t ORDER BY t::text`)
	}
	add(schema.Progress, `SELECT concat_ws('|', partition, first_offset, next_offset, last_offset, last_created_at, last_record_hash,
		applied, duplicate, rejected, expired, skipped) FROM `+s.table(schema.Progress)+` ORDER BY partition`)
	return b.String()
}

// counts are the outcomes of one partition's records.
type counts struct{ Applied, Duplicate, Rejected, Expired, Skipped int64 }

// want is what the records alone say must be in the tables.
type want struct {
	counts map[int32]counts
	rows   map[string]string // position → identity, of each record that must be a row
	codes  map[string]string // position → reason code, of each dead letter
}

// expected decides every record by the rule, knowing nothing of how they are read.
func (s *stage) expected(ends map[int32]int64) want {
	w := want{map[int32]counts{}, map[string]string{}, map[string]string{}}
	all := s.all()
	slices.SortFunc(all, func(a, b sent) int {
		return cmp.Or(a.at.Compare(b.at), cmp.Compare(a.Partition, b.Partition), cmp.Compare(a.offset, b.offset))
	})
	seen := map[string]bool{}
	for _, r := range all {
		at, c := fmt.Sprintf("%d@%d", r.Partition, r.offset), w.counts[r.Partition]
		_, isDecided := s.decided.of(r.Partition, r.offset)
		switch {
		case isDecided && r.Rejected == "":
			c.Rejected++
			w.codes[at] = projection.ReasonDecided
		case r.Rejected != "":
			c.Rejected++
			w.codes[at] = r.Rejected
		case r.Expired:
			c.Expired++
		case seen[r.Identity]:
			c.Duplicate++
		default:
			c.Applied++
			seen[r.Identity] = true
			w.rows[at] = r.Identity
		}
		w.counts[r.Partition] = c
	}
	for p, end := range ends {
		c := w.counts[p]
		c.Skipped = end - c.Applied - c.Duplicate - c.Rejected - c.Expired
		w.counts[p] = c
	}
	return w
}

// holds requires that the tables have what the records say, that an audit finds nothing, and that the receipts tell of
// every offset.
func (s *stage) holds(t *testing.T) {
	t.Helper()
	ends := s.mustEnd(t)
	want := s.expected(ends)

	var progress []struct {
		Partition            int32
		First, Next, Dropped int64
		counts
	}
	require.NoError(t, s.db.SelectContext(t.Context(), &progress, `
SELECT partition, first_offset AS first, next_offset AS next, dropped, applied, duplicate, rejected, expired, skipped FROM `+s.table(schema.Progress)+` ORDER BY partition`))
	require.Len(t, progress, partitions)
	var dropped int64
	for _, p := range progress {
		require.Equal(t, ends[p.Partition], p.Next, "partition %d", p.Partition)
		require.Equal(t, want.counts[p.Partition], p.counts, "partition %d", p.Partition)
		require.Equal(t, p.Next-p.First, p.Applied+p.Duplicate+p.Rejected+p.Expired+p.Skipped, "partition %d", p.Partition)
		dropped += p.Dropped
	}
	var rows []string
	require.NoError(t, s.db.SelectContext(t.Context(), &rows, `SELECT partition || '@' || "offset" FROM `+s.main()))
	if dropped == 0 {
		require.ElementsMatch(t, slices.Collect(maps.Keys(want.rows)), rows, "every applied record leaves one row, which bears its place")
	} else {
		require.Subset(t, slices.Collect(maps.Keys(want.rows)), rows)
		require.EqualValues(t, len(want.rows), int64(len(rows))+dropped)
	}
	var letters []struct{ At, Code string }
	require.NoError(t, s.db.SelectContext(t.Context(), &letters, `SELECT partition || '@' || "offset" AS at, reason_code AS code FROM `+s.table(schema.DeadLetters)))
	codes := map[string]string{}
	for _, l := range letters {
		codes[l.At] = l.Code
	}
	require.Equal(t, want.codes, codes)
	require.Empty(t, s.findings(t))
	s.receipts(t)
}

// findings are what an audit says is wrong.
func (s *stage) findings(t *testing.T) []string {
	t.Helper()
	auditor := projection.NewAuditor(s.db, s.def, slog.New(slog.DiscardHandler))
	var found []projection.Audited
	// A swap keeps audits out until its connection is closed, a moment after it is seen to be done.
	await.NoError(t, func() (err error) {
		var ran bool
		if found, ran, err = auditor.Audit(t.Context()); err == nil && !ran {
			err = errors.New("an audit or a swap is under way")
		}
		return err
	})
	var out []string
	for _, f := range found {
		if f.Finding != "" {
			out = append(out, f.Finding)
		}
	}
	return out
}

// receipts requires that those of each epoch cover every offset once, that they go on where the epoch before ended or
// begin anew, and that they say truly whether their generation served.
func (s *stage) receipts(t *testing.T) {
	t.Helper()
	var rows []struct {
		Generation int
		Epoch      int64
		Served     bool
		Partition  int32
		From, Next int64
		Outcomes   string
		Idle       bool
	}
	require.NoError(t, s.db.SelectContext(t.Context(), &rows, `
SELECT generation, epoch, served, partition, from_offset AS from, next_offset AS next, outcomes, caught_up_at IS NOT NULL AS idle
FROM public.projection_receipt_outbox WHERE projection = $1 AND topic = $2 ORDER BY receipt_id`, s.def.Name, s.def.Topic.Name))
	type stretch struct {
		generation int
		partition  int32
	}
	at, epochs, served := map[stretch]int64{}, map[stretch]int64{}, map[int64]bool{}
	for _, r := range rows {
		of := stretch{r.Generation, r.Partition}
		if was, ok := served[r.Epoch]; ok {
			require.Equal(t, was, r.Served, "epoch %d", r.Epoch)
		}
		served[r.Epoch] = r.Served
		if r.Idle {
			require.Equal(t, r.From, r.Next)
			continue
		}
		if epochs[of] != r.Epoch && r.From == 0 { // it was started over
			at[of] = 0
		}
		epochs[of] = r.Epoch
		require.Equal(t, at[of], r.From, "generation %d, epoch %d, partition %d", r.Generation, r.Epoch, r.Partition)
		at[of] = r.Next
		_, err := event.DecodeRuns([]byte(r.Outcomes), r.Next-r.From)
		require.NoError(t, err)
	}
	var serving struct {
		Generation int
		Epoch      int64
	}
	s.get(t, &serving, `SELECT generation, epoch FROM public.projection_generations WHERE projection = $1 AND state IN ('serving', 'swapping')`, s.def.Name)
	var progress []struct {
		Partition int32
		Next      int64
	}
	require.NoError(t, s.db.SelectContext(t.Context(), &progress, `SELECT partition, next_offset AS next FROM `+s.table(schema.Progress)))
	for _, p := range progress {
		require.Equal(t, p.Next, at[stretch{serving.Generation, p.Partition}], "the serving generation tells of every offset of partition %d", p.Partition)
	}
	if is, ok := served[serving.Epoch]; ok {
		require.True(t, is, "what serves says so")
	}
}

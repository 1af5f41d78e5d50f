package projection

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/tidemark/tidemark/shared/schema"
)

// decidedLetters counts the dead letters that somebody decided on, by partition. A count joins two tables, so the last one of each
// projection is kept. It holds for as long as neither a letter nor a decision has come: the numbers of rejected records and the
// progress of the decisions say so, and both are read in the snapshot that is counted. A count that takes long, as of hundreds of
// thousands, holds a while longer; what was decided meanwhile counts as open for some seconds. It is safe for concurrent use.
type decidedLetters struct {
	mu   sync.Mutex
	last map[string]decidedCount // by projection
}

type decidedCount struct {
	mark        []int64         // what the count depends on: generation and epoch, then decisions and letters
	byPartition map[int32]int64 // never changed
	at          time.Time
	took        time.Duration
}

const (
	// slowCount is how long a count takes that is not repeated at each letter and decision: that of some ten thousand.
	slowCount = 50 * time.Millisecond
	// countsApart is how many times as long as it took a slow count holds, so that counting takes a twentieth of the time at most.
	countsApart = 20
)

// holds reports whether the count is good for what depends on mark now.
func (d decidedCount) holds(mark []int64, now time.Time) bool {
	if slices.Equal(d.mark, mark) {
		return true
	}
	return d.took >= slowCount && now.Sub(d.at) < countsApart*d.took && slices.Equal(d.mark[:2], mark[:2])
}

// count sets Decided of each partition of st; decisions is how many records of the log of decisions the tables have.
func (d *decidedLetters) count(ctx context.Context, s *Snapshot, st *Status, decisions int64) error {
	mark := []int64{int64(st.Generation), st.Epoch, decisions}
	for _, p := range st.Partitions {
		mark = append(mark, p.Rejected)
	}
	d.mu.Lock()
	last := d.last[st.Name]
	d.mu.Unlock()
	if began := time.Now(); !last.holds(mark, began) {
		counted, err := countDecided(ctx, s, st.Served)
		if err != nil {
			return err
		}
		last = decidedCount{mark, counted, time.Now(), time.Since(began)}
		d.mu.Lock()
		if d.last == nil {
			d.last = map[string]decidedCount{}
		}
		d.last[st.Name] = last
		d.mu.Unlock()
	}
	for i, p := range st.Partitions {
		st.Partitions[i].Decided = last.byPartition[p.Partition]
	}
	return nil
}

// countDecided leaves out letters that are not passed yet: those of before a projection was started over in place.
func countDecided(ctx context.Context, s *Snapshot, of Served) (map[int32]int64, error) {
	var rows []struct {
		Partition int32 `db:"partition"`
		Decided   int64 `db:"decided"`
	}
	err := s.Select(ctx, &rows, `
SELECT partition, count(*) AS decided
FROM `+of.Table(schema.DeadLetters)+` l JOIN public.dead_letter_decisions k USING (topic, partition, "offset") JOIN `+of.Table(schema.Progress)+` p USING (topic, partition)
WHERE topic = $1 AND "offset" >= p.first_offset AND "offset" < p.next_offset GROUP BY partition`, of.Topic)
	if err != nil {
		return nil, fmt.Errorf("count decided dead letters of %s: %w", of.Name, err)
	}
	counted := make(map[int32]int64, len(rows))
	for _, r := range rows {
		counted[r.Partition] = r.Decided
	}
	return counted, nil
}

// LetterMetrics reports how many dead letters each projection has, open and decided apart. It reads them at each scrape, so a
// database that does not answer leaves the metric out, and no old count is shown as the present one.
type LetterMetrics struct{ reader *Reader }

// NewLetterMetrics reports what reader reads.
func NewLetterMetrics(reader *Reader) *LetterMetrics { return &LetterMetrics{reader} }

var _ prometheus.Collector = (*LetterMetrics)(nil)

// scrapeTimeout bounds the reading for one scrape: a database that hangs must not cost the other metrics.
const scrapeTimeout = 2 * time.Second

var lettersMetric = prometheus.NewDesc("tidemark_query_dead_letters",
	"Dead letters, by whether somebody has decided on them; missing while the database does not answer.", []string{"projection", "state"}, nil)

// Describe names the metric.
func (m *LetterMetrics) Describe(out chan<- *prometheus.Desc) { out <- lettersMetric }

// Collect reads the counts and reports them.
func (m *LetterMetrics) Collect(out chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), scrapeTimeout) // a scrape hands a collector no context
	defer cancel()
	var statuses []Status
	err := m.reader.Read(ctx, Want{}, Every(), func(ctx context.Context, s *Snapshot) (err error) {
		statuses, err = ReadStatuses(ctx, s)
		return err
	})
	if err != nil {
		return // the readiness says why
	}
	for _, st := range statuses {
		totals := st.Totals()
		out <- prometheus.MustNewConstMetric(lettersMetric, prometheus.GaugeValue, float64(totals.Open()), st.Name, "open")
		out <- prometheus.MustNewConstMetric(lettersMetric, prometheus.GaugeValue, float64(totals.Decided), st.Name, "decided")
	}
}

package projection

import (
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/tidemark/tidemark/shared/kafka"
)

// AllMetrics are the metrics of all projections of a process, by projection. Partition numbers are the only other labels
// without a fixed list; the partition count bounds them.
type AllMetrics struct {
	records   *prometheus.CounterVec
	size      *prometheus.HistogramVec
	seconds   *prometheus.HistogramVec
	gaps      *prometheus.CounterVec
	lag       *prometheus.GaugeVec
	position  *prometheus.GaugeVec
	auditOK   *prometheus.GaugeVec
	auditedAt *prometheus.GaugeVec
	fenced    *prometheus.CounterVec
	slow      *prometheus.CounterVec
	repeated  *prometheus.CounterVec
	dropped   *prometheus.CounterVec
}

// NewMetrics registers the metrics.
func NewMetrics(r prometheus.Registerer) *AllMetrics {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, append([]string{"projection"}, labels...))
	}
	gauge := func(name, help string, labels ...string) *prometheus.GaugeVec {
		return prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, append([]string{"projection"}, labels...))
	}
	histogram := func(name, help string, buckets []float64) *prometheus.HistogramVec {
		return prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets}, []string{"projection"})
	}
	m := &AllMetrics{
		records:   counter("tidemark_projection_records_total", "Records projected, by outcome.", "outcome"),
		size:      histogram("tidemark_projection_batch_records", "Records in a batch.", prometheus.ExponentialBuckets(1, 4, 7)),
		seconds:   histogram("tidemark_projection_batch_seconds", "Time to decode and commit a batch.", prometheus.ExponentialBuckets(.001, 2, 14)),
		gaps:      counter("tidemark_projection_gap_offsets_total", "Offsets passed over, by what stood there: missing is a loss; booked is a gap of a log that has gaps by its nature, which was not looked into.", "kind"),
		lag:       gauge("tidemark_projection_lag_records", "Records of the log that are not projected yet; missing where the last look did not find out where the log ends.", "partition"),
		position:  gauge("tidemark_projection_next_offset", "The offset that this process projects next, of the partitions it holds.", "partition"),
		auditOK:   gauge("tidemark_projection_audit_ok", "1 where the last audit found every offset accounted for, else 0."),
		auditedAt: gauge("tidemark_projection_audit_timestamp_seconds", "When the last audit ran."),
		fenced:    counter("tidemark_projection_fenced_total", "Batches held back by the fence."),
		slow:      counter("tidemark_projection_slow_batches_total", "Batches that met keys or refusals and went the slow way."),
		repeated:  counter("tidemark_projection_repeated_batches_total", "Batches repeated after a deadlock or a serialization failure."),
		dropped:   counter("tidemark_projection_retention_drops_total", "Days whose rows were dropped because they are older than the projection keeps."),
	}
	r.MustRegister(m.records, m.size, m.seconds, m.gaps, m.lag, m.position, m.auditOK, m.auditedAt, m.fenced, m.slow, m.repeated, m.dropped)
	return m
}

// Metrics are those of one projection.
type Metrics struct {
	all        *AllMetrics
	projection string
	size       prometheus.Observer
	seconds    prometheus.Observer
	fenced     prometheus.Counter
	slow       prometheus.Counter
	repeated   prometheus.Counter
	dropped    prometheus.Counter
}

// Of returns the metrics of one projection. A counter that begins to be there with its first event has nothing to have
// risen from, and no alert sees it: so all of them begin now.
func (m *AllMetrics) Of(projection string) *Metrics {
	for _, outcome := range []string{"applied", "duplicate", "rejected", "expired"} {
		m.records.WithLabelValues(projection, outcome)
	}
	for _, kind := range []string{"marker", "aborted", "missing", "booked"} {
		m.gaps.WithLabelValues(projection, kind)
	}
	return &Metrics{
		all: m, projection: projection, size: m.size.WithLabelValues(projection), seconds: m.seconds.WithLabelValues(projection),
		fenced: m.fenced.WithLabelValues(projection), slow: m.slow.WithLabelValues(projection),
		repeated: m.repeated.WithLabelValues(projection), dropped: m.dropped.WithLabelValues(projection),
	}
}

func (m *Metrics) wrote(partition int32, o counts, b batch, took time.Duration) {
	for outcome, n := range map[string]int64{"applied": o.applied, "duplicate": o.duplicate, "rejected": o.rejected, "expired": o.expired} {
		if n > 0 {
			m.all.records.WithLabelValues(m.projection, outcome).Add(float64(n))
		}
	}
	m.size.Observe(float64(len(b.records)))
	m.seconds.Observe(took.Seconds())
	m.all.position.WithLabelValues(m.projection, strconv.Itoa(int(partition))).Set(float64(b.next))
}

func (m *Metrics) lag(partition int32, records int64) {
	m.all.lag.WithLabelValues(m.projection, strconv.Itoa(int(partition))).Set(float64(records))
}

// lagUnknown takes the lags away: a figure that is old would pass for one of now.
func (m *Metrics) lagUnknown() {
	m.all.lag.DeletePartialMatch(prometheus.Labels{"projection": m.projection})
}

func (m *Metrics) gap(g kafka.Gap) {
	m.all.gaps.WithLabelValues(m.projection, "marker").Add(float64(g.Markers))
	m.all.gaps.WithLabelValues(m.projection, "aborted").Add(float64(g.Aborted))
	m.all.gaps.WithLabelValues(m.projection, "missing").Add(float64(g.Missing))
}

// bookedGap counts a gap of a log that is written in transactions or compacted.
func (m *Metrics) bookedGap(offsets int64) {
	m.all.gaps.WithLabelValues(m.projection, "booked").Add(float64(offsets))
}

func (m *Metrics) audited(ok bool) {
	value := 0.0
	if ok {
		value = 1
	}
	m.all.auditOK.WithLabelValues(m.projection).Set(value)
	m.all.auditedAt.WithLabelValues(m.projection).SetToCurrentTime()
}

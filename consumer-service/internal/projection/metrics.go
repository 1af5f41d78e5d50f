package projection

import (
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/tidemark/tidemark/shared/kafka"
)

// Metrics of a projector. Partition numbers are the only labels without a fixed list; the partition
// count bounds them.
type Metrics struct {
	records   *prometheus.CounterVec
	size      prometheus.Histogram
	seconds   prometheus.Histogram
	gaps      *prometheus.CounterVec
	lag       *prometheus.GaugeVec
	position  *prometheus.GaugeVec
	auditOK   prometheus.Gauge
	auditedAt prometheus.Gauge
	fenced    prometheus.Counter
	slow      prometheus.Counter
	repeated  prometheus.Counter
}

// NewMetrics registers the metrics.
func NewMetrics(r prometheus.Registerer) *Metrics {
	m := &Metrics{
		records:   prometheus.NewCounterVec(prometheus.CounterOpts{Name: "tidemark_projection_records_total", Help: "Records projected, by outcome."}, []string{"outcome"}),
		size:      prometheus.NewHistogram(prometheus.HistogramOpts{Name: "tidemark_projection_batch_records", Help: "Records in a batch.", Buckets: prometheus.ExponentialBuckets(1, 4, 7)}),
		seconds:   prometheus.NewHistogram(prometheus.HistogramOpts{Name: "tidemark_projection_batch_seconds", Help: "Time to decode and commit a batch.", Buckets: prometheus.ExponentialBuckets(.001, 2, 14)}),
		gaps:      prometheus.NewCounterVec(prometheus.CounterOpts{Name: "tidemark_projection_gap_offsets_total", Help: "Offsets passed over, by what stood there. Anything but marker and aborted is a loss."}, []string{"kind"}),
		lag:       prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "tidemark_projection_lag_records", Help: "Records of the log that are not projected yet, as of the last watermark."}, []string{"partition"}),
		position:  prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "tidemark_projection_next_offset", Help: "The offset that this process projects next, of the partitions it holds."}, []string{"partition"}),
		auditOK:   prometheus.NewGauge(prometheus.GaugeOpts{Name: "tidemark_projection_audit_ok", Help: "1 where the last audit found every offset accounted for, else 0."}),
		auditedAt: prometheus.NewGauge(prometheus.GaugeOpts{Name: "tidemark_projection_audit_timestamp_seconds", Help: "When the last audit ran."}),
		fenced:    prometheus.NewCounter(prometheus.CounterOpts{Name: "tidemark_projection_fenced_total", Help: "Batches held back by the fence."}),
		slow:      prometheus.NewCounter(prometheus.CounterOpts{Name: "tidemark_projection_slow_batches_total", Help: "Batches that met ids or refusals and went the slow way."}),
		repeated:  prometheus.NewCounter(prometheus.CounterOpts{Name: "tidemark_projection_repeated_batches_total", Help: "Batches repeated after a deadlock or a serialization failure."}),
	}
	r.MustRegister(m.records, m.size, m.seconds, m.gaps, m.lag, m.position, m.auditOK, m.auditedAt, m.fenced, m.slow, m.repeated)
	// A counter that begins to be there with its first event has nothing to have risen from, and no alert sees it.
	for _, outcome := range []string{"applied", "duplicate", "rejected"} {
		m.records.WithLabelValues(outcome)
	}
	for _, kind := range []string{"marker", "aborted", "missing"} {
		m.gaps.WithLabelValues(kind)
	}
	return m
}

func (m *Metrics) wrote(partition int32, o outcomes, b batch, took time.Duration) {
	m.records.WithLabelValues("applied").Add(float64(o.applied))
	m.records.WithLabelValues("duplicate").Add(float64(o.duplicate))
	m.records.WithLabelValues("rejected").Add(float64(o.rejected))
	m.size.Observe(float64(len(b.records)))
	m.seconds.Observe(took.Seconds())
	m.position.WithLabelValues(strconv.Itoa(int(partition))).Set(float64(b.next))
}

func (m *Metrics) gap(g kafka.Gap) {
	m.gaps.WithLabelValues("marker").Add(float64(g.Markers))
	m.gaps.WithLabelValues("aborted").Add(float64(g.Aborted))
	m.gaps.WithLabelValues("missing").Add(float64(g.Missing))
}

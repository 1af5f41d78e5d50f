package rebuild

import "github.com/prometheus/client_golang/prometheus"

// Metrics of rebuilds, as the process that drives them sees them.
type Metrics struct {
	serving prometheus.Gauge
	lag     *prometheus.GaugeVec
	stalled prometheus.Gauge
	proofs  *prometheus.CounterVec
	swaps   *prometheus.CounterVec
}

// NewMetrics registers the metrics.
func NewMetrics(r prometheus.Registerer) *Metrics {
	m := &Metrics{
		serving: prometheus.NewGauge(prometheus.GaugeOpts{Name: "tidemark_generation_serving", Help: "Number of the generation that serves."}),
		lag:     prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "tidemark_generation_lag_records", Help: "Records that a generation at the side has still to read, by its state."}, []string{"state"}),
		stalled: prometheus.NewGauge(prometheus.GaugeOpts{Name: "tidemark_rebuild_stalled", Help: "1 where a rebuild has records to read and has not moved for 15 s, else 0."}),
		proofs:  prometheus.NewCounterVec(prometheus.CounterOpts{Name: "tidemark_rebuild_proofs_total", Help: "Proofs of generations, by outcome."}, []string{"outcome"}),
		swaps:   prometheus.NewCounterVec(prometheus.CounterOpts{Name: "tidemark_rebuild_swaps_total", Help: "Swaps of generations: done, or given up for the time being."}, []string{"outcome"}),
	}
	r.MustRegister(m.serving, m.lag, m.stalled, m.proofs, m.swaps)
	for _, o := range []string{outcome(true), outcome(false)} { // there from the start, so that an alert sees the first one
		m.proofs.WithLabelValues(o)
	}
	return m
}

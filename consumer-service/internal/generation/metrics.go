package generation

import "github.com/prometheus/client_golang/prometheus"

// Metrics of the generations of all projections of a process, by projection, as the process that drives them sees them.
type Metrics struct {
	serving *prometheus.GaugeVec
	lag     *prometheus.GaugeVec
	stalled *prometheus.GaugeVec
	proofs  *prometheus.CounterVec
	swaps   *prometheus.CounterVec
}

// NewMetrics registers the metrics.
func NewMetrics(r prometheus.Registerer) *Metrics {
	gauge := func(name, help string, labels ...string) *prometheus.GaugeVec {
		return prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, append([]string{"projection"}, labels...))
	}
	counter := func(name, help string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{"projection", "outcome"})
	}
	m := &Metrics{
		serving: gauge("tidemark_generation_serving", "Number of the generation that serves."),
		lag:     gauge("tidemark_generation_lag_records", "Records that a generation which does not serve has still to read, by its state.", "state"),
		stalled: gauge("tidemark_rebuild_stalled", "1 where a rebuild has records to read and has not moved for 15 s, else 0."),
		proofs:  counter("tidemark_rebuild_proofs_total", "Verifications of generations against the serving one, by outcome."),
		swaps:   counter("tidemark_rebuild_swaps_total", "Swaps of generations: done, or given up for the time being."),
	}
	r.MustRegister(m.serving, m.lag, m.stalled, m.proofs, m.swaps)
	return m
}

// begin makes the metrics of a projection be there from the start, so that an alert sees the first event.
func (m *Metrics) begin(projection string) {
	for _, ok := range []bool{true, false} {
		m.proofs.WithLabelValues(projection, outcome(ok))
	}
	m.stalls(projection, false)
}

// stalls says whether any rebuild of a projection does.
func (m *Metrics) stalls(projection string, some bool) {
	m.stalled.WithLabelValues(projection).Set(map[bool]float64{true: 1}[some])
}

// clearLags takes the lags of a projection away; those of the generations that are there are set anew.
func (m *Metrics) clearLags(projection string) {
	m.lag.DeletePartialMatch(prometheus.Labels{"projection": projection})
}

// forget says nothing more of a projection's rebuilds: this process does not drive them any more.
func (m *Metrics) forget(projection string) {
	m.clearLags(projection)
	m.stalls(projection, false)
}

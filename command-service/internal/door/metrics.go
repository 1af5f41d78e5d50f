package door

import (
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics of a door.
type Metrics struct {
	accepted, unknown, away, busy, shut prometheus.Counter

	group   prometheus.Histogram
	produce prometheus.Histogram
	open    prometheus.Gauge
}

// NewMetrics registers them.
func NewMetrics(registry prometheus.Registerer) *Metrics {
	commands := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "tidemark_commands_total",
		Help: "Commands at the door by outcome: accepted; unknown (handed over, no answer); away, busy, shut (refused, nothing written).",
	}, []string{"outcome"})
	m := &Metrics{
		accepted: commands.WithLabelValues("accepted"), unknown: commands.WithLabelValues("unknown"),
		away: commands.WithLabelValues("away"), busy: commands.WithLabelValues("busy"), shut: commands.WithLabelValues("shut"),
		group: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "tidemark_command_group_size", Help: "Commands that shared one flight to the log.",
			Buckets: []float64{1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096},
		}),
		produce: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "tidemark_command_produce_seconds", Help: "Time until the log acknowledged a group, or did not.",
			Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10},
		}),
		open: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "tidemark_door_open", Help: "1 while the door takes commands, 0 while it refuses them all: no broker yet, or a topic that could lose them.",
		}),
	}
	registry.MustRegister(commands, m.group, m.produce, m.open)
	return m
}

// Beside are the metrics of a second door: its commands count with the first one's, and whether it is open
// is not said by the gauge, which is the first one's.
func (m *Metrics) Beside() *Metrics {
	other := *m
	other.open = prometheus.NewGauge(prometheus.GaugeOpts{Name: "tidemark_decisions_open", Help: "Not registered."})
	return &other
}

func (m *Metrics) count(err error) {
	switch outcomeOf(err) {
	case "accepted":
		m.accepted.Inc()
	case "unknown":
		m.unknown.Inc()
	case "busy":
		m.busy.Inc()
	case "shut":
		m.shut.Inc()
	default:
		m.away.Inc()
	}
}

func (m *Metrics) countAll(outcomes []Outcome) {
	accepted := 0
	for _, o := range outcomes {
		if o.Err == nil {
			accepted++
			continue
		}
		m.count(o.Err)
	}
	m.accepted.Add(float64(accepted))
}

// outcomeOf names what became of a command.
func outcomeOf(err error) string {
	var shut *ShutError
	switch {
	case err == nil:
		return "accepted"
	case errors.Is(err, ErrUnknown):
		return "unknown"
	case errors.Is(err, ErrBusy):
		return "busy"
	case errors.As(err, &shut) && !errors.Is(err, ErrAway):
		return "shut"
	default:
		return "away"
	}
}

func (m *Metrics) flown(n int, took time.Duration) {
	m.group.Observe(float64(n))
	m.produce.Observe(took.Seconds())
}

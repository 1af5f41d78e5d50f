package door

import (
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics of the doors of a process, by topic.
type Metrics struct {
	commands       *prometheus.CounterVec
	group, produce *prometheus.HistogramVec
	open           *prometheus.GaugeVec
}

// topicMetrics are those of one door.
type topicMetrics struct {
	accepted, unknown, down, busy, shut prometheus.Counter

	group, produce prometheus.Observer
	open           prometheus.Gauge
}

// NewMetrics registers them.
func NewMetrics(registry prometheus.Registerer) *Metrics {
	m := &Metrics{
		commands: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tidemark_commands_total",
			Help: "Commands at the door by outcome: accepted; unknown (handed over, no answer); down, busy, shut (refused, nothing written).",
		}, []string{"topic", "outcome"}),
		group: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "tidemark_command_group_size", Help: "Commands that shared one flight to the log.",
			Buckets: []float64{1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096},
		}, []string{"topic"}),
		produce: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "tidemark_command_produce_seconds", Help: "Time until the log acknowledged a group, or did not.",
			Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10},
		}, []string{"topic"}),
		open: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "tidemark_door_open", Help: "1 while the door takes commands, 0 while it refuses them all: no broker yet, or a topic that could lose them.",
		}, []string{"topic"}),
	}
	registry.MustRegister(m.commands, m.group, m.produce, m.open)
	return m
}

func (m *Metrics) forTopic(topic string) topicMetrics {
	outcome := func(name string) prometheus.Counter { return m.commands.WithLabelValues(topic, name) }
	return topicMetrics{
		accepted: outcome("accepted"), unknown: outcome("unknown"), down: outcome("down"), busy: outcome("busy"), shut: outcome("shut"),
		group: m.group.WithLabelValues(topic), produce: m.produce.WithLabelValues(topic), open: m.open.WithLabelValues(topic),
	}
}

func (m *topicMetrics) count(outcomes []Outcome) {
	accepted := 0
	for _, o := range outcomes {
		switch outcomeOf(o.Err) {
		case "accepted":
			accepted++
		case "unknown":
			m.unknown.Inc()
		case "busy":
			m.busy.Inc()
		case "shut":
			m.shut.Inc()
		default:
			m.down.Inc()
		}
	}
	m.accepted.Add(float64(accepted))
}

// outcomeOf names what became of a command.
func outcomeOf(err error) string {
	if err == nil {
		return "accepted"
	}
	var shut *ShutError
	switch {
	case errors.Is(err, ErrUnknown):
		return "unknown"
	case errors.Is(err, ErrBusy):
		return "busy"
	case errors.As(err, &shut) && !errors.Is(err, ErrDown):
		return "shut"
	default:
		return "down"
	}
}

func (m *topicMetrics) sent(n int, took time.Duration) {
	m.group.Observe(float64(n))
	m.produce.Observe(took.Seconds())
}

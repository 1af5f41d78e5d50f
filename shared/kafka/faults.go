package kafka

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"
)

// Faults is the metric of what is wrong with topics. A nil one notes nothing.
type Faults struct{ found *prometheus.GaugeVec }

// What can be wrong with a topic.
const (
	faultUnsafe   = "unsafe"   // its settings could lose records
	faultTrimmed  = "trimmed"  // it has lost its beginning
	faultMissing  = "missing"  // no topic has this name
	faultReplaced = "replaced" // another topic has it
	faultCluster  = "cluster"  // the brokers are others
)

// NewFaults registers the metric.
func NewFaults(registry prometheus.Registerer) *Faults {
	f := &Faults{prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "tidemark_log_fault",
		Help: "1 while that is wrong with the topic: unsafe (its settings could lose records), trimmed (it has lost its beginning), missing, replaced (it was deleted and made anew), cluster (the brokers are others).",
	}, []string{"topic", "fault"})}
	registry.MustRegister(f.found)
	return f
}

// Note notes the outcome of a look at a topic: nil for one that is as it should be. An error that says nothing about the topic
// leaves what was noted.
func (f *Faults) Note(topic string, err error) {
	if f == nil {
		return
	}
	found, known := faultOf(err)
	if !known {
		return
	}
	for _, fault := range []string{faultUnsafe, faultTrimmed, faultMissing, faultReplaced, faultCluster} {
		value := 0.0
		if fault == found {
			value = 1
		}
		f.found.WithLabelValues(topic, fault).Set(value)
	}
}

func faultOf(err error) (fault string, known bool) {
	var unsafe *GuardError
	var trimmed *TrimmedError
	var other *IdentityError
	var cluster *ClusterError
	switch {
	case err == nil:
		return "", true
	case errors.As(err, &cluster):
		return faultCluster, true
	case errors.As(err, &other) && other.Found != "":
		return faultReplaced, true
	case errors.As(err, &other), errors.Is(err, ErrNoTopic), errors.Is(err, ErrNotKnown):
		return faultMissing, true
	case errors.As(err, &trimmed):
		return faultTrimmed, true
	case errors.As(err, &unsafe):
		return faultUnsafe, true
	}
	return "", false
}

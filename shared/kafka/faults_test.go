package kafka

import (
	"context"
	"fmt"
	"testing"

	"github.com/Shopify/sarama"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
)

// found returns what the metric says is wrong with a topic.
func found(t *testing.T, registry *prometheus.Registry, of string) (faults []string) {
	t.Helper()
	families, err := registry.Gather()
	require.NoError(t, err)
	for _, family := range families {
		for _, m := range family.Metric {
			labels := map[string]string{}
			for _, l := range m.Label {
				labels[l.GetName()] = l.GetValue()
			}
			if labels["topic"] == of && m.Gauge.GetValue() == 1 {
				faults = append(faults, labels["fault"])
			}
		}
	}
	return faults
}

func TestAFaultIsNotedUntilTheTopicIsFoundWithoutIt(t *testing.T) {
	t.Parallel()
	registry := prometheus.NewRegistry()
	f := NewFaults(registry)
	for _, c := range []struct {
		err   error
		fault string
	}{
		{&GuardError{}, "unsafe"},
		{&TrimmedError{}, "trimmed"},
		{&IdentityError{Noted: "a"}, "missing"},
		{sarama.ErrUnknownTopicOrPartition, "missing"},
		{&IdentityError{Noted: "a", Found: "b"}, "replaced"},
		{&ClusterError{}, "cluster"},
	} {
		f.Note("a", fmt.Errorf("look: %w", c.err))
		require.Equal(t, []string{c.fault}, found(t, registry, "a"))
		f.Note("a", context.DeadlineExceeded)
		require.Equal(t, []string{c.fault}, found(t, registry, "a"), "no answer says nothing about the topic")
		f.Note("b", nil)
	}
	require.Empty(t, found(t, registry, "b"))
	f.Note("a", nil)
	require.Empty(t, found(t, registry, "a"))
	(*Faults)(nil).Note("a", nil)
}

package telemetry

import "github.com/prometheus/client_golang/prometheus"

// Version is that of the build: the Makefile sets it from git.
var Version = "dev"

// BuildInfo is a gauge that is always 1 and says which service and version this is.
func BuildInfo(service string) prometheus.Collector {
	g := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "tidemark_build_info", Help: "Always 1; the labels say what runs.", ConstLabels: prometheus.Labels{"service": service, "version": Version},
	})
	g.Set(1)
	return g
}

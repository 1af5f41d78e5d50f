// Package telemetry tells what an operator's tools get to see of the services: traces and metrics as the OpenTelemetry
// Collector's own OTLP receiver takes them in, metrics as Prometheus scrapes them, and that the alert rules and the
// dashboard of compose/ ask for nothing that is not there.
package telemetry

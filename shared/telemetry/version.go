package telemetry

// Version is that of the build: the Makefile sets it from git.
var Version = "dev"

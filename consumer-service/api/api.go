// Package api holds the specification of consumer-service's HTTP API.
package api

import _ "embed"

// Spec is openapi.yaml.
//
//go:embed openapi.yaml
var Spec []byte

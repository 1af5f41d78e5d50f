// Package api is consumer-service's HTTP contract: the specification, and the server interface and types
// generated from it. Change openapi.yaml and run go generate; CI fails on a difference.
package api

import _ "embed"

//go:generate env GOWORK=off go tool -modfile=../../tools/go.mod oapi-codegen -config oapi-codegen.yaml openapi.yaml

// Spec is the specification, as it is served at /openapi.yaml.
//
//go:embed openapi.yaml
var Spec []byte

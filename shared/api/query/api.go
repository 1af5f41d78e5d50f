// Package query is query-service's HTTP contract: the specification, and the types, the server's interface and the
// client generated from it. Nobody writes a client or a copy of these types by hand. Change openapi.yaml and run
// make generate; make lint fails on a difference.
package query

import _ "embed"

//go:generate env GOWORK=off go tool -modfile=../../../tools/go.mod oapi-codegen -config oapi-codegen.yaml openapi.yaml

// Spec is the specification, as it is served at /openapi.yaml.
//
//go:embed openapi.yaml
var Spec []byte

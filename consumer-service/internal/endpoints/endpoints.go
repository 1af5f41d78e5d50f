// Package endpoints defines the projection of endpoint.command.v1: every put and delete of an endpoint that was accepted,
// and, folded from them, the endpoints as they are now. The engine is in package projection.
//
// An endpoint that was deleted keeps its row in current_endpoints, marked as deleted: two generations that have read the
// log up to different offsets could else not be compared.
package endpoints

import (
	"bytes"
	"cmp"

	"github.com/tidemark/tidemark/consumer-service/internal/projection"
	"github.com/tidemark/tidemark/shared/event"
	"github.com/tidemark/tidemark/shared/kafka"
	"github.com/tidemark/tidemark/shared/postgres"
	"github.com/tidemark/tidemark/shared/topic"
)

type (
	command = event.EndpointCommand
	column  = projection.Column[command]
)

// Definition returns the projection of a topic such as topic.EndpointCommand.
func Definition(of topic.Spec) *projection.Definition {
	return &projection.Definition{
		Name: "endpoints", Topic: of, Kind: projection.Keyed, Ticket: "command_id",
		Main: &projection.MainTable[command]{
			Name:   "endpoint_commands",
			Decode: func(r kafka.Record) (command, error) { return event.DecodeEndpointCommand(r.Value) },
			Key: []column{
				{Name: "endpoint_id", Type: projection.UUID, Append: func(a *postgres.Array, c *command) { a.UUID(c.EndpointID) }},
				{Name: "command_id", Type: projection.UUID, Append: func(a *postgres.Array, c *command) { a.UUID(c.CommandID) }},
			},
			Columns: []column{
				{Name: "kind", Type: projection.Text, Append: func(a *postgres.Array, c *command) { a.Text(string(c.Kind)) }},
				{Name: "document", Type: projection.Text, Append: func(a *postgres.Array, c *command) { a.NullableText(c.Document) }},
				{Name: "sent_by", Type: projection.Text, Append: func(a *postgres.Array, c *command) { a.Text(c.SentBy) }},
			},
			Compare: func(a, b *command) int {
				return cmp.Or(bytes.Compare(a.EndpointID[:], b.EndpointID[:]), bytes.Compare(a.CommandID[:], b.CommandID[:]))
			},
			RecordKey: func(c *command) string { return c.EndpointID.String() },
			Fold:      fold,
			Label:     func(c *command) string { return c.CommandID.String() },
		},
		Derived: []projection.Derived{{Name: "current_endpoints", Key: []string{"endpoint_id"}}},
	}
}

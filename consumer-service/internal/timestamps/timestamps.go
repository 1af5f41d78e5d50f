// Package timestamps defines the projection of timestamp.command.v1: one row for each instant that was stamped, under its
// ticket. The engine is in package projection; this is all that is the timestamps' own, beside the migration of their
// table.
package timestamps

import (
	"bytes"

	"github.com/tidemark/tidemark/consumer-service/internal/projection"
	"github.com/tidemark/tidemark/shared/event"
	"github.com/tidemark/tidemark/shared/kafka"
	"github.com/tidemark/tidemark/shared/postgres"
	"github.com/tidemark/tidemark/shared/topic"
)

// Definition returns the projection of a topic such as topic.TimestampCommand. Its records are spread: a client that
// changes the number of partitions, or sends an id of its own, may bring one id into two of them.
func Definition(of topic.Spec) *projection.Definition {
	return &projection.Definition{
		Name: "timestamps", Schema: "public", Topic: of, BaseGroup: true, Kind: projection.Spread, Ticket: "id",
		Main: &projection.MainTable[event.TimestampCommand]{
			Name:   "timestamp_records",
			Decode: func(r kafka.Record) (event.TimestampCommand, error) { return event.DecodeTimestampCommand(r.Value) },
			Key: []projection.Column[event.TimestampCommand]{
				{Name: "id", Type: projection.UUID, Append: func(a *postgres.Array, c *event.TimestampCommand) { a.UUID(c.CommandID) }},
			},
			Columns: []projection.Column[event.TimestampCommand]{
				{Name: "event_timestamp", Type: projection.Timestamptz, Append: func(a *postgres.Array, c *event.TimestampCommand) { a.Timestamp(c.EventTimestamp) }},
			},
			Compare: func(a, b *event.TimestampCommand) int { return bytes.Compare(a.CommandID[:], b.CommandID[:]) },
			Label:   func(c *event.TimestampCommand) string { return c.CommandID.String() },
		},
	}
}

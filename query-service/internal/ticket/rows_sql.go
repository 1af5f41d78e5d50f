package ticket

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/tidemark/tidemark/query-service/internal/projection"
	"github.com/tidemark/tidemark/query-service/internal/record"
	"github.com/tidemark/tidemark/shared/position"
	"github.com/tidemark/tidemark/shared/postgres"
)

// mostRows of one ticket are looked at. A key that a client used for two endpoints is the ticket of both.
const mostRows = 10

// rowsOf are the rows that bear one of the tickets in the main tables of the projections in scope, by ticket: of each
// projection the first in the log first.
func rowsOf(ctx context.Context, s *projection.Snapshot, ids []uuid.UUID) (map[uuid.UUID][]Row, error) {
	out := map[uuid.UUID][]Row{}
	for _, of := range s.Served() {
		if of.TicketColumn == "" {
			continue
		}
		if err := addRows(ctx, s, of, ids, out); err != nil {
			return nil, fmt.Errorf("look for tickets in %s: %w", of.Name, err)
		}
	}
	return out, nil
}

func addRows(ctx context.Context, s *projection.Snapshot, of projection.Served, ids []uuid.UUID, out map[uuid.UUID][]Row) error {
	if of.Name == record.Projection { // its columns are known here, and are read as they are
		found, err := record.ByIDs(ctx, s, ids)
		for id, r := range found {
			out[id] = append(out[id], Row{Position: r.Position, CreatedAt: &r.CreatedAt, Record: &r})
		}
		return err
	}
	wanted := postgres.UUIDs(len(ids))
	for _, id := range ids {
		wanted.UUID(id)
	}
	var found []struct {
		Ticket    uuid.UUID `db:"ticket"`
		Partition int32     `db:"partition"`
		Offset    int64     `db:"offset"`
		Row       []byte    `db:"row"`
	}
	err := s.Select(ctx, &found, fmt.Sprintf(`
SELECT w.ticket, m.partition, m."offset", m.row
FROM (SELECT DISTINCT unnest($1::uuid[]) AS ticket) w CROSS JOIN LATERAL (
	SELECT m.partition, m."offset", row_to_json(m)::text AS row FROM %s m WHERE m.%s = w.ticket ORDER BY m."offset", m.partition LIMIT %d
) m ORDER BY m."offset", m.partition`,
		of.Table(of.MainTable), postgres.Quoted(of.TicketColumn), mostRows), wanted.Bytes())
	if err != nil {
		return err
	}
	for _, f := range found {
		r := Row{Position: position.Position{Topic: of.Topic, Partition: f.Partition, Offset: f.Offset}}
		if r.Columns, r.CreatedAt, err = columnsOf(f.Row); err != nil {
			return err
		}
		out[f.Ticket] = append(out[f.Ticket], r)
	}
	return nil
}

// columnsOf reads a row that Postgres printed as JSON, in the order of its columns. Partition and offset are left out,
// and created_at is returned by itself.
func columnsOf(row []byte) (columns []Column, createdAt *time.Time, err error) {
	d := json.NewDecoder(bytes.NewReader(row))
	if _, err := d.Token(); err != nil {
		return nil, nil, fmt.Errorf("read a row: %w", err)
	}
	for d.More() {
		name, err := d.Token()
		if err != nil {
			return nil, nil, fmt.Errorf("read a row: %w", err)
		}
		var value json.RawMessage
		if err := d.Decode(&value); err != nil {
			return nil, nil, fmt.Errorf("read a row: %w", err)
		}
		c := Column{Name: fmt.Sprint(name), Value: string(value)}
		var text string
		switch {
		case c.Value == "null":
			c.Value = ""
		case json.Unmarshal(value, &text) == nil:
			c.Value = text
		}
		switch c.Name {
		case "partition", "offset":
			continue
		case "created_at":
			if at, err := time.Parse(time.RFC3339Nano, c.Value); err == nil {
				createdAt = &at
				continue
			}
		}
		columns = append(columns, c)
	}
	return columns, createdAt, nil
}

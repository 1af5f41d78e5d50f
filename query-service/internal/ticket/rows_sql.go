package ticket

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
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

// rowsOf are the rows that bear the ticket in the main tables of the projections in scope: of each the
// first in the log first.
func rowsOf(ctx context.Context, s *projection.Snapshot, id uuid.UUID) ([]Row, error) {
	var out []Row
	for _, of := range s.Served() {
		if of.TicketColumn == "" {
			continue
		}
		rows, err := rowsIn(ctx, s, of, id)
		if err != nil {
			return nil, fmt.Errorf("look for a ticket in %s: %w", of.Name, err)
		}
		out = append(out, rows...)
	}
	return out, nil
}

func rowsIn(ctx context.Context, s *projection.Snapshot, of projection.Served, id uuid.UUID) ([]Row, error) {
	if of.Name == record.Projection { // its columns are known here, and are read as they are
		r, err := record.ByID(ctx, s, id)
		if errors.Is(err, record.ErrNotFound) {
			return nil, nil
		}
		return []Row{{Position: r.Position, CreatedAt: &r.CreatedAt, Record: &r}}, err
	}
	var found []struct {
		Partition int32  `db:"partition"`
		Offset    int64  `db:"offset"`
		Row       []byte `db:"row"`
	}
	err := s.Select(ctx, &found, fmt.Sprintf(`
SELECT m.partition, m."offset", row_to_json(m)::text AS row FROM %s m WHERE m.%s = $1 ORDER BY m."offset", m.partition LIMIT %d`,
		of.Table(of.MainTable), postgres.Quoted(of.TicketColumn), mostRows), id)
	if err != nil {
		return nil, err
	}
	rows := make([]Row, len(found))
	for i, f := range found {
		rows[i].Position = position.Position{Topic: of.Topic, Partition: f.Partition, Offset: f.Offset}
		if rows[i].Columns, rows[i].CreatedAt, err = columnsOf(f.Row); err != nil {
			return nil, err
		}
	}
	return rows, nil
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

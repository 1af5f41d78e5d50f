// Package record reads the rows of timestamps: one by its ticket, a page by ticket, or the newest. It counts nothing:
// the table is large, and the projection's own counts say how many rows it has.
package record

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/tidemark/tidemark/query-service/internal/projection"
	"github.com/tidemark/tidemark/shared/position"
	"github.com/tidemark/tidemark/shared/postgres"
	"github.com/tidemark/tidemark/shared/topic"
)

// Projection is the one whose rows these are.
const Projection = "timestamps"

// ErrNotFound says that no record bears the id, in the snapshot that was read.
var ErrNotFound = errors.New("no record has this id")

// Record is one row: the instant that was stamped under a ticket.
type Record struct {
	ID             uuid.UUID
	EventTimestamp time.Time
	CreatedAt      time.Time // the log's own time
	Position       position.Position
}

type row struct {
	ID             uuid.UUID `db:"id"`
	EventTimestamp time.Time `db:"event_timestamp"`
	CreatedAt      time.Time `db:"created_at"`
	Partition      int32     `db:"partition"`
	Offset         int64     `db:"offset"`
}

func (r row) record() Record {
	return Record{r.ID, r.EventTimestamp, r.CreatedAt, position.Position{Topic: topic.TimestampCommand.Name, Partition: r.Partition, Offset: r.Offset}}
}

const columns = `SELECT id, event_timestamp, created_at, partition, "offset" FROM public.timestamp_records`

// ByIDs returns the records that bear the ids, by id.
func ByIDs(ctx context.Context, s *projection.Snapshot, ids []uuid.UUID) (map[uuid.UUID]Record, error) {
	wanted := postgres.UUIDs(len(ids))
	for _, id := range ids {
		wanted.UUID(id)
	}
	var rows []row
	if err := s.Select(ctx, &rows, columns+` WHERE id = ANY ($1::uuid[])`, wanted.Bytes()); err != nil {
		return nil, fmt.Errorf("read records: %w", err)
	}
	found := make(map[uuid.UUID]Record, len(rows))
	for _, r := range rows {
		found[r.ID] = r.record()
	}
	return found, nil
}

// Finder finds records by their ticket, many of them in one transaction. It is safe for concurrent use.
type Finder struct {
	grouped *projection.Grouped[uuid.UUID, *Record]
}

// NewFinder reads by r.
func NewFinder(r *projection.Reader) *Finder {
	return &Finder{projection.NewGrouped(r, func(ctx context.Context, s *projection.Snapshot, ids []uuid.UUID) ([]*Record, error) {
		found, err := ByIDs(ctx, s, ids)
		if err != nil {
			return nil, err
		}
		out := make([]*Record, len(ids))
		for i, id := range ids {
			if r, there := found[id]; there {
				out[i] = &r
			}
		}
		return out, nil
	})}
}

// Find returns the record of one ticket, or ErrNotFound.
func (f *Finder) Find(ctx context.Context, want projection.Want, id uuid.UUID) (Record, error) {
	found, err := f.grouped.Read(ctx, want, projection.Of(Projection), id)
	switch {
	case err != nil:
		return Record{}, err
	case found == nil:
		return Record{}, ErrNotFound
	}
	return *found, nil
}

// Cursor says which page: the records before an id, or after it. The zero value is the page of the greatest ids.
type Cursor struct {
	ID    uuid.UUID
	Above bool // those above ID, else those below it
}

// Page is some records, the greatest id first. Ids carry no order of time where callers bring their own.
type Page struct {
	Records []Record
	Below   *Cursor // nil where nothing is below
	Above   *Cursor // nil on the page without a cursor, and where nothing is above
}

// List returns up to limit records next to the cursor.
func List(ctx context.Context, s *projection.Snapshot, at Cursor, limit int) (Page, error) {
	var rows []row
	var err error
	switch { // one more than wanted tells whether the page after it has any
	case at.Above:
		err = s.Select(ctx, &rows, columns+` WHERE id > $1 ORDER BY id LIMIT $2`, at.ID, limit+1)
	case at.ID != uuid.Nil:
		err = s.Select(ctx, &rows, columns+` WHERE id < $1 ORDER BY id DESC LIMIT $2`, at.ID, limit+1)
	default:
		err = s.Select(ctx, &rows, columns+` ORDER BY id DESC LIMIT $1`, limit+1)
	}
	if err != nil {
		return Page{}, fmt.Errorf("list records: %w", err)
	}
	more := len(rows) > limit
	rows = rows[:min(len(rows), limit)]
	if at.Above {
		slices.Reverse(rows)
	}
	page := Page{Records: make([]Record, len(rows))}
	for i, r := range rows {
		page.Records[i] = r.record()
	}
	if len(rows) == 0 {
		return page, nil
	}
	first, last := rows[0].ID, rows[len(rows)-1].ID
	if more || at.Above { // a page above a cursor has at least that cursor below it
		page.Below = &Cursor{ID: last}
	}
	if at.Above && more || !at.Above && at.ID != uuid.Nil {
		page.Above = &Cursor{ID: first, Above: true}
	}
	if !at.Above && !more {
		page.Below = nil
	}
	return page, nil
}

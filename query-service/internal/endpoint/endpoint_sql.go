package endpoint

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/tidemark/tidemark/query-service/internal/projection"
	"github.com/tidemark/tidemark/shared/event"
	"github.com/tidemark/tidemark/shared/position"
	"github.com/tidemark/tidemark/shared/postgres"
	"github.com/tidemark/tidemark/shared/topic"
)

type row struct {
	ID        uuid.UUID  `db:"endpoint_id"`
	Deleted   bool       `db:"deleted"`
	URL       string     `db:"url"`
	Name      string     `db:"name"`
	Group     string     `db:"group_name"`
	Tags      []byte     `db:"tags"`
	Seconds   int64      `db:"interval_seconds"`
	Enabled   bool       `db:"enabled"`
	Document  []byte     `db:"document"`
	CreatedAt *time.Time `db:"created_at"`
	ChangedAt time.Time  `db:"changed_at"`
	ChangedBy string     `db:"changed_by"`
	Ticket    uuid.UUID  `db:"command_id"`
	Partition int32      `db:"partition"`
	Offset    int64      `db:"offset"`
}

const columns = `
SELECT endpoint_id, deleted, coalesce(url, '') AS url, coalesce(name, '') AS name, coalesce(group_name, '') AS group_name,
	coalesce(tags, '[]') AS tags, coalesce(interval_seconds, 0) AS interval_seconds, coalesce(enabled, false) AS enabled, document,
	created_at, changed_at, changed_by, command_id, partition, "offset"
FROM endpoints.current_endpoints `

func (r row) endpoint() (Endpoint, error) {
	e := Endpoint{
		ID: r.ID, Deleted: r.Deleted, URL: r.URL, Name: r.Name, Group: r.Group, Interval: time.Duration(r.Seconds) * time.Second, Enabled: r.Enabled,
		Document: r.Document, ChangedAt: r.ChangedAt, ChangedBy: r.ChangedBy, Ticket: r.Ticket, Position: placed(r.Partition, r.Offset),
	}
	if r.CreatedAt != nil {
		e.CreatedAt = *r.CreatedAt
	}
	if err := json.Unmarshal(r.Tags, &e.Tags); err != nil {
		return Endpoint{}, fmt.Errorf("read the tags of endpoint %s: %w", r.ID, err)
	}
	return e, nil
}

func placed(partition int32, offset int64) position.Position {
	return position.Position{Topic: topic.EndpointCommand.Name, Partition: partition, Offset: offset}
}

// ByID returns one endpoint, a deleted one too, or ErrNotFound; *projection.RebuildingError while the table is
// a part.
func ByID(ctx context.Context, s *projection.Snapshot, id uuid.UUID) (Endpoint, error) {
	found, err := ByIDs(ctx, s, []uuid.UUID{id})
	if err != nil {
		return Endpoint{}, err
	}
	if found[0] == nil {
		return Endpoint{}, ErrNotFound
	}
	return *found[0], nil
}

// ByIDs is ByID for many, in the order of the ids, nil where there is none.
func ByIDs(ctx context.Context, s *projection.Snapshot, ids []uuid.UUID) ([]*Endpoint, error) {
	if err := s.Complete(ctx, s.Of(Projection)); err != nil {
		return nil, err
	}
	wanted := postgres.UUIDs(len(ids))
	for _, id := range ids {
		wanted.UUID(id)
	}
	var rows []row
	if err := s.Select(ctx, &rows, columns+`WHERE endpoint_id = ANY ($1::uuid[])`, wanted.Bytes()); err != nil {
		return nil, fmt.Errorf("read endpoints: %w", err)
	}
	found := make(map[uuid.UUID]*Endpoint, len(rows))
	for _, r := range rows {
		e, err := r.endpoint()
		if err != nil {
			return nil, err
		}
		found[e.ID] = &e
	}
	out := make([]*Endpoint, len(ids))
	for i, id := range ids {
		out[i] = found[id]
	}
	return out, nil
}

// Finder finds endpoints by their id, many of them in one transaction. It is safe for concurrent use.
type Finder struct {
	grouped *projection.Grouped[uuid.UUID, *Endpoint]
}

// NewFinder reads by r.
func NewFinder(r *projection.Reader) *Finder {
	return &Finder{projection.NewGrouped(r, ByIDs)}
}

// Find is ByID in a snapshot in which want holds.
func (f *Finder) Find(ctx context.Context, want projection.Want, id uuid.UUID) (Endpoint, error) {
	found, err := f.grouped.Read(ctx, want, projection.Of(Projection), id)
	switch {
	case err != nil:
		return Endpoint{}, err
	case found == nil:
		return Endpoint{}, ErrNotFound
	}
	return *found, nil
}

// List returns up to limit of the endpoints after a place that f asks for, by name, and the place to go on
// after, nil where that was all; *projection.RebuildingError while the table is a part.
func List(ctx context.Context, s *projection.Snapshot, f Filter, after Cursor, limit int) ([]Endpoint, *Cursor, error) {
	if err := s.Complete(ctx, s.Of(Projection)); err != nil {
		return nil, nil, err
	}
	var rows []row
	err := s.Select(ctx, &rows, columns+`
WHERE NOT deleted AND (name, endpoint_id) > ($1, $2) AND ($3 = '' OR group_name = $3) AND ($4 = '' OR tags::jsonb @> to_jsonb($4::text))
	AND ($5 = '' OR position(lower($5) IN lower(name)) > 0 OR position(lower($5) IN lower(url)) > 0)
ORDER BY name, endpoint_id LIMIT $6`, after.Name, after.ID, f.Group, f.Tag, f.Text, limit+1)
	if err != nil {
		return nil, nil, fmt.Errorf("list endpoints: %w", err)
	}
	out := make([]Endpoint, 0, limit)
	for _, r := range rows[:min(len(rows), limit)] {
		e, err := r.endpoint()
		if err != nil {
			return nil, nil, err
		}
		out = append(out, e)
	}
	if len(rows) <= limit {
		return out, nil, nil
	}
	last := out[limit-1]
	return out, &Cursor{Name: last.Name, ID: last.ID}, nil
}

// History returns up to limit of the changes of an endpoint below an offset of its partition, the newest
// first, and whether there are older ones. ErrNotFound comes of an id that nothing was ever put under,
// *projection.RebuildingError while the table may be a part.
func History(ctx context.Context, s *projection.Snapshot, id uuid.UUID, below int64, limit int) ([]Change, bool, error) {
	if err := s.Complete(ctx, s.Of(Projection)); err != nil {
		return nil, false, err
	}
	var rows []struct {
		Ticket    uuid.UUID `db:"command_id"`
		Kind      string    `db:"kind"`
		Document  []byte    `db:"document"`
		By        string    `db:"sent_by"`
		At        time.Time `db:"created_at"`
		Partition int32     `db:"partition"`
		Offset    int64     `db:"offset"`
	}
	err := s.Select(ctx, &rows, `
SELECT command_id, kind, document, sent_by, created_at, partition, "offset" FROM endpoints.endpoint_commands
WHERE endpoint_id = $1 AND "offset" < $2 ORDER BY "offset" DESC LIMIT $3`, id, below, limit+1)
	if err != nil {
		return nil, false, fmt.Errorf("read the history of an endpoint: %w", err)
	}
	if len(rows) == 0 {
		var ever bool
		if err := s.Get(ctx, &ever, `SELECT EXISTS (SELECT FROM endpoints.endpoint_commands WHERE endpoint_id = $1)`, id); err != nil {
			return nil, false, fmt.Errorf("read the history of an endpoint: %w", err)
		}
		if !ever {
			return nil, false, ErrNotFound
		}
	}
	out := make([]Change, min(len(rows), limit))
	for i := range out {
		r := rows[i]
		out[i] = Change{Ticket: r.Ticket, Kind: event.EndpointKind(r.Kind), Document: r.Document, By: r.By, At: r.At, Position: placed(r.Partition, r.Offset)}
		if i+1 < len(rows) && r.Document != nil && rows[i+1].Document != nil {
			if out[i].Members, err = differences(rows[i+1].Document, r.Document); err != nil {
				return nil, false, err
			}
		}
	}
	return out, len(rows) > limit, nil
}

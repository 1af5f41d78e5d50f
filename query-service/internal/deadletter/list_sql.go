package deadletter

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/tidemark/tidemark/query-service/internal/projection"
	"github.com/tidemark/tidemark/shared/position"
	"github.com/tidemark/tidemark/shared/schema"
)

// Filter says which dead letters are wanted. Its zero values want any, but for State.
type Filter struct {
	State      State
	Projection string // its name; of every one where it is empty
	Text       string // in the payload, as these bytes, or in the reason, in any case
	ReasonCode string
	Partition  *int32
	Order      Order
}

// Order is how letters are listed.
type Order string

// Newest is by the log's own time of the record, the latest first: what an operator looks at. ByPosition is by topic,
// partition and offset, as they lie in the log: what is decided in bulk keeps its order so.
const (
	Newest     Order = "newest"
	ByPosition Order = "position"
)

// Scope is the projections that a search with f reads.
func (f Filter) Scope() projection.Scope {
	if f.Projection == "" {
		return projection.Every()
	}
	return projection.Of(f.Projection)
}

// mostSearched bounds how many letters of one projection are searched for one page. A search for what is rare
// takes several pages, some of which may be empty.
const mostSearched = 10_000

// Search returns up to limit of the dead letters that f asks for, in f's order, from the one that follows after, and the
// position to go on after, nil where that was all. The zero position starts at the beginning. A page may have fewer than
// limit, or none, and still another one after it. It reads what is in the snapshot's scope.
func Search(ctx context.Context, s *projection.Snapshot, f Filter, after position.Position, limit int) ([]DeadLetter, *position.Position, error) {
	if f.Order == ByPosition {
		return searchByPosition(ctx, s, f, after, limit)
	}
	return searchNewest(ctx, s, f, after, limit)
}

func searchByPosition(ctx context.Context, s *projection.Snapshot, f Filter, after position.Position, limit int) ([]DeadLetter, *position.Position, error) {
	scope := slices.SortedFunc(slices.Values(s.Served()), func(a, b projection.Served) int { return strings.Compare(a.Topic, b.Topic) })
	letters := make([]DeadLetter, 0, limit)
	for _, of := range scope {
		if of.Topic < after.Topic {
			continue
		}
		found, edge, err := searchProjection(ctx, s, of, f, after, limit+1-len(letters))
		if err != nil {
			return nil, nil, err
		}
		letters = append(letters, found...)
		if len(letters) > limit {
			letters = letters[:limit]
			return letters, &letters[limit-1].Position, nil
		}
		if edge != nil {
			return letters, edge, nil
		}
	}
	return letters, nil, nil
}

// wanted are the conditions of a filter on what from selects; its arguments are $1 to $4.
const wanted = `
WHERE ($1 = 'all' OR $1 = CASE k.decision WHEN 'redrive' THEN 'redriven' WHEN 'discard' THEN 'discarded' ELSE 'open' END)
	AND ($2 = '' OR l.reason_code = $2)
	AND ($3::bytea IS NULL OR position($3 IN l.payload) > 0 OR position(lower($4) IN lower(l.reason)) > 0)`

func (f Filter) arguments() []any {
	var text []byte
	if f.Text != "" {
		text = []byte(f.Text)
	}
	return []any{string(f.State), f.ReasonCode, text, f.Text}
}

// matchesAll reports whether every letter is a hit, but for its partition.
func (f Filter) matchesAll() bool { return f.State == All && f.Text == "" && f.ReasonCode == "" }

// searchProjection returns up to most letters of one projection, and where the search ended, nil where that was all.
func searchProjection(ctx context.Context, s *projection.Snapshot, of projection.Served, f Filter, after position.Position, most int) ([]DeadLetter, *position.Position, error) {
	// Of the topic's letters, those above one place and up to another.
	above := position.Position{Topic: of.Topic, Offset: -1}
	upTo := position.Position{Topic: of.Topic, Partition: math.MaxInt32, Offset: math.MaxInt64}
	if f.Partition != nil {
		above.Partition, upTo.Partition = *f.Partition, *f.Partition
	}
	if before(above, after) {
		above = after
	}
	edge, err := searchBound(ctx, s, of, f, above, upTo)
	if err != nil {
		return nil, nil, err
	}
	if edge != nil {
		upTo = *edge
	}
	var rows []row
	err = s.Select(ctx, &rows, from(of, ShownBytes)+wanted+`
	AND l.topic = $5 AND (l.partition, l."offset") > ($6, $7) AND (l.partition, l."offset") <= ($8, $9)
ORDER BY l.topic, l.partition, l."offset" LIMIT $10`,
		append(f.arguments(), of.Topic, above.Partition, above.Offset, upTo.Partition, upTo.Offset, most)...)
	if err != nil {
		return nil, nil, fmt.Errorf("list dead letters of %s: %w", of.Name, err)
	}
	letters := make([]DeadLetter, len(rows))
	for i, r := range rows {
		letters[i] = r.deadLetter(of)
	}
	return letters, edge, nil
}

// searchBound returns the position up to which one page is searched, nil where all is. Without a filter every row is a
// hit, so the page's limit is enough.
func searchBound(ctx context.Context, s *projection.Snapshot, of projection.Served, f Filter, above, upTo position.Position) (*position.Position, error) {
	if f.matchesAll() {
		return nil, nil
	}
	var at row
	err := s.Get(ctx, &at, `
SELECT l.topic, l.partition, l."offset" FROM `+of.Table(schema.DeadLetters)+` l
WHERE l.topic = $1 AND (l.partition, l."offset") > ($2, $3) AND (l.partition, l."offset") <= ($4, $5)
ORDER BY l.topic, l.partition, l."offset" OFFSET $6 LIMIT 1`, // so many keys of the index
		of.Topic, above.Partition, above.Offset, upTo.Partition, upTo.Offset, mostSearched-1)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("bound a page of dead letters of %s: %w", of.Name, err)
	}
	return &position.Position{Topic: at.Topic, Partition: at.Partition, Offset: at.Offset}, nil
}

func before(a, b position.Position) bool {
	if a.Topic != b.Topic {
		return a.Topic < b.Topic
	}
	if a.Partition != b.Partition {
		return a.Partition < b.Partition
	}
	return a.Offset < b.Offset
}

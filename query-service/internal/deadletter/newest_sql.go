package deadletter

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/tidemark/tidemark/query-service/internal/projection"
	"github.com/tidemark/tidemark/shared/position"
	"github.com/tidemark/tidemark/shared/schema"
)

// unknownCursor refuses to go on with a list after a position where there is no dead letter.
func unknownCursor(after position.Position) error {
	return &projection.WantError{Detail: fmt.Sprintf("after: there is no dead letter at %s: begin with the first page", after)}
}

// place is where a letter stands in the order of Newest: the log's time, and its position among those of one time.
type place struct {
	At       time.Time
	Position position.Position
}

// compare is below 0 where p is listed later, as the older one.
func (p place) compare(o place) int {
	return cmp.Or(p.At.Compare(o.At), strings.Compare(p.Position.Topic, o.Position.Topic),
		cmp.Compare(p.Position.Partition, o.Position.Partition), cmp.Compare(p.Position.Offset, o.Position.Offset))
}

// newest is above every letter.
var newest = place{At: time.Date(9999, 12, 31, 0, 0, 0, 0, time.UTC)}

// in is p as a bound among the letters of one topic, which bear the same time and lie in other topics as well.
func (p place) in(topic string) place {
	switch c := strings.Compare(topic, p.Position.Topic); {
	case c < 0: // at the same time, all of them are listed later
		return place{p.At, position.Position{Topic: topic, Partition: math.MaxInt32, Offset: math.MaxInt64}}
	case c > 0:
		return place{p.At, position.Position{Topic: topic, Partition: -1}}
	}
	return p
}

// searchNewest merges what each projection has: of each it reads a page from the index by time. A projection whose page was
// bounded before its end bounds what is shown of the others, too.
func searchNewest(ctx context.Context, s *projection.Snapshot, f Filter, after position.Position, limit int) ([]DeadLetter, *position.Position, error) {
	below := newest
	if after.Topic != "" {
		of, projected := s.OfTopic(after.Topic)
		if !projected {
			return nil, nil, unknownCursor(after)
		}
		below.Position = after
		err := s.Get(ctx, &below.At, `SELECT first_seen_at FROM `+of.Table(schema.DeadLetters)+` WHERE topic = $1 AND partition = $2 AND "offset" = $3`,
			after.Topic, after.Partition, after.Offset)
		if errors.Is(err, sql.ErrNoRows) {
			return nil, nil, unknownCursor(after)
		}
		if err != nil {
			return nil, nil, fmt.Errorf("find where a list of dead letters goes on: %w", err)
		}
	}
	var letters []DeadLetter
	var edge *place // down to it all are searched
	for _, of := range s.Served() {
		found, searched, err := searchProjectionNewest(ctx, s, of, f, below.in(of.Topic), limit+1)
		if err != nil {
			return nil, nil, err
		}
		letters = append(letters, found...)
		if searched != nil && (edge == nil || searched.compare(*edge) > 0) {
			edge = searched
		}
	}
	if edge != nil {
		letters = slices.DeleteFunc(letters, func(d DeadLetter) bool { return d.place().compare(*edge) < 0 })
	}
	slices.SortFunc(letters, func(a, b DeadLetter) int { return b.place().compare(a.place()) })
	switch {
	case len(letters) > limit:
		letters = letters[:limit]
		return letters, &letters[limit-1].Position, nil
	case edge != nil:
		return letters, &edge.Position, nil
	}
	return letters, nil, nil
}

func (d DeadLetter) place() place { return place{d.FirstSeenAt, d.Position} }

// searchProjectionNewest returns up to most letters of one projection, and down to where it searched, nil where that was all.
func searchProjectionNewest(ctx context.Context, s *projection.Snapshot, of projection.Served, f Filter, below place, most int) ([]DeadLetter, *place, error) {
	edge, err := newestBound(ctx, s, of, f, below)
	if err != nil {
		return nil, nil, err
	}
	downTo := place{Position: position.Position{Partition: -1}}
	if edge != nil {
		downTo = *edge
	}
	var rows []row
	err = s.Select(ctx, &rows, from(of, ShownBytes)+wanted+`
	AND (l.first_seen_at, l.partition, l."offset") < ($5, $6, $7) AND (l.first_seen_at, l.partition, l."offset") >= ($8, $9, $10)
	AND ($11::int IS NULL OR l.partition = $11)
ORDER BY l.first_seen_at DESC, l.partition DESC, l."offset" DESC LIMIT $12`,
		append(f.arguments(), below.At, below.Position.Partition, below.Position.Offset, downTo.At, downTo.Position.Partition, downTo.Position.Offset, f.Partition, most)...)
	if err != nil {
		return nil, nil, fmt.Errorf("list the newest dead letters of %s: %w", of.Name, err)
	}
	letters := make([]DeadLetter, len(rows))
	for i, r := range rows {
		letters[i] = r.deadLetter(of)
	}
	return letters, edge, nil
}

// newestBound returns the place down to which one page is searched, nil where all is.
func newestBound(ctx context.Context, s *projection.Snapshot, of projection.Served, f Filter, below place) (*place, error) {
	if f.matchesAll() && f.Partition == nil {
		return nil, nil // the page's limit is enough
	}
	var at row
	err := s.Get(ctx, &at, `
SELECT first_seen_at, partition, "offset" FROM `+of.Table(schema.DeadLetters)+`
WHERE (first_seen_at, partition, "offset") < ($1, $2, $3)
ORDER BY first_seen_at DESC, partition DESC, "offset" DESC OFFSET $4 LIMIT 1`, // so many keys of the index
		below.At, below.Position.Partition, below.Position.Offset, mostSearched-1)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("bound a page of the newest dead letters of %s: %w", of.Name, err)
	}
	return &place{at.FirstSeenAt, position.Position{Topic: of.Topic, Partition: at.Partition, Offset: at.Offset}}, nil
}

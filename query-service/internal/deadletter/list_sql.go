package deadletter

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/tidemark/tidemark/query-service/internal/projection"
	"github.com/tidemark/tidemark/shared/event"
	"github.com/tidemark/tidemark/shared/position"
	"github.com/tidemark/tidemark/shared/schema"
	"github.com/tidemark/tidemark/shared/topic"
)

type row struct {
	Topic             string     `db:"topic"`
	Partition         int32      `db:"partition"`
	Offset            int64      `db:"offset"`
	Payload           []byte     `db:"payload"`
	PayloadBytes      int        `db:"payload_bytes"`
	Headers           []byte     `db:"headers"`
	ReasonCode        string     `db:"reason_code"`
	Reason            string     `db:"reason"`
	FirstSeenAt       time.Time  `db:"first_seen_at"`
	Decision          *string    `db:"decision"`
	CommandID         *uuid.UUID `db:"command_id"`
	Note              *string    `db:"note"`
	DecidedBy         *string    `db:"decided_by"`
	DecidedAt         *time.Time `db:"decided_at"`
	DecisionPartition *int32     `db:"decision_partition"`
	DecisionOffset    *int64     `db:"decision_offset"`
}

// from selects letters of one projection, with so many bytes of payload and headers.
func from(of projection.Served, shown int) string {
	return fmt.Sprintf(`
SELECT l.topic, l.partition, l."offset", substring(l.payload FOR %[1]d) AS payload, coalesce(octet_length(l.payload), 0) AS payload_bytes,
	CASE WHEN octet_length(l.headers::text) <= %[1]d THEN l.headers::text END AS headers, l.reason_code, l.reason, l.first_seen_at,
	k.decision, k.command_id, k.note, k.decided_by, k.decided_at, k.decision_partition, k.decision_offset
FROM %[2]s l LEFT JOIN public.dead_letter_decisions k USING (topic, partition, "offset")`, shown, of.Table(schema.DeadLetters))
}

func (r row) deadLetter(of projection.Served) DeadLetter {
	d := DeadLetter{
		Projection: of.Name, Position: position.Position{Topic: r.Topic, Partition: r.Partition, Offset: r.Offset},
		Payload: r.Payload, PayloadBytes: r.PayloadBytes, Headers: r.Headers,
		ReasonCode: r.ReasonCode, Reason: r.Reason, FirstSeenAt: r.FirstSeenAt,
	}
	if r.Decision != nil { // then all of its columns but command_id are there
		d.Decision = &Decision{
			Kind: event.Decision(*r.Decision), Ticket: r.CommandID, Note: *r.Note, By: *r.DecidedBy, At: *r.DecidedAt,
			Position: position.Position{Topic: topic.DeadLetterCommand.Name, Partition: *r.DecisionPartition, Offset: *r.DecisionOffset},
		}
	}
	return d
}

// At returns the dead letter at p as a list shows it, or ErrNotFound. The projection of its topic must be in
// the snapshot's scope.
func At(ctx context.Context, s *projection.Snapshot, p position.Position) (DeadLetter, error) {
	return readLetter(ctx, s, p, ShownBytes)
}

// Whole is At with the whole payload.
func Whole(ctx context.Context, s *projection.Snapshot, p position.Position) (DeadLetter, error) {
	return readLetter(ctx, s, p, WholeBytes)
}

func readLetter(ctx context.Context, s *projection.Snapshot, p position.Position, shown int) (DeadLetter, error) {
	of, projected := s.OfTopic(p.Topic)
	if !projected {
		return DeadLetter{}, ErrNotFound
	}
	var r row
	err := s.Get(ctx, &r, from(of, shown)+` WHERE l.topic = $1 AND l.partition = $2 AND l."offset" = $3`, p.Topic, p.Partition, p.Offset)
	if errors.Is(err, sql.ErrNoRows) {
		return DeadLetter{}, ErrNotFound
	}
	if err != nil {
		return DeadLetter{}, fmt.Errorf("read a dead letter: %w", err)
	}
	return r.deadLetter(of), nil
}

// Finder finds dead letters by their position, with the whole payload, many of them in one transaction. It is safe for
// concurrent use.
type Finder struct {
	grouped *projection.Grouped[position.Position, *DeadLetter]
}

// NewFinder reads by r.
func NewFinder(r *projection.Reader) *Finder {
	return &Finder{projection.NewGrouped(r, func(ctx context.Context, s *projection.Snapshot, at []position.Position) ([]*DeadLetter, error) {
		out := make([]*DeadLetter, len(at))
		for i, p := range at { // one by one, since a payload may be large and what they share is the transaction
			switch letter, err := Whole(ctx, s, p); {
			case err == nil:
				out[i] = &letter
			case !errors.Is(err, ErrNotFound):
				return nil, err
			}
		}
		return out, nil
	})}
}

// Find returns the dead letter at p, or ErrNotFound.
func (f *Finder) Find(ctx context.Context, want projection.Want, p position.Position) (DeadLetter, error) {
	found, err := f.grouped.Read(ctx, want, projection.OfTopic(p.Topic), p)
	switch {
	case err != nil:
		return DeadLetter{}, err
	case found == nil:
		return DeadLetter{}, ErrNotFound
	}
	return *found, nil
}

// Filter says which dead letters are wanted. Its zero values want any, but for State.
type Filter struct {
	State      State
	Projection string // its name; of every one where it is empty
	Text       string // in the payload, as these bytes, or in the reason, in any case
	ReasonCode string
	Partition  *int32
}

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

// Search returns up to limit of the dead letters above after that f asks for, in the order of topic,
// partition and offset, and the position to go on after, nil where that was all. The zero position starts
// at the beginning. A page may have fewer than limit, or none, and still another one after it. It reads
// what is in the snapshot's scope.
func Search(ctx context.Context, s *projection.Snapshot, f Filter, after position.Position, limit int) ([]DeadLetter, *position.Position, error) {
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
	var text []byte
	if f.Text != "" {
		text = []byte(f.Text)
	}
	var rows []row
	err = s.Select(ctx, &rows, from(of, ShownBytes)+`
WHERE l.topic = $1 AND (l.partition, l."offset") > ($2, $3) AND (l.partition, l."offset") <= ($4, $5)
	AND ($6 = 'all' OR $6 = CASE k.decision WHEN 'redrive' THEN 'redriven' WHEN 'discard' THEN 'discarded' ELSE 'open' END)
	AND ($7 = '' OR l.reason_code = $7)
	AND ($8::bytea IS NULL OR position($8 IN l.payload) > 0 OR position(lower($9) IN lower(l.reason)) > 0)
ORDER BY l.topic, l.partition, l."offset" LIMIT $10`,
		of.Topic, above.Partition, above.Offset, upTo.Partition, upTo.Offset, string(f.State), f.ReasonCode, text, f.Text, most)
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
	if f.State == All && f.Text == "" && f.ReasonCode == "" {
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

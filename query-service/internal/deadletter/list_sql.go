package deadletter

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/google/uuid"

	"github.com/tidemark/tidemark/query-service/internal/projection"
	"github.com/tidemark/tidemark/shared/event"
	"github.com/tidemark/tidemark/shared/position"
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

// columns shows so many bytes of payload and headers.
func columns(shown int) string {
	return fmt.Sprintf(`
SELECT l.topic, l.partition, l."offset", substring(l.payload FOR %[1]d) AS payload, coalesce(octet_length(l.payload), 0) AS payload_bytes,
	CASE WHEN octet_length(l.headers::text) <= %[1]d THEN l.headers::text END AS headers, l.reason_code, l.reason, l.first_seen_at,
	k.decision, k.command_id, k.note, k.decided_by, k.decided_at, k.decision_partition, k.decision_offset
FROM public.dead_letters l LEFT JOIN public.dead_letter_decisions k USING (topic, partition, "offset")`, shown)
}

func (r row) deadLetter() DeadLetter {
	d := DeadLetter{
		Position: position.Position{Topic: r.Topic, Partition: r.Partition, Offset: r.Offset},
		Payload:  r.Payload, PayloadBytes: r.PayloadBytes, Headers: r.Headers,
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

// At returns the dead letter at p as a list shows it, or ErrNotFound.
func At(ctx context.Context, s *projection.Snapshot, p position.Position) (DeadLetter, error) {
	return at(ctx, s, p, ShownBytes)
}

// Whole is At with the whole payload.
func Whole(ctx context.Context, s *projection.Snapshot, p position.Position) (DeadLetter, error) {
	return at(ctx, s, p, WholeBytes)
}

func at(ctx context.Context, s *projection.Snapshot, p position.Position, shown int) (DeadLetter, error) {
	var r row
	err := s.Get(ctx, &r, columns(shown)+` WHERE l.topic = $1 AND l.partition = $2 AND l."offset" = $3`, p.Topic, p.Partition, p.Offset)
	if errors.Is(err, sql.ErrNoRows) {
		return DeadLetter{}, ErrNotFound
	}
	if err != nil {
		return DeadLetter{}, fmt.Errorf("read a dead letter: %w", err)
	}
	return r.deadLetter(), nil
}

// Filter says which dead letters are wanted. Its zero values want any, but for State.
type Filter struct {
	State      State
	Text       string // in the payload, as these bytes, or in the reason, in any case
	ReasonCode string
	Partition  *int32
}

// mostLooked is how many letters are looked at for one page. A search for what is rare goes on over
// several pages, some of which may be empty.
const mostLooked = 10_000

// Search returns up to limit of the dead letters above after that f asks for, in the order of topic,
// partition and offset, and the position to go on after, nil where that was all. The zero position starts
// at the beginning. A page may have fewer than limit, or none, and still another one after it.
func Search(ctx context.Context, s *projection.Snapshot, f Filter, after position.Position, limit int) ([]DeadLetter, *position.Position, error) {
	upTo := place{} // without an end
	if f.Partition != nil {
		if first := (position.Position{Topic: topic.TimestampCommand.Name, Partition: *f.Partition, Offset: -1}); before(after, first) {
			after = first
		}
		upTo = placed(position.Position{Topic: topic.TimestampCommand.Name, Partition: *f.Partition, Offset: math.MaxInt64})
	}
	edge, err := edge(ctx, s, f, after, upTo)
	if err != nil {
		return nil, nil, err
	}
	if edge != nil {
		upTo = placed(*edge)
	}
	var text []byte
	if f.Text != "" {
		text = []byte(f.Text)
	}
	var rows []row
	err = s.Select(ctx, &rows, columns(ShownBytes)+`
WHERE (l.topic, l.partition, l."offset") > ($1, $2, $3) AND ($4::text IS NULL OR (l.topic, l.partition, l."offset") <= ($4, $5, $6))
	AND ($7 = 'all' OR $7 = CASE k.decision WHEN 'redrive' THEN 'redriven' WHEN 'discard' THEN 'discarded' ELSE 'open' END)
	AND ($8 = '' OR l.reason_code = $8)
	AND ($9::bytea IS NULL OR position($9 IN l.payload) > 0 OR position(lower($10) IN lower(l.reason)) > 0)
ORDER BY l.topic, l.partition, l."offset" LIMIT $11`,
		after.Topic, after.Partition, after.Offset, upTo.topic, upTo.partition, upTo.offset, string(f.State), f.ReasonCode, text, f.Text, limit+1)
	if err != nil {
		return nil, nil, fmt.Errorf("list dead letters: %w", err)
	}
	letters := make([]DeadLetter, 0, limit)
	for _, r := range rows[:min(len(rows), limit)] {
		letters = append(letters, r.deadLetter())
	}
	if len(rows) > limit {
		return letters, &letters[limit-1].Position, nil
	}
	return letters, edge, nil
}

// place is a position as a parameter, or none.
type place struct {
	topic     *string
	partition *int32
	offset    *int64
}

func placed(p position.Position) place { return place{&p.Topic, &p.Partition, &p.Offset} }

// edge is how far one page looks, nil where it looks at all there is. Without a filter every row is a hit,
// and the limit is bound enough.
func edge(ctx context.Context, s *projection.Snapshot, f Filter, after position.Position, upTo place) (*position.Position, error) {
	if f.State == All && f.Text == "" && f.ReasonCode == "" {
		return nil, nil
	}
	var at row
	err := s.Get(ctx, &at, `
SELECT l.topic, l.partition, l."offset" FROM public.dead_letters l
WHERE (l.topic, l.partition, l."offset") > ($1, $2, $3) AND ($4::text IS NULL OR (l.topic, l.partition, l."offset") <= ($4, $5, $6))
ORDER BY l.topic, l.partition, l."offset" OFFSET $7 LIMIT 1`, // so many keys of the index
		after.Topic, after.Partition, after.Offset, upTo.topic, upTo.partition, upTo.offset, mostLooked-1)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("bound a page of dead letters: %w", err)
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

package deadletter

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
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

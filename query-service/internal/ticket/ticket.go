// Package ticket says what became of an accepted command. It promises to be exact where the command's
// position is known and to say how far it looked where it is not; it never guesses.
package ticket

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/tidemark/tidemark/query-service/internal/deadletter"
	"github.com/tidemark/tidemark/query-service/internal/projection"
	"github.com/tidemark/tidemark/query-service/internal/record"
	"github.com/tidemark/tidemark/shared/position"
	"github.com/tidemark/tidemark/shared/topic"
)

// State is what became of a command.
type State string

// The states. Pending and Unknown may still change; the others are outcomes, and change only with a
// redrive or, between Applied and Duplicate, when an older record with the same id is read.
const (
	Pending   State = "pending"
	Applied   State = "applied"
	Duplicate State = "duplicate"
	Rejected  State = "rejected"
	Unknown   State = "unknown"
)

// Ticket is the state of one id, as of one snapshot.
type Ticket struct {
	ID         uuid.UUID
	State      State
	Position   *position.Position // asked about, or that of the row
	Generation int
	Epoch      int64
	Reason     string             // words, for rejected and unknown
	ReasonCode string             // for rejected
	AsOf       *time.Time         // for unknown without a position: everything up to then was looked at
	Reached    *position.Position // for pending: the last one passed in that partition
	Row        *record.Record     // for applied and duplicate
	Letter     deadletter.State   // for rejected: how far the dead letter is dealt with
	RedrivenAs *uuid.UUID         // for rejected: the ticket of the command in its place
}

// Reader opens snapshots of the projection.
type Reader interface {
	Read(context.Context, projection.Want, func(context.Context, *projection.Snapshot) error) error
}

var _ Reader = (*projection.Reader)(nil)

// Find returns the state of id. A position that is not passed within the wait is no error here: the
// ticket is then pending.
func Find(ctx context.Context, r Reader, id uuid.UUID, want projection.Want) (Ticket, error) {
	t := Ticket{ID: id}
	if want.Position.Topic == topic.TimestampCommand.Name { // another one is waited for only
		t.Position = &want.Position
	}
	err := r.Read(ctx, want, func(ctx context.Context, s *projection.Snapshot) error {
		t.Generation, t.Epoch = s.Generation, s.Epoch
		row, err := record.ByID(ctx, s, id)
		if err == nil {
			t.Row = &row
		} else if !errors.Is(err, record.ErrNotFound) {
			return err
		}
		if t.Position != nil {
			return t.decide(ctx, s)
		}
		return t.look(ctx, s)
	})
	var behind *projection.NotReachedError
	if errors.As(err, &behind) {
		t.State, t.Reached, t.Generation, t.Epoch = Pending, behind.Reached, behind.Generation, behind.Epoch
		return t, nil
	}
	return t, err
}

// decide is for a position that has been passed.
func (t *Ticket) decide(ctx context.Context, s *projection.Snapshot) error {
	if t.Row != nil && t.Row.Position == *t.Position {
		t.State = Applied
		return nil
	}
	letter, err := deadletter.At(ctx, s, *t.Position)
	switch {
	case err == nil:
		t.reject(letter)
		return nil
	case !errors.Is(err, deadletter.ErrNotFound):
		return err
	}
	first := s.Progress().FirstOffset
	switch {
	case t.Position.Offset < first:
		t.State, t.Row = Unknown, nil
		t.Reason = fmt.Sprintf("%s lies before offset %d, the first of its partition that this projection read", t.Position, first)
	case t.Row != nil:
		t.State = Duplicate
	default:
		t.State = Unknown
		t.Reason = fmt.Sprintf("the projection has passed %s and holds neither a row nor a dead letter of this ticket there: the position is another record's, or the row was removed, which the audit shows", t.Position)
	}
	return nil
}

// reject is for a record that is a dead letter. One that was issued again under the same ticket, and has
// come through, is what the client wanted.
func (t *Ticket) reject(letter deadletter.DeadLetter) {
	if d := letter.Decision; d != nil && d.Ticket != nil && *d.Ticket == t.ID && t.Row != nil {
		t.State, t.Reason = Applied, fmt.Sprintf("the record at %s was a dead letter and has been issued again", letter.Position)
		t.Position = &t.Row.Position
		return
	}
	t.State, t.ReasonCode, t.Reason, t.Row, t.Letter = Rejected, letter.ReasonCode, letter.Reason, nil, letter.State()
	if letter.Decision != nil {
		t.RedrivenAs = letter.Decision.Ticket
	}
}

// look is for a ticket whose position is not known.
func (t *Ticket) look(ctx context.Context, s *projection.Snapshot) (err error) {
	if t.Row != nil {
		t.State, t.Position = Applied, &t.Row.Position
		return nil
	}
	t.State = Unknown
	t.Reason = "it is not among the records up to as_of; it may still come: its position gives an exact answer"
	if t.AsOf, err = s.CaughtUpAt(ctx, topic.TimestampCommand.Name); t.AsOf == nil {
		t.Reason = "it is not among the records read so far, and some partition was not read to its end yet; it may still come: its position gives an exact answer"
	}
	return err
}

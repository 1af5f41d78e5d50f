// Package ticket says what became of an accepted command of any projection. Where the command's position is known the
// answer is exact. Where it is not, the answer says up to when the records were searched.
package ticket

import (
	"context"
	"errors"
	"fmt"
	"strings"
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

// Row is the row of a projection's main table that bears the ticket.
type Row struct {
	Position  position.Position
	CreatedAt *time.Time     // the log's own time of its record; nil where the table has no such column
	Columns   []Column       // what else it holds, in the table's order
	Record    *record.Record // of a timestamp
}

// Column is one value of a row, as text. Null is empty.
type Column struct{ Name, Value string }

// Column returns the value of one column, empty where the row has none of that name.
func (r *Row) Column(name string) string {
	for _, c := range r.Columns {
		if c.Name == name {
			return c.Value
		}
	}
	return ""
}

// Ticket is the state of one id, as of one snapshot.
type Ticket struct {
	ID         uuid.UUID
	State      State
	Projection string             // of the position or the row; empty where all were looked at
	Position   *position.Position // asked about, or that of the row
	Generation int                // of Projection, where there is one
	Epoch      int64
	Reason     string             // words, for rejected and unknown
	ReasonCode string             // for rejected
	AsOf       *time.Time         // for unknown without a position: everything up to then was looked at
	Reached    *position.Position // for pending: the last one passed in that partition
	Row        *Row               // for applied and duplicate
	Letter     deadletter.State   // for rejected: how far the dead letter is dealt with
	RedrivenAs *uuid.UUID         // for rejected: the ticket of the command in its place
}

// Finder says what became of tickets, of many in one transaction. It is safe for concurrent use.
type Finder struct {
	grouped *projection.Grouped[question, Ticket]
}

// question is one ticket that is asked about.
type question struct {
	id uuid.UUID
	at *position.Position // of its command; nil where it is not known
}

// NewFinder reads by r.
func NewFinder(r *projection.Reader) *Finder {
	return &Finder{projection.NewGrouped(r, answerAll)}
}

// Find returns the state of id. A position says which projection the command is of; without one all that
// have tickets are looked at. A position that is not passed within the wait is no error here: the ticket is
// then pending.
func (f *Finder) Find(ctx context.Context, id uuid.UUID, want projection.Want) (Ticket, error) {
	q := question{id: id}
	scope := projection.Every()
	if want.Asked() && want.Position.Topic != topic.DeadLetterCommand.Name { // a decision is waited for only
		q.at = &want.Position
		scope = projection.OfTopic(want.Position.Topic)
	}
	t, err := f.grouped.Read(ctx, want, scope, q)
	var behind *projection.NotReachedError
	if errors.As(err, &behind) {
		t = Ticket{ID: id, State: Pending, Position: q.at, Reached: behind.Reached}
		if q.at != nil {
			t.Projection, t.Generation, t.Epoch = behind.Projection, behind.Generation, behind.Epoch
		}
		return t, nil
	}
	return t, err
}

// answerAll answers questions whose positions, where they name one, have been passed.
func answerAll(ctx context.Context, s *projection.Snapshot, questions []question) ([]Ticket, error) {
	ids := make([]uuid.UUID, len(questions))
	for i, q := range questions {
		ids[i] = q.id
	}
	rows, err := rowsOf(ctx, s, ids)
	if err != nil {
		return nil, err
	}
	out := make([]Ticket, len(questions))
	for i, q := range questions {
		t := &out[i]
		t.ID, t.Position = q.id, q.at
		if q.at != nil {
			err = t.decide(ctx, s, rows[q.id])
		} else {
			err = t.search(ctx, s, rows[q.id])
		}
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

func (t *Ticket) belongsTo(d projection.Served) {
	t.Projection, t.Generation, t.Epoch = d.Name, d.Generation, d.Epoch
}

// decide is for a position that has been passed.
func (t *Ticket) decide(ctx context.Context, s *projection.Snapshot, rows []Row) error {
	of, _ := s.OfTopic(t.Position.Topic)
	t.belongsTo(of)
	for i := range rows {
		if rows[i].Position == *t.Position {
			t.State, t.Row = Applied, &rows[i]
			return nil
		}
	}
	if len(rows) > 0 {
		t.Row = &rows[0]
	}
	letter, err := deadletter.At(ctx, s, *t.Position)
	switch {
	case err == nil:
		t.reject(letter)
		return nil
	case !errors.Is(err, deadletter.ErrNotFound):
		return err
	}
	first := s.Progress(*t.Position).FirstOffset
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

// reject is for a record that is a dead letter. One that was redriven under the same ticket, and has
// come through, is what the client wanted.
func (t *Ticket) reject(letter deadletter.DeadLetter) {
	if d := letter.Decision; d != nil && d.Ticket != nil && *d.Ticket == t.ID && t.Row != nil {
		t.State, t.Reason = Applied, fmt.Sprintf("the record at %s was a dead letter and has been redriven", letter.Position)
		t.Position = &t.Row.Position
		return
	}
	t.State, t.ReasonCode, t.Reason, t.Row, t.Letter = Rejected, letter.ReasonCode, letter.Reason, nil, letter.State()
	if letter.Decision != nil {
		t.RedrivenAs = letter.Decision.Ticket
	}
}

// search is for a ticket whose position is not known. A projection that was never begun holds no records, so it is left
// out.
func (t *Ticket) search(ctx context.Context, s *projection.Snapshot, rows []Row) error {
	if len(rows) > 0 {
		t.State, t.Row, t.Position = Applied, &rows[0], &rows[0].Position
		of, _ := s.OfTopic(t.Position.Topic)
		t.belongsTo(of)
		return nil
	}
	t.State = Unknown
	var names []string
	known := true
	for _, of := range s.Served() {
		if of.TicketColumn == "" {
			continue
		}
		at, err := s.CaughtUpAt(ctx, of)
		if err != nil {
			return err
		}
		if at == nil {
			began, err := s.Began(ctx, of)
			if err != nil {
				return err
			}
			known = known && !began
			continue
		}
		names = append(names, of.Name)
		if t.AsOf == nil || at.Before(*t.AsOf) {
			t.AsOf = at
		}
	}
	if !known || t.AsOf == nil {
		t.AsOf = nil
		t.Reason = "it is not among the records read so far, and some partition was not read to its end yet; it may still come: its position gives an exact answer"
		return nil
	}
	t.Reason = fmt.Sprintf("it is not among the records of %s up to as_of; it may still come: its position gives an exact answer", strings.Join(names, " and "))
	return nil
}

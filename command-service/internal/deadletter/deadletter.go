// Package deadletter decides on dead letters: it writes a new command in the place of one, or discards
// it, and writes the decision to the log.
//
// Promises: nothing is written unless every letter of a request can be; a new command is in the log
// before the decision that names it, so a decision never names a command that is not there. A request
// that ends in an UndecidedError may be sent again as it is: a letter's ticket is always the same, so its
// second command counts as a duplicate, and of two decisions the first one holds. Every caller is answered
// within the deadline.
//
// Whether there is a dead letter at a position is the projection's business, which is not asked: what
// has been decided on is rejected, and stays so. A record that this very release can read is most likely
// none but a mistyped position, and a rebuild would reject it; so it is refused unless the caller says
// that he knows (Request.Readable), as one does who has the letter from the read side: Postgres may have
// refused the record, or an older release. Offsets are moved by nobody.
package deadletter

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/tidemark/tidemark/command-service/internal/door"
	"github.com/tidemark/tidemark/shared/event"
	"github.com/tidemark/tidemark/shared/instant"
	"github.com/tidemark/tidemark/shared/kafka"
	"github.com/tidemark/tidemark/shared/position"
	"github.com/tidemark/tidemark/shared/ticket"
)

// Log tells how far the log goes and what stands in it; *kafka.Reader answers.
type Log interface {
	StableEnds(ctx context.Context, topic string, partitions []int32) (map[int32]int64, error)
	RecordAt(ctx context.Context, topic string, partition int32, offset int64) (rec kafka.Record, found bool, err error)
}

var _ Log = (*kafka.Reader)(nil)

// Options of a desk. All are required.
type Options struct {
	Commands   *door.Door // to Topic
	Decisions  *door.Door // to deadletter.command.v1
	Log        Log
	Topic      string // of the dead letters and of their new commands
	Partitions int32  // of Topic
	Deadline   time.Duration
}

// Desk is where decisions are made. It is safe for concurrent use.
type Desk struct{ options Options }

// New returns a desk.
func New(o Options) *Desk { return &Desk{o} }

// Letter is a dead letter and what its new command shall be.
type Letter struct {
	Position string
	Payload  string // {"command_id":…,"event_timestamp":…}; the id may be missing or no id
}

// Request is what is said of all letters of a request: the words beside each decision, and whether records
// may be decided on that can be read.
type Request struct {
	Note, By, CorrelationID string
	Readable                bool
}

// Result is what was written for one letter.
type Result struct {
	Letter   position.Position
	Ticket   uuid.UUID         // of a redrive
	Command  position.Position // of a redrive
	Decision position.Position
}

// BrokenError names every letter that cannot be decided on as it is asked for. Nothing was written.
type BrokenError struct{ Letters []Broken }

// Broken is one of them. Its position is as it was given.
type Broken struct{ Position, Reason string }

func (e *BrokenError) Error() string {
	return fmt.Sprintf("%d letters are broken, the first: %s: %s", len(e.Letters), e.Letters[0].Position, e.Letters[0].Reason)
}

// UndecidedError says that some of what was asked for may be in the log, and some not.
type UndecidedError struct {
	Decided, Letters int
	Err              error // of the first letter that has no decision
}

func (e *UndecidedError) Error() string {
	return fmt.Sprintf("%d of %d letters are decided on: %v", e.Decided, e.Letters, e.Err)
}

func (e *UndecidedError) Unwrap() error { return e.Err }

// job is one letter on its way.
type job struct {
	Result
	broken string
	value  []byte // of the new command; nil where there is none
	err    error  // why it has no decision
}

// Redrive writes a new command for each letter, then the decisions. The error is a *BrokenError, an
// *UndecidedError, or one of the door's after which nothing was written.
func (d *Desk) Redrive(ctx context.Context, letters []Letter, r Request) ([]Result, error) {
	jobs := make([]*job, len(letters))
	given := make([]string, len(letters))
	for i, l := range letters {
		jobs[i], given[i] = d.job(l.Position), l.Position
		if jobs[i].broken == "" {
			jobs[i].reissue(l.Payload)
		}
	}
	return d.decide(ctx, jobs, given, event.Redrive, r)
}

// Discard writes the decision that nothing more will be done about those letters. Its errors are those
// of Redrive.
func (d *Desk) Discard(ctx context.Context, positions []string, r Request) ([]Result, error) {
	jobs := make([]*job, len(positions))
	for i, p := range positions {
		jobs[i] = d.job(p)
	}
	return d.decide(ctx, jobs, positions, event.Discard, r)
}

func (d *Desk) job(text string) *job {
	at, err := position.Parse(text)
	switch {
	case err != nil:
		return &job{broken: err.Error()}
	case at.Topic != d.options.Topic:
		return &job{broken: fmt.Sprintf("dead letters are in the topic %s", d.options.Topic)}
	case at.Partition >= d.options.Partitions:
		return &job{broken: fmt.Sprintf("%s has %d partitions", d.options.Topic, d.options.Partitions)}
	}
	return &job{Result: Result{Letter: at}}
}

// reissue reads what the new command shall be. A ticket that the payload has is kept, so that the first
// client's comes alive; else it is made of the letter's position and the instant.
func (j *job) reissue(payload string) {
	var raw struct {
		CommandID      any     `json:"command_id"`
		EventTimestamp *string `json:"event_timestamp"`
	}
	if err := json.Unmarshal([]byte(payload), &raw); err != nil {
		j.broken = "the payload is no JSON object with an event_timestamp: " + err.Error()
		return
	}
	if raw.EventTimestamp == nil {
		j.broken = "the payload has no event_timestamp"
		return
	}
	at, err := instant.Parse(*raw.EventTimestamp)
	if err != nil {
		j.broken = "event_timestamp: " + err.Error()
		return
	}
	text, _ := raw.CommandID.(string)
	if j.Ticket, err = ticket.Parse(text); err != nil || j.Ticket == uuid.Nil || j.Ticket == uuid.Max {
		j.Ticket = made(j.Letter, instant.Format(at))
	}
	j.value = event.AppendTimestampCommand(nil, event.TimestampCommand{CommandID: j.Ticket, EventTimestamp: at})
}

// made is of the letter and the instant, so that a retry has the same.
func made(letter position.Position, instant string) uuid.UUID {
	return ticket.Derived("tidemark redrive 1", letter.String(), instant)
}

func (d *Desk) decide(ctx context.Context, jobs []*job, given []string, decision event.Decision, r Request) ([]Result, error) {
	ctx, cancel := context.WithTimeout(ctx, d.options.Deadline)
	defer cancel()
	if err := d.options.Decisions.State(); err != nil { // a command without its decision would be half a redrive
		return nil, err
	}
	if err := d.check(ctx, jobs, given, r.Readable); err != nil {
		return nil, err
	}
	each(jobs, func(j *job) {
		if j.value == nil {
			return
		}
		m := kafka.NewMessage(j.Ticket.String(), j.value, r.CorrelationID)
		j.Command, j.err = d.options.Commands.AcceptMessage(ctx, kafka.WithHeader(m, event.HeaderRedriveOf, j.Letter.String()))
	})
	each(jobs, func(j *job) {
		if j.err != nil {
			return
		}
		value := event.AppendDeadLetterCommand(nil, event.DeadLetterCommand{Position: j.Letter, Decision: decision, CommandID: j.Ticket, Note: r.Note, By: r.By})
		j.Decision, j.err = d.options.Decisions.AcceptMessage(ctx, kafka.NewMessage(j.Letter.String(), value, r.CorrelationID))
	})
	return results(jobs)
}

// each works on all letters at once: the door sends together what comes together.
func each(jobs []*job, do func(*job)) {
	var all sync.WaitGroup
	for _, j := range jobs {
		all.Go(func() { do(j) })
	}
	all.Wait()
}

// results sums up. Nothing was written where no command and no decision was, and none may have been.
func results(jobs []*job) ([]Result, error) {
	out := make([]Result, len(jobs))
	var first error
	decided, written := 0, false
	for i, j := range jobs {
		out[i] = j.Result
		if j.err == nil {
			decided++
		} else if first == nil {
			first = j.err
		}
		written = written || j.err == nil || j.Command.Topic != "" || errors.Is(j.err, door.ErrUnknown)
	}
	switch {
	case first == nil:
		return out, nil
	case !written:
		return nil, first
	}
	return nil, &UndecidedError{Decided: decided, Letters: len(jobs), Err: first}
}

// check finds what is broken before anything is written. A position that the log has not come to yet is:
// the record that will stand there would be rejected before anybody has seen it.
func (d *Desk) check(ctx context.Context, jobs []*job, given []string, readable bool) error {
	partitions := map[int32]bool{}
	seen := map[position.Position]bool{}
	for _, j := range jobs {
		switch {
		case j.broken != "":
		case seen[j.Letter]:
			j.broken = "the position is named twice"
		default:
			seen[j.Letter], partitions[j.Letter.Partition] = true, true
		}
	}
	ends, err := d.ends(ctx, partitions)
	if err != nil {
		return err
	}
	for _, j := range jobs {
		if end := ends[j.Letter.Partition]; j.broken == "" && j.Letter.Offset >= end {
			j.broken = fmt.Sprintf("the log has no such record: this partition ends at offset %d", end)
		}
	}
	if !readable {
		if err := d.read(ctx, jobs); err != nil {
			return err
		}
	}
	var broken []Broken
	for i, j := range jobs {
		if j.broken != "" {
			broken = append(broken, Broken{given[i], j.broken})
		}
	}
	if len(broken) > 0 {
		return &BrokenError{broken}
	}
	return nil
}

// ends asks how far the log goes.
func (d *Desk) ends(ctx context.Context, wanted map[int32]bool) (map[int32]int64, error) {
	partitions := make([]int32, 0, len(wanted))
	for p := range wanted {
		partitions = append(partitions, p)
	}
	if len(partitions) == 0 {
		return nil, nil
	}
	return asked(ctx, func() (map[int32]int64, error) { return d.options.Log.StableEnds(ctx, d.options.Topic, partitions) })
}

// read finds the letters whose records can be read.
func (d *Desk) read(ctx context.Context, jobs []*job) error {
	reasons, err := asked(ctx, func() ([]string, error) {
		reasons, errs := make([]string, len(jobs)), make([]error, len(jobs))
		var all sync.WaitGroup
		for i, j := range jobs {
			if j.broken != "" {
				continue
			}
			all.Go(func() {
				record, found, err := d.options.Log.RecordAt(ctx, d.options.Topic, j.Letter.Partition, j.Letter.Offset)
				switch {
				case err != nil:
					errs[i] = err
				case !found:
					reasons[i] = "the log has no record at this offset"
				default:
					if _, err := event.DecodeTimestampCommand(record.Value); err == nil {
						reasons[i] = `the record can be read, so it is most likely no dead letter; if the read side lists it as one, send "readable": true`
					}
				}
			})
		}
		all.Wait()
		return reasons, errors.Join(errs...)
	})
	if err != nil {
		return err
	}
	for i, reason := range reasons {
		if reason != "" {
			jobs[i].broken = reason
		}
	}
	return nil
}

// asked returns what the log answers. A broker that hangs keeps the question longer than the caller waits.
func asked[T any](ctx context.Context, question func() (T, error)) (T, error) {
	type answer struct {
		value T
		err   error
	}
	answers := make(chan answer, 1)
	go func() {
		value, err := question()
		answers <- answer{value, err}
	}()
	var a answer
	select {
	case a = <-answers:
	case <-ctx.Done():
		a.err = ctx.Err()
	}
	if a.err != nil {
		var none T
		return none, fmt.Errorf("%w: %w", door.ErrAway, a.err)
	}
	return a.value, nil
}

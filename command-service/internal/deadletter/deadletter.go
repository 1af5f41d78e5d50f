// Package deadletter decides on dead letters: it writes a new command in the place of one, or discards
// it, and writes the decision to the log.
//
// Promises: nothing is written unless every letter of a request can be; a new command is in the log
// before the decision that names it, so a decision never names a command that is not there. A request
// that ends in an UndecidedError may be sent again as it is: a letter's ticket is always the same, so its
// second command counts as a duplicate. Every caller is answered within the deadline.
//
// A letter is decided once. The desk reads the log of decisions to its end before it decides, one request at a time, and refuses a
// request that has a decided letter, with what was decided and when (DecidedError). A decision that bears the same request id was
// made by an earlier try of the same request (same Idempotency-Key): it counts as done and is not written again. Two processes that
// decide within the same milliseconds may both write; then the first decision in the log holds, and the read side shows it. The
// command of a redrive that lost so is in the log all the same.
//
// The letters of every projection are decided on here. A redrive is a new command, so only letters of topics that
// command-service writes can be redriven; those of others can be discarded.
//
// Whether there is a dead letter at a position is known to the projection, which is not asked. A decision makes every
// rebuild reject the record at its position. A record that this release can read is most likely no dead letter, but the
// record at a mistyped position, and the decision would lose its row. So such a request is refused, unless the caller
// says that the records may be readable (Request.Readable). A caller who has the letter from the read side says so:
// Postgres may have refused the record, or an older release. No offset is moved.
package deadletter

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/tidemark/tidemark/command-service/internal/door"
	"github.com/tidemark/tidemark/shared/event"
	"github.com/tidemark/tidemark/shared/kafka"
	"github.com/tidemark/tidemark/shared/position"
	"github.com/tidemark/tidemark/shared/topic"
)

// Log says where the log ends and which records it holds; *kafka.Reader implements it.
type Log interface {
	StableEnds(ctx context.Context, topic string, partitions []int32) (map[int32]int64, error)
	RecordAt(ctx context.Context, topic string, partition int32, offset int64) (rec kafka.Record, found bool, err error)
	ReadFrom(ctx context.Context, topic string, partition int32, offset int64) (records []kafka.Record, next int64, err error)
}

var _ Log = (*kafka.Reader)(nil)

// Options of a desk. All are required.
type Options struct {
	Topics        []Topic       // the topics that may have dead letters
	Decisions     *door.Door    // the door to deadletter.command.v1
	DecisionTopic topic.Spec    // that topic, with the count of its partitions
	Log           Log           // where the records of dead letters, and decisions, are read
	Deadline      time.Duration // the longest a caller waits for an answer
}

// Desk is where decisions are made. It is safe for concurrent use.
type Desk struct {
	options Options
	turn    chan struct{} // holds a token while somebody decides
	decided decisions     // of whoever has the turn
}

// New returns a desk.
func New(o Options) *Desk {
	return &Desk{options: o, turn: make(chan struct{}, 1), decided: decisions{log: o.Log, topic: o.DecisionTopic}}
}

// Letter is a dead letter and what its new command shall be.
type Letter struct {
	Position string
	Payload  string // the value of the new record; its command_id may be missing or no id
}

// Request is what a request says about all of its letters.
type Request struct {
	Note     string // kept with each decision
	By       string // id of the API key; empty without keys
	ByName   string // name of the API key, for new commands that say who sent them; empty without keys
	Readable bool   // whether records that this release can read may be decided on
	// ID names one decision of this request, from what it is about and what it decides: the same in each try of the request.
	// Required.
	ID func(letter position.Position, wanted string) uuid.UUID
}

// Result is what was written for one letter.
type Result struct {
	Letter   position.Position
	Ticket   uuid.UUID         // of a redrive
	Command  position.Position // of a redrive; none where an earlier try of the request wrote it
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
	topic   Topic
	broken  string
	command *door.Command // nil where there is none
	id      uuid.UUID     // of the decision, the same in each try
	done    bool          // an earlier try of the request decided it
	err     error         // why it has no decision
}

// Redrive writes a new command for each letter, then the decisions. The error is a *BrokenError, a
// *DecidedError, an *UndecidedError, or one of the door's after which nothing was written.
func (d *Desk) Redrive(ctx context.Context, letters []Letter, r Request) ([]Result, error) {
	jobs := make([]*job, len(letters))
	given := make([]string, len(letters))
	for i, l := range letters {
		jobs[i], given[i] = d.job(l.Position), l.Position
		if jobs[i].broken == "" {
			jobs[i].redrive(l.Payload, r.ByName)
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
	if err != nil {
		return &job{broken: err.Error()}
	}
	i := slices.IndexFunc(d.options.Topics, func(t Topic) bool { return t.Spec.Name == at.Topic })
	if i < 0 {
		return &job{broken: "there are no dead letters in this topic, only in " + d.names()}
	}
	t := d.options.Topics[i]
	if int(at.Partition) >= t.Spec.Partitions {
		return &job{broken: fmt.Sprintf("%s has %d partitions", t.Spec.Name, t.Spec.Partitions)}
	}
	return &job{Result: Result{Letter: at}, topic: t}
}

func (d *Desk) names() string {
	names := make([]string, len(d.options.Topics))
	for i, t := range d.options.Topics {
		names[i] = t.Spec.Name
	}
	return strings.Join(names, ", ")
}

// redrive reads what the new command shall be.
func (j *job) redrive(payload, sentBy string) {
	if j.topic.Commands == nil {
		j.broken = "command-service does not write " + j.topic.Spec.Name + ", so it cannot write a new record in this one's place: discard the letter"
		return
	}
	id, command, err := j.topic.redrive(j.Letter, payload, sentBy)
	if err != nil {
		j.broken = "the payload is not accepted: " + err.Error()
		return
	}
	command.Headers = map[string]string{event.HeaderRedriveOf: j.Letter.String()}
	j.Ticket, j.command = id, &command
}

func (d *Desk) decide(ctx context.Context, jobs []*job, given []string, decision event.Decision, r Request) ([]Result, error) {
	ctx, cancel := context.WithTimeout(ctx, d.options.Deadline)
	defer cancel()
	if err := d.options.Decisions.State(); err != nil { // a command without its decision would be half a redrive
		return nil, err
	}
	release, err := d.takeTurn(ctx)
	if err != nil {
		return nil, err
	}
	defer release()
	if err := d.refuseDecided(jobs, decision, r); err != nil {
		return nil, err
	}
	if err := d.check(ctx, jobs, given, r.Readable); err != nil {
		return nil, err
	}
	for _, t := range d.options.Topics {
		accept(ctx, t.Commands, jobs, func(j *job) (*door.Command, *position.Position) {
			if j.done || j.topic.Spec.Name != t.Spec.Name {
				return nil, nil
			}
			return j.command, &j.Command
		})
	}
	accept(ctx, d.options.Decisions, jobs, func(j *job) (*door.Command, *position.Position) {
		if j.done {
			return nil, nil
		}
		value := event.AppendDeadLetterCommand(nil, event.DeadLetterCommand{Position: j.Letter, Decision: decision, CommandID: j.Ticket, RequestID: j.id, Note: r.Note, By: r.By})
		return &door.Command{Key: j.Letter.String(), Value: value}, &j.Decision
	})
	return results(jobs)
}

// takeTurn waits for the turn and reads the decisions that were made so far. A broker that hangs keeps the turn until it answers,
// but not its caller.
func (d *Desk) takeTurn(ctx context.Context) (release func(), err error) {
	select {
	case d.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, fmt.Errorf("%w: %w", door.ErrBusy, ctx.Err())
	}
	release = func() { <-d.turn }
	read := make(chan struct{})
	var failed error
	go func() {
		failed = d.decided.catchUp(ctx)
		close(read)
	}()
	select {
	case <-read:
		if err = failed; err != nil {
			release()
		}
	case <-ctx.Done():
		err = ctx.Err()
		go func() {
			<-read
			release()
		}()
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", door.ErrDown, err)
	}
	return release, nil
}

// refuseDecided finds the letters that were decided on before: those that an earlier try of this request decided are done, any
// other is refused.
func (d *Desk) refuseDecided(jobs []*job, decision event.Decision, r Request) error {
	var refused []Decided
	for _, j := range jobs {
		if j.Letter.Topic == "" {
			continue
		}
		wanted := string(decision)
		if j.command != nil {
			wanted += " " + j.Ticket.String()
		}
		j.id = r.ID(j.Letter, wanted)
		made, decided := d.decided.made[j.Letter]
		switch {
		case !decided:
		case made.RequestID == j.id:
			j.done, j.Ticket, j.Decision = true, made.CommandID, d.decided.place(made)
		default:
			refused = append(refused, Decided{made, d.decided.place(made)})
		}
	}
	if len(refused) > 0 {
		return &DecidedError{refused}
	}
	return nil
}

// accept writes the command of each job that has one and did not fail before, all of them together.
func accept(ctx context.Context, to *door.Door, jobs []*job, of func(*job) (command *door.Command, written *position.Position)) {
	var commands []door.Command
	var written []*position.Position
	var ours []*job
	for _, j := range jobs {
		if j.err != nil {
			continue
		}
		if command, at := of(j); command != nil {
			commands, written, ours = append(commands, *command), append(written, at), append(ours, j)
		}
	}
	if len(commands) == 0 {
		return
	}
	for i, o := range to.Accept(ctx, commands...) {
		*written[i], ours[i].err = o.Position, o.Err
	}
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

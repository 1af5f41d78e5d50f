package generation

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// State is what a generation is doing; the package comment draws them.
type State string

// States of a generation.
const (
	Queued   State = "queued"
	Serving  State = "serving"
	Swapping State = "swapping"
	Filling  State = "filling"
	Indexing State = "indexing"
	Ready    State = "ready"
	Standby  State = "standby"
	Held     State = "held"
	Dropping State = "dropping"
)

// written reports whether workers write the generation.
func (s State) written() bool {
	return s == Filling || s == Indexing || s == Ready || s == Standby
}

// serves reports whether it is the one that everyone reads.
func (s State) serves() bool { return s == Serving || s == Swapping }

// Generation is one set of tables and how it comes along.
type Generation struct {
	Projection  string
	Number      int
	State       State
	Epoch       int64
	Group       string // the consumer group that reads the log for it; empty where none does
	Schema      string
	RequestedAt time.Time
	StateSince  time.Time
	SwapWanted  bool
	ProofWanted bool
	RateLimit   *int            // records a second
	Point       *string         // as it was asked for; nil follows the log
	Stops       map[int32]int64 // by partition, where Point is given
	TopicID     string          // of the topic that it is computed from; empty where none was read yet
	FillMs      *float64        // how long it read the log until it had caught up, or was at its point; nil until then
	IndexMs     *float64        // how long the indexes took that come after that; nil until they are made
	NewLog      bool            // filled from a topic that was made anew and accepted: never verified against the one before
	Progress    Progress
	Proof       *Proof
}

// Progress of a generation, over all its partitions.
type Progress struct {
	Done       int64      // offsets passed since the first one
	Total      int64      // to the log's end, or the point
	Rate       float64    // records a second, over the last seconds
	ETA        *float64   // seconds until it has caught up, at the rate at which the lag shrinks; nil where it does not
	Bottleneck Bottleneck // what the time goes to
	Stalled    *time.Time // since when nothing has moved although something should
	Note       string     // the last trouble, in words
}

// Lag is what is still to be read.
func (p Progress) Lag() int64 { return max(p.Total-p.Done, 0) }

// Bottleneck is what a rebuild spends most of its time on.
type Bottleneck string

// Bottlenecks.
const (
	ByKafka    Bottleneck = "kafka"
	ByConsumer Bottleneck = "consumer"
	ByPostgres Bottleneck = "postgres"
	ByThrottle Bottleneck = "throttle"
	ByNothing  Bottleneck = "none"
)

// Request asks for a new generation.
type Request struct {
	Swap           bool // prove and swap as soon as it is ready
	RateLimit      *int
	To             *Point
	ReplaceStandby bool // drop the standby
}

// Point is where a rebuild to a point ends: one of the two is given.
type Point struct {
	Time     *time.Time
	Position string
}

var (
	// ErrNotFound says that there is no such generation.
	ErrNotFound = errors.New("there is no such generation")
	// ErrBusy says that no audit was possible: another process is at it.
	ErrBusy = errors.New("another process is auditing")
	// ErrNotRunning says that no process runs the projection, so that nothing that is asked for would be done.
	ErrNotRunning = errors.New("no process runs the projection")
)

// ConflictError refuses what the state does not allow. Its text says what to do.
type ConflictError struct{ Reason string }

func (e *ConflictError) Error() string { return e.Reason }

func conflict(format string, args ...any) error { return &ConflictError{fmt.Sprintf(format, args...)} }

// PointError refuses a point that the log does not have.
type PointError struct{ Reason string }

func (e *PointError) Error() string { return e.Reason }

func noPoint(format string, args ...any) error { return &PointError{fmt.Sprintf(format, args...)} }

// row is a generation as the table has it.
type row struct {
	Projection  string     `db:"projection"`
	Number      int        `db:"generation"`
	Schema      string     `db:"schema_name"`
	State       State      `db:"state"`
	Epoch       int64      `db:"epoch"`
	GroupName   *string    `db:"group_name"`
	RequestedAt time.Time  `db:"requested_at"`
	StateSince  time.Time  `db:"state_since"`
	SwapWanted  bool       `db:"swap_wanted"`
	ProofWanted bool       `db:"proof_wanted"`
	RateLimit   *int       `db:"rate_limit"`
	Point       *string    `db:"point"`
	Stops       []byte     `db:"stops"`
	Proof       []byte     `db:"proof"`
	TopicID     *string    `db:"topic_id"`
	NewLog      bool       `db:"new_log"`
	FillMs      *float64   `db:"fill_ms"`
	IndexMs     *float64   `db:"index_ms"`
	Rate        *float64   `db:"rate"`
	ETA         *float64   `db:"eta_seconds"`
	Bottleneck  *string    `db:"bottleneck"`
	Stalled     *time.Time `db:"stalled_since"`
	Note        *string    `db:"note"`
}

// generation reads r. The group of one that does not serve is made of the configured name.
func (r row) generation(group string) (Generation, error) {
	g := Generation{
		Projection: r.Projection, Number: r.Number, State: r.State, Epoch: r.Epoch, Schema: r.Schema, RequestedAt: r.RequestedAt, StateSince: r.StateSince,
		SwapWanted: r.SwapWanted, ProofWanted: r.ProofWanted, RateLimit: r.RateLimit, Point: r.Point, NewLog: r.NewLog, FillMs: r.FillMs, IndexMs: r.IndexMs,
		Progress: Progress{ETA: r.ETA, Stalled: r.Stalled, Bottleneck: ByNothing},
	}
	switch {
	case r.State.serves() && r.GroupName != nil:
		g.Group = *r.GroupName
	case r.State.written():
		g.Group = CandidateGroup(group, r.Number)
	}
	if r.State.serves() {
		r.Rate, r.Bottleneck, r.Note, g.Progress.ETA, g.Progress.Stalled = nil, nil, nil, nil, nil // of the time before it served
	}
	if r.TopicID != nil {
		g.TopicID = *r.TopicID
	}
	if r.Rate != nil {
		g.Progress.Rate = *r.Rate
	}
	if r.Bottleneck != nil {
		g.Progress.Bottleneck = Bottleneck(*r.Bottleneck)
	}
	if r.Note != nil {
		g.Progress.Note = *r.Note
	}
	if r.Stops != nil {
		if err := json.Unmarshal(r.Stops, &g.Stops); err != nil {
			return g, fmt.Errorf("read the stops of generation %d: %w", r.Number, err)
		}
	}
	if r.Proof != nil {
		g.Proof = &Proof{}
		if err := json.Unmarshal(r.Proof, g.Proof); err != nil {
			return g, fmt.Errorf("read the proof of generation %d: %w", r.Number, err)
		}
	}
	return g, nil
}

// CandidateGroup is the consumer group of a generation that does not serve.
func CandidateGroup(group string, generation int) string {
	return fmt.Sprintf("%s.g%d", group, generation)
}

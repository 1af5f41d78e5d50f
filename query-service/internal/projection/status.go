package projection

import (
	"slices"
	"time"

	"github.com/tidemark/tidemark/shared/pace"
)

// FreshFor is how old a log end or a watermark may be, by the database's clock. The consumer asks for log ends each second;
// the rest is for one that is slow, or whose group has just changed hands. Of a partition whose log end is older nobody
// knows the lag.
const FreshFor = 10 * time.Second

// State is what a projection is doing, in one word.
type State string

// The states, the worst first.
const (
	Refused    State = "refused"     // a process stopped it, since going on would make the tables wrong
	Down       State = "down"        // it was projected before, and nobody has read the end of its log for FreshFor
	Rebuilding State = "rebuilding"  // its epoch has not caught up with the log once
	CatchingUp State = "catching_up" // some partition has had a lag for a while, or nobody knows its lag
	Serving    State = "serving"     // it keeps up with the log
	Off        State = "off"         // it was never begun, and no process runs it: no fault
)

// States returns all of them, the worst first.
func States() []State { return []State{Refused, Down, Rebuilding, CatchingUp, Serving, Off} }

// Status is how far one projection is and whether its tables are complete, all of one snapshot.
type Status struct {
	Served
	Group      *string
	StartedAt  *time.Time
	ReadAt     time.Time // the database's clock
	Running    bool      // a process that runs it was there within 10 s
	Refusal    string    // why it has stopped by itself; empty where it has not
	Partitions []Partition
	Audits     []Audit
	Pace       pace.Measure
}

// Partition is the progress of one partition, with all its counts.
type Partition struct {
	Topic       string     `db:"topic"`
	Partition   int32      `db:"partition"`
	Epoch       int64      `db:"epoch"`
	FirstOffset int64      `db:"first_offset"`
	NextOffset  int64      `db:"next_offset"`
	Applied     int64      `db:"applied"`
	Duplicate   int64      `db:"duplicate"`
	Rejected    int64      `db:"rejected"` // the dead letters
	Decided     int64      `db:"-"`        // of Rejected: those that somebody decided on
	Expired     int64      `db:"expired"`
	Skipped     int64      `db:"skipped"`
	Dropped     int64      `db:"dropped"` // of Applied: rows that went with their day
	LogEnd      *int64     `db:"log_end"`
	LogEndAt    *time.Time `db:"log_end_at"`
	CaughtUpAt  *time.Time `db:"caught_up_at"`
	UpdatedAt   time.Time  `db:"updated_at"`
}

// fresh reports whether the log's end was read lately.
func (p Partition) fresh(now time.Time) bool {
	return p.LogEnd != nil && p.LogEndAt != nil && now.Sub(*p.LogEndAt) <= FreshFor
}

// Lag is how many offsets are not projected yet; nil where the log's end is not known as of now, by the database's clock.
// The end is polled, so the projection can be ahead of the last poll: that is no lag.
func (p Partition) Lag(now time.Time) *int64 {
	if !p.fresh(now) {
		return nil
	}
	lag := max(*p.LogEnd-p.NextOffset, 0)
	return &lag
}

// Open is how many of the dead letters nobody has decided on.
func (p Partition) Open() int64 { return max(p.Rejected-p.Decided, 0) }

// Done is how many offsets were passed.
func (p Partition) Done() int64 { return p.NextOffset - p.FirstOffset }

func (p Partition) catchingUp(now time.Time) bool {
	lag := p.Lag(now)
	return (lag == nil || *lag > 0) && (p.CaughtUpAt == nil || now.Sub(*p.CaughtUpAt) > FreshFor)
}

// Audit is the newest comparison of one partition's counts with what its tables hold.
type Audit struct {
	Topic            string    `db:"topic"`
	Partition        int32     `db:"partition"`
	AuditedAt        time.Time `db:"audited_at"`
	TookMS           float64   `db:"took_ms"`
	Epoch            int64     `db:"epoch"`
	FirstOffset      int64     `db:"first_offset"`
	NextOffset       int64     `db:"next_offset"`
	Applied          int64     `db:"applied"`
	Duplicate        int64     `db:"duplicate"`
	Rejected         int64     `db:"rejected"`
	Expired          int64     `db:"expired"`
	Skipped          int64     `db:"skipped"`
	Dropped          int64     `db:"dropped"`
	RowsFound        int64     `db:"rows_found"`
	DeadLettersFound int64     `db:"dead_letters_found"`
	RowsAhead        int64     `db:"rows_ahead"`
	OK               bool      `db:"ok"`
	Finding          string    `db:"finding"` // empty where OK
}

// State is the worst that is true of it.
func (s Status) State() State {
	began, fresh, caughtUp := false, false, len(s.Partitions) > 0
	for _, p := range s.Partitions {
		began = began || p.CaughtUpAt != nil || p.LogEndAt != nil
		fresh = fresh || p.fresh(s.ReadAt)
		caughtUp = caughtUp && p.CaughtUpAt != nil
	}
	switch {
	case s.Refusal != "":
		return Refused
	case !s.Running && !began:
		return Off
	case began && !fresh:
		return Down
	case !caughtUp:
		return Rebuilding
	case s.CatchingUp():
		return CatchingUp
	}
	return Serving
}

// Counts are sums over the partitions of one projection.
type Counts struct {
	Applied, Duplicate, Rejected, Expired, Skipped, Dropped int64
	Decided                                                 int64      // of Rejected: dead letters that somebody decided on
	Lag                                                     *int64     // nil where one partition's is not known
	LagUnknownSince                                         *time.Time // when a log end was last read that is missing now; nil where Lag is known, or never was
}

// Open is how many of the dead letters nobody has decided on.
func (c Counts) Open() int64 { return max(c.Rejected-c.Decided, 0) }

// Totals adds the partitions up.
func (s Status) Totals() Counts {
	var c Counts
	var lag int64
	known := len(s.Partitions) > 0
	for _, p := range s.Partitions {
		c.Applied += p.Applied
		c.Duplicate += p.Duplicate
		c.Rejected += p.Rejected
		c.Decided += p.Decided
		c.Expired += p.Expired
		c.Skipped += p.Skipped
		c.Dropped += p.Dropped
		if l := p.Lag(s.ReadAt); l != nil {
			lag += *l
			continue
		}
		known = false
		if at := p.LogEndAt; at != nil && (c.LagUnknownSince == nil || at.Before(*c.LagUnknownSince)) {
			c.LagUnknownSince = at
		}
	}
	if known {
		c.Lag = &lag
	}
	return c
}

// CatchingUp reports whether some partition has a lag, or one that nobody knows, and has not caught up for a while.
func (s Status) CatchingUp() bool {
	return slices.ContainsFunc(s.Partitions, func(p Partition) bool { return p.catchingUp(s.ReadAt) })
}

// CaughtUpAt is the instant up to which everything accepted is projected; nil where a partition
// has never caught up.
func (s Status) CaughtUpAt() *time.Time {
	var least *time.Time
	for _, p := range s.Partitions {
		if p.CaughtUpAt == nil {
			return nil
		}
		if least == nil || p.CaughtUpAt.Before(*least) {
			least = p.CaughtUpAt
		}
	}
	return least
}

// Replay is the way from the first offset to the log's end.
type Replay struct {
	Done    int64
	Total   *int64         // nil where a log's end is not known
	Percent *float64       // 100 where there is nothing to read
	Rate    *float64       // records a second, lately; nil until it was measured for long enough
	ETA     *time.Duration // nil where the lag does not shrink, or is not known; 0 when caught up
	Stuck   bool           // the lag does not shrink
}

// Replay measures it, with the rates of Pace.
func (s Status) Replay() Replay {
	var r Replay
	for _, p := range s.Partitions {
		r.Done += p.Done()
	}
	r.Rate = s.Pace.Rate
	lag := s.Totals().Lag
	if lag == nil {
		return r
	}
	total, percent := r.Done+*lag, 100.0
	if total > 0 {
		percent = 100 * float64(r.Done) / float64(total)
	}
	r.Total, r.Percent = &total, &percent
	r.ETA, r.Stuck = s.Pace.ETA, s.Pace.Stuck
	if *lag == 0 {
		r.ETA, r.Stuck = new(time.Duration), false
	}
	return r
}

// AuditSummary is the verdict over all partitions.
type AuditSummary struct {
	OK      *bool      // nil where none disagrees, and one is missing or the epoch has not caught up once
	LastRun *time.Time // of the newest audit
	Missing int        // partitions without an audit in this epoch
}

// Audited sums the audits up. One of an earlier epoch says nothing about this one; and while the log is still being read
// for the first time, those of this one are of a part.
func (s Status) Audited() AuditSummary {
	var sum AuditSummary
	whole := s.CaughtUpAt() != nil
	agree := true
	for _, p := range s.Partitions {
		i := slices.IndexFunc(s.Audits, func(a Audit) bool {
			return a.Topic == p.Topic && a.Partition == p.Partition && a.Epoch == p.Epoch
		})
		if i < 0 {
			sum.Missing++
			whole = false
			continue
		}
		agree = agree && s.Audits[i].OK
	}
	for _, a := range s.Audits {
		if sum.LastRun == nil || a.AuditedAt.After(*sum.LastRun) {
			sum.LastRun = &a.AuditedAt
		}
	}
	if whole || !agree {
		ok := agree
		sum.OK = &ok
	}
	return sum
}

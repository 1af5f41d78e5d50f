package projection

import (
	"slices"
	"time"
)

// caughtUpFor is how old the last watermark may be before a partition with a lag counts as catching up. The consumer
// asks for log ends each second; the rest is for clocks that differ.
const caughtUpFor = 10 * time.Second

// State is what a projection is doing, in one word.
type State string

// The states, the worst first.
const (
	Refused    State = "refused"     // a process stopped it, since going on would make the tables wrong
	Down       State = "down"        // it was projected before, and no process runs it now
	Rebuilding State = "rebuilding"  // its epoch has not caught up with the log once
	CatchingUp State = "catching_up" // some partition has had a lag for a while
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
	Pace       Pace
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

// Lag is how many offsets are not projected yet; nil where the log's end is not known. The end is
// polled, so the projection can be ahead of the last poll: that is no lag.
func (p Partition) Lag() *int64 {
	if p.LogEnd == nil {
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
	lag := p.Lag()
	return (lag == nil || *lag > 0) && (p.CaughtUpAt == nil || now.Sub(*p.CaughtUpAt) > caughtUpFor)
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
	began, caughtUp := false, len(s.Partitions) > 0
	for _, p := range s.Partitions {
		began = began || p.CaughtUpAt != nil || p.LogEndAt != nil
		caughtUp = caughtUp && p.CaughtUpAt != nil
	}
	switch {
	case s.Refusal != "":
		return Refused
	case !s.Running && !began:
		return Off
	case !s.Running:
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
	Decided                                                 int64  // of Rejected: dead letters that somebody decided on
	Lag                                                     *int64 // nil where one partition's is not known
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
		if l := p.Lag(); l != nil {
			lag += *l
		} else {
			known = false
		}
	}
	if known {
		c.Lag = &lag
	}
	return c
}

// CatchingUp reports whether some partition has a lag and has not caught up for a while.
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
	Rate    *float64       // records a second, lately
	ETA     *time.Duration // nil where the lag does not shrink, or is not known; 0 when caught up
}

// Replay measures it, with the rates of Pace.
func (s Status) Replay() Replay {
	var r Replay
	for _, p := range s.Partitions {
		r.Done += p.Done()
	}
	if s.Pace.Known {
		r.Rate = &s.Pace.Done
	}
	lag := s.Totals().Lag
	if lag == nil {
		return r
	}
	total, percent := r.Done+*lag, 100.0
	if total > 0 {
		percent = 100 * float64(r.Done) / float64(total)
	}
	r.Total, r.Percent = &total, &percent
	switch {
	case *lag == 0:
		r.ETA = new(time.Duration)
	case s.Pace.Known && s.Pace.Shrink > 0:
		eta := time.Duration(min(float64(*lag)/s.Pace.Shrink, 1e9) * float64(time.Second))
		r.ETA = &eta
	}
	return r
}

// AuditSummary is the verdict over all partitions.
type AuditSummary struct {
	OK      *bool      // nil where one is missing and none disagrees
	LastRun *time.Time // of the newest audit
	Missing int        // partitions without an audit in this epoch
}

// Audited sums the audits up. One of an earlier epoch says nothing about this one.
func (s Status) Audited() AuditSummary {
	var sum AuditSummary
	whole := len(s.Partitions) > 0
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

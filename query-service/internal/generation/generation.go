// Package generation reads the generations of projections from the database: which sets of tables there are, how far a
// rebuild is, and what its proof found. So this is known while consumer-service is down. Changes of a generation are left
// to consumer-service, which package peer asks for them.
package generation

import (
	"errors"
	"time"
)

// State is what a generation is doing.
type State string

// The states.
const (
	Queued   State = "queued"  // it waits for the rebuild of another projection
	Serving  State = "serving" // everyone reads it
	Swapping State = "swapping"
	Filling  State = "filling"
	Indexing State = "indexing"
	Ready    State = "ready"   // caught up, and kept so
	Standby  State = "standby" // served before; a rollback returns to it
	Held     State = "held"    // filled to its point, or computed from a topic that was made anew since
	Dropping State = "dropping"
)

// ErrNotFound says that the projection has no generation of that number.
var ErrNotFound = errors.New("there is no such generation")

// Generation is one set of a projection's tables.
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
	RateLimit   *int    // records a second; nil for none
	Point       *string // the time or position it is filled to; nil where it follows the log
	Progress    Progress
	Proof       *Proof   // nil while it was never verified
	FillMS      *float64 // how long it read the log until it had caught up, or was at its point; nil until then
	IndexMS     *float64 // how long the indexes took that come after that; nil until they are made
	NewLog      bool     // filled from a topic that was made anew and accepted: never verified against the generation before
}

// Serves reports whether this is the one that is read.
func (g Generation) Serves() bool { return g.State == Serving || g.State == Swapping }

// Rebuilding reports whether it is on its way to serve or to be held: only one of a projection may be.
func (g Generation) Rebuilding() bool {
	return g.State == Queued || g.State == Filling || g.State == Indexing || g.State == Ready
}

// Moving reports whether its state will change without anybody's doing.
func (g Generation) Moving() bool {
	switch g.State {
	case Queued, Filling, Indexing, Swapping, Dropping:
		return true
	}
	return g.State == Ready && g.SwapWanted
}

// fed reports whether it is written without serving.
func (g Generation) fed() bool {
	return g.State == Filling || g.State == Indexing || g.State == Ready || g.State == Standby
}

// Progress is how far a generation is filled, over its partitions.
type Progress struct {
	Done       int64 // offsets passed since the first one
	Total      int64 // from the first one to the log's end as it was last read, or to the point
	Current    bool  // the log's end was read within the last seconds, or there is a point: the lag is known
	Measured   bool  // consumer-service has measured what follows within the last seconds; else it is zero
	Rate       float64
	ETASeconds *float64 // until it has caught up; nil where that is not known
	Bottleneck string   // kafka, consumer, postgres, throttle or none
	Stalled    *time.Time
	Note       string      // the last trouble, in words
	Index      *IndexBuild // that is being built; nil where none is, or where Postgres does not let this role see it
}

// Lag is what is still to be read; nil where that is not known.
func (p Progress) Lag() *int64 {
	if !p.Current {
		return nil
	}
	lag := max(p.Total-p.Done, 0)
	return &lag
}

// Percent is 100 where there is nothing to read.
func (p Progress) Percent() float64 {
	if p.Total <= 0 {
		return 100
	}
	return 100 * float64(min(p.Done, p.Total)) / float64(p.Total)
}

// IndexBuild is how far Postgres is with an index.
type IndexBuild struct {
	Table string `db:"table_name"`
	Phase string `db:"phase"` // in Postgres's words
	Done  int64  `db:"done"`  // blocks, or tuples, of this phase
	Total int64  `db:"total"` // 0 where the phase does not count
}

// Proof is the comparison of a generation with the serving one, at one vector of offsets in one snapshot.
// It is kept in the database as consumer-service's API gives it.
type Proof struct {
	OK          bool             `json:"ok"`
	At          time.Time        `json:"at"`
	TookMS      float64          `json:"took_ms"`
	Against     int              `json:"against"` // the generation that served
	Vector      map[string]int64 `json:"vector"`
	Tables      []TableProof     `json:"tables"`
	Differences []Difference     `json:"differences"`
	Finding     string           `json:"finding"` // empty where the proof holds
}

// TableProof compares one table's rows and the hash over them, which does not depend on their order.
type TableProof struct {
	Table         string `json:"table"`
	OK            bool   `json:"ok"`
	RowsServing   int64  `json:"rows_serving"`
	RowsCandidate int64  `json:"rows_candidate"`
	HashServing   string `json:"hash_serving"`
	HashCandidate string `json:"hash_candidate"`
}

// Difference is one key whose rows differ; nil where one of the two has no row.
type Difference struct {
	Table     string  `json:"table"`
	Key       string  `json:"key"`
	Serving   *string `json:"serving"`
	Candidate *string `json:"candidate"`
}

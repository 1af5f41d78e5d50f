package peer

import (
	"context"
	"fmt"
	"net/http"
	"time"
)

// Generation is one set of projected tables, as consumer-service tells it.
type Generation struct {
	Generation  int        `json:"generation"`
	State       string     `json:"state"`
	Epoch       int64      `json:"epoch"`
	Group       string     `json:"group"`
	Schema      string     `json:"schema"`
	RequestedAt *time.Time `json:"requested_at"`
	StateSince  *time.Time `json:"state_since"`
	SwapWanted  bool       `json:"swap_wanted"`
	RateLimit   *int64     `json:"rate_limit"`
	Point       *string    `json:"point"`
	Progress    *Progress  `json:"progress"`
	Proof       *Proof     `json:"proof"`
}

// The states of a generation.
const (
	Serving  = "serving"
	Swapping = "swapping" // the serving one, fenced for the moment of a swap
	Filling  = "filling"
	Indexing = "indexing"
	Ready    = "ready"
	Standby  = "standby"
	Held     = "held"
	Dropping = "dropping"
)

// Serves reports whether this is the one that is read.
func (g Generation) Serves() bool { return g.State == Serving || g.State == Swapping }

// Rebuilding reports whether it is on its way to serve or to be held: only one may be.
func (g Generation) Rebuilding() bool {
	return g.State == Filling || g.State == Indexing || g.State == Ready
}

// Moving reports whether its state will change without anybody's doing.
func (g Generation) Moving() bool {
	return g.State == Filling || g.State == Indexing || g.State == Swapping || g.State == Dropping || g.State == Ready && g.SwapWanted
}

// Progress is how far a generation is filled.
type Progress struct {
	Done         int64      `json:"done"`
	Total        int64      `json:"total"`
	Percent      float64    `json:"percent"`
	Lag          int64      `json:"lag"`
	Rate         float64    `json:"rate"`
	ETASeconds   *float64   `json:"eta_seconds"`
	Bottleneck   string     `json:"bottleneck"`
	StalledSince *time.Time `json:"stalled_since"`
	Note         string     `json:"note"`
}

// Proof is the comparison of two generations at one vector of offsets, in one snapshot.
type Proof struct {
	OK          bool             `json:"ok"`
	At          *time.Time       `json:"at"`
	TookMS      float64          `json:"took_ms"`
	Against     int              `json:"against"`
	Vector      map[string]int64 `json:"vector"`
	Tables      []ProofTable     `json:"tables"`
	Differences []Difference     `json:"differences"`
	Finding     string           `json:"finding"`
}

// ProofTable compares one table's rows and the hash over them, which does not depend on their order.
type ProofTable struct {
	Table       string `json:"table"`
	OK          bool   `json:"ok"`
	RowsServing int64  `json:"rows_serving"`
	RowsSide    int64  `json:"rows_side"`
	HashServing string `json:"hash_serving"`
	HashSide    string `json:"hash_side"`
}

// Difference is one key whose rows differ; nil where a side has none.
type Difference struct {
	Table   string  `json:"table"`
	Key     string  `json:"key"`
	Serving *string `json:"serving"`
	Side    *string `json:"side"`
}

const (
	sharedFor    = 500 * time.Millisecond // how old a list of generations may be
	readPatience = 2 * time.Second        // how long a page waits for it
)

// Generations lists them, the serving one first, as of the last half second. Readers share the list: the
// caller does not change it.
func (c *Client) Generations(ctx context.Context) ([]Generation, error) {
	return c.generations.Get(ctx)
}

func (c *Client) readGenerations(ctx context.Context) ([]Generation, error) {
	var got struct {
		Generations []Generation `json:"generations"`
	}
	_, err := c.send(ctx, request{service: consumer, method: http.MethodGet, url: c.ConsumerURL + "/api/v1/generations"}, &got)
	return got.Generations, err
}

// Rebuild is what a new generation is asked to be. The zero value is blue/green without a swap.
type Rebuild struct {
	Swap           bool   `json:"swap"`
	RateLimit      *int64 `json:"rate_limit,omitempty"`
	To             *Point `json:"to,omitempty"`
	ReplaceStandby bool   `json:"replace_standby,omitempty"`
}

// Point is where a fill stops; one of the two is set.
type Point struct {
	Time     string `json:"time,omitempty"`
	Position string `json:"position,omitempty"`
}

// StartRebuild asks for a new generation.
func (c *Client) StartRebuild(ctx context.Context, r Rebuild) error {
	return c.change(ctx, http.MethodPost, "", r)
}

// Prove compares a generation with the serving one again, without a swap.
func (c *Client) Prove(ctx context.Context, generation int) error {
	return c.change(ctx, http.MethodPost, fmt.Sprintf("/%d/proof", generation), nil)
}

// Swap proves a generation and, if that holds, makes it the serving one.
func (c *Client) Swap(ctx context.Context, generation int) error {
	return c.change(ctx, http.MethodPost, fmt.Sprintf("/%d/swap", generation), nil)
}

// Drop cancels a rebuild or drops a generation that does not serve.
func (c *Client) Drop(ctx context.Context, generation int) error {
	return c.change(ctx, http.MethodDelete, fmt.Sprintf("/%d", generation), nil)
}

func (c *Client) change(ctx context.Context, method, path string, body any) error {
	defer c.generations.Forget()
	_, err := c.send(ctx, request{service: consumer, method: method, url: c.ConsumerURL + "/api/v1/generations" + path, body: body}, nil)
	return err
}

// Audit has the counts compared with the tables now. It ends when the audit has; what was found is then
// in the projection's status.
func (c *Client) Audit(ctx context.Context) error {
	_, err := c.send(ctx, request{service: consumer, method: http.MethodPost, url: c.ConsumerURL + "/api/v1/audits"}, nil)
	return err
}

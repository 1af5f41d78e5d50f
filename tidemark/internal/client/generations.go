package client

import (
	"context"
	"net/http"
	"strconv"

	"github.com/tidemark/tidemark/shared/service"
)

// Generation is one set of tables: the serving one, or one that a rebuild makes.
type Generation struct {
	Generation  int                 `json:"generation"`
	State       string              `json:"state"`
	Epoch       int64               `json:"epoch"`
	Group       string              `json:"group"`
	Schema      string              `json:"schema"`
	RequestedAt string              `json:"requested_at"`
	StateSince  string              `json:"state_since"`
	SwapWanted  bool                `json:"swap_wanted"`
	RateLimit   *float64            `json:"rate_limit"`
	Point       *string             `json:"point"`
	Progress    *GenerationProgress `json:"progress"`
	Proof       *Proof              `json:"proof"`
}

// GenerationProgress is how far its reading of the log is.
type GenerationProgress struct {
	Done         int64    `json:"done"`
	Total        int64    `json:"total"`
	Percent      float64  `json:"percent"`
	Lag          int64    `json:"lag"`
	Rate         float64  `json:"rate"` // records a second
	ETASeconds   *float64 `json:"eta_seconds"`
	Bottleneck   string   `json:"bottleneck"`
	StalledSince *string  `json:"stalled_since"`
	Note         string   `json:"note"`
}

// Proof is a comparison with the serving generation at one vector of offsets.
type Proof struct {
	OK          bool             `json:"ok"`
	At          string           `json:"at"`
	TookMS      float64          `json:"took_ms"`
	Against     int              `json:"against"`
	Vector      map[string]int64 `json:"vector"`
	Tables      []ProofTable     `json:"tables"`
	Differences []Difference     `json:"differences"`
	Finding     string           `json:"finding"`
}

// ProofTable is the comparison of one table.
type ProofTable struct {
	Table       string `json:"table"`
	OK          bool   `json:"ok"`
	RowsServing int64  `json:"rows_serving"`
	RowsSide    int64  `json:"rows_side"`
	HashServing string `json:"hash_serving"`
	HashSide    string `json:"hash_side"`
}

// Difference is one key whose rows differ; nil stands for a row that is not there.
type Difference struct {
	Table   string  `json:"table"`
	Key     string  `json:"key"`
	Serving *string `json:"serving"`
	Side    *string `json:"side"`
}

// RebuildRequest is how to make a generation; zero values are the service's defaults.
type RebuildRequest struct {
	Swap           bool          `json:"swap"`
	RateLimit      int64         `json:"rate_limit,omitempty"`
	To             *RebuildPoint `json:"to,omitempty"`
	ReplaceStandby bool          `json:"replace_standby,omitempty"`
}

// RebuildPoint is where to stop: at an instant or at a position.
type RebuildPoint struct {
	Time     string `json:"time,omitempty"`
	Position string `json:"position,omitempty"`
}

// Audited is the answer of an audit that was run now.
type Audited struct {
	OK         bool             `json:"ok"`
	AuditedAt  string           `json:"audited_at"`
	Partitions []PartitionAudit `json:"partitions"`
}

// PartitionAudit compares what was counted with what is in the tables.
type PartitionAudit struct {
	Topic            string `json:"topic,omitempty"`
	Partition        int32  `json:"partition"`
	OK               bool   `json:"ok"`
	Finding          string `json:"finding"`
	Applied          int64  `json:"applied"`
	Duplicate        int64  `json:"duplicate"`
	Rejected         int64  `json:"rejected"`
	Skipped          int64  `json:"skipped"`
	RowsFound        int64  `json:"rows_found"`
	DeadLettersFound int64  `json:"dead_letters_found"`
}

func (c *Client) consumer(ctx context.Context, method, path string, body, into any) error {
	_, err := c.call(ctx, request{within: patience, method: method, service: service.Consumer.Name, base: c.services.URLs[service.Consumer.Name], path: path, body: body}, into)
	return err
}

// Generations lists them: the serving one first, then the newest first.
func (c *Client) Generations(ctx context.Context) ([]Generation, error) {
	var answer struct {
		Generations []Generation `json:"generations"`
	}
	err := c.consumer(ctx, http.MethodGet, "/api/v1/generations", nil, &answer)
	return answer.Generations, err
}

// Generation returns one of them.
func (c *Client) Generation(ctx context.Context, n int) (Generation, error) {
	var g Generation
	return g, c.consumer(ctx, http.MethodGet, generationPath(n), nil, &g)
}

// Rebuild begins a new generation.
func (c *Client) Rebuild(ctx context.Context, r RebuildRequest) (Generation, error) {
	var g Generation
	return g, c.consumer(ctx, http.MethodPost, "/api/v1/generations", r, &g)
}

// Prove has a generation compared with the serving one again.
func (c *Client) Prove(ctx context.Context, n int) error {
	return c.consumer(ctx, http.MethodPost, generationPath(n)+"/proof", nil, new(any))
}

// Swap has a generation proved and, where the proof holds, serve.
func (c *Client) Swap(ctx context.Context, n int) error {
	return c.consumer(ctx, http.MethodPost, generationPath(n)+"/swap", nil, new(any))
}

// Drop ends a rebuild, or drops a generation that does not serve.
func (c *Client) Drop(ctx context.Context, n int) error {
	return c.consumer(ctx, http.MethodDelete, generationPath(n), nil, new(any))
}

// Audit compares counts and tables now.
func (c *Client) Audit(ctx context.Context) (Audited, error) {
	var a Audited
	_, err := c.call(ctx, request{within: auditPatience, method: http.MethodPost, service: service.Consumer.Name, base: c.services.URLs[service.Consumer.Name], path: "/api/v1/audits"}, &a)
	return a, err
}

func generationPath(n int) string { return "/api/v1/generations/" + strconv.Itoa(n) }

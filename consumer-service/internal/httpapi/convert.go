package httpapi

import (
	"time"

	"github.com/tidemark/tidemark/consumer-service/internal/projection"
	"github.com/tidemark/tidemark/consumer-service/internal/rebuild"
	api "github.com/tidemark/tidemark/shared/api/consumer"
)

func at(t time.Time) string { return t.UTC().Format(time.RFC3339Nano) }

func maybeAt(t *time.Time) *string {
	if t == nil {
		return nil
	}
	s := at(*t)
	return &s
}

func generation(g rebuild.Generation) api.Generation {
	return api.Generation{
		Generation: g.Number, State: api.GenerationState(g.State), Epoch: g.Epoch, Group: g.Group, Schema: g.Schema,
		RequestedAt: at(g.RequestedAt), StateSince: at(g.StateSince), SwapWanted: g.SwapWanted, RateLimit: g.RateLimit, Point: g.Point,
		Progress: progress(g.Progress), Proof: proof(g.Proof),
	}
}

func progress(p rebuild.Progress) api.Progress {
	percent := 100.0
	if p.Total > 0 {
		percent = 100 * float64(min(p.Done, p.Total)) / float64(p.Total)
	}
	return api.Progress{
		Done: p.Done, Total: p.Total, Percent: percent, Lag: p.Lag(), Rate: p.Rate, EtaSeconds: p.ETA,
		Bottleneck: api.ProgressBottleneck(p.Bottleneck), StalledSince: maybeAt(p.Stalled), Note: p.Note,
	}
}

func proof(p *rebuild.Proof) *api.Proof {
	if p == nil {
		return nil
	}
	out := &api.Proof{
		Ok: p.OK, At: at(p.At), TookMs: p.TookMs, Against: p.Against, Vector: p.Vector, Finding: p.Finding,
		Tables: make([]api.TableProof, len(p.Tables)), Differences: make([]api.Difference, len(p.Differences)),
	}
	for i, t := range p.Tables {
		out.Tables[i] = api.TableProof{Table: t.Table, Ok: t.OK, RowsServing: t.RowsServing, RowsSide: t.RowsSide, HashServing: t.HashServing, HashSide: t.HashSide}
	}
	for i, d := range p.Differences {
		out.Differences[i] = api.Difference{Table: d.Table, Key: d.Key, Serving: d.Serving, Side: d.Side}
	}
	return out
}

func audit(found []projection.Audited, now time.Time) api.Audit {
	out := api.Audit{Ok: true, AuditedAt: at(now), Partitions: make([]api.PartitionAudit, len(found))}
	for i, f := range found {
		out.Ok = out.Ok && f.Finding == ""
		out.Partitions[i] = api.PartitionAudit{
			Partition: f.Partition, Ok: f.Finding == "", Finding: f.Finding, Epoch: f.Epoch, FirstOffset: f.FirstOffset, NextOffset: f.NextOffset,
			Applied: f.Applied, Duplicate: f.Duplicate, Rejected: f.Rejected, Skipped: f.Skipped,
			RowsFound: f.RowsFound, DeadLettersFound: f.DeadLettersFound, RowsAhead: f.RowsAhead,
		}
	}
	return out
}

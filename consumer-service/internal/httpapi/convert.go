package httpapi

import (
	"time"

	"github.com/tidemark/tidemark/consumer-service/internal/generation"
	"github.com/tidemark/tidemark/consumer-service/internal/projection"
	api "github.com/tidemark/tidemark/shared/api/consumer"
)

func projectionOf(p generation.Projection) api.Projection {
	return api.Projection{Projection: p.Name, Topic: p.Topic, Schema: p.Schema, Running: p.Running, Refusal: p.Refusal, Tables: p.Tables}
}

func requestOf(swap *bool, rateLimit *int, replaceStandby *bool) generation.Request {
	return generation.Request{Swap: swap == nil || *swap, RateLimit: rateLimit, ReplaceStandby: replaceStandby != nil && *replaceStandby}
}

func generationList(found []generation.Generation) api.GenerationList {
	out := api.GenerationList{Generations: make([]api.Generation, len(found))}
	for i, g := range found {
		out.Generations[i] = generationOf(g)
	}
	return out
}

func at(t time.Time) string { return t.UTC().Format(time.RFC3339Nano) }

func maybeAt(t *time.Time) *string {
	if t == nil {
		return nil
	}
	s := at(*t)
	return &s
}

func generationOf(g generation.Generation) api.Generation {
	return api.Generation{
		Projection: g.Projection, Generation: g.Number, State: api.GenerationState(g.State), Epoch: g.Epoch, Group: g.Group, Schema: g.Schema,
		RequestedAt: at(g.RequestedAt), StateSince: at(g.StateSince), SwapWanted: g.SwapWanted, RateLimit: g.RateLimit, Point: g.Point,
		Progress: progressOf(g.Progress), Proof: proofOf(g.Proof), NewLog: g.NewLog, FillMs: g.FillMs, IndexMs: g.IndexMs,
	}
}

func progressOf(p generation.Progress) api.Progress {
	percent := 100.0
	if p.Total > 0 {
		percent = 100 * float64(min(p.Done, p.Total)) / float64(p.Total)
	}
	return api.Progress{
		Done: p.Done, Total: p.Total, Percent: percent, Lag: p.Lag(), Rate: p.Rate, EtaSeconds: p.ETA,
		Bottleneck: api.ProgressBottleneck(p.Bottleneck), StalledSince: maybeAt(p.Stalled), Note: p.Note,
	}
}

func proofOf(p *generation.Proof) *api.Proof {
	if p == nil {
		return nil
	}
	out := &api.Proof{
		Ok: p.OK, At: at(p.At), TookMs: p.TookMs, Against: p.Against, Vector: p.Vector, Finding: p.Finding,
		Tables: make([]api.TableProof, len(p.Tables)), Differences: make([]api.Difference, len(p.Differences)),
	}
	for i, t := range p.Tables {
		out.Tables[i] = api.TableProof{Table: t.Table, Ok: t.OK, RowsServing: t.RowsServing, RowsCandidate: t.RowsCandidate, HashServing: t.HashServing, HashCandidate: t.HashCandidate}
	}
	for i, d := range p.Differences {
		out.Differences[i] = api.Difference{Table: d.Table, Key: d.Key, Serving: d.Serving, Candidate: d.Candidate}
	}
	return out
}

func auditOf(name string, found []projection.Audited, now time.Time) api.Audit {
	out := api.Audit{Projection: name, Ok: true, AuditedAt: at(now), Partitions: make([]api.PartitionAudit, len(found))}
	for i, f := range found {
		out.Ok = out.Ok && f.Finding == ""
		out.Partitions[i] = api.PartitionAudit{
			Partition: f.Partition, Ok: f.Finding == "", Finding: f.Finding, Epoch: f.Epoch, FirstOffset: f.FirstOffset, NextOffset: f.NextOffset,
			Applied: f.Applied, Duplicate: f.Duplicate, Rejected: f.Rejected, Expired: f.Expired,
			Skipped: f.Skipped, Dropped: f.Dropped,
			RowsFound: f.RowsFound, DeadLettersFound: f.DeadLettersFound, RowsAhead: f.RowsAhead,
		}
	}
	return out
}

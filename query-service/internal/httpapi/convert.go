package httpapi

import (
	"encoding/base64"
	"fmt"
	"net/url"
	"strconv"
	"time"

	"github.com/google/uuid"

	"github.com/tidemark/tidemark/query-service/internal/deadletter"
	"github.com/tidemark/tidemark/query-service/internal/generation"
	"github.com/tidemark/tidemark/query-service/internal/projection"
	"github.com/tidemark/tidemark/query-service/internal/record"
	"github.com/tidemark/tidemark/query-service/internal/ticket"
	api "github.com/tidemark/tidemark/shared/api/query"
	"github.com/tidemark/tidemark/shared/instant"
	"github.com/tidemark/tidemark/shared/position"
)

func timestamp(r record.Record) api.Timestamp {
	id := r.ID.String()
	return api.Timestamp{Id: id, CommandId: id, EventTimestamp: instant.Format(r.EventTimestamp), CreatedAt: instant.Format(r.CreatedAt)}
}

func timestampPage(p record.Page, limit int) api.TimestampPage {
	page := api.TimestampPage{Items: make([]api.TimestampItem, len(p.Records))}
	for i, r := range p.Records {
		t := timestamp(r)
		page.Items[i] = api.TimestampItem{Id: t.Id, CommandId: t.CommandId, EventTimestamp: t.EventTimestamp, CreatedAt: t.CreatedAt, Position: r.Position.String()}
	}
	if p.Below != nil {
		page.Next = link("timestamps", "before", p.Below.ID.String(), limit)
	}
	if p.Above != nil {
		page.Previous = link("timestamps", "after", p.Above.ID.String(), limit)
	}
	return page
}

// link names a page. Ids and positions need no escaping in a query.
func link(list, parameter, cursor string, limit int) *string {
	s := fmt.Sprintf("/api/v1/%s?%s=%s&limit=%d", list, parameter, cursor, limit)
	return &s
}

func ticketState(t ticket.Ticket) api.Ticket {
	a := api.Ticket{
		Id: t.ID.String(), State: api.TicketState(t.State), Projection: text(t.Projection),
		Position: place(t.Position), Reached: place(t.Reached), AsOf: moment(t.AsOf), Reason: text(t.Reason), ReasonCode: text(t.ReasonCode),
	}
	if t.Projection != "" {
		a.Generation, a.Epoch = &t.Generation, &t.Epoch
	}
	if t.Letter != "" {
		letter := api.TicketDeadLetter(t.Letter)
		a.DeadLetter, a.RedrivenAs = &letter, id(t.RedrivenAs)
	}
	if t.Row != nil {
		a.CreatedAt = moment(t.Row.CreatedAt)
		if r := t.Row.Record; r != nil {
			a.EventTimestamp = moment(&r.EventTimestamp)
		}
		if t.State == ticket.Duplicate {
			a.RowPosition = place(&t.Row.Position)
		}
	}
	return a
}

// searchPage names the page after it with everything that was asked of this one.
func searchPage(letters []deadletter.DeadLetter, next *position.Position, f deadletter.Filter, limit int) api.DeadLetterPage {
	page := api.DeadLetterPage{Items: make([]api.DeadLetter, len(letters))}
	for i, l := range letters {
		page.Items[i] = deadLetter(l)
	}
	if next == nil {
		return page
	}
	q := url.Values{"state": {string(f.State)}, "order": {string(f.Order)}, "after": {next.String()}, "limit": {strconv.Itoa(limit)}}
	if f.Projection != "" {
		q.Set("projection", f.Projection)
	}
	if f.Text != "" {
		q.Set("q", f.Text)
	}
	if f.ReasonCode != "" {
		q.Set("reason_code", f.ReasonCode)
	}
	if f.Partition != nil {
		q.Set("partition", strconv.Itoa(int(*f.Partition)))
	}
	page.Next = text("/api/v1/deadletters?" + q.Encode())
	return page
}

func letterSummary(sum deadletter.Summary) api.DeadLetterSummary {
	a := api.DeadLetterSummary{Groups: make([]api.DeadLetterGroup, len(sum.Groups)), Bounded: sum.Bounded}
	for i, g := range sum.Groups {
		a.Groups[i] = api.DeadLetterGroup{Hour: instant.Format(g.Hour), ReasonCode: g.ReasonCode, Producer: g.Producer, Letters: g.Letters}
	}
	return a
}

func deadLetter(l deadletter.DeadLetter) api.DeadLetter {
	a := api.DeadLetter{
		Projection: l.Projection, Redrivable: l.Redrivable(),
		Position: l.Position.String(), Topic: l.Position.Topic, Partition: l.Position.Partition, Offset: l.Position.Offset,
		PayloadEncoding: api.Utf8, PayloadBytes: l.PayloadBytes, PayloadTruncated: l.Truncated(),
		ReasonCode: l.ReasonCode, Reason: l.Reason, FirstSeenAt: instant.Format(l.FirstSeenAt), State: api.DeadLetterState(l.State()),
	}
	if d := l.Decision; d != nil {
		a.Decision = &api.Decision{Decision: api.DecisionDecision(d.Kind), Note: d.Note, By: d.By, Position: d.Position.String(), DecidedAt: instant.Format(d.At), Ticket: id(d.Ticket)}
	}
	if l.Headers != nil {
		var headers any = l.Headers
		a.Headers = &headers
	}
	if l.Payload == nil {
		return a
	}
	shown, isText := l.Text()
	if !isText {
		shown, a.PayloadEncoding = base64.StdEncoding.EncodeToString(l.Payload), api.Base64
	}
	a.Payload = &shown
	return a
}

func projectionList(all []projection.Status) api.ProjectionList {
	list := api.ProjectionList{Projections: make([]api.ProjectionSummary, len(all))}
	for i, s := range all {
		totals, audited := s.Totals(), s.Audited()
		list.Projections[i] = api.ProjectionSummary{
			Projection: s.Name, Topic: s.Topic, State: api.ProjectionState(s.State()), Running: s.Running, Refusal: s.Refusal,
			Generation: s.Generation, Epoch: s.Epoch, CaughtUpAt: moment(s.CaughtUpAt()), Lag: totals.Lag, LagUnknownSince: moment(totals.LagUnknownSince), DeadLettersOpen: totals.Open(), DeadLettersDecided: totals.Decided,
			AuditOk: audited.OK, AuditedAt: moment(audited.LastRun), ReadAt: instant.Format(s.ReadAt),
		}
	}
	return list
}

func projectionStatus(s projection.Status) api.Projection {
	totals, replay, audited := s.Totals(), s.Replay(), s.Audited()
	a := api.Projection{
		Projection: s.Name, Topic: s.Topic, Schema: s.Schema, State: api.ProjectionState(s.State()), Running: s.Running, Refusal: s.Refusal,
		Generation: s.Generation, Epoch: s.Epoch, Group: s.Group, StartedAt: moment(s.StartedAt), ReadAt: instant.Format(s.ReadAt),
		CatchingUp: s.CatchingUp(), CaughtUpAt: moment(s.CaughtUpAt()),
		Totals: api.Counts{
			Applied: totals.Applied, Duplicate: totals.Duplicate, Rejected: totals.Rejected,
			DeadLettersOpen: totals.Open(), DeadLettersDecided: totals.Decided,
			Expired: totals.Expired, Skipped: totals.Skipped, Dropped: totals.Dropped, Lag: totals.Lag, LagUnknownSince: moment(totals.LagUnknownSince),
		},
		Replay:     api.Replay{Done: replay.Done, Total: replay.Total, Percent: replay.Percent, Rate: replay.Rate},
		Audit:      api.Audit{Ok: audited.OK, LastRun: moment(audited.LastRun), Missing: audited.Missing, Partitions: make([]api.PartitionAudit, len(s.Audits))},
		Partitions: make([]api.Partition, len(s.Partitions)),
	}
	if replay.ETA != nil {
		seconds := replay.ETA.Seconds()
		a.Replay.EtaSeconds = &seconds
	}
	for i, p := range s.Partitions {
		a.Partitions[i] = api.Partition{
			Topic: p.Topic, Partition: p.Partition, Epoch: p.Epoch, FirstOffset: p.FirstOffset, NextOffset: p.NextOffset,
			Applied: p.Applied, Duplicate: p.Duplicate, Rejected: p.Rejected, Expired: p.Expired, Skipped: p.Skipped, Dropped: p.Dropped,
			LogEnd: p.LogEnd, Lag: p.Lag(s.ReadAt), LogEndAt: moment(p.LogEndAt), CaughtUpAt: moment(p.CaughtUpAt), UpdatedAt: instant.Format(p.UpdatedAt), DeadLettersOpen: p.Open(),
		}
	}
	for i, p := range s.Audits {
		a.Audit.Partitions[i] = api.PartitionAudit{
			Topic: p.Topic, Partition: p.Partition, AuditedAt: instant.Format(p.AuditedAt), TookMs: p.TookMS, Epoch: p.Epoch,
			FirstOffset: p.FirstOffset, NextOffset: p.NextOffset,
			Applied: p.Applied, Duplicate: p.Duplicate, Rejected: p.Rejected, Expired: p.Expired, Skipped: p.Skipped, Dropped: p.Dropped,
			RowsFound: p.RowsFound, DeadLettersFound: p.DeadLettersFound, RowsAhead: p.RowsAhead, Ok: p.OK, Finding: p.Finding,
		}
	}
	return a
}

func generationList(of string, list []generation.Generation) api.GenerationList {
	a := api.GenerationList{Projection: of, Generations: make([]api.Generation, len(list))}
	for i, g := range list {
		a.Generations[i] = generationOf(g)
	}
	return a
}

func generationOf(g generation.Generation) api.Generation {
	p := g.Progress
	a := api.Generation{
		Projection: g.Projection, Generation: g.Number, State: api.GenerationState(g.State), Epoch: g.Epoch, Group: g.Group, Schema: g.Schema,
		RequestedAt: instant.Format(g.RequestedAt), StateSince: instant.Format(g.StateSince), SwapWanted: g.SwapWanted, RateLimit: g.RateLimit, Point: g.Point, NewLog: g.NewLog,
		FillMs: g.FillMS, IndexMs: g.IndexMS,
		Progress: api.Progress{
			Done: p.Done, Total: p.Total, Percent: p.Percent(), Lag: p.Lag(), Rate: p.Rate, EtaSeconds: p.ETASeconds,
			Bottleneck: api.ProgressBottleneck(p.Bottleneck), StalledSince: moment(p.Stalled), Note: p.Note,
		},
	}
	if g.Proof == nil {
		return a
	}
	a.Proof = &api.Proof{
		Ok: g.Proof.OK, At: instant.Format(g.Proof.At), TookMs: g.Proof.TookMS, Against: g.Proof.Against, Vector: g.Proof.Vector, Finding: g.Proof.Finding,
		Tables: make([]api.TableProof, len(g.Proof.Tables)), Differences: make([]api.Difference, len(g.Proof.Differences)),
	}
	for i, t := range g.Proof.Tables {
		a.Proof.Tables[i] = api.TableProof{
			Table: t.Table, Ok: t.OK, RowsServing: t.RowsServing, RowsCandidate: t.RowsCandidate, HashServing: t.HashServing, HashCandidate: t.HashCandidate,
		}
	}
	for i, d := range g.Proof.Differences {
		a.Proof.Differences[i] = api.Difference{Table: d.Table, Key: d.Key, Serving: d.Serving, Candidate: d.Candidate}
	}
	return a
}

func id(u *uuid.UUID) *string {
	if u == nil {
		return nil
	}
	return text(u.String())
}

func moment(t *time.Time) *string {
	if t == nil {
		return nil
	}
	return text(instant.Format(*t))
}

func place(p *position.Position) *string {
	if p == nil {
		return nil
	}
	return text(p.String())
}

// text is s, or nil where it is empty.
func text(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

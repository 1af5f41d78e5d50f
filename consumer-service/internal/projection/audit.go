package projection

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/tidemark/tidemark/shared/loop"
	"github.com/tidemark/tidemark/shared/postgres"
)

// finding is what an audit says of one partition.
type finding struct {
	Partition   int32  `db:"partition"`
	Known       bool   `db:"known"` // it has a progress row
	Epoch       int64  `db:"epoch"`
	FirstOffset int64  `db:"first_offset"`
	NextOffset  int64  `db:"next_offset"`
	Applied     int64  `db:"applied"`
	Duplicate   int64  `db:"duplicate"`
	Rejected    int64  `db:"rejected"`
	Expired     int64  `db:"expired"`
	Skipped     int64  `db:"skipped"`
	Dropped     int64  `db:"dropped"`
	LogEnd      *int64 `db:"log_end"`
	Rows        int64  `db:"rows_found"`
	Letters     int64  `db:"dead_letters_found"`
	Ahead       int64  `db:"rows_ahead"`
	// Took is the server's own time for the count, in milliseconds, the same in all findings of an audit
	// but for the moments between two rows. A connection that hung is not in it.
	Took float64 `db:"took_ms"`
}

// text says what is wrong, or "". Rows ahead of the progress are those of an earlier epoch, waiting to
// be recognised; once the log has no more to say they belong to nothing.
func (f finding) text() string {
	var wrong []string
	say := func(format string, args ...any) { wrong = append(wrong, fmt.Sprintf(format, args...)) }
	if !f.Known {
		return fmt.Sprintf("%d rows bear a partition that the topic does not have", f.Rows+f.Ahead)
	}
	if n := f.Applied + f.Duplicate + f.Rejected + f.Expired + f.Skipped; n != f.NextOffset-f.FirstOffset {
		say("%d offsets and %d outcomes", f.NextOffset-f.FirstOffset, n)
	}
	switch d := f.Rows + f.Dropped - f.Applied; {
	case d < 0:
		say("%d rows are missing", -d)
	case d > 0:
		say("%d rows are too many", d)
	}
	switch d := f.Letters - f.Rejected; {
	case d < 0:
		say("%d dead letters are missing", -d)
	case d > 0:
		say("%d dead letters are too many", d)
	}
	if f.Ahead > 0 && f.LogEnd != nil && f.NextOffset >= *f.LogEnd {
		say("%d rows bear offsets that the log does not have", f.Ahead)
	}
	return strings.Join(wrong, "; ")
}

// AuditLock names the advisory lock that lets one process audit a projection at a time, and none during a swap: its key is
// hashtextextended(AuditLock(name), 0).
func AuditLock(projection string) string { return "tidemark audit " + projection }

// audit counts rows and dead letters below the progress, all in one snapshot, and compares them with
// the outcomes that were counted when they were written. It reports ran false where another process is
// at it.
func (s store) audit(ctx context.Context) (found []finding, ran bool, err error) {
	err = postgres.Tx(ctx, s.db, func(tx *sqlx.Tx) error {
		// A count may take longer than a write ever should.
		if _, err := tx.ExecContext(ctx, `SET LOCAL statement_timeout = 0`); err != nil {
			return fmt.Errorf("lift the time limit: %w", err)
		}
		if err := tx.GetContext(ctx, &ran, `SELECT pg_try_advisory_xact_lock(hashtextextended($1, 0))`, AuditLock(s.def.Name)); err != nil || !ran {
			return err
		}
		if err := tx.SelectContext(ctx, &found, s.in(`
WITH p AS (
	SELECT partition, epoch, first_offset, next_offset, applied, duplicate, rejected, expired, skipped, dropped, log_end
	FROM {g}.projection_progress WHERE topic = $1
), r AS (
	SELECT t.partition,
		count(*) FILTER (WHERE t."offset" >= p.first_offset AND t."offset" < p.next_offset) AS below,
		count(*) FILTER (WHERE p.partition IS NULL OR t."offset" >= p.next_offset) AS ahead
	FROM {main} t LEFT JOIN p ON p.partition = t.partition
	GROUP BY t.partition
), d AS (
	SELECT t.partition, count(*) AS below
	FROM {g}.dead_letters t JOIN p ON p.partition = t.partition
	WHERE t.topic = $1 AND t."offset" < p.next_offset
	GROUP BY t.partition
)
SELECT coalesce(p.partition, r.partition) AS partition, p.partition IS NOT NULL AS known,
	coalesce(p.epoch, 0) AS epoch, coalesce(p.first_offset, 0) AS first_offset, coalesce(p.next_offset, 0) AS next_offset,
	coalesce(p.applied, 0) AS applied, coalesce(p.duplicate, 0) AS duplicate, coalesce(p.rejected, 0) AS rejected,
	coalesce(p.expired, 0) AS expired, coalesce(p.skipped, 0) AS skipped, coalesce(p.dropped, 0) AS dropped, p.log_end,
	coalesce(r.below, 0) AS rows_found, coalesce(r.ahead, 0) AS rows_ahead, coalesce(d.below, 0) AS dead_letters_found,
	extract(epoch FROM clock_timestamp() - statement_timestamp()) * 1000 AS took_ms
FROM p FULL JOIN r ON r.partition = p.partition LEFT JOIN d ON d.partition = p.partition
ORDER BY 1`), s.def.Topic.Name); err != nil {
			return fmt.Errorf("count: %w", err)
		}
		for _, f := range found {
			if _, err := tx.ExecContext(ctx, s.in(`
INSERT INTO {g}.projection_audits (topic, partition, audited_at, took_ms, epoch, first_offset, next_offset,
	applied, duplicate, rejected, expired, skipped, dropped, rows_found, dead_letters_found, rows_ahead, ok, finding)
VALUES ($1, $2, now(), $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17)
ON CONFLICT (topic, partition) DO UPDATE SET audited_at = excluded.audited_at, took_ms = excluded.took_ms, epoch = excluded.epoch,
	first_offset = excluded.first_offset, next_offset = excluded.next_offset, applied = excluded.applied, duplicate = excluded.duplicate,
	rejected = excluded.rejected, expired = excluded.expired, skipped = excluded.skipped, dropped = excluded.dropped, rows_found = excluded.rows_found,
	dead_letters_found = excluded.dead_letters_found, rows_ahead = excluded.rows_ahead, ok = excluded.ok, finding = excluded.finding`),
				s.def.Topic.Name, f.Partition, f.Took, f.Epoch, f.FirstOffset, f.NextOffset, f.Applied, f.Duplicate, f.Rejected, f.Expired, f.Skipped, f.Dropped,
				f.Rows, f.Letters, f.Ahead, f.text() == "", f.text()); err != nil {
				return fmt.Errorf("note the audit: %w", err)
			}
		}
		return nil
	})
	return found, ran, err
}

// Audited is what an audit says of one partition. Finding is empty where nothing disagrees.
type Audited struct {
	Partition                              int32
	Finding                                string
	Epoch, FirstOffset, NextOffset         int64
	Applied, Duplicate, Rejected, Expired  int64
	Skipped, Dropped                       int64
	RowsFound, DeadLettersFound, RowsAhead int64
}

// AuditNow audits at once, and reports ran false where another process is at it.
func (p *Projector) AuditNow(ctx context.Context) (audited []Audited, ran bool, err error) {
	found, ran, err := p.store.audit(ctx)
	if err != nil || !ran {
		return nil, ran, err
	}
	p.judge(found)
	for _, f := range found {
		audited = append(audited, Audited{
			f.Partition, f.text(), f.Epoch, f.FirstOffset, f.NextOffset, f.Applied, f.Duplicate, f.Rejected, f.Expired,
			f.Skipped, f.Dropped, f.Rows, f.Letters, f.Ahead,
		})
	}
	return audited, true, nil
}

// judge logs what an audit found and shows it in the metrics.
func (p *Projector) judge(found []finding) {
	ok := true
	for _, f := range found {
		if text := f.text(); text != "" {
			ok = false
			p.Logger.Error("the audit found something", "topic", p.topic(), "partition", f.Partition, "finding", text)
		}
	}
	p.Metrics.audited(ok)
}

// Audit compares tables and counts until ctx ends: every AuditInterval, and never for more than a
// twentieth of the time, since a count reads every row.
func (p *Projector) Audit(ctx context.Context) {
	wait := min(p.AuditInterval, 3*time.Second) // the first one early: nobody should wonder
	for loop.Sleep(ctx, wait) == nil {
		if !p.InSession() {
			continue
		}
		found, ran, err := p.store.audit(ctx)
		if err != nil && ctx.Err() == nil {
			p.Logger.Warn("cannot audit", "projection", p.Definition.Name, "err", err)
		}
		wait = p.AuditInterval
		if err != nil || !ran {
			continue
		}
		for _, f := range found {
			wait = max(wait, 20*time.Duration(f.Took*float64(time.Millisecond)))
		}
		p.judge(found)
	}
}

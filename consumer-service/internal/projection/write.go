package projection

import (
	"context"
	"fmt"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/tidemark/tidemark/shared/event"
	"github.com/tidemark/tidemark/shared/postgres"
)

// counts are the outcomes of a batch's records.
type counts struct {
	applied, duplicate, rejected, expired int64
	of                                    []event.Outcome // of each record; nil where they are what the batch's own are
}

// firstColumn is the number of the fast write's first parameter that belongs to the definition: its columns come last.
const firstColumn = 26

// writeFast moves the fence, and whatever it inserts reads from the fence: no fence, no row.
const writeFast = `
WITH fence AS (
	UPDATE {g}.projection_progress
	SET next_offset = $5, last_offset = $6, last_created_at = $7, last_record_hash = $8,
		applied = applied + $9, rejected = rejected + $10, expired = expired + $11, skipped = skipped + $12, updated_at = now(),
		log_end = greatest(log_end, $13), log_end_at = greatest(log_end_at, $14),
		caught_up_at = CASE WHEN $5 >= $13 THEN greatest(caught_up_at, $14) ELSE caught_up_at END
	WHERE topic = $1 AND partition = $2 AND epoch = $3 AND next_offset = $4
	RETURNING topic, partition
), records AS (
	INSERT INTO {main} ({columns}, created_at, partition, "offset")
	SELECT {picked}, r.created_at, $2, r."offset"
	FROM unnest({arrays}, $24::timestamptz[], $25::bigint[]) AS r ({columns}, created_at, "offset")
	WHERE EXISTS (SELECT FROM fence)
), dead AS (
	INSERT INTO {g}.dead_letters (topic, partition, "offset", payload, headers, reason_code, reason, first_seen_at)
	SELECT $1, $2, d."offset", d.payload, d.headers::jsonb, d.reason_code, d.reason, d.first_seen_at
	FROM unnest($15::bigint[], $16::bytea[], $17::text[], $18::text[], $19::text[], $20::timestamptz[])
		AS d ("offset", payload, headers, reason_code, reason, first_seen_at)
	WHERE EXISTS (SELECT FROM fence)
), receipt AS (
	INSERT INTO public.projection_receipt_outbox (projection, group_name, generation, epoch, served, topic, partition, from_offset, next_offset, outcomes)
	SELECT $23, $22, coalesce(g.generation, -1), $3, coalesce(g.state IN ('serving', 'swapping'), false), $1, $2, $4, $5, $21
	FROM fence LEFT JOIN public.projection_generations g ON g.projection = $23 AND g.epoch = $3
)
SELECT count(*) FROM fence`

// writeFast is the whole batch as one statement. It works where no key of the batch is there yet and
// Postgres takes every row; else it fails with a unique violation or a data exception, having changed
// nothing. errFenced where the progress is not at the batch's beginning in this epoch.
func (s store) writeFast(ctx context.Context, epoch int64, b batch, log *reached) (counts, error) {
	fast, err := s.prepared(ctx) //nolint:sqlclosecheck // kept; the pool closes it
	if err != nil {
		return counts{}, fmt.Errorf("prepare to write: %w", err)
	}
	o := counts{applied: int64(len(b.placed)), rejected: int64(len(b.letters)), expired: int64(len(b.expired))}
	args := s.fastArguments(epoch, b, o, log)
	if !s.def.Main.Spec().Folds {
		return o, written1(fast.QueryRowxContext(ctx, args...))
	}
	err = postgres.Tx(ctx, s.db, func(tx *sqlx.Tx) error {
		if err := written1(tx.StmtxContext(ctx, fast).QueryRowxContext(ctx, args...)); err != nil { //nolint:sqlclosecheck // ends with tx
			return err
		}
		return b.rows.Fold(ctx, tx, s.schema, b.partition, b.byOffset())
	})
	return o, err
}

// written1 reads the answer of a write: 1 where the fence was moved.
func written1(row *sqlx.Row) error {
	var written int
	switch err := row.Scan(&written); {
	case err != nil:
		return fmt.Errorf("write a batch: %w", err)
	case written == 0:
		return errFenced
	}
	return nil
}

func (s store) fastArguments(epoch int64, b batch, o counts, log *reached) []any {
	last, dead := b.last(), b.letterArrays()
	created, offsets := b.places(b.placed)
	var end *int64
	var at *time.Time
	if log != nil {
		end, at = &log.end, &log.at
	}
	return append([]any{
		s.def.Topic.Name, b.partition, epoch, b.from, b.next, last.Offset, last.Timestamp, recordHash(last),
		o.applied, o.rejected, o.expired, b.skipped, end, at,
		dead.offsets.Bytes(), dead.payloads.Bytes(), dead.headers.Bytes(), dead.codes.Bytes(), dead.reasons.Bytes(), dead.seen.Bytes(),
		b.fastReceipt(), s.group, s.def.Name, created, offsets,
	}, b.rows.Arrays(b.placed)...)
}

package endpoints

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"

	"github.com/tidemark/tidemark/consumer-service/internal/projection"
	"github.com/tidemark/tidemark/shared/event"
	"github.com/tidemark/tidemark/shared/postgres"
)

// state is what a run of commands about one endpoint leaves of it.
type state struct {
	last projection.Applied[command]
	// madeAt is the log time of the first put of the run after its last delete.
	madeAt time.Time
	// anew says that the run has a delete: whatever was there before it, the endpoint was made anew since.
	anew bool
}

// states folds the commands of each endpoint, in the order of the log, into what they leave, by endpoint.
func states(applied []projection.Applied[command]) []*state {
	byID := map[uuid.UUID]*state{}
	var all []*state
	for _, a := range applied {
		s := byID[a.Value.EndpointID]
		if s == nil {
			s = &state{}
			byID[a.Value.EndpointID] = s
			all = append(all, s)
		}
		switch {
		case a.Value.Kind == event.EndpointDelete:
			s.anew, s.madeAt = true, time.Time{}
		case s.madeAt.IsZero():
			s.madeAt = a.Created
		}
		s.last = a
	}
	// Writers that meet take rows in the order of their keys.
	slices.SortFunc(all, func(a, b *state) int {
		return bytes.Compare(a.last.Value.EndpointID[:], b.last.Value.EndpointID[:])
	})
	return all
}

// fold keeps current_endpoints: one statement, however many commands there are. An endpoint that stands keeps the time at
// which it was made; one that was deleted is made anew by its next put.
func fold(ctx context.Context, tx *sqlx.Tx, schema string, applied []projection.Applied[command]) error {
	all := states(applied)
	n := len(all)
	ids, commands := postgres.UUIDs(n), postgres.UUIDs(n)
	anew := postgres.UUIDs(0) // of those that were deleted and made anew
	deleted, enabled, intervals, partitions, offsets := postgres.Int8s(n), postgres.Int8s(n), postgres.Int8s(n), postgres.Int8s(n), postgres.Int8s(n)
	urls, names, groups, tags, documents, by := postgres.Texts(n), postgres.Texts(n), postgres.Texts(n), postgres.Texts(n), postgres.Texts(n), postgres.Texts(n)
	made, changed := postgres.Timestamps(n), postgres.Timestamps(n)
	for _, s := range all {
		c, e := s.last.Value, s.last.Value.Endpoint
		list, err := json.Marshal(e.Tags)
		if err != nil {
			return fmt.Errorf("write the tags of %s: %w", c.EndpointID, err)
		}
		if e.Tags == nil {
			list = []byte("[]")
		}
		ids.UUID(c.EndpointID)
		deleted.Int8(number(c.Kind == event.EndpointDelete))
		if s.anew {
			anew.UUID(c.EndpointID)
		}
		urls.Text(e.URL)
		names.Text(e.Name)
		groups.Text(e.Group)
		tags.Text(string(list))
		intervals.Int8(int64(e.Interval / time.Second))
		enabled.Int8(number(e.Enabled))
		documents.NullableText(c.Document)
		made.Timestamp(s.madeAt)
		changed.Timestamp(s.last.Created)
		by.Text(c.SentBy)
		commands.UUID(c.CommandID)
		partitions.Int8(int64(s.last.Partition))
		offsets.Int8(s.last.Offset)
	}
	if _, err := tx.ExecContext(ctx, `
INSERT INTO `+postgres.Qualified(schema, "current_endpoints")+` AS e
	(endpoint_id, deleted, url, name, group_name, tags, interval_seconds, enabled, document, created_at, changed_at, changed_by, command_id, partition, "offset")
SELECT r.endpoint_id, false, r.url, r.name, r.group_name, r.tags, r.interval_seconds, r.enabled = 1, r.document, r.created_at, r.changed_at, r.changed_by, r.command_id, r.partition, r."offset"
FROM unnest($1::uuid[], $2::bigint[], $4::text[], $5::text[], $6::text[], $7::text[], $8::bigint[], $9::bigint[], $10::text[],
		$11::timestamptz[], $12::timestamptz[], $13::text[], $14::uuid[], $15::bigint[], $16::bigint[])
	AS r (endpoint_id, deleted, url, name, group_name, tags, interval_seconds, enabled, document, created_at, changed_at, changed_by, command_id, partition, "offset")
WHERE r.deleted = 0
UNION ALL
SELECT r.endpoint_id, true, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, r.changed_at, r.changed_by, r.command_id, r.partition, r."offset"
FROM unnest($1::uuid[], $2::bigint[], $12::timestamptz[], $13::text[], $14::uuid[], $15::bigint[], $16::bigint[])
	AS r (endpoint_id, deleted, changed_at, changed_by, command_id, partition, "offset")
WHERE r.deleted = 1
ON CONFLICT (endpoint_id) DO UPDATE SET deleted = excluded.deleted, url = excluded.url, name = excluded.name, group_name = excluded.group_name,
	tags = excluded.tags, interval_seconds = excluded.interval_seconds, enabled = excluded.enabled, document = excluded.document,
	created_at = CASE WHEN e.deleted OR excluded.deleted OR excluded.endpoint_id = ANY ($3::uuid[]) THEN excluded.created_at ELSE e.created_at END,
	changed_at = excluded.changed_at, changed_by = excluded.changed_by, command_id = excluded.command_id,
	partition = excluded.partition, "offset" = excluded."offset"`,
		ids.Bytes(), deleted.Bytes(), anew.Bytes(), urls.Bytes(), names.Bytes(), groups.Bytes(), tags.Bytes(), intervals.Bytes(), enabled.Bytes(), documents.Bytes(),
		made.Bytes(), changed.Bytes(), by.Bytes(), commands.Bytes(), partitions.Bytes(), offsets.Bytes()); err != nil {
		return fmt.Errorf("fold the endpoints: %w", err)
	}
	return nil
}

func number(b bool) int64 {
	if b {
		return 1
	}
	return 0
}

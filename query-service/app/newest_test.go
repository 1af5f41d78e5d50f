package app

import (
	"encoding/binary"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/query-service/internal/testdb"
)

// Keys that callers bring carry no order of time: here each record that comes later has a lower one.
func TestTheNewestRecordsAreThoseThatTheLogAcceptedLastWhateverTheirIds(t *testing.T) {
	t.Parallel()
	db, s := setup(t)
	var ids []string
	for n := range uint32(10) {
		id := uuid.New()
		binary.BigEndian.PutUint32(id[:], 0xffff_ffff-n)
		require.NoError(t, db.Project(t.Context(), int32(n%testdb.Partitions), testdb.Row{ID: id, Stamp: stamp}))
		ids = append(ids, id.String())
	}
	db.Must(t, `UPDATE projection_progress SET log_end = next_offset, log_end_at = now() + interval '1 hour', caught_up_at = now()`)

	items := s.get(t, "/api/v1/timestamps?order=newest&limit=3").object(t)
	require.Nil(t, items["next"])
	require.Nil(t, items["previous"])
	var newest []string
	for _, item := range items["items"].([]any) {
		newest = append(newest, item.(map[string]any)["id"].(string))
	}
	require.Equal(t, []string{ids[9], ids[8], ids[7]}, newest)
	greatest := s.get(t, "/api/v1/timestamps?limit=1").object(t)["items"].([]any)[0].(map[string]any)["id"]
	require.Equal(t, ids[0], greatest, "by id, unless it is asked for")
	for _, cursor := range []string{"before", "after"} {
		refused := s.get(t, "/api/v1/timestamps?order=newest&"+cursor+"="+ids[0])
		require.Equal(t, 400, refused.status)
		require.Contains(t, refused.body, "order=newest has one page")
	}

	page := s.get(t, "/").body
	for _, id := range ids[2:] {
		require.Contains(t, page, id)
	}
	for _, id := range ids[:2] {
		require.NotContains(t, page, id)
	}
	require.NotContains(t, s.get(t, "/records").body, "newest first")
}

func TestAnOverviewDoesWithoutTheNewestRecordsWhereTheyTakeTooLong(t *testing.T) {
	t.Parallel()
	db, s := setup(t)
	require.NoError(t, db.Project(t.Context(), 0, testdb.Row{ID: uuid.New(), Stamp: stamp}))
	db.Must(t, `ALTER TABLE timestamp_records RENAME TO slow`)
	db.Must(t, `CREATE VIEW timestamp_records AS SELECT * FROM slow WHERE pg_sleep(3600) IS NOT NULL`)
	page := s.get(t, "/")
	require.Equal(t, 200, page.status)
	require.Contains(t, page.body, "They could not be read within a second")
	require.Contains(t, page.body, `href="/projections/timestamps"`, "the rest is there")
}

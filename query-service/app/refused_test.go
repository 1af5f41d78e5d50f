package app

import (
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/query-service/internal/testdb"
	"github.com/tidemark/tidemark/shared/topic"
)

// While a projection refuses its log, a position that the former log had too is not answered from the rows of that one:
// under it stands another record by now. Reads that name no position go on.
func TestNoPositionIsAnsweredWhileTheLogIsRefused(t *testing.T) {
	t.Parallel()
	db, s := setup(t)
	id, at := uuid.New(), testdb.At(0, 0)
	require.NoError(t, db.Project(t.Context(), 0, testdb.Row{ID: id, Stamp: stamp}))
	letter := testdb.At(1, 0)
	db.Reject(t, 1, []byte("no JSON"), "[]", "no JSON")
	db.Must(t, `INSERT INTO decision_progress (partition, next_offset) VALUES (0, 1) ON CONFLICT (partition) DO UPDATE SET next_offset = 1`)
	decided := topic.DeadLetterCommand.Name + "/0@0"
	paths := map[string]int{ // with a position that was passed: what they answer while the log is the projection's own
		"/api/v1/timestamp/" + id.String() + "?position=" + at.String():             200,
		"/api/v1/timestamp/" + uuid.NewString() + "?position=" + at.String():        404,
		"/api/v1/tickets/" + id.String() + "?position=" + at.String():               200,
		"/api/v1/timestamps?position=" + at.String():                                200,
		"/api/v1/deadletters/" + letter.String() + "?position=" + letter.String():   200,
		"/api/v1/deadletters/" + letter.String() + "?position=" + decided:           200,
		"/api/v1/projections/timestamps?position=" + at.String():                    200,
		"/api/v1/projections?position=" + at.String():                               200,
		"/tickets/" + id.String() + "?position=" + at.String():                      200,
		"/api/v1/timestamp/" + uuid.NewString() + "?wait=0&position=" + at.String(): 404,
	}
	for path, status := range paths {
		require.Equal(t, status, s.get(t, path).status, path)
	}
	db.Must(t, `UPDATE projections SET refusal = 'the log is another one.', refused_at = now() WHERE projection = 'timestamps'`)
	for path := range paths {
		a := s.get(t, path)
		require.Equal(t, 503, a.status, path)
		require.Contains(t, a.body, "the log is another one", path)
	}
	require.Equal(t, 200, s.get(t, "/api/v1/timestamp/"+id.String()).status, "what is there can be read")
	require.Equal(t, 200, s.get(t, "/api/v1/projections?position="+decided).status, "a decision is of no projection's log")
	db.Must(t, `UPDATE projection_progress SET caught_up_at = now() + interval '1 s'`)
	for path, status := range paths {
		require.Equal(t, status, s.get(t, path).status, "%s: a watermark since then makes it obsolete", path)
	}
}

package postgres

import (
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/shared/config"
	"github.com/tidemark/tidemark/shared/postgres/postgrestest"
)

func fresh(t *testing.T) config.Postgres {
	t.Helper()
	c := config.DefaultPostgres()
	c.URL = postgrestest.New(t)
	return c
}

func TestArraysArriveAsTheyWere(t *testing.T) {
	t.Parallel()
	db, err := Open(fresh(t), "test", Limits{})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, db.Close()) })

	ids, at, n, text, raw := UUIDs(2), Timestamps(2), Int8s(2), Texts(2), Byteas(2)
	first, last := time.Date(1, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(9999, 12, 31, 23, 59, 59, 999_999_000, time.UTC)
	a, b := uuid.New(), uuid.New()
	ids.UUID(a)
	ids.UUID(b)
	at.Timestamp(first)
	at.Timestamp(last)
	n.Int8(-1)
	n.Int8(1<<63 - 1)
	text.Text("ü\n\"'\\")
	text.Text("")
	raw.Bytea([]byte{0, 0xff})
	raw.Bytea(nil)
	var got []struct {
		ID  uuid.UUID
		At  time.Time
		N   int64
		T   string
		Raw []byte
	}
	const query = `SELECT * FROM unnest($1::uuid[], $2::timestamptz[], $3::bigint[], $4::text[], $5::bytea[]) AS r (id, at, n, t, raw)`
	require.NoError(t, db.Select(&got, query, ids.Bytes(), at.Bytes(), n.Bytes(), text.Bytes(), raw.Bytes()))
	require.Len(t, got, 2)
	require.Equal(t, a, got[0].ID)
	require.Equal(t, b, got[1].ID)
	require.True(t, got[0].At.Equal(first), got[0].At)
	require.True(t, got[1].At.Equal(last), got[1].At)
	require.Equal(t, int64(-1), got[0].N)
	require.Equal(t, int64(1<<63-1), got[1].N)
	require.Equal(t, "ü\n\"'\\", got[0].T)
	require.Empty(t, got[1].T)
	require.Equal(t, []byte{0, 0xff}, got[0].Raw)
	require.Nil(t, got[1].Raw)

	none := UUIDs(0)
	var count int
	require.NoError(t, db.Get(&count, `SELECT cardinality($1::uuid[])`, none.Bytes()))
	require.Zero(t, count)
}

func TestOpenSetsLimitsAndTheURLWins(t *testing.T) {
	t.Parallel()
	c := fresh(t)
	c.URL += "&lock_timeout=123"
	db, err := Open(c, "limits-test", WriterLimits)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, db.Close()) })
	for name, want := range map[string]string{
		"idle_in_transaction_session_timeout": "5s", "lock_timeout": "123ms", "statement_timeout": "1min",
		"application_name": "limits-test", "timezone": "UTC",
	} {
		var got string
		require.NoError(t, db.Get(&got, `SELECT current_setting($1)`, name))
		require.Equal(t, want, got, name)
	}
}

func TestErrorsKeepTheirStateAndConstraint(t *testing.T) {
	t.Parallel()
	db, err := Open(fresh(t), "test", Limits{})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, db.Close()) })
	_, err = db.Exec(`CREATE TABLE t (n int CONSTRAINT small CHECK (n < 3))`)
	require.NoError(t, err)
	_, err = db.Exec(`INSERT INTO t VALUES (3)`)
	require.Equal(t, "23514", State(err))
	require.Equal(t, "small", Constraint(err))
	require.Empty(t, State(nil))
}

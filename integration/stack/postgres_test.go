package stack

import (
	"database/sql"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/shared/await"
)

func TestAReadThatWaitsForATableIsTold(t *testing.T) {
	p, err := StartPostgres(t.Context())
	require.NoError(t, err)
	defer func() { require.NoError(t, p.Close()) }()
	url, err := p.CreateDatabase(t.Context(), "here")
	require.NoError(t, err)
	db, err := sql.Open("postgres", url)
	require.NoError(t, err)
	defer func() { require.NoError(t, db.Close()) }()
	for _, statement := range []string{`CREATE TABLE held ()`, `SELECT FROM held`} {
		_, err = db.ExecContext(t.Context(), statement)
		require.NoError(t, err)
	}
	require.Empty(t, p.ReadsHeldUp("here"))

	holder, err := db.BeginTx(t.Context(), nil)
	require.NoError(t, err)
	_, err = holder.ExecContext(t.Context(), `LOCK TABLE held IN ACCESS EXCLUSIVE MODE`)
	require.NoError(t, err)
	read := make(chan error, 1)
	go func() {
		_, err := db.ExecContext(t.Context(), `SELECT FROM held`)
		read <- err
	}()
	await.Until(t, func() bool { return len(p.ReadsHeldUp("here")) > 0 })
	require.Empty(t, p.ReadsHeldUp("elsewhere"))
	require.NoError(t, holder.Rollback())
	require.NoError(t, <-read)
}

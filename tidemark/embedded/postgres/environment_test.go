package postgres_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/tidemark/embedded/postgres"
)

// The variables are those of whoever uses psql beside it. lib/pq refuses to connect over the first one.
func TestVariablesOfOtherClientsDoNothing(t *testing.T) {
	for name, value := range map[string]string{"PGGSSENCMODE": "disable", "PGDATABASE": "none", "PGUSER": "nobody", "PGDATA": "/none", "PGSERVICE": "nobody"} {
		t.Setenv(name, value)
	}
	s := start(t, postgres.Options{})
	require.NotEmpty(t, s.URL())
}

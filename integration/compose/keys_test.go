package compose_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/shared/auth"
)

// newKey makes a key in a keys file, as `docker compose run keys create` does.
func newKey(t *testing.T, file, name, scope string) string {
	t.Helper()
	_, key, err := auth.Create(file, name, []string{scope}, time.Time{}, time.Now())
	require.NoError(t, err)
	return key
}

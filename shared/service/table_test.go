package service_test

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/shared/config"
	"github.com/tidemark/tidemark/shared/service"
)

// A folder at the root that is named as a service is in the table, and the other way round.
func TestTheTableHasEveryService(t *testing.T) {
	t.Parallel()
	folders, err := filepath.Glob(filepath.Join("..", "..", "*-service"))
	require.NoError(t, err)
	var there, listed []string
	for _, f := range folders {
		if _, err := os.Stat(filepath.Join(f, "main.go")); err == nil {
			there = append(there, filepath.Base(f))
		}
	}
	ports := map[int]bool{}
	for _, s := range service.All() {
		listed = append(listed, s.Name)
		require.NotEmpty(t, s.About, s.Name)
		require.False(t, ports[s.Port], "%s has a port of its own", s.Name)
		ports[s.Port] = true
		require.Contains(t, config.Names, s.URLVariable(), "others can be told where %s is", s.Name)
		found, ok := service.ByName(s.Name)
		require.True(t, ok)
		require.Equal(t, s, found)
	}
	slices.Sort(listed)
	require.Equal(t, there, listed)
	_, ok := service.ByName("command")
	require.False(t, ok, "the name, not the short one")
	require.Equal(t, "COMMAND_URL", service.Command.URLVariable())
	require.Equal(t, "http://127.0.0.1:7080", service.Command.DefaultURL())
}

package app_test

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/shared/config"
	"github.com/tidemark/tidemark/tidemark/app"
	"github.com/tidemark/tidemark/tidemark/internal/client"
)

// One environment is often handed to all services, and a name that another one reads is no typo: each of them knows the
// names of all from a list in shared, which cannot import them.
func TestListOfNamesIsThatOfAllServices(t *testing.T) {
	t.Parallel()
	var names []string
	for _, s := range app.Services() {
		for _, setting := range config.Settings(s.Config) {
			names = append(names, setting.Name)
		}
	}
	for _, setting := range client.Settings() {
		names = append(names, setting.Name)
	}
	slices.Sort(names)
	require.Equal(t, slices.Compact(names), config.Names)
}

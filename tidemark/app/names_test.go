package app_test

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	command "github.com/tidemark/tidemark/command-service/app"
	consumer "github.com/tidemark/tidemark/consumer-service/app"
	query "github.com/tidemark/tidemark/query-service/app"
	"github.com/tidemark/tidemark/shared/config"
	"github.com/tidemark/tidemark/tidemark/internal/client"
)

// One environment is often handed to all services, and a name that another one reads is no typo: each of them knows the
// names of all from a list in shared, which cannot import them.
func TestListOfNamesIsThatOfAllServices(t *testing.T) {
	t.Parallel()
	commands, consumes, queries, asks := command.DefaultConfig(), consumer.DefaultConfig(), query.DefaultConfig(), client.DefaultServices()
	var names []string
	for _, c := range []any{&commands, &consumes, &queries, &asks} {
		for _, s := range config.Settings(c) {
			names = append(names, s.Name)
		}
	}
	slices.Sort(names)
	require.Equal(t, slices.Compact(names), config.Names)
}

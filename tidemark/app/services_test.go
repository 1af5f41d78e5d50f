package app_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/shared/service"
	"github.com/tidemark/tidemark/tidemark/app"
)

func TestEveryServiceOfTheTableHasItsApp(t *testing.T) {
	t.Parallel()
	var there []service.Spec
	for _, s := range app.Services() {
		there = append(there, s.Spec)
	}
	require.Equal(t, service.All(), there)
}

func TestTheArchitectureNamesEveryService(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile(filepath.Join("..", "..", "docs", "architecture.md"))
	require.NoError(t, err)
	for _, s := range service.All() {
		require.Contains(t, string(page), fmt.Sprintf("%s :%d", s.Name, s.Port))
	}
}

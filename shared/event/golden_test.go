package event

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/shared/topic"
)

func TestEveryTopicHasAGoldenFile(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testdata/*.golden")
	require.NoError(t, err)
	var frozen, wanted []string
	for _, f := range files {
		content, err := os.ReadFile(f)
		require.NoError(t, err)
		require.NotEmpty(t, strings.TrimSpace(string(content)), f)
		frozen = append(frozen, strings.TrimSuffix(filepath.Base(f), ".golden"))
	}
	for _, s := range topic.All() {
		wanted = append(wanted, s.Name)
	}
	require.ElementsMatch(t, wanted, frozen)
}

package event

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/shared/topic"
)

// withoutEncoding are the topics whose shape does not stand in this package yet.
var withoutEncoding = []string{topic.EndpointCommand.Name}

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
		if !slices.Contains(withoutEncoding, s.Name) {
			wanted = append(wanted, s.Name)
		}
	}
	require.ElementsMatch(t, wanted, frozen)
}

package web

import (
	"os"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestTheGlossaryIsThatOfTheDocuments(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../../docs/glossary.md")
	require.NoError(t, err)
	require.Equal(t, string(text), glossaryText, "run `make generate`")
	for _, word := range []string{"ticket", "position", "projection", "generation", "epoch", "standby", "receipt", "fence", "dead letter", "candidate"} {
		link, err := linkToTerm(word)
		require.NoError(t, err)
		require.Contains(t, string(link), `href="/glossary#`)
	}
	_, err = linkToTerm("wish")
	require.Error(t, err)
	require.Equal(t, "one place in the log, written <code>topic/partition@offset</code>", string(readGlossary("| position | one place in the log, written `topic/partition@offset` | |")[0].Meaning))
}

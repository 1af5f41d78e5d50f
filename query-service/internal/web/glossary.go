package web

import (
	_ "embed"
	"fmt"
	"html/template"
	"net/http"
	"regexp"
	"strings"

	"github.com/gin-gonic/gin"
)

// The glossary is docs/glossary.md. A package can embed what lies inside it only, so `make generate` copies the file here.
//
//go:generate cp ../../../docs/glossary.md glossary.md
//go:embed glossary.md
var glossaryText string

// glossaryEntry is one row of the glossary.
type glossaryEntry struct {
	Word    string
	Meaning template.HTML
}

// Anchor is the fragment of the page that shows the word.
func (e glossaryEntry) Anchor() string { return anchorOf(e.Word) }

func anchorOf(word string) string { return strings.NewReplacer(" ", "-", ",", "").Replace(word) }

var glossary = readGlossary(glossaryText)

var inCode = regexp.MustCompile("`([^`]+)`")

// readGlossary reads the rows of the table in a Markdown text.
func readGlossary(text string) []glossaryEntry {
	var all []glossaryEntry
	for line := range strings.Lines(text) {
		cells := strings.Split(strings.TrimSpace(line), " | ")
		if len(cells) < 2 || !strings.HasPrefix(cells[0], "| ") || strings.HasPrefix(cells[0], "| ---") || cells[0] == "| word" {
			continue
		}
		meaning := inCode.ReplaceAllString(template.HTMLEscapeString(cells[1]), "<code>$1</code>")
		all = append(all, glossaryEntry{strings.TrimPrefix(cells[0], "| "), template.HTML(meaning)}) //nolint:gosec // escaped above
	}
	return all
}

// linkToTerm links to the word's entry, with other words as the link's text where they are given.
func linkToTerm(word string, text ...string) (template.HTML, error) {
	for _, e := range glossary {
		if e.Word == word {
			shown := strings.Join(append(text, word)[:1], "")
			return template.HTML(fmt.Sprintf(`<a class="term" href="/glossary#%s">%s</a>`, e.Anchor(), template.HTMLEscapeString(shown))), nil //nolint:gosec // made of the glossary's own words
		}
	}
	return "", fmt.Errorf("docs/glossary.md does not explain %q", word)
}

func (p *Pages) glossary(c *gin.Context) {
	p.render(c, http.StatusOK, "glossary", layout{Title: "Glossary", Here: "/glossary", Body: glossary})
}

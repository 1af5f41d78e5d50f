package app_test

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/shared/config"
	"github.com/tidemark/tidemark/tidemark/app"
)

var update = flag.Bool("update", false, "write docs/configuration.md anew")

// The page is made from the services' structs: go test ./tidemark/app -run ConfigurationPage -update
func TestConfigurationPageIsThatOfTheStructs(t *testing.T) {
	t.Parallel()
	file := filepath.Join("..", "..", "docs", "configuration.md")
	page := configurationPage()
	if *update {
		require.NoError(t, os.WriteFile(file, []byte(page), 0o600))
	}
	there, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Equal(t, page, string(there), "run this test with -update")
}

func configurationPage() string {
	services := app.Services()
	type row struct {
		config.Setting
		defaults []string // by service, in the order of the columns; "" where it is no setting of the service
	}
	rows := map[string]*row{}
	for i, service := range services {
		for _, s := range config.Settings(service.Config) {
			if rows[s.Name] == nil {
				rows[s.Name] = &row{Setting: s, defaults: make([]string, len(services))}
			}
			rows[s.Name].defaults[i] = "empty"
			if s.Value != "" {
				rows[s.Name].defaults[i] = "`" + s.Value + "`"
			}
		}
	}
	var b strings.Builder
	b.WriteString(`# Configuration

Made from the services' structs; a test holds the two together. Configuration is environment only. A service reports all
mistakes at once, prints what it has with secrets masked and ends when it is started with ` + "`--check`" + `, and names an older
variable together with its successor. An empty variable counts as unset. A secret's variable has a twin that ends in
` + "`_FILE`" + ` and names a file that holds the value.

`)
	head, line := "| variable |", "| --- |"
	for _, s := range services {
		head, line = head+" "+s.Name+" |", line+" --- |"
	}
	b.WriteString(head + " what it is |\n" + line + " --- |\n")
	for _, name := range slices.Sorted(maps.Keys(rows)) {
		r := rows[name]
		what := strings.ReplaceAll(r.Description, "|", `\|`)
		if r.Secret != "" {
			what += "; secret: `" + name + "_FILE` too"
		}
		cells := slices.Clone(r.defaults)
		for i, c := range cells {
			if c == "" {
				cells[i] = "-"
			}
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s |\n", name, strings.Join(cells, " | "), what)
	}
	b.WriteString(`
The columns give each service's default; ` + "`-`" + ` is no setting of that service. ` + "`tidemark up`" + ` hands the same environment
to all of them, sets what connects them itself, and starts an embedded broker or a private PostgreSQL only where
` + "`KAFKA_BROKERS` or `DB_URL`" + ` does not name one.
`)
	return b.String()
}

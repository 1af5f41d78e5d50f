package schema_test

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"
	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/shared/config"
	"github.com/tidemark/tidemark/shared/postgres"
	"github.com/tidemark/tidemark/shared/postgres/postgrestest"
	"github.com/tidemark/tidemark/shared/schema"
)

var update = flag.Bool("update", false, "write docs/schema.md anew")

// The page is read from a migrated database: go test ./shared/schema -run SchemaPage -update
func TestSchemaPageIsThatOfTheMigratedDatabase(t *testing.T) {
	t.Parallel()
	c := config.DefaultPostgres()
	c.URL = postgrestest.New(t)
	db, err := postgres.Open(c, "test", postgres.WriterLimits)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, db.Close()) })
	require.NoError(t, schema.Apply(t.Context(), db))

	file := filepath.Join("..", "..", "docs", "schema.md")
	page := schemaPage(t, db)
	if *update {
		require.NoError(t, os.WriteFile(file, []byte(page), 0o600))
	}
	there, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Equal(t, page, string(there), "run this test with -update")
}

func TestEverythingInTheSchemaSaysWhatItIs(t *testing.T) {
	t.Parallel()
	c := config.DefaultPostgres()
	c.URL = postgrestest.New(t)
	db, err := postgres.Open(c, "test", postgres.WriterLimits)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, db.Close()) })
	require.NoError(t, schema.Apply(t.Context(), db))

	for _, table := range tables(t, db) {
		require.NotEmpty(t, table.Comment, "COMMENT ON TABLE %s is missing", table.Name)
		for _, column := range columns(t, db, table) {
			require.NotEmpty(t, column.Comment, "COMMENT ON COLUMN %s.%s is missing", table.Name, column.Name)
		}
	}
}

type table struct {
	OID     int64  `db:"oid"`
	Name    string `db:"name"` // with its schema, where that is not public
	Comment string `db:"comment"`
}

type column struct {
	Name    string `db:"name"`
	Type    string `db:"type"`
	Null    bool   `db:"nullable"`
	Default string `db:"default"`
	Comment string `db:"comment"`
}

// tables are those of the migrations, by name; goose's own is none of them.
func tables(t *testing.T, db *sqlx.DB) (out []table) {
	t.Helper()
	require.NoError(t, db.SelectContext(t.Context(), &out, `
SELECT c.oid, c.oid::regclass::text AS name, coalesce(obj_description(c.oid, 'pg_class'), '') AS comment
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname IN (SELECT schema_name FROM projections) AND c.relkind IN ('r', 'p') AND c.relname <> 'goose_db_version'
	AND NOT (n.nspname <> 'public' AND c.relname = ANY ($1::text[]))
ORDER BY n.nspname <> 'public', 2`, pq.Array([]string{schema.Progress, schema.DeadLetters, schema.Audits})))
	return out
}

func columns(t *testing.T, db *sqlx.DB, of table) (out []column) {
	t.Helper()
	require.NoError(t, db.SelectContext(t.Context(), &out, `
SELECT a.attname AS name, format_type(a.atttypid, a.atttypmod) AS type, NOT a.attnotnull AS nullable,
	coalesce(pg_get_expr(d.adbin, d.adrelid), '') AS "default", coalesce(col_description(a.attrelid, a.attnum), '') AS comment
FROM pg_attribute a LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum`, of.OID))
	return out
}

// lines are one text a row.
func lines(t *testing.T, db *sqlx.DB, query string, args ...any) (out []string) {
	t.Helper()
	require.NoError(t, db.SelectContext(t.Context(), &out, query, args...))
	return out
}

func schemaPage(t *testing.T, db *sqlx.DB) string {
	t.Helper()
	var b strings.Builder
	b.WriteString(`# The database

Made from a migrated database; a test holds the two together. Consumer-service owns it and brings it up to date when it starts
(` + "`shared/schema/migrations`" + `); the other services wait for the version they need. Read whatever you like; write nothing: a
replay of the log heals rows that a hand changed, and the audit names those it finds.

Every projection has a schema: ` + "`public`" + ` for timestamps, else its own name. Its serving generation's tables always stand there.
` + "`projection_progress`, `dead_letters` and `projection_audits`" + ` are the same for every projection and described once, for ` + "`public`" + `.
While a projection is rebuilt, or a generation is kept as standby, generation N has tables of the same names in the schema
` + "`<projection>_gN`" + `.
`)
	for _, table := range tables(t, db) {
		fmt.Fprintf(&b, "\n## %s\n\n%s\n\n| column | type | null | default | what it is |\n| --- | --- | --- | --- | --- |\n", table.Name, table.Comment)
		for _, c := range columns(t, db, table) {
			null, value := "", ""
			if c.Null {
				null = "yes"
			}
			if c.Default != "" {
				value = "`" + c.Default + "`"
			}
			fmt.Fprintf(&b, "| `%s` | %s | %s | %s | %s |\n", c.Name, c.Type, null, value, c.Comment)
		}
		// Postgres 18 lists NOT NULL among the constraints, earlier releases do not.
		rules := lines(t, db, `SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conrelid = $1 AND contype <> 'n' ORDER BY contype = 'p' DESC, conname`, table.OID)
		rules = append(rules, lines(t, db, `
SELECT pg_get_indexdef(i.indexrelid) FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
WHERE i.indrelid = $1 AND NOT EXISTS (SELECT FROM pg_constraint k WHERE k.conindid = i.indexrelid) ORDER BY c.relname`, table.OID)...)
		if len(rules) > 0 {
			b.WriteString("\n")
		}
		for _, rule := range rules {
			fmt.Fprintf(&b, "- `%s`\n", rule)
		}
	}
	if sequences := lines(t, db, `SELECT '- `+"`"+`' || sequencename || '`+"`"+`: ' || coalesce(obj_description(format('public.%I', sequencename)::regclass, 'pg_class'), '') FROM pg_sequences WHERE schemaname = 'public' AND sequencename NOT LIKE 'goose%' ORDER BY 1`); len(sequences) > 0 {
		b.WriteString("\n## Sequences\n\n" + strings.Join(sequences, "\n") + "\n")
	}
	return b.String()
}

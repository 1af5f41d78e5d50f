package app

import (
	"testing"

	"github.com/tidemark/tidemark/shared/postgres/postgrestest"
)

// A database that takes no writes for a while stops every projection. Once it takes them again all go on, and no session
// of the time before is left to refuse a write later.
func TestAReadOnlyDatabaseIsWaitedForAndForgotten(t *testing.T) {
	t.Parallel()
	i := install(t)
	p := i.run(t)
	p.ready(t)
	i.stamps(t, 0, 10)
	i.rows(t, "timestamp_records", 10)

	postgrestest.SetReadOnly(t, i.config.URL, true)
	for n := range int32(partitions) {
		i.stamps(t, n, 5)
	}
	i.puts(t, 5)
	p.unready(t, "the database is read-only")

	postgrestest.SetReadOnly(t, i.config.URL, false)
	i.rows(t, "timestamp_records", 10+5*partitions)
	i.rows(t, "endpoints.current_endpoints", 5)
	p.ready(t)
	for n := range 10 {
		for partition := range int32(partitions) {
			i.stamps(t, partition, 2)
		}
		i.rows(t, "timestamp_records", 10+5*partitions+2*partitions*(n+1))
		p.ready(t)
	}
	p.audited(t, "timestamps")
}

// What the database is found wanting in is said by /ready in the words that query-service says it in, without a word of
// the driver's, which name users and addresses.
func TestReadinessSaysWhyTheDatabaseCannotBeUsed(t *testing.T) {
	t.Parallel()
	i := install(t)
	i.config.URL += "&no_such_setting=1"
	p := i.run(t)
	p.unready(t, `"schema":"the database does not know a setting of DB_URL`)
}

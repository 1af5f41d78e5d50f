package app

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestTheOverviewSaysWhichRebuildsAreUnderWay(t *testing.T) {
	t.Parallel()
	db, s, _ := withOthers(t)
	db.Must(t, `UPDATE projection_progress SET log_end = next_offset, log_end_at = now() + interval '1 hour', caught_up_at = now()`)
	serving := aGeneration{number: 0, state: "serving"}
	for words, g := range map[string]*aGeneration{
		"": nil,
		"<strong>timestamps: a rebuild is under way, generation 1.</strong> Reading the log into new tables. 4,123,456 of 10,000,000 records, 41.2%; 312,400 a second; caught up in about 19 s.": {number: 1, state: "filling", swapWanted: true, done: 4_123_456, end: 10_000_000, rate: 312_400, eta: 18.8},
		"<strong>timestamps: a rebuild stalls, generation 1.</strong> Reading the log into new tables. 4 of 10 records, 40.0%; 0 a second.":                                                      {number: 1, state: "filling", done: 4, end: 10, stalled: true},
		"<strong>timestamps: a rebuild is under way, generation 1.</strong> Building the indexes. 10 records are read.":                                                                          {number: 1, state: "indexing", done: 10, end: 10},
		"<strong>timestamps: a candidate waits to be switched over, generation 1.</strong> Caught up. 10 records. Consumer lag: 2.":                                                              {number: 1, state: "ready", done: 10, end: 12},
	} {
		if setGenerations(t, db, serving); g != nil {
			setGenerations(t, db, serving, *g)
		}
		for _, path := range []string{"/", "/projections"} {
			page := s.page(t, path)
			requireSound(t, path, page)
			require.Contains(t, page.body, `data-events="/api/v1/events?watch=projection,generations"`)
			if g == nil {
				require.NotContains(t, page.body, "generation 1")
				require.NotContains(t, page.body, refresh)
				continue
			}
			require.Contains(t, page.body, words)
			require.Contains(t, page.body, `<a href="/projections/timestamps/rebuild">`)
			require.Equal(t, g.state != "ready", strings.Contains(page.body, refresh), "%s: %s", path, words)
		}
	}
}

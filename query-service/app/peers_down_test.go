package app

import (
	"net/url"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/query-service/internal/testdb"
)

func TestPagesSayWhatToDoWhereTheOthersAreDown(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	db.Reject(t, 0, []byte("{"), `[]`, "broken")
	s := startWithPeers(t, db.URL, "http://127.0.0.1:1")
	s.awaitReady(t)
	page := s.page(t, "/projections/timestamps/rebuild")
	require.Equal(t, 200, page.status, "what there is comes from the database")
	require.Contains(t, page.body, "consumer-service is down: no rebuild can be started.")
	require.Contains(t, page.body, "Generation 0 serves every read.")
	require.Contains(t, page.body, refresh)
	letter := []string{"timestamp.command.v1/0@0"}
	for path, tc := range map[string]struct {
		form  url.Values
		words string
	}{
		"/projections/timestamps/rebuild": {url.Values{"kind": {"swap"}}, "consumer-service does not answer at http://127.0.0.1:1: start it, or set CONSUMER_URL to where it listens."},
		"/projections/timestamps/audit":   {nil, "consumer-service does not answer"},
		"/dead-letters/discard":           {url.Values{"position": letter, "sure": {"1"}}, "command-service does not answer at http://127.0.0.1:1: start it, or set COMMAND_URL"},
		"/dead-letters/redrive":           {url.Values{"position": letter, "payload": {"{}"}}, "command-service does not answer"},
	} {
		a := s.post(t, path, tc.form)
		requireSound(t, path, a)
		require.Equal(t, 503, a.status, path)
		require.Contains(t, a.body, tc.words)
	}
}

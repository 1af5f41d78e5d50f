package fault_test

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/integration/stack"
	"github.com/tidemark/tidemark/integration/story"
)

// An audit that costs much is not run often. One that only hung, because the database was down, cost nothing, and the next
// one comes as usual.
func TestAnAuditThatHungDoesNotPutOffTheNext(t *testing.T) {
	s := onKafka(t)
	proxy, err := stack.StartProxy(t.Context(), s.Postgres.Address())
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, proxy.Close()) })
	url, err := stack.Through(proxy, s.DBURL)
	require.NoError(t, err)
	s.Ready(s.Service("consumer-service", map[string]string{"DB_URL": url, "AUDIT_INTERVAL": "200ms"}))
	grow(t, s, 10)
	s.RequireProjected(s.DB)
	s.RequireCleanAudit(s.DB)

	proxy.Hang()
	time.Sleep(4 * time.Second) // twenty times as long is what the next one would wait
	proxy.Pass()
	ctx, cancel := context.WithTimeout(t.Context(), story.Patience)
	defer cancel()
	for range 3 { // the first may be the one that hung
		require.NoError(t, story.Timestamps.CleanAudit(ctx, s.DB))
	}
}

package rebuild_test

import (
	"strconv"
	"testing"

	"github.com/tidemark/tidemark/consumer-service/app"
	"github.com/tidemark/tidemark/integration/story"
)

// The least DB_MAX_OPEN_CONNS that is taken, two more than there are projections, is enough for all that a consumer does at once: a replay of every partition, audits,
// receipts, and a rebuild with its proof and swap beside them. Nothing holds a connection while it waits for a second one.
func TestTheSmallestPoolIsEnough(t *testing.T) {
	s := story.New(t)
	least := strconv.Itoa(len(app.DefaultConfig().Projections) + 2)
	small := map[string]string{"DB_MAX_OPEN_CONNS": least, "DB_MAX_IDLE_CONNS": least, "AUDIT_INTERVAL": "1s"}
	first := s.Service("consumer-service", small)
	s.Ready(first)
	fill(t, s.Log, 20_000)
	s.RequireProjected(s.DB)
	s.Stop(first)

	small["KAFKA_GROUP_ID"] = "another"
	again := s.Service("consumer-service", small)
	s.Ready(again)
	op := api{t, s.Client, again}
	g := op.start(`{"swap":true}`) // while the replay is under way
	fill(t, s.Log, 5_000)
	op.untilServes(g.Generation)
	s.RequireProjected(s.DB)
	s.RequireCleanAudit(s.DB)
	s.Stop(again)
}

package fault_test

import (
	"fmt"
	"math/rand/v2"
	"strconv"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/integration/story"
)

// One id in several partitions, and several times in one, with different content: whatever is read first, and wherever a
// batch is cut, the same record is the row, and the same ones are duplicates.
func TestOneIDInSeveralPartitionsIsTheSameAfterEachReplay(t *testing.T) {
	s := onKafka(t)
	seed := drawSeed(t)
	r := rand.New(rand.NewPCG(seed, 3))
	require.NoError(t, s.Log.Create(12, nil))
	var ids []uuid.UUID
	for range 400 {
		ids = append(ids, uuid.New())
	}
	used := map[uuid.UUID]bool{}
	for range 10 { // several requests, so that the log's times differ, and are equal, too
		var messages []story.Message
		for range 300 {
			id := ids[r.IntN(len(ids))]
			used[id] = true
			messages = append(messages, story.Message{Partition: r.Int32N(12), Key: id.String(), Value: command(id, someTime(r))})
		}
		_, err := s.Log.Write(append(messages, poison(r, r.Int32N(12)))...)
		require.NoError(t, err)
	}
	log, upTo, err := s.Log.Read(t.Context(), nil)
	require.NoError(t, err)
	expected := story.Expect(log, story.Rules{})
	require.Equal(t, len(used), expected.Count)

	consumer := s.Service("consumer-service", map[string]string{"BATCH_SIZE": "1", "AUDIT_INTERVAL": "200ms"})
	var first story.Dump
	for replay := range 10 {
		if replay > 0 {
			s.Stop(consumer)
			if r.IntN(4) > 0 { // else the rows stay, and are recognised
				run(t, s.DB, `TRUNCATE public.timestamp_records`)
			}
			size := 1 + r.IntN(40)
			if r.IntN(4) == 0 {
				size = 5000
			}
			require.NoError(t, consumer.Start(t.Context(), map[string]string{
				"KAFKA_GROUP_ID": fmt.Sprintf("%s-replay-%d", s.Group, replay), "BATCH_SIZE": strconv.Itoa(size),
			}))
			s.Ready(consumer) // a new epoch has begun: its progress is not the old one's
		} else {
			s.Ready(consumer)
		}
		s.Passed(s.DB, upTo)
		d := s.Dump(s.DB)
		expected.Require(t, upTo, d)
		if replay == 0 {
			first = d
		}
		story.RequireSame(t, first, d)
		s.RequireCleanAudit(s.DB)
	}
}

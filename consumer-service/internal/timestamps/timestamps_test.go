package timestamps_test

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/tidemark/tidemark/consumer-service/internal/projection/projectiontest"
	"github.com/tidemark/tidemark/consumer-service/internal/timestamps"
	"github.com/tidemark/tidemark/shared/event"
	"github.com/tidemark/tidemark/shared/kafka"
	"github.com/tidemark/tidemark/shared/topic"
)

func TestMain(m *testing.M) { projectiontest.Main(m) }

func stamp(r *rand.Rand, id uuid.UUID) projectiontest.Record {
	at := time.Unix(r.Int64N(4_000_000_000), r.Int64N(1_000_000)*1000).UTC()
	return projectiontest.Record{
		Key: []byte(id.String()), Value: event.AppendTimestampCommand(nil, event.TimestampCommand{CommandID: id, EventTimestamp: at}),
		Headers:  []kafka.Header{{Key: []byte(event.HeaderCorrelationID), Value: []byte("c-1")}},
		Identity: id.String(), Partition: projectiontest.AnyPartition,
	}
}

func TestTimestamps(t *testing.T) {
	t.Parallel()
	projectiontest.Run(t, timestamps.Definition, projectiontest.Samples{
		Topic: topic.TimestampCommand,
		Valid: func(r *rand.Rand, _ time.Time) projectiontest.Record { return stamp(r, uuid.New()) },
		Undecodable: func(r *rand.Rand) projectiontest.Record {
			values := []string{
				``, `{}`, `poison`, "\x00\xff", `{"command_id":"7","event_timestamp":"2026-01-02T03:04:05Z"}`,
				`{"command_id":"01920b5c-7d4e-7cc3-98c4-dc0c0c07398f","event_timestamp":"yesterday"}`,
			}
			return projectiontest.Record{
				Key: []byte("k"), Value: []byte(values[r.IntN(len(values))]), Rejected: projectiontest.Decode, Partition: projectiontest.AnyPartition,
				Headers: []kafka.Header{{Key: []byte("h"), Value: []byte("\xff")}, {Key: []byte("h")}},
			}
		},
		Repeat: func(r *rand.Rand, of projectiontest.Record) projectiontest.Record {
			return stamp(r, uuid.MustParse(of.Identity))
		},
	})
}

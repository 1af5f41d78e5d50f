package projection

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/shared/config"
	"github.com/tidemark/tidemark/shared/kafka"
	"github.com/tidemark/tidemark/shared/postgres"
	"github.com/tidemark/tidemark/shared/postgres/postgrestest"
)

// BenchmarkWriteFast is the database's share of a batch: a lone command, and a full batch of a replay.
func BenchmarkWriteFast(b *testing.B) {
	for _, size := range []int{1, 5000} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			c := config.DefaultPostgres()
			c.URL = postgrestest.Migrated(b)
			db, err := postgres.Open(c, "bench", postgres.WriterLimits)
			require.NoError(b, err)
			b.Cleanup(func() { require.NoError(b, db.Close()) })
			s := newStore(db, stamps(1), "bench", nil)
			require.NoError(b, postgres.Tx(b.Context(), s.db, func(tx *sqlx.Tx) error {
				return s.ensureProgress(b.Context(), tx, entering{partitions: 1}, 1)
			}))
			from := int64(0)
			for b.Loop() {
				records := make([]kafka.Record, size)
				for i := range records {
					id, err := uuid.NewV7()
					require.NoError(b, err)
					records[i] = kafka.Record{Offset: from + int64(i), Timestamp: day, Value: []byte(value(id, day.Add(time.Duration(i))))}
				}
				_, err := s.writeFast(b.Context(), 1, s.def.prepare(0, from, records), nil)
				require.NoError(b, err)
				from += int64(size)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(from), "ns/record")
		})
	}
}

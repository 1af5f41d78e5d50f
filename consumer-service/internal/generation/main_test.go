package generation

import (
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/tidemark/tidemark/consumer-service/internal/timestamps"
	"github.com/tidemark/tidemark/shared/await"
	"github.com/tidemark/tidemark/shared/config"
	"github.com/tidemark/tidemark/shared/kafka/kafkatest"
	"github.com/tidemark/tidemark/shared/postgres"
	"github.com/tidemark/tidemark/shared/postgres/postgrestest"
	topics "github.com/tidemark/tidemark/shared/topic"
)

func TestMain(m *testing.M) {
	await.SideBySide()
	goleak.VerifyTestMain(m)
}

var topic = topics.TimestampCommand.Name

// bundle is a service on a database of its own. Nothing feeds its generations but copied.
type bundle struct {
	*Service
	log *kafkatest.Log
	url string
}

var day = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// rows in each of the partitions, the last of them dead letters.
const (
	partitions = 2
	perEach    = 50
	dead       = 5
)

func sized() topics.Spec {
	of := topics.TimestampCommand
	of.Partitions = partitions
	return of
}

func setup(t *testing.T) *bundle {
	t.Helper()
	c := config.DefaultPostgres()
	c.URL = postgrestest.Migrated(t)
	open := func(limits postgres.Limits) *sqlx.DB {
		db, err := postgres.Open(c, "test", limits)
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, db.Close()) })
		return db
	}
	db, long := open(postgres.WriterLimits), open(postgres.Limits{})
	log := kafkatest.NewLog(partitions)
	b := &bundle{log: log, url: c.URL, Service: New(Options{
		DB: db, Long: long, Log: log, Identity: log, Definition: timestamps.Definition(sized()), Group: "group-1",
		Metrics: NewMetrics(prometheus.NewRegistry()), Logger: slog.New(slog.NewTextHandler(t.Output(), nil)),
	})}
	b.exec(t, `UPDATE projection_generations SET group_name = 'group-1', cluster_id = 'cluster-1', topic_id = 'topic-1' WHERE projection = 'timestamps'`)
	b.exec(t, `UPDATE projections SET run_at = now() + interval '1 day'`)
	for p := range int32(partitions) {
		for o := range perEach {
			at := log.Add(p, day.Add(time.Duration(o)*time.Second), "").Timestamp
			if o < perEach-dead {
				b.exec(t, `INSERT INTO timestamp_records (id, event_timestamp, created_at, partition, "offset") VALUES ($1, $2, $2, $3, $4)`,
					uuid.NewSHA1(uuid.Nil, fmt.Append(nil, p, o)), at, p, o)
			} else {
				b.exec(t, `INSERT INTO dead_letters (topic, partition, "offset", payload, headers, reason_code, reason, first_seen_at) VALUES ($1, $2, $3, 'x', '[]', 'decode', 'no', $4)`,
					topic, p, o, at)
			}
		}
		b.exec(t, `INSERT INTO projection_progress (topic, partition, epoch, first_offset, next_offset, applied, rejected, log_end, caught_up_at)
			SELECT $1, $2, epoch, 0, $3, $4, $5, $3, now() FROM projection_generations WHERE projection = 'timestamps'`, topic, p, perEach, perEach-dead, dead)
	}
	return b
}

func (b *bundle) exec(t *testing.T, query string, args ...any) {
	t.Helper()
	_, err := b.DB.ExecContext(t.Context(), query, args...)
	require.NoError(t, err)
}

func (b *bundle) one(t *testing.T, dest any, query string, args ...any) {
	t.Helper()
	require.NoError(t, b.DB.GetContext(t.Context(), dest, query, args...))
}

// copied fills a generation as its workers would.
func (b *bundle) copied(t *testing.T, g Generation) {
	t.Helper()
	b.exec(t, `INSERT INTO `+g.Schema+`.timestamp_records SELECT * FROM public.timestamp_records`)
	b.exec(t, `INSERT INTO `+g.Schema+`.dead_letters SELECT * FROM public.dead_letters`)
	b.exec(t, `UPDATE `+g.Schema+`.projection_progress s SET next_offset = p.next_offset, applied = p.applied, rejected = p.rejected,
		log_end = p.log_end, caught_up_at = p.caught_up_at FROM public.projection_progress p WHERE p.partition = s.partition`)
}

// ready starts a rebuild and brings it to where it may be proved.
func (b *bundle) ready(t *testing.T, r Request) Generation {
	t.Helper()
	g, err := b.Start(t.Context(), r)
	require.NoError(t, err)
	b.copied(t, g)
	for _, want := range []State{Indexing, Ready} {
		moved, err := b.stepGeneration(t.Context(), g)
		require.NoError(t, err)
		require.True(t, moved)
		g = b.get(t, g.Number)
		require.Equal(t, want, g.State)
	}
	return g
}

func (b *bundle) get(t *testing.T, number int) Generation {
	t.Helper()
	g, err := b.Get(t.Context(), number)
	require.NoError(t, err)
	return g
}

// step drives once.
func (b *bundle) drive(t *testing.T) {
	t.Helper()
	for again := true; again; {
		var err error
		again, err = b.stepAll(t.Context())
		require.NoError(t, err)
	}
}

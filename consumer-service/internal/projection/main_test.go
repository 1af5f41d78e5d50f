package projection

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/tidemark/tidemark/shared/await"
	"github.com/tidemark/tidemark/shared/config"
	"github.com/tidemark/tidemark/shared/event"
	"github.com/tidemark/tidemark/shared/httpapi"
	"github.com/tidemark/tidemark/shared/kafka"
	"github.com/tidemark/tidemark/shared/kafka/kafkatest"
	"github.com/tidemark/tidemark/shared/postgres"
	"github.com/tidemark/tidemark/shared/postgres/postgrestest"
	"github.com/tidemark/tidemark/shared/topic"
)

func TestMain(m *testing.M) {
	await.SideBySide()
	goleak.VerifyTestMain(m)
}

// stamps is a spread projection with the shape of the timestamps, for what the engine's own tests need of one.
func stamps(partitions int) *Definition {
	of := topic.TimestampCommand
	of.Partitions = partitions
	return &Definition{
		Name: "timestamps", Schema: "public", Topic: of, Kind: Spread, Ticket: "id",
		Main: &MainTable[event.TimestampCommand]{
			Name:    "timestamp_records",
			Decode:  func(r kafka.Record) (event.TimestampCommand, error) { return event.DecodeTimestampCommand(r.Value) },
			Key:     []Column[event.TimestampCommand]{{"id", UUID, func(a *postgres.Array, c *event.TimestampCommand) { a.UUID(c.CommandID) }}},
			Columns: []Column[event.TimestampCommand]{{"event_timestamp", Timestamptz, func(a *postgres.Array, c *event.TimestampCommand) { a.Timestamp(c.EventTimestamp) }}},
			Compare: func(a, b *event.TimestampCommand) int { return bytes.Compare(a.CommandID[:], b.CommandID[:]) },
			Label:   func(c *event.TimestampCommand) string { return c.CommandID.String() },
		},
	}
}

// heldSession is one assignment of all partitions.
type heldSession struct {
	ctx   context.Context //nolint:containedctx // what a session is
	log   *kafkatest.Log
	own   []int32
	seeks map[int32]kafka.Committed
	ended bool
}

func (s *heldSession) Context() context.Context { return s.ctx }
func (s *heldSession) Partitions() []int32      { return s.own }
func (s *heldSession) End()                     { s.ended = true }
func (s *heldSession) Seek(p int32, offset int64, metadata string) {
	s.seeks[p] = kafka.Committed{Offset: offset, Metadata: metadata}
}

func (s *heldSession) Commit() {
	s.log.Commit(s.seeks)
}

// heldDecisions are decisions in memory.
type heldDecisions struct {
	mu   sync.Mutex
	made map[int32]map[int64]event.Decision
	away error
}

func (d *heldDecisions) CatchUp(context.Context) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.away
}

func (d *heldDecisions) Of(_ string, partition int32, from, next int64) map[int64]event.Decision {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := maps.Clone(d.made[partition])
	maps.DeleteFunc(out, func(offset int64, _ event.Decision) bool { return offset < from || offset >= next })
	return out
}

func (d *heldDecisions) make(partition int32, offset int64, what event.Decision) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.made == nil {
		d.made = map[int32]map[int64]event.Decision{}
	}
	if d.made[partition] == nil {
		d.made[partition] = map[int64]event.Decision{}
	}
	d.made[partition][offset] = what
}

// bundle is one consumer on a database of its own.
type bundle struct {
	*Projector
	decided *heldDecisions
	log     *kafkatest.Log
	ready   *httpapi.Readiness
	session *heldSession
	stopped chan *Refusal
	url     string
}

func setup(t *testing.T, partitions int) *bundle {
	t.Helper()
	c := config.DefaultPostgres()
	c.URL = postgrestest.Migrated(t)
	db, err := postgres.Open(c, "test", postgres.WriterLimits)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, db.Close()) })
	return consumer(t, c.URL, db, kafkatest.NewLog(partitions), "group-1", partitions)
}

// consumer is a process of its own on a database and a log that are there.
func consumer(t *testing.T, url string, db *sqlx.DB, log *kafkatest.Log, group string, partitions int) *bundle {
	t.Helper()
	b := &bundle{decided: &heldDecisions{}, log: log, ready: httpapi.NewReadiness(), stopped: make(chan *Refusal, 8), url: url}
	b.Projector = New(Options{
		DB: db, Log: log, Identity: log, Decisions: b.decided, Definition: stamps(partitions), Group: group, Role: Serving(), AuditInterval: time.Second, Ready: b.ready,
		Metrics: NewMetrics(prometheus.NewRegistry()).Of("timestamps"), Logger: slog.New(slog.NewTextHandler(t.Output(), nil)), Stop: func(r *Refusal) { b.stopped <- r },
	})
	return b
}

// join begins a session with all partitions.
func (b *bundle) join(t *testing.T) error {
	t.Helper()
	b.session = &heldSession{ctx: t.Context(), log: b.log, seeks: map[int32]kafka.Committed{}}
	for p := range int32(b.Definition.Topic.Partitions) {
		b.session.own = append(b.session.own, p)
	}
	return b.enter(t.Context(), b.session)
}

// read projects records of the log as the subscriber would hand them over.
func (b *bundle) read(ctx context.Context, partition int32, records []kafka.Record) error {
	return b.project(ctx, partition, b.of(partition), records)
}

// epoch is that of the session.
func (b *bundle) epoch() int64 { return b.of(0).epoch }

// readAll projects the whole log, partition by partition.
func (b *bundle) readAll(t *testing.T) {
	t.Helper()
	for _, p := range slices.Sorted(maps.Keys(b.log.Records)) {
		if len(b.log.Records[p]) > 0 {
			require.NoError(t, b.read(t.Context(), p, b.log.Records[p]))
		}
	}
}

// dump is all that the projection says, in a canonical order.
func (b *bundle) dump(t *testing.T) string {
	t.Helper()
	var lines []string
	for _, query := range []string{
		`SELECT concat_ws('|', 'row', id, event_timestamp, created_at, partition, "offset") FROM public.timestamp_records ORDER BY id`,
		`SELECT concat_ws('|', 'dead', topic, partition, "offset", payload, headers, reason_code, reason, first_seen_at) FROM public.dead_letters ORDER BY topic, partition, "offset"`,
		`SELECT concat_ws('|', 'progress', partition, first_offset, next_offset, last_offset, last_created_at, last_record_hash, applied, duplicate, rejected, expired, skipped) FROM public.projection_progress ORDER BY partition`,
	} {
		var some []string
		require.NoError(t, b.DB.SelectContext(t.Context(), &some, query))
		lines = append(lines, some...)
	}
	return fmt.Sprintln(lines)
}

func (b *bundle) count(t *testing.T, table string) (n int) {
	t.Helper()
	require.NoError(t, b.DB.GetContext(t.Context(), &n, `SELECT count(*) FROM `+table))
	return n
}

func (b *bundle) clean(t *testing.T) {
	t.Helper()
	found, ran, err := b.store.audit(t.Context())
	require.NoError(t, err)
	require.True(t, ran)
	for _, f := range found {
		require.Empty(t, f.text(), "partition %d", f.Partition)
	}
}

func value(id uuid.UUID, at time.Time) string {
	return string(event.AppendTimestampCommand(nil, event.TimestampCommand{CommandID: id, EventTimestamp: at}))
}

var day = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// row is one of timestamp_records.
type row struct {
	ID        uuid.UUID `db:"id"`
	Event     time.Time `db:"event_timestamp"`
	Created   time.Time `db:"created_at"`
	Partition int32     `db:"partition"`
	Offset    int64     `db:"offset"`
}

// oracle computes rows and counts from the log alone, by the rule.
type oracle struct {
	rows                         map[uuid.UUID]row
	applied, duplicate, rejected map[int32]int64
}

func expect(log *kafkatest.Log) oracle {
	o := oracle{map[uuid.UUID]row{}, map[int32]int64{}, map[int32]int64{}, map[int32]int64{}}
	var all []row
	for p, records := range log.Records {
		for _, r := range records {
			c, err := event.DecodeTimestampCommand(r.Value)
			if err != nil {
				o.rejected[p]++
				continue
			}
			all = append(all, row{ID: c.CommandID, Event: c.EventTimestamp, Created: r.Timestamp, Partition: p, Offset: r.Offset})
		}
	}
	slices.SortFunc(all, func(x, y row) int {
		return cmp.Or(x.Created.Compare(y.Created), cmp.Compare(x.Partition, y.Partition), cmp.Compare(x.Offset, y.Offset))
	})
	for _, r := range all {
		if _, there := o.rows[r.ID]; there {
			o.duplicate[r.Partition]++
			continue
		}
		o.rows[r.ID] = r
		o.applied[r.Partition]++
	}
	return o
}

func (b *bundle) matches(t *testing.T, o oracle) {
	t.Helper()
	var rows []row
	require.NoError(t, b.DB.SelectContext(t.Context(), &rows, `SELECT id, event_timestamp, created_at, partition, "offset" FROM public.timestamp_records`))
	require.Len(t, rows, len(o.rows))
	for _, r := range rows {
		want := o.rows[r.ID]
		require.True(t, r.Event.Equal(want.Event) && r.Created.Equal(want.Created) && r.Partition == want.Partition && r.Offset == want.Offset, "%v, want %v", r, want)
	}
	var counts []struct{ Partition, Applied, Duplicate, Rejected int64 }
	require.NoError(t, b.DB.SelectContext(t.Context(), &counts, `SELECT partition, applied, duplicate, rejected FROM public.projection_progress`))
	for _, c := range counts {
		p := int32(c.Partition)
		require.Equal(t, []int64{o.applied[p], o.duplicate[p], o.rejected[p]}, []int64{c.Applied, c.Duplicate, c.Rejected}, "partition %d", p)
	}
}

package app

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/Shopify/sarama"
	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
	"github.com/pressly/goose/v3"
	"github.com/stretchr/testify/require"

	api "github.com/tidemark/tidemark/shared/api/consumer"
	"github.com/tidemark/tidemark/shared/await"
	"github.com/tidemark/tidemark/shared/event"
	"github.com/tidemark/tidemark/shared/position"
	"github.com/tidemark/tidemark/shared/postgres"
	"github.com/tidemark/tidemark/shared/schema"
	"github.com/tidemark/tidemark/shared/topic"
)

// What the release before this one sends, as it was: its processes may still run while this one migrates their database.
const (
	oldGeneration = `
SELECT i.database_id, g.generation, g.state, g.epoch, g.group_name, g.cluster_id
FROM public.generations g CROSS JOIN public.database_identity i
WHERE {row}`
	oldWrite = `
WITH fence AS (
	UPDATE {g}.projection_progress
	SET next_offset = $5, last_offset = $6, last_created_at = $7, last_record_hash = $8,
		applied = applied + $9, rejected = rejected + $10, skipped = skipped + $11, updated_at = now()
	WHERE topic = $1 AND partition = $2 AND epoch = $3 AND next_offset = $4
	RETURNING topic, partition
), records AS (
	INSERT INTO {g}.timestamp_records (id, event_timestamp, created_at, partition, "offset")
	SELECT r.id, r.event_timestamp, r.created_at, $2, r."offset"
	FROM unnest($12::uuid[], $13::timestamptz[], $14::timestamptz[], $15::bigint[]) AS r (id, event_timestamp, created_at, "offset")
	WHERE EXISTS (SELECT FROM fence)
), dead AS (
	INSERT INTO {g}.dead_letters (topic, partition, "offset", payload, headers, reason_code, reason, first_seen_at)
	SELECT $1, $2, d."offset", d.payload, d.headers::jsonb, d.reason_code, d.reason, d.first_seen_at
	FROM unnest($16::bigint[], $17::bytea[], $18::text[], $19::text[], $20::text[], $21::timestamptz[])
		AS d ("offset", payload, headers, reason_code, reason, first_seen_at)
	WHERE EXISTS (SELECT FROM fence)
), receipt AS (
	INSERT INTO {g}.receipt_outbox (group_name, generation, epoch, topic, partition, from_offset, next_offset, outcomes)
	SELECT $23, coalesce(g.generation, -1), $3, $1, $2, $4, $5, $22
	FROM fence LEFT JOIN public.generations g ON g.epoch = $3
)
SELECT count(*) FROM fence`
	oldLock = `
SELECT partition, epoch, first_offset, next_offset FROM {g}.projection_progress
WHERE topic = $1 AND (partition = $2 OR $3) ORDER BY partition FOR UPDATE`
	oldSkip = `
WITH fence AS (
	UPDATE {g}.projection_progress SET next_offset = $5, skipped = skipped + $6, updated_at = now()
	WHERE topic = $1 AND partition = $2 AND epoch = $3 AND next_offset = $4
	RETURNING topic, partition
), receipt AS (
	INSERT INTO {g}.receipt_outbox (group_name, generation, epoch, topic, partition, from_offset, next_offset, outcomes)
	SELECT $8, coalesce(g.generation, -1), $3, $1, $2, $4, $5, $7
	FROM fence LEFT JOIN public.generations g ON g.epoch = $3
)
SELECT count(*) FROM fence`
	oldWatermark = `
UPDATE {g}.projection_progress p
SET log_end = w.log_end, log_end_at = $2,
	caught_up_at = CASE WHEN p.next_offset >= w.log_end THEN greatest(p.caught_up_at, $2) ELSE p.caught_up_at END
FROM unnest($3::bigint[], $4::bigint[]) AS w (partition, log_end)
WHERE p.topic = $1 AND p.partition = w.partition AND p.partition IN (
	SELECT f.partition FROM {g}.projection_progress f WHERE f.topic = $1 ORDER BY f.partition FOR UPDATE SKIP LOCKED
)`
	oldStartOver = `
UPDATE public.generations g SET epoch = nextval('public.projection_epochs'), started_at = now() WHERE {row} RETURNING epoch`
	oldMark = `
UPDATE public.generations SET state = 'swapping', swapping_since = clock_timestamp(), epoch = nextval('public.projection_epochs') WHERE generation = 4`
	oldOutboxes = `
SELECT n.nspname FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.relname = 'receipt_outbox' AND c.relkind = 'r' AND (n.nspname = 'public' OR n.nspname ~ '^tidemark_g[0-9]+$')
ORDER BY n.nspname`
	oldReport = `
INSERT INTO public.generation_lanes (generation, lane, seen_at, kafka, consumer, postgres, throttle, note, noted_at)
SELECT g.generation, gen_random_uuid(), now(), 0, 0, 0, 0, '', NULL FROM public.generations g WHERE g.generation = 5 AND g.state NOT IN ('serving', 'swapping')`
	oldProgress = `
INSERT INTO public.generation_progress (generation, sampled_at, rate, bottleneck, note, noted_at)
SELECT g.generation, now(), 0, 'none', 'a note', now() FROM public.generations g WHERE g.generation = 5 AND g.state NOT IN ('serving', 'swapping')
ON CONFLICT (generation) DO UPDATE SET note = excluded.note, noted_at = excluded.noted_at`
)

// logged is a record of the log that the old release has read, or will have to read.
type logged struct {
	offset int64
	at     time.Time
	key    string
	value  []byte
	reason string // of the dead letter that it is to the old release; empty where it is a row
}

func (l logged) hash() int64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(l.key)) // never fails
	_, _ = h.Write([]byte{0})
	_, _ = h.Write(l.value)
	return int64(h.Sum64())
}

// oldWriter is one partition of a process of the old release.
type oldWriter struct {
	db            *sqlx.DB
	topic, group  string
	schema, where string
	epoch, next   int64
	partition     int32
}

var errOldFenced = errors.New("fenced")

func (w *oldWriter) in(query string) string {
	return strings.NewReplacer("{g}", w.schema, "{row}", w.where).Replace(query)
}

// write is the fast write of one record.
func (w *oldWriter) write(ctx context.Context, l logged) error {
	ids, events, created, offsets := postgres.UUIDs(1), postgres.Timestamps(1), postgres.Timestamps(1), postgres.Int8s(1)
	c, err := event.DecodeTimestampCommand(l.value)
	if err != nil {
		return err
	}
	ids.UUID(c.CommandID)
	events.Timestamp(c.EventTimestamp)
	created.Timestamp(l.at)
	offsets.Int8(l.offset)
	none, noBytes, noText, noTimes := postgres.Int8s(0), postgres.Byteas(0), postgres.Texts(0), postgres.Timestamps(0)
	var written int
	if err := w.db.GetContext(ctx, &written, w.in(oldWrite), w.topic, w.partition, w.epoch, l.offset, l.offset+1, l.offset, l.at, l.hash(), 1, 0, 0,
		ids.Bytes(), events.Bytes(), created.Bytes(), offsets.Bytes(), none.Bytes(), noBytes.Bytes(), noText.Bytes(), noText.Bytes(), noText.Bytes(), noTimes.Bytes(),
		`[{"outcome":"applied","count":1}]`, w.group); err != nil {
		return err
	}
	if written == 0 {
		return errOldFenced
	}
	w.next = l.offset + 1
	return nil
}

// A database that the release before has written, with rows, dead letters, decisions, receipts that wait, a standby and a
// candidate that is being filled, while its processes still run.
func TestADatabaseOfTheReleaseBeforeIsMigratedUnderItsWritersAndGoesOn(t *testing.T) {
	t.Parallel()
	i := install(t)
	ctx, of := t.Context(), i.definitions[0].Topic
	log := i.oldLog(t, of)
	files, err := goose.NewProvider(goose.DialectPostgres, i.db.DB, schema.Migrations())
	require.NoError(t, err)
	_, err = files.UpTo(ctx, 4)
	require.NoError(t, err)
	serving, candidate := i.oldDatabase(t, of, log)

	// Two of its writers are at work while the new release migrates.
	var writing sync.WaitGroup
	migrated, atWork := make(chan struct{}), make(chan struct{}, 2)
	for _, w := range []*oldWriter{serving, candidate} {
		writing.Go(func() {
			for tries, wrote := 0, 0; tries < 20; {
				err := w.write(ctx, log[0][w.next])
				switch {
				case err == nil:
					if wrote++; wrote == 3 {
						atWork <- struct{}{}
					}
					time.Sleep(2 * time.Millisecond) // so that the log lasts through the migration
					continue
				case errors.Is(err, errOldFenced), postgres.State(err) == "42P01", postgres.State(err) == "0A000":
				case postgres.State(err) == "40P01": // it would repeat this at once
					continue
				default:
					t.Errorf("%s: %s", w.schema, err)
				}
				<-migrated
				tries++
			}
		})
	}
	<-atWork
	<-atWork
	require.NoError(t, schema.Apply(ctx, i.db))
	close(migrated)
	writing.Wait()
	require.Less(t, serving.next, int64(len(log[0])))

	// From now on none of its statements writes anything.
	everything := i.dump(t)
	for _, w := range []*oldWriter{serving, candidate} {
		for name, statement := range map[string]func() error{
			"a write":        func() error { return w.write(ctx, log[0][w.next]) },
			"the generation": func() error { return w.read(ctx, oldGeneration) },
			"a start-over":   func() error { return w.read(ctx, oldStartOver) },
			"a swap":         func() error { return w.read(ctx, oldMark) },
			"a report":       func() error { return w.read(ctx, oldReport) },
			"a note":         func() error { return w.read(ctx, oldProgress) },
			"skipped offsets": func() error {
				return w.read(ctx, oldSkip, w.topic, w.partition, w.epoch, w.next, w.next+1, 1, `[]`, w.group)
			},
			"a slow write": func() error {
				return postgres.Tx(ctx, w.db, func(tx *sqlx.Tx) error {
					var rows []struct {
						Partition   int32
						Epoch       int64
						FirstOffset int64 `db:"first_offset"`
						NextOffset  int64 `db:"next_offset"`
					}
					if err := tx.SelectContext(ctx, &rows, w.in(oldLock), w.topic, w.partition, true); err != nil {
						return err
					}
					for _, r := range rows {
						require.NotEqual(t, w.epoch, r.Epoch)
					}
					return errOldFenced
				})
			},
			"a watermark": func() error { // it looks at the generation first
				if err := w.read(ctx, oldGeneration); err != nil {
					return err
				}
				_, err := w.db.ExecContext(ctx, w.in(oldWatermark), w.topic, time.Now(), "{0}", "{1}")
				return err
			},
		} {
			err := statement()
			require.True(t, errors.Is(err, errOldFenced) || postgres.State(err) == "42P01", "%s in %s: %v", name, w.schema, err)
		}
	}
	var outboxes []string
	require.NoError(t, i.db.SelectContext(ctx, &outboxes, oldOutboxes))
	require.Empty(t, outboxes, "it publishes nothing")
	require.Equal(t, everything, i.dump(t))

	// The new release goes on, in the same group, where the old one was.
	var epoch int64
	i.get(t, &epoch, `SELECT epoch FROM projection_generations WHERE projection = 'timestamps' AND state = 'serving'`)
	p := i.run(t)
	p.ready(t)
	i.rows(t, "timestamp_records", 400+18)
	i.rows(t, "dead_letters", 2)
	p.audited(t, "timestamps")
	var now int64
	i.get(t, &now, `SELECT epoch FROM projection_generations WHERE projection = 'timestamps' AND state = 'serving'`)
	require.Equal(t, epoch, now, "nothing started over")
	i.toldOnce(t, serving, candidate, epoch)

	g := p.becomes(t, "timestamps", 5, api.Ready)
	require.Equal(t, "timestamps_g5", g.Schema)
	i.rows(t, "timestamps_g5.timestamp_records", 400+18)
	p.must(t, http.StatusAccepted, http.MethodPost, generationsOf("timestamps")+"/5/proof", nil, nil)
	await.NoError(t, func() error {
		if g = p.becomes(t, "timestamps", 5, api.Ready); g.Proof == nil {
			return fmt.Errorf("no proof yet: %s", g.Progress.Note)
		}
		return nil
	})
	require.True(t, g.Proof.Ok, g.Proof.Finding)

	p.must(t, http.StatusAccepted, http.MethodPost, generationsOf("timestamps")+"/3/swap", nil, nil)
	p.becomes(t, "timestamps", 3, api.Serving)
	p.audited(t, "timestamps")
	p.becomes(t, "timestamps", 4, api.Standby)
	p.must(t, http.StatusAccepted, http.MethodDelete, generationsOf("timestamps")+"/4", nil, nil)
	p.must(t, http.StatusAccepted, http.MethodPost, generationsOf("timestamps")+"/5/swap", nil, nil)
	p.becomes(t, "timestamps", 5, api.Serving)
	p.audited(t, "timestamps")
	i.rows(t, "timestamp_records", 400+18)
	require.NoError(t, p.stop())
}

func (w *oldWriter) read(ctx context.Context, query string, args ...any) error {
	_, err := w.db.ExecContext(ctx, w.in(query), args...)
	return err
}

// oldLog fills the topic: partition 0 with rows, partition 1 with rows and two dead letters, one of which this release can
// read.
func (i *installation) oldLog(t *testing.T, of topic.Spec) (log [partitions][]logged) {
	t.Helper()
	add := func(partition int32, records ...logged) {
		msgs := make([]*sarama.ProducerMessage, len(records))
		for n, r := range records {
			msgs[n] = &sarama.ProducerMessage{Topic: of.Name, Partition: partition, Key: sarama.StringEncoder(r.key), Value: sarama.ByteEncoder(r.value)}
		}
		require.NoError(t, i.producer.SendMessages(msgs))
		for n, m := range msgs {
			r := records[n]
			r.offset, r.at = m.Offset, m.Timestamp.UTC()
			log[partition] = append(log[partition], r)
		}
	}
	row := func() logged { key, value := stamp(); return logged{key: key, value: value} }
	var many []logged
	for range 400 {
		many = append(many, row())
	}
	add(0, many...)
	for n := range 20 {
		r := row()
		switch n {
		case 3:
			r.value, r.reason = []byte("poison"), "the value is no JSON object"
		case 5:
			r.reason = "this release could not read it"
		}
		add(1, r)
	}
	return log
}

// oldDatabase is what the release before has made of a part of the log: generation 4 serves, 3 is its standby, and 5 is
// being filled. It returns the writers of partition 0 of the serving one and of the candidate.
func (i *installation) oldDatabase(t *testing.T, of topic.Spec, log [partitions][]logged) (serving, candidate *oldWriter) {
	t.Helper()
	group := i.config.GroupID
	cluster, err := i.reader.ClusterID(t.Context())
	require.NoError(t, err)
	i.exec(t, `DELETE FROM generations`)
	i.exec(t, `INSERT INTO projection_groups (group_name) VALUES ($1)`, group)
	i.exec(t, `INSERT INTO generations (generation, schema_name, state, group_name, cluster_id, started_at) VALUES (4, 'public', 'serving', $1, $2, now())`, group, cluster)
	i.exec(t, `INSERT INTO generations (generation, schema_name, state, cluster_id, started_at) VALUES (3, 'tidemark_g3', 'standby', $1, now()), (5, 'tidemark_g5', 'filling', $1, now())`, cluster)
	i.exec(t, `SELECT setval('generation_numbers', 5)`)
	i.exec(t, `INSERT INTO generation_progress (generation, sampled_at, rate, bottleneck) VALUES (5, now(), 1, 'kafka')`)
	i.exec(t, `INSERT INTO generation_lanes (generation, lane, seen_at, kafka, consumer, postgres, throttle) VALUES (5, gen_random_uuid(), now(), 1, 1, 1, 1)`)
	i.exec(t, `INSERT INTO dead_letter_decisions (topic, partition, "offset", decision, note, decided_by, decided_at, decision_partition, decision_offset)
		VALUES ($1, 1, 5, 'discard', '', '', now(), 0, 0)`, of.Name)
	i.send(t, i.decisions, 0, of.Name, event.AppendDeadLetterCommand(nil, event.DeadLetterCommand{
		Position: position.Position{Topic: of.Name, Partition: 1, Offset: 5}, Decision: event.Discard,
	}))
	for _, s := range []string{"tidemark_g3", "tidemark_g5"} {
		i.exec(t, `CREATE SCHEMA `+s)
		for _, table := range []string{"projection_progress", "timestamp_records", "dead_letters", "projection_audits", "receipt_outbox"} {
			i.exec(t, fmt.Sprintf(`CREATE TABLE %s.%s (LIKE public.%[2]s INCLUDING ALL)`, s, table))
		}
	}
	for number, g := range map[int]struct {
		schema string
		next   [partitions]int64
	}{4: {"public", [partitions]int64{50, 20, 0}}, 3: {"tidemark_g3", [partitions]int64{40, 20, 0}}, 5: {"tidemark_g5", [partitions]int64{10, 7, 0}}} {
		var epoch int64
		i.get(t, &epoch, `SELECT epoch FROM generations WHERE generation = $1`, number)
		for partition, next := range g.next {
			i.oldPartition(t, of.Name, g.schema, number, epoch, int32(partition), log[partition][:next])
		}
		w := &oldWriter{db: i.db, topic: of.Name, group: group, schema: g.schema, epoch: epoch, next: g.next[0], where: `g.state IN ('serving', 'swapping')`}
		switch number {
		case 4:
			serving = w
			i.commit(t, group, epoch, of.Name, g.next)
		case 5:
			w.group, w.where = group+".g5", "g.generation = 5"
			candidate = w
		}
	}
	return serving, candidate
}

func (i *installation) oldPartition(t *testing.T, of, in string, number int, epoch int64, partition int32, log []logged) {
	t.Helper()
	rejected := 0
	for _, l := range log {
		if l.reason == "" {
			c, err := event.DecodeTimestampCommand(l.value)
			require.NoError(t, err)
			i.exec(t, `INSERT INTO `+in+`.timestamp_records (id, event_timestamp, created_at, partition, "offset") VALUES ($1, $2, $3, $4, $5)`,
				c.CommandID, c.EventTimestamp, l.at, partition, l.offset)
			continue
		}
		rejected++
		i.exec(t, `INSERT INTO `+in+`.dead_letters (topic, partition, "offset", payload, headers, reason_code, reason, first_seen_at) VALUES ($1, $2, $3, $4, '[]', 'decode', $5, $6)`,
			of, partition, l.offset, l.value, l.reason, l.at)
	}
	i.exec(t, `INSERT INTO `+in+`.projection_progress (topic, partition, epoch, first_offset, next_offset, applied, rejected) VALUES ($1, $2, $3, 0, $4, $5, $6)`,
		of, partition, epoch, len(log), len(log)-rejected, rejected)
	if len(log) == 0 {
		return
	}
	last := log[len(log)-1]
	i.exec(t, `UPDATE `+in+`.projection_progress SET last_offset = $1, last_created_at = $2, last_record_hash = $3 WHERE partition = $4`, last.offset, last.at, last.hash(), partition)
	if in == "tidemark_g3" {
		return // its receipts have gone out
	}
	var runs []event.Run
	for _, l := range log {
		o := event.Applied
		if l.reason != "" {
			o = event.Rejected
		}
		runs = append(runs, event.Run{Outcome: o, Count: 1})
	}
	i.exec(t, `INSERT INTO `+in+`.receipt_outbox (group_name, generation, epoch, topic, partition, from_offset, next_offset, outcomes) VALUES ($1, $2, $3, $4, $5, 0, $6, $7)`,
		i.config.GroupID, number, epoch, of, partition, len(log), string(event.AppendRuns(nil, runs)))
}

// commit commits offsets with the mark that the old release gives them.
func (i *installation) commit(t *testing.T, group string, epoch int64, of string, next [partitions]int64) {
	t.Helper()
	var database uuid.UUID
	i.get(t, &database, `SELECT database_id FROM database_identity`)
	await.NoError(t, func() error {
		if err := i.client.RefreshCoordinator(group); err != nil {
			return fmt.Errorf("find the coordinator: %w", err)
		}
		coordinator, err := i.client.Coordinator(group)
		if err != nil {
			return fmt.Errorf("find the coordinator: %w", err)
		}
		request := &sarama.OffsetCommitRequest{Version: 2, ConsumerGroup: group, ConsumerGroupGeneration: -1, RetentionTime: -1}
		for p, offset := range next {
			request.AddBlock(of, int32(p), offset, 0, 0, fmt.Sprintf("tidemark %s %d", database, epoch))
		}
		res, err := coordinator.CommitOffset(request)
		if err != nil {
			return fmt.Errorf("commit: %w", err)
		}
		for p := range next {
			if code := res.Errors[of][int32(p)]; code != sarama.ErrNoError {
				return fmt.Errorf("commit: %w", code)
			}
		}
		return nil
	})
}

// dump is every row of the timestamps' generations and of what is noted about generations; but for audits, which say what
// is so, whoever made them.
func (i *installation) dump(t *testing.T) string {
	t.Helper()
	var tables, lines []string
	require.NoError(t, i.db.SelectContext(t.Context(), &tables, `
SELECT c.oid::regclass::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'r' AND (n.nspname = 'public' OR n.nspname LIKE 'timestamps\_g%' OR n.nspname LIKE 'tidemark\_g%') AND c.relname NOT IN ('projection_audits', 'goose_db_version')
ORDER BY 1`))
	require.Contains(t, tables, "timestamps_g5.timestamp_records")
	for _, table := range tables {
		var rows []string
		require.NoError(t, i.db.SelectContext(t.Context(), &rows, `SELECT '`+table+`: ' || t::text FROM `+table+` t ORDER BY 1`))
		lines = append(lines, rows...)
	}
	return strings.Join(lines, "\n")
}

// toldOnce requires that what waited in the old outboxes was published once, as of the generation that decided it, and that
// the serving generation's receipts go on where the old release's ended.
func (i *installation) toldOnce(t *testing.T, serving, candidate *oldWriter, epoch int64) {
	t.Helper()
	i.rows(t, "projection_receipt_outbox WHERE caught_up_at IS NULL", 0)
	ends := map[int64]int64{} // by epoch, of partition 0
	for _, r := range i.told(t) {
		if r.CaughtUpAt != nil || r.Partition != 0 {
			continue
		}
		switch r.Epoch {
		case serving.epoch:
			require.Equal(t, []any{4, true}, []any{r.Generation, r.Served})
		case candidate.epoch:
			require.Equal(t, []any{5, false}, []any{r.Generation, r.Served})
		case epoch:
			require.Equal(t, []any{4, true}, []any{r.Generation, r.Served})
			if ends[epoch] == 0 {
				ends[epoch] = serving.next
			}
		default:
			continue // of the standby and the candidate, since
		}
		require.Equal(t, ends[r.Epoch], r.From, "epoch %d", r.Epoch)
		ends[r.Epoch] = r.Next
	}
	require.Equal(t, map[int64]int64{serving.epoch: serving.next, candidate.epoch: candidate.next, epoch: 400}, ends)
}

package app

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/Shopify/sarama"
	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/consumer-service/internal/projection"
	"github.com/tidemark/tidemark/consumer-service/internal/timestamps"
	"github.com/tidemark/tidemark/shared/await"
	"github.com/tidemark/tidemark/shared/config"
	"github.com/tidemark/tidemark/shared/event"
	"github.com/tidemark/tidemark/shared/postgres"
	"github.com/tidemark/tidemark/shared/postgres/postgrestest"
	"github.com/tidemark/tidemark/shared/ticket"
	"github.com/tidemark/tidemark/shared/topic"
)

// benched says what a process that is measured runs: projections of the timestamps' shape, with topics and schemas of their
// own.
type benched struct {
	Names         []string
	Transactional []string // of them, those whose topics are written in transactions
	Suffix        string   // of topics and groups
	Partitions    int
	Brokers       []string
	DB            string
}

func newBenched(b *testing.B, partitions int, names ...string) (*benched, *sqlx.DB) {
	b.Helper()
	brokers := os.Getenv("TEST_KAFKA_BROKERS")
	require.NotEmpty(b, brokers, "TEST_KAFKA_BROKERS must name a real Kafka")
	of := &benched{Names: names, Suffix: "-" + uuid.NewString()[:8], Partitions: partitions, Brokers: strings.Split(brokers, ","), DB: postgrestest.Migrated(b)}
	c := config.DefaultPostgres()
	c.URL = of.DB
	db, err := postgres.Open(c, "bench", postgres.Limits{})
	require.NoError(b, err)
	b.Cleanup(func() { require.NoError(b, db.Close()) })
	for _, name := range names {
		_, err := db.ExecContext(b.Context(), fmt.Sprintf(`SELECT make_projection_schema('%[1]s'); CREATE TABLE %[1]s.timestamp_records (LIKE public.timestamp_records INCLUDING ALL)`, name))
		require.NoError(b, err)
	}
	return of, db
}

func (of *benched) topic(name string) string { return name + of.Suffix }

func (of *benched) definitions() []*projection.Definition {
	all := make([]*projection.Definition, len(of.Names))
	for i, name := range of.Names {
		all[i] = timestamps.Definition(topic.Spec{
			Name: of.topic(name), Key: "command_id", Kept: topic.Forever, Transactional: slices.Contains(of.Transactional, name), Partitions: of.Partitions, ReplicationFactor: 1,
		})
		all[i].Name, all[i].Schema, all[i].BaseGroup = name, "", false
	}
	return all
}

// run projects these until ctx ends.
func (of *benched) run(ctx context.Context, group string, listening func(string), projections ...string) error {
	c := DefaultConfig()
	c.Brokers, c.URL, c.ServerPort, c.GroupID, c.Projections, c.AuditInterval = of.Brokers, of.DB, 0, group+of.Suffix, projections, time.Hour
	own := func(spec topic.Spec) topic.Spec { return ownTopic(spec, of.Suffix, of.Partitions) }
	return Run(ctx, Options{
		Config: c, Log: slog.New(slog.DiscardHandler), Listening: listening,
		definitions: of.definitions(), decisions: own(topic.DeadLetterCommand), receipts: own(topic.ProjectionReceipt),
	})
}

// asTheServiceDoes sets the runtime as consumer-service's main does.
func asTheServiceDoes() {
	debug.SetGCPercent(400)
	debug.SetMemoryLimit(140 << 20)
}

// BenchmarkTransactional compares the replay of a topic that is written in transactions of 10 records with that of the same
// records in batches of 10 without transactions.
func BenchmarkTransactional(b *testing.B) {
	n, times := 200_000, 5
	if testing.Short() {
		n, times = 4_000, 1
	}
	const partitions, inOne = 8, 10
	of, db := newBenched(b, partitions, "plain", "transactional")
	of.Transactional = []string{"transactional"}
	asTheServiceDoes()
	values := make([][]byte, n)
	ids := make([]string, n)
	at := time.Date(2026, 1, 2, 3, 4, 5, 123456000, time.UTC)
	for i := range values {
		id, err := ticket.New()
		require.NoError(b, err)
		ids[i] = id.String()
		values[i] = event.AppendTimestampCommand(nil, event.TimestampCommand{CommandID: id, EventTimestamp: at.Add(time.Duration(i) * time.Second)})
	}
	// replay reads a topic from its start, n records of it, and returns records a second, from the start of the session to the
	// last commit.
	replay := func(name string, run, n int) float64 {
		_, err := db.ExecContext(b.Context(), `TRUNCATE `+name+`.timestamp_records; CHECKPOINT`)
		require.NoError(b, err)
		ctx, stop := context.WithCancel(b.Context())
		ended := make(chan error, 1)
		go func() { ended <- of.run(ctx, fmt.Sprint("run-", run), nil, name) }()
		await.UntilWithin(b, 10*time.Minute, func() bool {
			var group string
			var done int
			err := db.QueryRowContext(ctx, `SELECT g.group_name, (SELECT sum(applied) FROM `+name+`.projection_progress) FROM projection_generations g WHERE g.projection = $1`, name).Scan(&group, &done)
			return err == nil && strings.HasPrefix(group, fmt.Sprint("run-", run, "-")) && done == n
		})
		stop()
		require.NoError(b, <-ended)
		var seconds float64
		var rows int
		require.NoError(b, db.QueryRowContext(b.Context(), `SELECT extract(epoch FROM max(p.updated_at) - min(g.started_at)), (SELECT count(*) FROM `+name+`.timestamp_records)
			FROM `+name+`.projection_progress p CROSS JOIN projection_generations g WHERE g.projection = $1`, name).Scan(&seconds, &rows))
		require.Equal(b, n, rows)
		return float64(n) / seconds
	}
	for _, name := range of.Names {
		ctx, stop := context.WithCancel(b.Context())
		ended := make(chan error, 1)
		go func() { ended <- of.run(ctx, "first", nil, name) }() // makes the topic
		await.Until(b, func() bool {
			var partitions int
			err := db.QueryRowContext(ctx, `SELECT count(*) FROM `+name+`.projection_progress`).Scan(&partitions)
			return err == nil && partitions == of.Partitions
		})
		stop()
		require.NoError(b, <-ended)
		var writing sync.WaitGroup
		for p := range partitions {
			writing.Go(func() {
				if err := of.write(name, int32(p), inOne, ids[p*n/partitions:(p+1)*n/partitions], values[p*n/partitions:(p+1)*n/partitions]); err != nil {
					b.Error(err)
				}
			})
		}
		writing.Wait()
		require.False(b, b.Failed())
		replay(name, 0, n) // warm
	}
	for b.Loop() {
		var rates, ratios []float64
		for i := range times {
			reference := replay("plain", 1+i, n)
			rate := replay("transactional", 1+i, n)
			rates, ratios = append(rates, rate), append(ratios, rate/reference)
		}
		b.ReportMetric(median(rates), "transactional-records/s")
		b.ReportMetric(median(ratios), "of-plain-ratio")
		b.ReportMetric(0, "ns/op")
	}
}

// write appends records to one partition, so many in a batch, each batch a transaction where the topic has them.
func (of *benched) write(name string, partition int32, inOne int, ids []string, values [][]byte) error {
	c := sarama.NewConfig()
	c.Version = sarama.V2_8_0_0
	c.Producer.Return.Successes, c.Producer.RequiredAcks, c.Producer.Partitioner = true, sarama.WaitForAll, sarama.NewManualPartitioner
	c.Producer.Flush.Messages, c.Producer.Flush.Frequency = inOne, time.Millisecond
	transactions := slices.Contains(of.Transactional, name)
	if transactions {
		c.Producer.Idempotent, c.Net.MaxOpenRequests, c.Producer.Transaction.ID = true, 1, uuid.NewString()
	}
	p, err := sarama.NewSyncProducer(of.Brokers, c)
	if err != nil {
		return fmt.Errorf("write to %s: %w", name, err)
	}
	defer func() { _ = p.Close() }() // all was acknowledged
	for len(ids) > 0 {
		batch := make([]*sarama.ProducerMessage, min(inOne, len(ids)))
		for i := range batch {
			batch[i] = &sarama.ProducerMessage{Topic: of.topic(name), Partition: partition, Key: sarama.StringEncoder(ids[i]), Value: sarama.ByteEncoder(values[i])}
		}
		if transactions {
			err = p.BeginTxn()
		}
		if err == nil {
			err = p.SendMessages(batch)
		}
		if err == nil && transactions {
			err = p.CommitTxn()
		}
		if err != nil {
			return fmt.Errorf("write to %s: %w", name, err)
		}
		ids, values = ids[len(batch):], values[len(batch):]
	}
	return nil
}

// BenchmarkIdle compares one process that runs ten projections of 12 partitions each, in which nothing happens, with one
// that runs one. The goal is 2 % of a core and 20 MiB more at most.
func BenchmarkIdle(b *testing.B) {
	during, times := 20*time.Second, 3
	if testing.Short() {
		during, times = time.Second, 1
	}
	names := make([]string, 10)
	for i := range names {
		names[i] = fmt.Sprint("idle_", i)
	}
	ten, _ := newBenched(b, 12, names...)
	one, _ := newBenched(b, 12, names[0])
	for b.Loop() {
		var cpu, more, memory, larger []float64
		for range times {
			cpuOfOne, memoryOfOne := one.idle(b, during)
			cpuOfTen, memoryOfTen := ten.idle(b, during)
			cpu, more = append(cpu, cpuOfTen), append(more, cpuOfTen-cpuOfOne)
			memory, larger = append(memory, memoryOfTen), append(larger, memoryOfTen-memoryOfOne)
		}
		b.ReportMetric(median(cpu), "ten-%-of-a-core")
		b.ReportMetric(median(more), "more-%-of-a-core")
		b.ReportMetric(median(memory), "ten-MiB")
		b.ReportMetric(median(larger), "more-MiB")
		b.ReportMetric(0, "ns/op")
	}
}

// idle runs a process, waits until it is ready and has come to rest, and returns the share of a core that it takes and its
// resident memory.
func (of *benched) idle(b *testing.B, during time.Duration) (percent, mebibytes float64) {
	b.Helper()
	spec, err := json.Marshal(of)
	require.NoError(b, err)
	cmd := exec.CommandContext(b.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), benchChild+"="+string(spec))
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	require.NoError(b, err)
	require.NoError(b, cmd.Start())
	defer func() {
		require.NoError(b, cmd.Process.Kill())
		_ = cmd.Wait() // it was killed
	}()
	line, err := bufio.NewReader(out).ReadString('\n')
	require.NoError(b, err)
	ready := func() error {
		req, err := http.NewRequestWithContext(b.Context(), http.MethodGet, "http://"+strings.TrimSpace(line)+"/ready", nil)
		require.NoError(b, err)
		res, err := http.DefaultClient.Do(req)
		require.NoError(b, err)
		defer func() { _ = res.Body.Close() }() // read to its end
		body, err := io.ReadAll(res.Body)
		require.NoError(b, err)
		if res.StatusCode != http.StatusOK {
			return errors.New(string(body))
		}
		return nil
	}
	await.NoError(b, ready)
	time.Sleep(during / 2) // what a start costs is over
	before, began := processorTime(b, cmd.Process.Pid), time.Now()
	time.Sleep(during) // the time that is measured
	percent = 100 * (processorTime(b, cmd.Process.Pid) - before) / time.Since(began).Seconds()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", cmd.Process.Pid))
	require.NoError(b, err)
	for l := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(l, "VmRSS:"); ok {
			kb, err := strconv.ParseFloat(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")), 64)
			require.NoError(b, err)
			return percent, kb / 1024
		}
	}
	require.Fail(b, "the memory of the process is not told")
	return 0, 0
}

// processorTime is what a process has used, in seconds. The kernel counts it in hundredths.
func processorTime(b *testing.B, pid int) float64 {
	b.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	require.NoError(b, err)
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	var ticks float64
	for _, f := range fields[11:13] { // utime and stime
		n, err := strconv.ParseFloat(f, 64)
		require.NoError(b, err)
		ticks += n
	}
	return ticks / 100
}

// benchChild names the variable that makes this binary run what it says instead of tests.
const benchChild = "TIDEMARK_BENCH_CHILD"

func runChild(spec string) int {
	asTheServiceDoes()
	var of benched
	err := json.Unmarshal([]byte(spec), &of)
	if err == nil {
		err = of.run(context.Background(), "idle", func(address string) { fmt.Println(address) }, of.Names...)
	}
	fmt.Fprintln(os.Stderr, err)
	return 1
}

func median(x []float64) float64 {
	slices.Sort(x)
	return x[len(x)/2]
}

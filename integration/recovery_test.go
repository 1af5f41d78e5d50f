package integration_test

import (
	"context"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/integration/stack"
	"github.com/tidemark/tidemark/integration/story"
)

// The database can be thrown away, in every way that somebody may throw it away, and comes back from the log: the same
// bytes, row by row, outcome by outcome. `make drill` runs this and prints the steps as they are taken.
func TestRecovery(t *testing.T) {
	for _, d := range []struct {
		name string
		tell func(*testing.T, *disaster)
	}{
		{"the table is truncated", func(_ *testing.T, d *disaster) {
			d.truncate()
			d.restartAs(d.Group + "-again")
		}},
		{"nothing is lost, and the group has a new name", func(_ *testing.T, d *disaster) {
			d.restartAs(d.Group + "-again")
		}},
		{"the whole database is dropped", func(t *testing.T, d *disaster) {
			t.Log("stop consumer-service, drop the database, make it again, empty")
			d.Stop(d.consumer)
			require.NoError(t, d.DB.Close())
			require.NoError(t, stack.DropDatabase(t.Context(), d.Postgres.URL(), d.DBURL))
			_, name, _ := strings.Cut(strings.TrimPrefix(d.DBURL, "postgres://"), "/")
			name, _, _ = strings.Cut(name, "?")
			_, err := d.Postgres.CreateDatabase(t.Context(), name)
			require.NoError(t, err)
			d.DB, d.epoch = d.Connect(d.DBURL), 0
			d.startAs(d.Group + "-again")
		}},
		{"a second, empty database", func(t *testing.T, d *disaster) {
			t.Log("start consumer-service on a second database, under a name of its own, beside the first")
			db, url := d.Database()
			second := d.Service("consumer-service", map[string]string{"DB_URL": url, "KAFKA_GROUP_ID": d.Group + "-second"})
			d.Ready(second)
			story.RequireSame(t, d.before, d.RequireProjected(db))
			d.epoch = 0 // nothing happened to the first one
		}},
		{"the group keeps its name and Kafka's own tool resets its offsets", func(t *testing.T, d *disaster) {
			d.truncate()
			t.Log("stop consumer-service")
			d.Stop(d.consumer)
			d.resetOffsets()
			t.Log("start consumer-service under the same name")
			d.startAs(d.Group)
		}},
		{"the offsets are reset while the consumer has lost the broker", func(t *testing.T, d *disaster) {
			t.Log("cut consumer-service off from the broker")
			reconnect := d.cutOff()
			d.truncate()
			d.resetOffsets() // waits until the broker has given the consumer up
			t.Log("let consumer-service reconnect; its process has been running all the time")
			reconnect()
		}},
		{"two consumers, one of which has the new name", func(t *testing.T, d *disaster) {
			d.truncate()
			t.Log("start another consumer-service under a new name beside the one that runs")
			renamed := d.Service("consumer-service", map[string]string{"KAFKA_GROUP_ID": d.Group + "-again"})
			d.Ready(renamed)
			d.isBack()
			t.Log("the one with the old name stops for good, and is refused when it is started again")
			ctx, cancel := context.WithTimeout(t.Context(), story.Patience)
			defer cancel()
			status, err := d.consumer.Exited(ctx)
			require.NoError(t, err)
			require.NotZero(t, status)
			require.NoError(t, d.consumer.Start(ctx, nil))
			status, err = d.consumer.Exited(ctx)
			require.NoError(t, err)
			require.NotZero(t, status)
			require.Contains(t, d.consumer.LogTail(), "fresh name")
			d.consumer = renamed
		}},
		{"new commands keep coming in", func(t *testing.T, d *disaster) {
			stop := d.keepWriting()
			d.truncate()
			t.Log("stop consumer-service")
			d.Stop(d.consumer)
			d.launchAs(d.Group + "-again")
			d.startedOver()
			t.Log("compare tables and log up to one vector of offsets, several times while it fills and follows")
			for range 20 {
				d.requireEqualUpToItsProgress()
				time.Sleep(20 * time.Millisecond)
			}
			stop()
			after := d.RequireProjected(d.DB)
			require.Contains(t, after.Rows, d.firstRow())
			d.before = after // from here on this is what must be there
		}},
	} {
		t.Run(d.name, func(t *testing.T) {
			stage := newDisaster(t)
			d.tell(t, stage)
			stage.isBack()
		})
	}
}

// disaster is a story in which 1,001 commands were projected before anything happens, duplicates and bad records among
// them.
type disaster struct {
	*story.Story
	t        *testing.T
	consumer *stack.Service
	before   story.Dump
	epoch    int64 // before
}

func newDisaster(t *testing.T) *disaster {
	d := &disaster{Story: story.New(t), t: t}
	t.Log("start command-service and consumer-service, stamp 1,001 times")
	door := d.Door()
	d.consumer = d.Service("consumer-service", d.route())
	d.Ready(d.consumer)
	for range 1001 {
		_, err := d.Client.Stamp(t.Context(), door.URL(), "")
		require.NoError(t, err)
	}
	t.Log("write 10 of them again with another instant, in other partitions, and 10 records that cannot be read")
	records, _, err := d.Log.Read(t.Context(), nil)
	require.NoError(t, err)
	require.Len(t, records, 1001)
	var more []story.Message
	for i := range 10 {
		r := records[i*100]
		more = append(more,
			story.Message{Partition: (r.Partition + 1) % 12, Value: []byte(strings.Replace(string(r.Value), `stamp":"2`, `stamp":"1`, 1))},
			story.Message{Partition: int32(i), Value: fmt.Appendf(nil, `{"command_id":"%d"}`, i)})
	}
	_, err = d.Log.Write(more...)
	require.NoError(t, err)
	d.before = d.RequireProjected(d.DB)
	d.epoch = d.Epoch(d.DB)
	require.Equal(t, 1001, lines(d.before.Rows))
	require.Equal(t, 10, lines(d.before.DeadLetters))
	return d
}

// route sends the consumer through a proxy where the broker has one.
func (d *disaster) route() map[string]string {
	if d.Kafka == nil {
		return nil
	}
	return map[string]string{"KAFKA_BROKERS": d.Kafka.Proxy("consumer").Address()}
}

func (d *disaster) truncate() {
	d.t.Log("TRUNCATE timestamp_records")
	_, err := d.DB.ExecContext(d.t.Context(), "TRUNCATE timestamp_records")
	require.NoError(d.t, err)
}

func (d *disaster) restartAs(group string) {
	d.t.Log("stop consumer-service")
	d.Stop(d.consumer)
	d.startAs(group)
}

func (d *disaster) startAs(group string) {
	d.launchAs(group)
	d.Ready(d.consumer)
}

func (d *disaster) launchAs(group string) {
	d.t.Logf("start consumer-service with KAFKA_GROUP_ID=%s", group)
	require.NoError(d.t, d.consumer.Start(d.t.Context(), map[string]string{"KAFKA_GROUP_ID": group}))
}

// cutOff takes the broker away from the consumer, whose process goes on, and returns how to give it back. The embedded
// broker has no listener for a proxy: there the process is stopped for as long, which the broker cannot tell apart.
func (d *disaster) cutOff() (reconnect func()) {
	if d.Kafka == nil {
		require.NoError(d.t, d.consumer.Signal(syscall.SIGSTOP))
		return func() { require.NoError(d.t, d.consumer.Signal(syscall.SIGCONT)) }
	}
	proxy := d.Kafka.Proxy("consumer")
	proxy.Cut()
	d.t.Cleanup(proxy.Pass)
	return proxy.Pass
}

func (d *disaster) resetOffsets() {
	d.t.Log("kafka-consumer-groups --reset-offsets --to-earliest --execute")
	ctx, cancel := context.WithTimeout(d.t.Context(), story.Patience)
	defer cancel()
	require.NoError(d.t, d.ResetOffsets(ctx, d.Group))
}

// isBack requires the projection to be, byte for byte, what it was before, and the audit to agree.
func (d *disaster) isBack() {
	d.t.Helper()
	d.t.Log("wait, compare byte for byte, wait for a clean audit")
	d.startedOver()
	story.RequireSame(d.t, d.before, d.RequireProjected(d.DB))
	d.RequireCleanAudit(d.DB)
}

// startedOver waits for a new epoch: until then the old progress still says that all is read.
func (d *disaster) startedOver() {
	d.t.Helper()
	require.Eventually(d.t, func() bool { return d.Epoch(d.DB) > d.epoch }, story.Patience, 5*time.Millisecond,
		"the projection was never started over")
}

// keepWriting appends commands, one after the other, until stop is called.
func (d *disaster) keepWriting() (stop func()) {
	d.t.Log("keep writing commands")
	ctx, cancel := context.WithCancel(d.t.Context())
	ended := make(chan error, 1)
	go func() {
		for ctx.Err() == nil {
			value := fmt.Appendf(nil, `{"command_id":"%s","event_timestamp":"%s"}`, uuid.NewString(), time.Now().UTC().Format(time.RFC3339))
			if _, err := d.Log.Write(story.Message{Partition: story.AnyPartition, Key: uuid.NewString(), Value: value}); err != nil {
				ended <- err
				return
			}
		}
		ended <- nil
	}()
	return func() {
		cancel()
		require.NoError(d.t, <-ended)
		d.t.Log("stop writing")
	}
}

// requireEqualUpToItsProgress takes one snapshot of the projection and requires it to be what the log says up to the
// offsets that it has passed.
func (d *disaster) requireEqualUpToItsProgress() {
	d.t.Helper()
	dump := d.Dump(d.DB)
	upTo, err := dump.UpTo()
	require.NoError(d.t, err)
	dump, err = dump.Below(upTo)
	require.NoError(d.t, err)
	records, _, err := d.Log.Read(d.t.Context(), upTo)
	require.NoError(d.t, err)
	story.Expect(records, story.Rules{}).Require(d.t, upTo, dump)
}

func (d *disaster) firstRow() string {
	row, _, _ := strings.Cut(d.before.Rows, "\n")
	return row
}

func lines(text string) int { return strings.Count(text, "\n") }

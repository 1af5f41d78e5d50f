package integration_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/integration/stack"
	"github.com/tidemark/tidemark/integration/story"
	"github.com/tidemark/tidemark/shared/await"
)

// The database can be thrown away, in every way that somebody may throw it away, and comes back from the log: the same
// bytes, row by row, outcome by outcome, in both projections. `make drill` runs this and prints the steps as they are taken.
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
			d.DB = d.Connect(d.DBURL)
			d.forgetEpochs()
			d.startAs(d.Group + "-again")
		}},
		{"a second, empty database", func(t *testing.T, d *disaster) {
			t.Log("start consumer-service on a second database, under a name of its own, beside the first")
			db, url := d.Database()
			second := d.Service("consumer-service", map[string]string{"DB_URL": url, "KAFKA_GROUP_ID": d.Group + "-second"})
			d.Ready(second)
			for _, l := range d.all {
				story.RequireSame(t, l.before, l.RequireProjected(db))
			}
			d.forgetEpochs() // nothing happened to the first one
		}},
		{"the group keeps its name and Kafka's own tool resets its offsets", func(t *testing.T, d *disaster) {
			d.truncate()
			t.Log("stop consumer-service")
			d.Stop(d.consumer)
			d.resetOffsets()
			t.Log("start consumer-service under the same name")
			d.startAs(d.Group)
		}},
		{"the offsets of one projection's group are reset, and the other stays as it is", func(t *testing.T, d *disaster) {
			d.all[1].stays = true
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
				for _, l := range d.all {
					d.requireEqualUpToItsProgress(l)
				}
				time.Sleep(20 * time.Millisecond) // so that the looks lie apart
			}
			stop()
			for _, l := range d.all {
				after := l.RequireProjected(d.DB)
				first, _, _ := strings.Cut(l.before.Rows, "\n")
				require.Contains(t, after.Rows, first)
				l.before = after // from here on this is what must be there
			}
		}},
	} {
		t.Run(d.name, func(t *testing.T) {
			stage := newDisaster(t)
			d.tell(t, stage)
			stage.isBack()
		})
	}
}

// disaster is a story in which 1,001 timestamps and 60 commands about endpoints were projected before anything happens,
// duplicates and bad records among them.
type disaster struct {
	*story.Story
	t        *testing.T
	consumer *stack.Service
	all      []*loss
}

// loss is what a disaster does to one projection.
type loss struct {
	*story.Story
	before story.Dump
	epoch  int64 // before
	stays  bool  // this projection is not started over
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
	d.changeEndpoints(door)

	timestamps, endpoints := &loss{Story: d.Story}, &loss{Story: d.Of(story.Endpoints)}
	d.all = []*loss{timestamps, endpoints}
	for _, l := range d.all {
		l.before, l.epoch = l.RequireProjected(d.DB), l.Epoch(d.DB)
	}
	require.Equal(t, 1001, lines(timestamps.before.Rows))
	require.Equal(t, 10, lines(timestamps.before.DeadLetters))
	require.Equal(t, 60, lines(endpoints.before.Rows))
	require.Equal(t, 30, lines(endpoints.before.Derived))
	require.Equal(t, 10, strings.Count(endpoints.before.Derived, "\tt\tNULL"), "endpoints that were deleted")
	require.Equal(t, 5, lines(endpoints.before.DeadLetters))
	return d
}

// changeEndpoints makes 30 endpoints, changes 20 of them and deletes 10, and writes 5 records that cannot be read.
func (d *disaster) changeEndpoints(door *stack.Service) {
	d.t.Log("make 30 endpoints, change 20, delete 10, and write 5 records that cannot be read")
	const path = "/api/v1/endpoints"
	send := func(method, path, body string) story.Answer {
		a, err := d.Client.Send(d.t.Context(), method, door.URL()+path, body, "Content-Type", "application/json")
		require.NoError(d.t, err)
		require.Equal(d.t, http.StatusAccepted, a.Status, a)
		return a
	}
	for i := range 30 {
		id := send(http.MethodPost, path, fmt.Sprintf(`{"url":"https://example.org/%d"}`, i)).Text("endpoint_id")
		if i < 20 {
			send(http.MethodPut, path+"/"+id, fmt.Sprintf(`{"url":"https://example.org/%d","interval":"5m","tags":["changed"],"more":[%d]}`, i, i))
		}
		if i < 10 {
			send(http.MethodDelete, path+"/"+id, "")
		}
	}
	var bad []story.Message
	for i := range int32(5) {
		bad = append(bad, story.Message{Partition: i, Value: []byte(`{"kind":"put"}`)})
	}
	_, err := d.Log.On(story.EndpointTopic).Write(bad...)
	require.NoError(d.t, err)
}

// forgetEpochs is for a database that has lost them, or to which nothing happened.
func (d *disaster) forgetEpochs() {
	for _, l := range d.all {
		l.epoch = 0
	}
}

// route sends the consumer through a proxy where the broker has one.
func (d *disaster) route() map[string]string {
	if d.Kafka == nil {
		return nil
	}
	return map[string]string{"KAFKA_BROKERS": d.Kafka.Proxy("consumer").Address()}
}

// truncate empties the main table of every projection.
func (d *disaster) truncate() {
	for _, l := range d.all {
		d.t.Log("TRUNCATE " + l.Projection.Tables[0])
		_, err := d.DB.ExecContext(d.t.Context(), "TRUNCATE "+l.Projection.Schema+"."+l.Projection.Tables[0])
		require.NoError(d.t, err)
	}
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
	for _, group := range []struct {
		of   *loss
		name string
	}{{d.all[0], d.Group}, {d.all[1], d.Group + ".endpoints"}} {
		if group.of.stays {
			continue
		}
		require.NoError(d.t, group.of.ResetOffsets(ctx, group.name))
	}
}

// isBack requires the projections to be, byte for byte, what they were before, and the audits to agree.
func (d *disaster) isBack() {
	d.t.Helper()
	d.t.Log("wait, compare byte for byte, wait for a clean audit")
	d.startedOver()
	for _, l := range d.all {
		story.RequireSame(d.t, l.before, l.RequireProjected(d.DB))
		l.RequireCleanAudit(d.DB)
	}
}

// startedOver waits for new epochs: until then the old progress still says that all is read.
func (d *disaster) startedOver() {
	d.t.Helper()
	for _, l := range d.all {
		if l.stays {
			require.Equal(d.t, l.epoch, l.Epoch(d.DB), "%s were started over for nothing", l.Projection.Name)
			continue
		}
		await.Until(d.t, func() bool { return l.Epoch(d.DB) > l.epoch },
			"the %s were never started over", l.Projection.Name)
	}
}

// keepWriting appends commands, one after the other, until stop is called.
func (d *disaster) keepWriting() (stop func()) {
	d.t.Log("keep writing commands")
	ctx, cancel := context.WithCancel(d.t.Context())
	ended := make(chan error, 1)
	go func() {
		for ctx.Err() == nil {
			id := uuid.NewString()
			value := fmt.Appendf(nil, `{"command_id":"%s","event_timestamp":"%s"}`, id, time.Now().UTC().Format(time.RFC3339))
			_, err := d.Log.Write(story.Message{Partition: story.AnyPartition, Key: id, Value: value})
			value = fmt.Appendf(nil, `{"command_id":"%s","endpoint_id":"%s","kind":"delete","sent_by":""}`, uuid.NewString(), id)
			_, more := d.Log.On(story.EndpointTopic).Write(story.Message{Partition: story.AnyPartition, Key: id, Value: value})
			if err := errors.Join(err, more); err != nil {
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

// requireEqualUpToItsProgress takes one snapshot of a projection and requires it to be what the log says up to the offsets
// that it has passed.
func (d *disaster) requireEqualUpToItsProgress(l *loss) {
	d.t.Helper()
	dump := l.Dump(d.DB)
	upTo, err := dump.UpTo()
	require.NoError(d.t, err)
	dump, err = dump.Below(upTo)
	require.NoError(d.t, err)
	records, _, err := l.Log.Read(d.t.Context(), upTo)
	require.NoError(d.t, err)
	l.Projection.Expect(records, story.Rules{}).Require(d.t, upTo, dump)
}

func lines(text string) int { return strings.Count(text, "\n") }

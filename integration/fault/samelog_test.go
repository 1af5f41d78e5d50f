package fault_test

import (
	"context"
	"database/sql"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/integration/stack"
	"github.com/tidemark/tidemark/integration/story"
)

// A projection that meets another log than the one it was computed from goes no further: it leaves its group, says on /ready
// and in the database what was found, and has written nothing. The other projection of the process goes on. Only a setting
// that is wrong ends the process.
func TestAnotherLogIsRefused(t *testing.T) {
	fresh := func(s *story.Story) map[string]string { return map[string]string{"KAFKA_GROUP_ID": s.Group + "-fresh"} }
	same := func(*story.Story) map[string]string { return nil }
	for _, test := range []struct {
		name   string
		change func(*testing.T, *story.Story) map[string]string // what happens to the log, and what the next start is told
		start  func(*story.Story) map[string]string
		says   []string
		refuse func(*refusal) // what becomes of the process
	}{
		{"deleted and created anew", func(t *testing.T, s *story.Story) map[string]string {
			anew(t, s)
			return nil
		}, same, madeAnew, alone},
		{"deleted, created anew and regrown, under a fresh name", func(t *testing.T, s *story.Story) map[string]string {
			anew(t, s)
			grow(t, s, 80)
			return nil
		}, fresh, madeAnew, alone},
		{"deleted and created anew, empty, where no id was known", func(t *testing.T, s *story.Story) map[string]string {
			anew(t, s)
			forgetIDs(t, s)
			return nil
		}, same, []string{"timestamp.command.v1/", "ends at offset 0 and the projection has read up to 50", "deleted and created anew"}, alone},
		{"deleted, created anew and regrown, not as far, where no id was known", func(t *testing.T, s *story.Story) map[string]string {
			anew(t, s)
			grow(t, s, 49)
			forgetIDs(t, s)
			return nil
		}, same, []string{"ends at offset 49 and the projection has read up to 50", "deleted and created anew"}, alone},
		{"deleted, created anew and regrown, just as far, where no id was known", func(t *testing.T, s *story.Story) map[string]string {
			anew(t, s)
			grow(t, s, 50)
			forgetIDs(t, s)
			return nil
		}, same, []string{"@49 is another than the one that was projected", "deleted and created anew"}, alone},
		{"deleted, created anew and regrown past the old offset, where no id was known", func(t *testing.T, s *story.Story) map[string]string {
			anew(t, s)
			grow(t, s, 80)
			forgetIDs(t, s)
			return nil
		}, same, []string{"@49 is another than the one that was projected", "deleted and created anew"}, alone},
		{"deleted, created anew and regrown, under a fresh name, where no id was known", func(t *testing.T, s *story.Story) map[string]string {
			anew(t, s)
			grow(t, s, 80)
			forgetIDs(t, s)
			return nil
		}, fresh, []string{"@49 is another than the one that was projected", "start with an empty database"}, alone},
		{"another cluster", another, same, []string{"was projected from cluster", "the brokers belong to cluster"}, both},
		{"another cluster, under a fresh name", another, fresh, []string{"was projected from cluster", "the brokers belong to cluster"}, both},
		{"records deleted from its start", func(t *testing.T, s *story.Story) map[string]string {
			require.NoError(t, s.Log.DeleteBefore(story.Vector{3: 7}))
			return nil
		}, same, []string{"timestamp.command.v1/3 starts at offset 7, not at 0", "ACCEPT_LOG_START=timestamp.command.v1/3@7"}, alone},
		{"records deleted from its start, under a fresh name", func(t *testing.T, s *story.Story) map[string]string {
			require.NoError(t, s.Log.DeleteBefore(story.Vector{3: 7}))
			return nil
		}, fresh, []string{"timestamp.command.v1/3 starts at offset 7, not at 0", "ACCEPT_LOG_START=timestamp.command.v1/3@7"}, alone},
		{"records deleted past what was accepted", func(t *testing.T, s *story.Story) map[string]string {
			require.NoError(t, s.Log.DeleteBefore(story.Vector{3: 7}))
			return map[string]string{"ACCEPT_LOG_START": story.Topic + "/3@6"}
		}, fresh, []string{"timestamp.command.v1/3 starts at offset 7, not at 6"}, alone},
		{"more accepted than was deleted", func(*testing.T, *story.Story) map[string]string {
			return map[string]string{"ACCEPT_LOG_START": story.Topic + "/3@7"}
		}, fresh, []string{"timestamp.command.v1/3 starts at offset 0 and ACCEPT_LOG_START names 7", "would skip 7 records"}, ends},
		{"records deleted that were not read yet", func(t *testing.T, s *story.Story) map[string]string {
			grow(t, s, 20)
			require.NoError(t, s.Log.DeleteBefore(story.Vector{3: 60}))
			return map[string]string{"ACCEPT_LOG_START": story.Topic + "/3@60"}
		}, same, []string{"timestamp.command.v1/3 starts at offset 60", "read up to 50 only"}, alone},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := onKafka(t)
			consumer := s.Consumer("")
			grow(t, s, 50)
			s.RequireProjected(s.DB)
			s.Stop(consumer)
			env := test.change(t, s)
			before := everything(t, s.DB)
			if env == nil {
				env = map[string]string{}
			}
			for name, value := range test.start(s) {
				env[name] = value
			}
			require.NoError(t, consumer.Start(t.Context(), env))
			r := &refusal{s, t, consumer, test.says}
			test.refuse(r)
			require.Equal(t, before, everything(t, s.DB), "something was written")

			t.Log("and again, since whoever runs it will start it again")
			if consumer.Running() {
				s.Stop(consumer)
			}
			require.NoError(t, consumer.Start(t.Context(), nil))
			test.refuse(r)
			require.Equal(t, before, everything(t, s.DB), "something was written")
		})
	}
}

// The same while the consumer runs: Sarama would read on at the old offset of the new topic.
func TestALogThatIsReplacedUnderARunningConsumerIsRefused(t *testing.T) {
	for name, records := range map[string]int{"and is empty": 0, "and regrows past the old offset": 80} {
		t.Run(name, func(t *testing.T) {
			s := onKafka(t)
			consumer := s.Consumer("")
			grow(t, s, 50)
			before := s.RequireProjected(s.DB)
			anew(t, s)
			grow(t, s, records)
			alone(&refusal{s, t, consumer, madeAnew})
			require.Equal(t, before, s.Dump(s.DB), "something was written")
		})
	}
}

// A log that loses its beginning while everything runs is told of at once, and goes on: it is said beforehand what a restart
// would do. What starts then refuses the log, until the operator has accepted where it starts.
func TestALogThatLostItsBeginningIsProjectedOnceThatIsAccepted(t *testing.T) {
	s := onKafka(t)
	door, consumer, reader := s.Door(), s.Consumer(""), s.Reader()
	grow(t, s, 50)
	s.RequireProjected(s.DB)
	require.NoError(t, s.Log.DeleteBefore(story.Vector{3: 7, 5: 50}))
	accepted := fmt.Sprintf("%[1]s/3@7,%[1]s/5@50", story.Topic)

	t.Log("under way: unready, an alarm, and reading goes on")
	trimmed := []string{story.Topic + "/3 starts at offset 7", "records were deleted from a log that is kept forever", "a restart would refuse this log", "ACCEPT_LOG_START=" + accepted}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute+story.Patience) // it is looked at once a minute
	defer cancel()
	a, err := s.Client.Until(ctx, http.StatusServiceUnavailable, consumer.URL()+"/ready")
	require.NoError(t, err)
	for _, w := range trimmed {
		require.Contains(t, a.String(), w)
	}
	a, err = s.Client.Get(t.Context(), consumer.URL()+"/metrics")
	require.NoError(t, err)
	require.Contains(t, a.String(), `tidemark_log_fault{fault="trimmed",topic="`+story.Topic+`"} 1`)
	grow(t, s, 5)
	waitForRows(t, s.DB, 12*55)
	s.Ready(door)
	read := reader.URL() + "/api/v1/timestamps?limit=1&position=" + story.Topic
	for _, at := range []string{"/3@0", "/3@54"} { // one that the log has lost, too: its row is there
		a, err = s.Client.Get(t.Context(), read+at)
		require.NoError(t, err)
		require.Equal(t, http.StatusOK, a.Status, a)
	}

	t.Log("the doctor fails until the loss is accepted")
	doctor := func(accepted string) (findings string) {
		cmd := exec.CommandContext(t.Context(), s.Program("tidemark"), "doctor", "--data", t.TempDir())
		cmd.Env = []string{"KAFKA_BROKERS=" + strings.Join(s.Broker.Brokers(), ","), "KAFKA_CLAIMED_PARTITIONS=" + strconv.Itoa(story.EndpointPartitions), "DB_URL=" + s.DBURL,
			"COMMAND_URL=" + door.URL(), "CONSUMER_URL=" + consumer.URL(), "QUERY_URL=" + reader.URL(), "ACCEPT_LOG_START=" + accepted}
		said, _ := cmd.CombinedOutput() // it fails for the consumer that is unready in any case
		return string(said)
	}
	failed := "FAIL  topic " + story.Topic
	require.Contains(t, doctor(""), failed)
	require.NotContains(t, doctor(accepted), failed)

	t.Log("a restart does what was said, and readers are told")
	s.Stop(consumer)
	require.NoError(t, consumer.Start(t.Context(), nil))
	s.RequireRefused(consumer, s.DB, "not at 0", "ACCEPT_LOG_START=")
	a, err = s.Client.Until(ctx, http.StatusServiceUnavailable, read+"/3@54")
	require.NoError(t, err)
	require.Contains(t, a.String(), "records were deleted from a log that is kept forever")
	remaining := func() story.Expected {
		records, _, err := s.Log.Read(t.Context(), nil)
		require.NoError(t, err)
		return story.Expect(records, story.Rules{})
	}

	t.Log("a second database, which has never seen the beginning, is refused and stays empty")
	db, url := s.Database()
	second := s.Service("consumer-service", map[string]string{"DB_URL": url, "KAFKA_GROUP_ID": s.Group + "-second"})
	s.RequireRefused(second, db, "not at 0", "ACCEPT_LOG_START=")
	var rows int
	require.NoError(t, db.QueryRowContext(t.Context(), `SELECT (SELECT count(*) FROM public.projection_progress) +
		(SELECT count(*) FROM public.projection_groups WHERE projection = 'timestamps')`).Scan(&rows))
	require.Zero(t, rows)
	s.Stop(second)

	t.Log("it projects what is left once that is accepted, under the same name")
	require.NoError(t, second.Start(t.Context(), map[string]string{"ACCEPT_LOG_START": accepted}))
	s.Ready(second)
	expected := remaining()
	require.Equal(t, 12*55-7-50, expected.Count)
	waitForRows(t, db, expected.Count)
	require.Equal(t, expected.Rows, s.Dump(db).Rows)
	s.RequireCleanAudit(db)

	t.Log("the first database goes on, and keeps the rows that the log has lost")
	s.Stop(consumer)
	require.NoError(t, consumer.Start(t.Context(), map[string]string{"ACCEPT_LOG_START": accepted}))
	s.Ready(consumer)
	a, err = s.Client.Until(ctx, http.StatusOK, read+"/3@54")
	require.NoError(t, err, a)
	grow(t, s, 5)
	waitForRows(t, s.DB, 12*60)
	s.RequireCleanAudit(s.DB)

	t.Log("and is rebuilt from what is left, under a fresh name")
	s.Stop(consumer)
	run(t, s.DB, `TRUNCATE public.timestamp_records`)
	require.NoError(t, consumer.Start(t.Context(), map[string]string{"KAFKA_GROUP_ID": s.Group + "-fresh"}))
	s.Ready(consumer)
	expected = remaining()
	waitForRows(t, s.DB, expected.Count)
	require.Equal(t, expected.Rows, s.Dump(s.DB).Rows)
	s.RequireCleanAudit(s.DB)
}

func waitForRows(t *testing.T, db *sql.DB, n int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), story.Patience)
	defer cancel()
	require.NoError(t, story.Eventually(ctx, "wait for rows", func(ctx context.Context) error {
		var found int
		if err := db.QueryRowContext(ctx, `SELECT count(*) FROM public.timestamp_records`).Scan(&found); err != nil || found == n {
			return err
		}
		return fmt.Errorf("%d of %d rows", found, n)
	}))
}

// anew throws the topic away and makes it again.
func anew(t *testing.T, s *story.Story) {
	t.Helper()
	require.NoError(t, s.Log.Delete())
	require.NoError(t, s.Log.Create(12, nil))
}

// another starts a second cluster, with a log of its own.
func another(t *testing.T, _ *story.Story) map[string]string {
	t.Helper()
	other, err := stack.StartKafka(t.Context(), stack.KafkaOptions{FastStart: true})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, other.Close(context.WithoutCancel(t.Context()))) })
	log, err := story.OpenLog(other.Brokers())
	require.NoError(t, err)
	t.Cleanup(func() { _ = log.Close() })
	require.NoError(t, log.Create(12, nil))
	return map[string]string{"KAFKA_BROKERS": strings.Join(other.Brokers(), ",")}
}

// madeAnew is how a projection refuses a topic of another id.
var madeAnew = []string{"is another topic than the one that was projected", "deleted and made anew", "ACCEPT_NEW_LOG=" + story.Topic + "@"}

// forgetIDs makes the database one of a release that knew no ids of topics: it is left to compare the records.
func forgetIDs(t *testing.T, s *story.Story) {
	t.Helper()
	run(t, s.DB, `UPDATE public.projection_generations SET topic_id = NULL`)
}

// grow appends n plain records to each partition.
func grow(t *testing.T, s *story.Story, n int) {
	t.Helper()
	var messages []story.Message
	for range n {
		for p := range int32(12) {
			id := uuid.New()
			messages = append(messages, story.Message{Partition: p, Key: id.String(), Value: command(id, "2001-01-01T00:00:00Z")})
		}
	}
	_, err := s.Log.Write(messages...)
	require.NoError(t, err)
}

// refusal is a consumer that must refuse its timestamps in these words.
type refusal struct {
	*story.Story
	t        *testing.T
	consumer *stack.Service
	says     []string
}

// alone is a refusal of the timestamps: they leave their group, and the endpoints go on.
func alone(r *refusal) {
	r.t.Helper()
	r.RequireRefused(r.consumer, r.DB, r.says...)
	ctx, cancel := context.WithTimeout(r.t.Context(), story.Patience)
	defer cancel()
	require.NoError(r.t, story.Eventually(ctx, "wait until the timestamps have left their groups", func(context.Context) error {
		groups, err := r.Log.Admin().DescribeConsumerGroups([]string{r.Group, r.Group + "-fresh"})
		if err != nil {
			return err
		}
		for _, g := range groups {
			if len(g.Members) > 0 {
				return fmt.Errorf("%s has %d members", g.GroupId, len(g.Members))
			}
		}
		return nil
	}))
	_, err := r.Log.On(story.EndpointTopic).Write(anyEndpoints(rand.New(rand.NewPCG(20, 3)), 20)...)
	require.NoError(r.t, err)
	r.Of(story.Endpoints).RequireProjected(r.DB)
	r.RequireRefused(r.consumer, r.DB, r.says...)
}

// both is a refusal of the timestamps and of the endpoints.
func both(r *refusal) {
	r.t.Helper()
	r.RequireRefused(r.consumer, r.DB, r.says...)
	r.Of(story.Endpoints).RequireRefused(r.consumer, r.DB, r.says...)
}

// ends is a process that ends by itself with a failure, and these words as its last.
func ends(r *refusal) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), story.Patience)
	defer cancel()
	status, err := r.consumer.Exited(ctx)
	require.NoError(r.t, err)
	require.NotZero(r.t, status)
	log, err := r.consumer.Log()
	require.NoError(r.t, err)
	lines := strings.Split(strings.TrimSpace(log), "\n")
	for _, words := range r.says {
		require.Contains(r.t, lines[len(lines)-1], words)
	}
}

// everything is every table of a database, row by row, but for what is of the endpoints alone, and for what a process notes
// of itself: that it is there, and that it refuses.
func everything(t *testing.T, db *sql.DB) string {
	t.Helper()
	tables := column(t, db, `SELECT format('%I.%I', schemaname, tablename) FROM pg_tables
		WHERE schemaname NOT IN ('pg_catalog', 'information_schema', 'endpoints') ORDER BY 1`)
	require.NotEmpty(t, tables)
	var lines []string
	for _, table := range tables {
		lines = append(lines, column(t, db, fmt.Sprintf(`SELECT '%[1]s ' || (to_jsonb(t) - '{run_at,refusal,refused_at}'::text[])::text FROM %[1]s t
			WHERE coalesce(to_jsonb(t)->>'projection', '') <> 'endpoints' ORDER BY 1`, table))...)
	}
	return strings.Join(lines, "\n")
}

// column reads a query's only column.
func column(t *testing.T, db *sql.DB, query string) (texts []string) {
	t.Helper()
	rows, err := db.QueryContext(t.Context(), query)
	require.NoError(t, err)
	defer func() { _ = rows.Close() }() // Err tells
	for rows.Next() {
		var text string
		require.NoError(t, rows.Scan(&text))
		texts = append(texts, text)
	}
	require.NoError(t, rows.Err())
	return texts
}

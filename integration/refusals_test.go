package integration_test

import (
	"context"
	"net"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/integration/stack"
	"github.com/tidemark/tidemark/integration/story"
)

// The time of a record is the log's own, whatever its producer says: a record of 2009 is neither lost to a retention nor
// put before the ones that were accepted earlier. This holds for the embedded broker, which does not stamp by itself, too.
func TestABackDatedRecordHasTheLogsTime(t *testing.T) {
	s := story.New(t)
	stack := up(t, s)
	before := time.Now().Add(-2 * time.Second)
	id := uuid.NewString()
	_, err := s.Log.Write(story.Message{
		Partition: story.AnyPartition, Key: id, Time: time.Date(2009, 9, 28, 19, 3, 12, 0, time.UTC),
		Value: []byte(`{"command_id":"` + id + `","event_timestamp":"2009-09-28T19:03:12Z"}`),
	})
	require.NoError(t, err)
	row := visible(t.Context(), t, s.Client, stack.query, id)
	created, err := time.Parse(time.RFC3339, row["created_at"])
	require.NoError(t, err)
	require.WithinRange(t, created, before, time.Now().Add(2*time.Second))
}

// A log that could lose what it holds, or whose keys would move, is refused at the start by whoever depends on it, in
// words that name the topic, the setting, what is wanted and what was found.
func TestAnUnsafeTopicIsRefused(t *testing.T) {
	for name, unsafe := range map[string]struct {
		partitions int32
		settings   map[string]string
		words      []string
	}{
		"retention":       {12, map[string]string{"retention.ms": "86400000"}, []string{"retention.ms must be -1 and is 86400000"}},
		"size":            {12, map[string]string{"retention.bytes": "1000000"}, []string{"retention.bytes must be -1 and is 1000000"}},
		"compaction":      {12, map[string]string{"cleanup.policy": "compact"}, []string{"cleanup.policy must be delete and is compact"}},
		"producer's time": {12, map[string]string{"message.timestamp.type": "CreateTime"}, []string{"message.timestamp.type must be LogAppendTime and is CreateTime"}},
		"two at once":     {7, map[string]string{"retention.ms": "1000"}, []string{"retention.ms must be -1 and is 1000", "must be 12 and is 7"}},
	} {
		t.Run(name, func(t *testing.T) {
			s := story.New(t)
			require.NoError(t, s.Log.Create(unsafe.partitions, unsafe.settings))
			for _, service := range []string{"command-service", "consumer-service"} {
				refusesToStart(t, s.Service(service, nil), append(unsafe.words, story.Topic)...)
			}
		})
	}
}

func TestADatabaseOfANewerReleaseIsRefused(t *testing.T) {
	s := story.New(t)
	consumer := s.Consumer("")
	s.Stop(consumer)
	_, err := s.DB.ExecContext(t.Context(), `INSERT INTO goose_db_version (version_id, is_applied) VALUES (999, true)`)
	require.NoError(t, err)
	for _, service := range []string{"consumer-service", "query-service"} {
		refusesToStart(t, s.Service(service, nil), "newer than this binary", "at version 999")
	}
}

func TestTwoDatabasesOnOneGroupAreRefused(t *testing.T) {
	s := story.New(t)
	stack := up(t, s)
	_, err := s.Client.Stamp(t.Context(), stack.command, "")
	require.NoError(t, err)
	s.RequireProjected(s.DB)
	db, url := s.Database()
	second := s.Service("consumer-service", map[string]string{"DB_URL": url})
	s.RequireRefused(second, db, "was committed for another database", "KAFKA_GROUP_ID of its own")
	s.Of(story.Endpoints).RequireRefused(second, db, "was committed for another database", "KAFKA_GROUP_ID of its own")
	var written int
	require.NoError(t, db.QueryRowContext(t.Context(), `SELECT (SELECT count(*) FROM public.projection_progress) +
		(SELECT count(*) FROM endpoints.projection_progress) + (SELECT count(*) FROM public.projection_groups)`).Scan(&written))
	require.Zero(t, written)
	require.True(t, second.Running(), "a refusal ends no process")
}

// All mistakes of a configuration come in one message, and none of its secrets.
func TestAWrongConfigurationIsRefusedInOneMessage(t *testing.T) {
	s := story.New(t)
	for _, service := range []string{"command-service", "consumer-service", "query-service"} {
		words := refusesToStart(t, s.Service(service, map[string]string{
			"BIND_ADDRESS": "0.0.0.0", "LOG_LEVEL": "loud", "DB_URL": "mysql://me:hunter2@db/x", "DB_USERNAME": "me", "KAFKA_BROKRES": "k:1", "SHUTDOWN_TIMEOUT": "soon",
		}), "AUTH=off", `LOG_LEVEL="loud"`, "DB_USERNAME is the name of an older set-up: set DB_URL", "KAFKA_BROKERS is meant", `SHUTDOWN_TIMEOUT="soon"`)
		require.NotContains(t, words, "hunter2")
	}
}

func TestAPortThatIsTakenIsNamed(t *testing.T) {
	s := story.New(t)
	held, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = held.Close() }) // nothing was written to it
	_, port, err := net.SplitHostPort(held.Addr().String())
	require.NoError(t, err)
	refusesToStart(t, s.Service("query-service", map[string]string{"SERVER_PORT": port}), "SERVER_PORT", port)
}

// refusesToStart requires that the process ends by itself, with a status that says so, and with these words. It returns
// all that the process said.
func refusesToStart(t *testing.T, service *stack.Service, words ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), story.Patience)
	defer cancel()
	status, err := service.Exited(ctx)
	require.NoError(t, err)
	require.Equal(t, 1, status)
	said, err := service.Log()
	require.NoError(t, err)
	for _, w := range words {
		require.Contains(t, said, w)
	}
	return said
}

package fault_test

import (
	"context"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/integration/stack"
	"github.com/tidemark/tidemark/integration/story"
)

// A process that is stopped inside an open transaction keeps its locks. The server ends such a session after five
// seconds (idle_in_transaction_session_timeout), so that is how long a successor waits, at the most.
func TestSleeperInATransactionHoldsItsSuccessorForSecondsOnly(t *testing.T) {
	const limit, slack = 5 * time.Second, 4 * time.Second // the slack is for a busy machine
	for _, test := range []struct {
		name      string
		successor func(*story.Story) *stack.Service
		atOnce    bool // the successor meets the lock at once; else when the sleeper's session is over
	}{
		{"under another name", func(s *story.Story) *stack.Service {
			return s.Service("consumer-service", map[string]string{"KAFKA_GROUP_ID": s.Group + "-again"})
		}, true},
		{"in its own group", func(s *story.Story) *stack.Service {
			return s.Service("consumer-service", nil)
		}, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := onKafka(t)
			sleeper := s.Consumer("")
			id := uuid.New()
			record := story.Message{Partition: 1, Key: id.String(), Value: command(id, "2001-01-01T00:00:00Z")}
			_, err := s.Log.Write(record)
			require.NoError(t, err)
			s.RequireProjected(s.DB)

			// The second record of one id goes the slow way, where this lock stops it, with its progress row locked.
			lock, err := s.DB.BeginTx(t.Context(), nil)
			require.NoError(t, err)
			defer func() { _ = lock.Rollback() }() // after the one below it does nothing
			_, err = lock.ExecContext(t.Context(), `SELECT FROM public.timestamp_records WHERE id = $1 FOR UPDATE`, id)
			require.NoError(t, err)
			_, err = s.Log.Write(record)
			require.NoError(t, err)
			pid := sessionWhere(t, s, `wait_event_type = 'Lock'`)
			require.NoError(t, sleeper.Signal(syscall.SIGSTOP))
			defer func() { require.NoError(t, sleeper.Signal(syscall.SIGCONT)) }()

			successor := test.successor(s)
			if test.atOnce {
				sessionWhere(t, s, `$2 = ANY (pg_blocking_pids(pid))`, pid)
			} else {
				time.Sleep(4 * time.Second) // the session lasts two more, and the lock is waited for by then
			}
			require.NoError(t, lock.Rollback())
			released := time.Now()
			require.Equal(t, 1, sessions(t, s, pid), "the sleeper holds its transaction")

			expected, upTo := s.Expected()
			s.Passed(s.DB, upTo)
			held := time.Since(released)
			t.Logf("held for %s", held.Round(time.Millisecond))
			require.Less(t, held, limit+slack)
			require.Zero(t, sessions(t, s, pid), "the sleeper's session is over")
			expected.Require(t, upTo, s.Dump(s.DB))
			require.True(t, successor.Running())
		})
	}
}

// sessionWhere waits for a session of consumer-service in that state and returns its process id in the server.
func sessionWhere(t *testing.T, s *story.Story, state string, args ...any) (pid int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), story.Patience)
	defer cancel()
	require.NoError(t, story.Eventually(ctx, "wait for a session where "+state, func(ctx context.Context) error {
		return s.DB.QueryRowContext(ctx, `SELECT pid FROM pg_stat_activity
			WHERE datname = current_database() AND application_name = $1 AND `+state,
			append([]any{"consumer-service"}, args...)...).Scan(&pid)
	}))
	return pid
}

func sessions(t *testing.T, s *story.Story, pid int) (n int) {
	t.Helper()
	require.NoError(t, s.DB.QueryRowContext(t.Context(), `SELECT count(*) FROM pg_stat_activity WHERE pid = $1`, pid).Scan(&n))
	return n
}

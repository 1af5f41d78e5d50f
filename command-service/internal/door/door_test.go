package door

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/shared/event"
	"github.com/tidemark/tidemark/shared/kafka"
	"github.com/tidemark/tidemark/shared/kafka/kafkatest"
	"github.com/tidemark/tidemark/shared/position"
	"github.com/tidemark/tidemark/shared/telemetry"
)

// logThatTakes is a log of one partition, so that offsets are the order of everything in it.
func logThatTakes(long time.Duration) *kafkatest.Log {
	l := kafkatest.NewLog(1)
	l.Takes = long
	return l
}

// failing is a fault of those messages for which there is an error. None of them is in the log.
func failing(why func(m *message.Message) error) func(*message.Message) (bool, error) {
	return func(m *message.Message) (bool, error) {
		err := why(m)
		return err == nil, err
	}
}

// keysIn returns the keys of the records in the log, in their order.
func keysIn(l *kafkatest.Log) (keys []string) {
	for _, r := range l.Written(0) {
		keys = append(keys, string(r.Key))
	}
	return keys
}

func setup(t *testing.T, o Options) (*Door, *prometheus.Registry) {
	t.Helper()
	registry := prometheus.NewRegistry()
	o.Topic, o.Metrics = "topic", NewMetrics(registry)
	d, err := New(o)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, d.Close(context.Background())) }) // the test's context has ended
	d.Open()
	return d, registry
}

// accept is Accept of one command.
func accept(ctx context.Context, d *Door, key string) (position.Position, error) {
	o := d.Accept(ctx, Command{Key: key, Value: []byte("value")})[0]
	return o.Position, o.Err
}

func TestAnIdleDoorSendsAtOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		log := logThatTakes(3 * time.Millisecond)
		d, _ := setup(t, Options{Log: log})
		for i := range 5 {
			start := time.Now()
			at, err := accept(t.Context(), d, "key")
			require.NoError(t, err)
			require.Equal(t, position.Position{Topic: "topic", Offset: int64(i)}, at)
			require.Equal(t, 3*time.Millisecond, time.Since(start), "the log's time and no other")
		}
	})
}

func TestAGroupGathersWhileAnotherIsOnItsWay(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		log := logThatTakes(10 * time.Millisecond)
		d, registry := setup(t, Options{Log: log, MaxGroup: 50})
		var callers sync.WaitGroup
		answers := make([]Outcome, 121)
		for i := range answers {
			callers.Go(func() { answers[i].Position, answers[i].Err = accept(t.Context(), d, fmt.Sprint(i)) })
			if i == 0 {
				synctest.Wait() // the first one leaves alone
			}
		}
		callers.Wait()
		groups, written := log.Flights(), keysIn(log)
		require.Equal(t, []int{1, 50, 50, 20}, groups)
		for i, a := range answers {
			require.NoError(t, a.Err)
			require.Equal(t, fmt.Sprint(i), written[a.Position.Offset], "each caller gets the position of its own record")
		}
		require.NoError(t, testutil.GatherAndCompare(registry, strings.NewReader(`
# HELP tidemark_commands_total Commands at the door by outcome: accepted; unknown (handed over, no answer); down, busy, shut (refused, nothing written).
# TYPE tidemark_commands_total counter
tidemark_commands_total{outcome="accepted",topic="topic"} 121
tidemark_commands_total{outcome="down",topic="topic"} 0
tidemark_commands_total{outcome="busy",topic="topic"} 0
tidemark_commands_total{outcome="shut",topic="topic"} 0
tidemark_commands_total{outcome="unknown",topic="topic"} 0
`), "tidemark_commands_total"))
	})
}

func TestTheDeadlineTellsTheHandedOverFromTheAbandoned(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		log := logThatTakes(20 * time.Second) // a broker that hangs
		d, registry := setup(t, Options{Log: log, Deadline: 5 * time.Second})
		start := time.Now()
		errs := make(chan error, 2)
		go func() {
			_, err := accept(t.Context(), d, "handed over")
			errs <- err
		}()
		synctest.Wait()
		go func() {
			time.Sleep(time.Second)
			_, err := accept(t.Context(), d, "abandoned")
			errs <- err
		}()
		require.ErrorIs(t, <-errs, ErrUnknown)
		require.Equal(t, 5*time.Second, time.Since(start))
		err := <-errs
		require.ErrorIs(t, err, ErrDown)
		require.NotErrorIs(t, err, ErrUnknown)
		require.Equal(t, 6*time.Second, time.Since(start))

		time.Sleep(time.Minute)
		written := keysIn(log)
		require.Equal(t, []string{"handed over"}, written, "what was abandoned never reaches the log")
		require.Equal(t, 1.0, testutil.ToFloat64(d.metrics.unknown))
		require.Equal(t, 1.0, testutil.ToFloat64(d.metrics.down))
		n, err := testutil.GatherAndCount(registry)
		require.NoError(t, err)
		require.Equal(t, 8, n)
	})
}

func TestACallerThatLeavesTakesHisCommandAlongIfHeStillCan(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		log := logThatTakes(time.Second)
		d, _ := setup(t, Options{Log: log})
		errs := make(chan error, 2)
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			_, err := accept(ctx, d, "first")
			errs <- err
		}()
		synctest.Wait()
		go func() {
			_, err := accept(ctx, d, "second")
			errs <- err
		}()
		synctest.Wait()
		cancel()
		for range 2 {
			require.ErrorIs(t, <-errs, context.Canceled)
		}
		time.Sleep(5 * time.Second)
		written := keysIn(log)
		require.Equal(t, []string{"first"}, written)
	})
}

func TestEveryMessageOfAGroupHasItsOwnOutcome(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		log := logThatTakes(time.Millisecond)
		log.Fault = failing(func(m *message.Message) error {
			switch m.UUID[0] {
			case 'n':
				return fmt.Errorf("%w: no leader", kafka.ErrNotSent)
			case 'u':
				return errors.New("connection reset")
			}
			return nil
		})
		d, _ := setup(t, Options{Log: log})
		var callers sync.WaitGroup
		all := []string{"a0", "n1", "u2", "a3", "n4", "u5"}
		errs := make([]error, len(all))
		for i, key := range all {
			callers.Go(func() { _, errs[i] = accept(t.Context(), d, key) })
		}
		callers.Wait()
		for i, key := range all {
			switch err := errs[i]; key[0] {
			case 'a':
				require.NoError(t, err)
			case 'n':
				require.ErrorIs(t, err, ErrDown)
				require.NotErrorIs(t, err, ErrUnknown)
			case 'u':
				require.ErrorIs(t, err, ErrUnknown)
				require.NotErrorIs(t, err, ErrDown)
			}
		}
	})
}

func TestAFullQueueRefuses(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d, _ := setup(t, Options{Log: logThatTakes(time.Second), MaxQueue: 3})
		var callers sync.WaitGroup
		callers.Go(func() { _, _ = accept(t.Context(), d, "in flight") })
		synctest.Wait()
		waiting := make([]error, 3)
		for i := range waiting {
			callers.Go(func() { _, waiting[i] = accept(t.Context(), d, "waiting") })
		}
		synctest.Wait()
		start := time.Now()
		_, err := accept(t.Context(), d, "one too many")
		require.ErrorIs(t, err, ErrBusy)
		require.Zero(t, time.Since(start))
		callers.Wait()
		require.Equal(t, make([]error, 3), waiting)
	})
}

func TestAShutDoorSaysWhyAndOpensAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		log := logThatTakes(time.Millisecond)
		d, _ := setup(t, Options{Log: log})
		d.Shut(&kafka.GuardError{Topic: "topic", Faults: []kafka.Fault{{Setting: "retention.ms", Wanted: "-1", Found: "1", Why: "records would expire"}}})
		_, err := accept(t.Context(), d, "k")
		var shut *ShutError
		require.ErrorAs(t, err, &shut)
		require.ErrorContains(t, err, "retention.ms must be -1 and is 1")
		require.Equal(t, 1.0, testutil.ToFloat64(d.metrics.shut))
		d.Open()
		_, err = accept(t.Context(), d, "k")
		require.NoError(t, err)
		written := keysIn(log)
		require.Len(t, written, 1)
	})
}

func TestADoorThatWasNotOpenedRefusesAsIfTheLogWereDown(t *testing.T) {
	t.Parallel()
	d, err := New(Options{Topic: "topic", Log: logThatTakes(0), Metrics: NewMetrics(prometheus.NewRegistry())})
	require.NoError(t, err)
	_, err = accept(t.Context(), d, "k")
	require.ErrorIs(t, err, ErrDown)
	require.NoError(t, d.Close(t.Context()))
	require.Equal(t, 1.0, testutil.ToFloat64(d.metrics.down))
	_, err = New(Options{})
	require.Error(t, err)
}

func TestCloseFinishesWhatIsInHand(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		log := logThatTakes(time.Second)
		d, _ := setup(t, Options{Log: log, MaxGroup: 2})
		var callers sync.WaitGroup
		errs := make([]error, 5)
		for i := range errs {
			callers.Go(func() { _, errs[i] = accept(t.Context(), d, fmt.Sprint(i)) })
		}
		synctest.Wait()
		require.NoError(t, d.Close(t.Context()))
		callers.Wait()
		require.Equal(t, make([]error, 5), errs)
		written := keysIn(log)
		require.Len(t, written, 5)
	})
}

func TestCloseLeavesALogThatHangs(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d, _ := setup(t, Options{Log: logThatTakes(time.Hour), Deadline: time.Second})
		_, err := accept(t.Context(), d, "k")
		require.ErrorIs(t, err, ErrUnknown)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		require.ErrorIs(t, d.Close(ctx), context.DeadlineExceeded)
	})
}

// A door under load from callers who come, wait and give up at random tells each of them the truth.
func TestNobodyIsToldAnythingUntrue(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		log := logThatTakes(7 * time.Millisecond)
		log.Fault = failing(func(m *message.Message) error {
			if strings.HasSuffix(m.UUID, "3") {
				return kafka.ErrNotSent
			}
			return nil
		})
		d, _ := setup(t, Options{Log: log, Deadline: 10 * time.Millisecond, MaxGroup: 20, MaxQueue: 60})
		var mu sync.Mutex
		answers := map[string]error{}
		var callers sync.WaitGroup
		for i := range 2_000 {
			callers.Go(func() {
				time.Sleep(time.Duration(i*i%997) * time.Millisecond)
				key := fmt.Sprint(i)
				_, err := accept(t.Context(), d, key)
				mu.Lock()
				defer mu.Unlock()
				answers[key] = err
			})
		}
		callers.Wait()
		time.Sleep(time.Second)
		written := keysIn(log)
		there := map[string]bool{}
		for _, k := range written {
			require.False(t, there[k], "%s is in the log twice", k)
			there[k] = true
		}
		kinds := map[string]int{}
		for key, err := range answers {
			switch {
			case err == nil:
				kinds["accepted"]++
				require.True(t, there[key], key)
			case errors.Is(err, ErrUnknown):
				kinds["unknown"]++
			default:
				kinds["refused"]++
				require.False(t, there[key], "%s: %v", key, err)
			}
		}
		require.Len(t, answers, 2_000)
		require.Positive(t, kinds["accepted"])
		require.Positive(t, kinds["refused"])
		require.Positive(t, kinds["unknown"])
	})
}

func TestTheRecordCarriesTheCorrelationID(t *testing.T) {
	t.Parallel()
	log := logThatTakes(0)
	d, _ := setup(t, Options{Log: log})
	_, err := accept(telemetry.WithCorrelationID(t.Context(), "mine 1"), d, "k")
	require.NoError(t, err)
	require.Equal(t, []kafka.Header{{Key: []byte(event.HeaderCorrelationID), Value: []byte("mine 1")}}, log.Written(0)[0].Headers)
}

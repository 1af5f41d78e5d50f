package door

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/shared/kafka"
)

func manyCommands(n int) []Command {
	commands := make([]Command, n)
	for i := range commands {
		commands[i] = Command{Key: fmt.Sprint(i), Value: []byte("value")}
	}
	return commands
}

func TestManyCommandsOfOneCallerShareAFlightWithTheOthers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		log := logThatTakes(10 * time.Millisecond)
		d, _ := setup(t, Options{Log: log, MaxGroup: 50})
		go func() { _, _ = accept(t.Context(), d, "first") }()
		synctest.Wait() // it leaves alone
		single := make(chan error, 1)
		go func() {
			_, err := accept(t.Context(), d, "single")
			single <- err
		}()
		synctest.Wait()
		outcomes := d.AcceptPatiently(t.Context(), manyCommands(3000))
		require.NoError(t, <-single)
		groups, written := log.Flights(), keysIn(log)
		require.Equal(t, []int{1, 3001}, groups)
		for i, o := range outcomes {
			require.NoError(t, o.Err)
			require.Equal(t, fmt.Sprint(i), written[o.Position.Offset], "in their order, each his own place")
		}
		require.Equal(t, 3002.0, testutil.ToFloat64(d.metrics.accepted))
		require.Empty(t, d.AcceptPatiently(t.Context(), nil))
	})
}

func TestOnlyWhatWasSurelyNotWrittenIsTriedAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		tries := map[string]int{}
		log := logThatTakes(0)
		log.Fault = failing(func(m *message.Message) error {
			tries[m.UUID]++
			switch {
			case m.UUID == "1":
				return errors.New("no answer came")
			case m.UUID == "2" && tries["2"] < 4:
				return fmt.Errorf("%w: no leader", kafka.ErrNotSent)
			}
			return nil
		})
		d, _ := setup(t, Options{Log: log})
		outcomes := d.AcceptPatiently(t.Context(), manyCommands(4))
		require.NoError(t, outcomes[0].Err)
		require.ErrorIs(t, outcomes[1].Err, ErrUnknown)
		require.NoError(t, outcomes[2].Err)
		require.NoError(t, outcomes[3].Err)
		require.Equal(t, map[string]int{"0": 1, "1": 1, "2": 4, "3": 1}, tries)
		written := keysIn(log)
		require.Equal(t, "2", written[outcomes[2].Position.Offset])
	})
}

func TestManyAreAnsweredWithinTheDeadline(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		log := logThatTakes(time.Minute) // a broker that hangs
		d, _ := setup(t, Options{Log: log, Deadline: 5 * time.Second})
		start := time.Now()
		handed := make(chan []Outcome, 1)
		go func() { handed <- d.AcceptPatiently(t.Context(), manyCommands(2)) }()
		synctest.Wait()
		abandoned := d.AcceptPatiently(t.Context(), manyCommands(2))
		require.Equal(t, 5*time.Second, time.Since(start))
		for i, o := range <-handed {
			require.ErrorIs(t, o.Err, ErrUnknown)
			require.ErrorIs(t, abandoned[i].Err, ErrDown)
			require.NotErrorIs(t, abandoned[i].Err, ErrUnknown)
		}
		time.Sleep(2 * time.Minute)
		groups := log.Flights()
		require.Equal(t, []int{2}, groups, "what was abandoned never reaches the log")
	})
}

func TestADoorThatOpensInTimeTakesThemAll(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d, _ := setup(t, Options{Log: logThatTakes(0), Deadline: 5 * time.Second})
		d.Shut(errors.New("retention.ms must be -1"))
		var shut *ShutError
		require.ErrorAs(t, d.State(), &shut)
		outcomes := d.AcceptPatiently(t.Context(), manyCommands(2))
		require.ErrorAs(t, outcomes[1].Err, &shut)
		time.AfterFunc(time.Second, d.Open)
		outcomes = d.AcceptPatiently(t.Context(), manyCommands(2))
		require.NoError(t, outcomes[1].Err)
		require.NoError(t, d.State())

		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		d.Shut(ErrDown)
		require.ErrorIs(t, d.AcceptPatiently(ctx, manyCommands(1))[0].Err, ErrDown)
	})
}

package door

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/integration/stack"
	"github.com/tidemark/tidemark/shared/await"
	"github.com/tidemark/tidemark/shared/event"
	"github.com/tidemark/tidemark/shared/position"
)

const instant = "2009-09-28T19:03:12Z"

// slack is what a loaded machine may add to a deadline.
// slack is for a busy machine.
const slack = 10 * time.Second

// honest checks every answer against the log, and returns how many there were of each kind.
func honest(t *testing.T, answers []answer, all map[position.Position]record) map[string]int {
	t.Helper()
	by := places(all)
	kinds := map[string]int{}
	for _, a := range answers {
		switch {
		case a.status == http.StatusAccepted:
			kinds["accepted"]++
			require.Equal(t, a.key, a.ticket)
			require.Contains(t, by[a.key], a.at, "a ticket without its record")
			c, err := event.DecodeTimestampCommand([]byte(all[a.at].value))
			require.NoError(t, err)
			require.Equal(t, a.key, c.CommandID.String())
		case a.kind == "/problems/outcome-unknown":
			kinds["unknown"]++
			require.Equal(t, a.key, a.ticket)
			require.Equal(t, a.key, a.retryKey)
			require.NotEmpty(t, a.retry)
		default:
			require.Equal(t, http.StatusServiceUnavailable, a.status)
			require.Contains(t, []string{"/problems/log-down", "/problems/busy", "/problems/log-unsafe"}, a.kind)
			require.NotEmpty(t, a.retry)
			require.Empty(t, by[a.key], "nothing was to be written, and there it is: %+v", a)
			kinds["down"]++
		}
	}
	return kinds
}

// storm posts from many clients until stop, each command under a key of its own.
func (s *service) storm(t *testing.T, clients int, stop <-chan struct{}) []answer {
	t.Helper()
	var mu sync.Mutex
	var answers []answer
	var callers sync.WaitGroup
	for range clients {
		callers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				key, err := uuid.NewV7()
				var a answer
				if err == nil {
					a, err = s.post(instant, key.String())
				}
				if err != nil {
					t.Errorf("a POST without an answer: %v", err)
					return
				}
				mu.Lock()
				answers = append(answers, a)
				mu.Unlock()
				if a.status != http.StatusAccepted {
					time.Sleep(20 * time.Millisecond) // a client that is refused comes again
				}
			}
		})
	}
	callers.Wait()
	return answers
}

func during(f func()) <-chan struct{} {
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	return done
}

func TestWithTheBrokerStoppedNothingIsWrittenAndItIsSaid(t *testing.T) {
	t.Parallel()
	k := startKafka(t)
	s := startService(t, k, 2*time.Second)
	a, err := s.post(instant, newKey(t))
	require.NoError(t, err)
	require.Equal(t, 202, a.status)
	answers := []answer{a}

	require.NoError(t, k.Kill())
	end := time.Now().Add(5 * time.Second)
	for time.Now().Before(end) {
		a, err := s.post(instant, newKey(t))
		require.NoError(t, err)
		require.Equal(t, 503, a.status)
		require.Less(t, a.took, 2*time.Second+slack)
		answers = append(answers, a)
		time.Sleep(20 * time.Millisecond) // a client that comes again
	}
	require.Equal(t, "/problems/log-down", answers[len(answers)-1].kind, "once it is known that nobody is there")
	require.Less(t, answers[len(answers)-1].took, slack, "it is said at once")

	require.NoError(t, k.Start(t.Context()))
	back := time.Now()
	await.Until(t, func() bool {
		a, err := s.post(instant, newKey(t))
		require.NoError(t, err)
		answers = append(answers, a)
		return a.status == 202
	})
	t.Logf("accepts again %s after the broker listens", time.Since(back).Round(time.Millisecond))
	t.Log(honest(t, answers, readAll(t, k, s.topic)))
	s.awaitReady(t)
}

func TestWithTheBrokerHangingAnUnknownOutcomeIsRetriedUnderItsKey(t *testing.T) {
	t.Parallel()
	k := startKafka(t)
	s := startService(t, k, time.Second)
	require.NoError(t, k.Signal(syscall.SIGSTOP))
	// The first is handed over; whoever comes while it hangs waits behind it.
	first, err := s.post(instant, "")
	require.NoError(t, err)
	require.Equal(t, 503, first.status)
	require.Equal(t, "/problems/outcome-unknown", first.kind)
	require.Less(t, first.took, time.Second+slack)
	require.GreaterOrEqual(t, first.took, time.Second)
	require.Equal(t, first.ticket, first.retryKey)
	var answers []answer
	for range 4 {
		a, err := s.post(instant, newKey(t))
		require.NoError(t, err)
		require.Equal(t, "/problems/log-down", a.kind)
		require.Less(t, a.took, time.Second+slack)
		answers = append(answers, a)
	}
	time.Sleep(8 * time.Second) // past the read timeout: the connection is given up, the broker still hangs
	require.NoError(t, k.Signal(syscall.SIGCONT))
	back := time.Now()
	var again answer
	await.Until(t, func() bool {
		again, err = s.post(instant, first.retryKey)
		require.NoError(t, err)
		return again.status == 202
	})
	t.Logf("accepts again %s after the broker goes on", time.Since(back).Round(time.Millisecond))
	require.Equal(t, first.ticket, again.ticket, "the same command")
	answers = append(answers, again)
	all := readAll(t, k, s.topic)
	t.Log(honest(t, answers, all), len(places(all)[first.ticket]), "records of the retried command")
	require.Len(t, places(all), 1, "one id, whatever the number of records")
	s.awaitReady(t)
}

func TestAShortHangIsOnlyADelay(t *testing.T) {
	t.Parallel()
	k := startKafka(t)
	s := startService(t, k, 20*time.Second)
	require.NoError(t, k.Signal(syscall.SIGSTOP))
	resumed := during(func() {
		time.Sleep(2 * time.Second) // the hang
		_ = k.Signal(syscall.SIGCONT)
	})
	a, err := s.post(instant, newKey(t))
	require.NoError(t, err)
	require.Equal(t, 202, a.status)
	<-resumed
	require.Len(t, readAll(t, k, s.topic), 1)
}

func TestAServiceStopsWhileTheBrokerHangs(t *testing.T) {
	t.Parallel()
	k := startKafka(t)
	s := startService(t, k, time.Second)
	require.NoError(t, k.Signal(syscall.SIGSTOP))
	a, err := s.post(instant, newKey(t))
	require.NoError(t, err)
	require.Equal(t, "/problems/outcome-unknown", a.kind)
	start := time.Now()
	s.stop()
	err = <-s.ended
	s.ended <- err // for the cleanup
	require.NoError(t, err)
	t.Logf("stopped after %s", time.Since(start).Round(time.Millisecond))
	require.NoError(t, k.Signal(syscall.SIGCONT)) // what is left behind ends with it
}

// Everything at once, drawn from a seed: connections reset, cut and held, answers lost, the broker
// stopped, continued, killed and started.
func TestNoTicketWithoutItsRecordWhateverHappens(t *testing.T) {
	t.Parallel()
	k := startKafka(t)
	s := startService(t, k, time.Second)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	draw := rand.New(rand.NewPCG(seed, 0))
	stop := make(chan struct{})
	var disturbed error
	disturbing := during(func() {
		defer close(stop)
		disturbed = disturb(t, k, draw, 24)
	})
	answers := s.storm(t, 16, stop)
	<-disturbing
	require.NoError(t, disturbed)
	back := time.Now()
	await.Until(t, func() bool {
		a, err := s.post(instant, newKey(t))
		require.NoError(t, err)
		answers = append(answers, a)
		return a.status == 202
	})
	t.Logf("accepts again %s after the last disturbance", time.Since(back).Round(time.Millisecond))

	for i, a := range answers { // every unknown one is retried, and then it is there
		require.Less(t, a.took, time.Second+slack)
		if a.kind != "/problems/outcome-unknown" {
			continue
		}
		again, err := s.post(instant, a.retryKey)
		require.NoError(t, err)
		require.Equal(t, 202, again.status)
		require.Equal(t, a.ticket, again.ticket)
		if i%10 == 0 {
			answers = append(answers, again)
		}
	}
	all := readAll(t, k, s.topic)
	kinds := honest(t, answers, all)
	t.Log(kinds, len(all), "records")
	require.Positive(t, kinds["accepted"])
	by := places(all)
	for _, a := range answers {
		if a.kind == "/problems/outcome-unknown" {
			require.NotEmpty(t, by[a.ticket])
		}
	}
	s.awaitReady(t)
}

func disturb(t *testing.T, k *stack.Kafka, draw *rand.Rand, times int) error {
	t.Helper()
	proxy := k.Proxy(door)
	for i := range times {
		pause := func(most int) { time.Sleep(time.Duration(draw.IntN(most)) * time.Millisecond) } // at random moments
		pause(300)
		switch what := draw.IntN(7); what {
		case 0, 1:
			proxy.Reset()
		case 2:
			proxy.HangReplies()
			pause(1500)
			proxy.Reset()
			proxy.Pass()
		case 3:
			proxy.Cut()
			pause(2000)
			proxy.Pass()
		case 4:
			proxy.Hang()
			pause(2500)
			proxy.Pass()
		case 5:
			if err := k.Signal(syscall.SIGSTOP); err != nil {
				return err
			}
			pause(2500)
			if err := k.Signal(syscall.SIGCONT); err != nil {
				return err
			}
		case 6:
			if i%2 == 0 { // a start takes seconds
				continue
			}
			if err := k.Kill(); err != nil {
				return err
			}
			pause(500)
			if err := k.Start(t.Context()); err != nil {
				return fmt.Errorf("start the broker again: %w", err)
			}
		}
	}
	return nil
}

package door

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/integration/stack"
	"github.com/tidemark/tidemark/shared/await"
	"github.com/tidemark/tidemark/shared/config"
	"github.com/tidemark/tidemark/shared/kafka"
	"github.com/tidemark/tidemark/shared/position"
)

func newPublisher(t *testing.T, k *stack.Kafka, retryFor time.Duration) *kafka.Publisher {
	t.Helper()
	p, err := kafka.NewPublisher(kafka.PublisherOptions{Kafka: config.Kafka{Brokers: viaProxy(k)}, ClientID: "test", Producer: "test/1", Log: quiet(), RetryFor: retryFor})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, p.Close()) })
	await.Until(t, func() bool { return p.State() == nil })
	return p
}

// flown is every message of a test and what its publisher was told.
type flown struct {
	mu   sync.Mutex
	told map[string]kafka.Result
}

func (f *flown) fly(p *kafka.Publisher, topic, name string, n int) {
	msgs := make([]*message.Message, n)
	for i := range msgs {
		msgs[i] = kafka.NewMessage(fmt.Sprintf("%s-%d", name, i), []byte(name), "")
	}
	results := p.PublishAll(topic, msgs...)
	f.mu.Lock()
	defer f.mu.Unlock()
	for i, m := range msgs {
		f.told[m.UUID] = results[i]
	}
}

// check compares what was told with what is there, and returns how many messages ended how.
func (f *flown) check(t *testing.T, all map[position.Position]record) (acknowledged, unknown, notSent int) {
	t.Helper()
	by := places(all)
	for key, r := range f.told {
		switch {
		case r.Err == nil:
			acknowledged++
			require.Equal(t, []position.Position{r.Position}, by[key], "%s is where it was said to be, once", key)
		case errors.Is(r.Err, kafka.ErrNotSent):
			notSent++
			require.Empty(t, by[key], "%s: %v", key, r.Err)
		default:
			unknown++
			require.LessOrEqual(t, len(by[key]), 1, key)
		}
	}
	require.LessOrEqual(t, len(all), len(f.told))
	return acknowledged, unknown, notSent
}

// A connection that breaks costs nothing: the very same batch goes again and the broker knows it.
func TestABrokenConnectionLosesAndDoublesNothing(t *testing.T) {
	t.Parallel()
	k := startKafka(t)
	topic := newTopic(t, k, 6)
	p := newPublisher(t, k, 10*time.Second)
	f := &flown{told: map[string]kafka.Result{}}
	stop, stopped := make(chan struct{}), make(chan struct{})
	var breaks atomic.Int64
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			case <-time.After(time.Duration(20+rand.IntN(60)) * time.Millisecond):
			}
			switch breaks.Add(1) % 3 {
			case 0: // the broker gets the request, the answer is lost
				k.Proxy(door).HangReplies()
				time.Sleep(30 * time.Millisecond) // in which answers get lost
				k.Proxy(door).Reset()
				k.Proxy(door).Pass()
			default:
				k.Proxy(door).Reset()
			}
		}
	}()
	for i := 0; i < 400 || breaks.Load() < 60; i++ {
		f.fly(p, topic, fmt.Sprint(i), 1+rand.IntN(80))
	}
	close(stop)
	<-stopped
	acknowledged, unknown, notSent := f.check(t, readAll(t, k, topic))
	t.Logf("%d breaks: %d acknowledged, %d unknown, %d not sent", breaks.Load(), acknowledged, unknown, notSent)
	require.Zero(t, unknown)
	require.Zero(t, notSent)
}

// A restart of the broker within the time that a flight repeats itself is only a delay.
func TestARestartOfTheBrokerWithinTheRetriesIsADelay(t *testing.T) {
	t.Parallel()
	k := startKafka(t)
	topic := newTopic(t, k, 6)
	p := newPublisher(t, k, 40*time.Second)
	f := &flown{told: map[string]kafka.Result{}}
	restarted := make(chan error, 1)
	go func() {
		time.Sleep(200 * time.Millisecond) // in the middle of the flights
		if err := k.Kill(); err != nil {
			restarted <- err
			return
		}
		restarted <- k.Start(t.Context())
	}()
	for i, after := 0, 0; after < 20; i++ {
		f.fly(p, topic, fmt.Sprint(i), 40)
		select {
		case err := <-restarted:
			require.NoError(t, err)
			after = 1
		default:
			if after > 0 {
				after++
			}
		}
	}
	acknowledged, unknown, notSent := f.check(t, readAll(t, k, topic))
	t.Logf("%d acknowledged, %d unknown, %d not sent", acknowledged, unknown, notSent)
	require.Zero(t, unknown+notSent)
}

// Past the retries the producer is replaced, and the next flight does not wait for anything that the
// old one left behind.
func TestAProducerThatFailedIsReplacedAndRecoversAtOnce(t *testing.T) {
	t.Parallel()
	k := startKafka(t)
	topic := newTopic(t, k, 6)
	p := newPublisher(t, k, 500*time.Millisecond)
	f := &flown{told: map[string]kafka.Result{}}
	for i := range 6 {
		f.fly(p, topic, fmt.Sprintf("before %d", i), 40)
		if i%2 == 0 {
			k.Proxy(door).Cut() // refused connections
		} else {
			k.Proxy(door).HangReplies() // answers that do not come; then the connection goes
			go func() {
				time.Sleep(time.Second) // longer than a flight is repeated
				k.Proxy(door).Cut()
			}()
		}
		f.fly(p, topic, fmt.Sprintf("during %d", i), 40)
		time.Sleep(time.Second) // so that the publisher has tried to connect in vain
		k.Proxy(door).Pass()
		back := time.Now()
		await.Until(t, func() bool { return p.State() == nil })
		f.fly(p, topic, fmt.Sprintf("after %d", i), 40)
		require.NoError(t, f.told[fmt.Sprintf("after %d-0", i)].Err)
		t.Logf("writes again %s after the network is back", time.Since(back).Round(time.Millisecond))
	}
	acknowledged, unknown, notSent := f.check(t, readAll(t, k, topic))
	t.Logf("%d acknowledged, %d unknown, %d not sent", acknowledged, unknown, notSent)
	require.Positive(t, unknown)
}

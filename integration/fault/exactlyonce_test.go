package fault_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/integration/stack"
	"github.com/tidemark/tidemark/integration/story"
)

var (
	seedFlag   = flag.Uint64("seed", 0, "of the random faults; 0 draws one")
	roundsFlag = flag.Int("rounds", 60, "how many rounds of random faults, at the least")
	waveFlag   = flag.Int("wave", -1, "run this wave of random faults only")
)

// drawSeed returns the seed that was asked for, or one that it prints.
func drawSeed(t *testing.T) uint64 {
	t.Helper()
	seed := *seedFlag
	if seed == 0 {
		seed = rand.Uint64N(1_000_000)
	}
	t.Logf("seed %d", seed)
	return seed
}

// kind is what a wave disturbs besides each projection.
type kind string

const (
	plain    kind = "nothing else"
	door     kind = "command-service"
	postgres kind = "Postgres"
	broker   kind = "the broker"
	asleep   kind = "writers asleep" // each projection's own fault is a writer that sleeps past its session
)

// waves are the kinds of twelve waves: with five deployments sixty rounds, which is what a run has unless told otherwise. So
// each run has each kind. A wave that disturbs the broker restarts it twice.
var waves = []struct {
	kind kind
	of12 int
}{{broker, 3}, {asleep, 1}, {postgres, 2}, {door, 3}, {plain, 3}}

// schedule returns the kinds of n waves, all kinds in each twelve of them.
func schedule(seed uint64, n int) []kind {
	var twelve []kind
	for _, w := range waves {
		for range w.of12 {
			twelve = append(twelve, w.kind)
		}
	}
	r := rand.New(rand.NewPCG(seed, 0))
	var kinds []kind
	for len(kinds) < n {
		r.Shuffle(len(twelve), func(i, j int) { twelve[i], twelve[j] = twelve[j], twelve[i] })
		kinds = append(kinds, twelve...)
	}
	return kinds[:n]
}

// slowToSettle is a time to settle that is worth a look: two sessions of the group and then some.
const slowToSettle = 20 * time.Second

// TestExactlyOnce disturbs five databases into which both topics are projected, and what they stand on, and requires after
// each wave that they hold what the log says, no more and no less, and that every ticket that was given is in it; and after
// all of them, that the receipts in the log cover every offset of each projection, and that what came twice is the same
// bytes.
func TestExactlyOnce(t *testing.T) {
	s := onKafka(t)
	seed := drawSeed(t)
	n := (*roundsFlag + len(deploymentKinds) - 1) / len(deploymentKinds)
	kinds := schedule(seed, max(n, *waveFlag+1))

	world := newWorld(t, s, seed, 0, 1, 2, 3, 4)
	began, rounds, counts := time.Now(), 0, map[kind]int{}
	for wave, kind := range kinds {
		if *waveFlag >= 0 && wave != *waveFlag {
			continue
		}
		if err := world.wave(t, rand.New(rand.NewPCG(seed, uint64(wave)+1)), fmt.Sprintf("wave %d", wave), kind); err != nil {
			t.Fatalf("seed %d, wave %d: %v\nrun it alone: go test ./fault -run ExactlyOnce -seed %d -wave %d", seed, wave, err, seed, wave)
		}
		counts[kind]++
		rounds += len(world.deployments)
	}
	world.writers.close()
	require.NoError(t, world.receipted(t, rand.New(rand.NewPCG(seed, 0))), "seed %d", seed)
	t.Logf("%d rounds in %s: waves by what they disturbed besides: %v", rounds, time.Since(began).Round(time.Second), counts)
}

// world is everything that may be disturbed.
type world struct {
	*story.Story
	door        *stack.Service
	deployments []*deployment
	writers     *writers
}

func newWorld(t *testing.T, s *story.Story, seed uint64, deployments ...int) *world {
	w := &world{Story: s}
	w.door = s.Service("command-service", map[string]string{"KAFKA_BROKERS": s.Kafka.Proxy("command").Address()})
	s.Ready(w.door)
	for _, i := range deployments {
		w.deployments = append(w.deployments, newDeployment(t, s, i))
	}
	log, err := story.OpenLog(s.Broker.Brokers()) // a client of their own, which may stumble over a restart by itself
	require.NoError(t, err)
	w.writers = startWriters(t.Context(), seed, w.door, s.Client, log)
	t.Cleanup(func() {
		w.writers.close()
		_ = log.Close() // the broker may be down when the test failed
	})
	return w
}

// wave lets everything happen at once, and waits until everything is as it should be.
func (w *world) wave(t *testing.T, r *rand.Rand, name string, k kind) error {
	ctx, cancel := context.WithTimeout(t.Context(), 2*story.Patience)
	defer cancel()
	began := time.Now()
	var faults []fault
	for _, l := range w.deployments {
		f := drawn(r, deploymentFaults)(r, l)
		if k == asleep {
			f = sleepWithBatch(r, l, w.writers)
		}
		faults = append(faults, f)
	}
	switch k {
	case broker:
		faults = append(faults, brokerFault(r, w.Kafka))
	case postgres:
		faults = append(faults, postgresFault(r, w.Postgres))
	case door:
		faults = append(faults, doorFault(r, w.door, w.Kafka.Proxy("command")))
	}
	burst := anything(r, 200)
	look := between(r, 0, 2*time.Second)

	var happening sync.WaitGroup
	errs := make([]error, len(faults)+len(w.deployments))
	for i, f := range faults {
		happening.Go(func() {
			if err := f.do(ctx); err != nil {
				errs[i] = fmt.Errorf("%s: %w", f.what, err)
			}
		})
	}
	if k != asleep { // its samples are a burst, too, and while they are aside the tables are not what the log says
		happening.Go(func() { _, _ = w.writers.log.Write(burst...) }) // what is not written is not missed
		for i, l := range w.deployments {
			happening.Go(func() {
				pause(ctx, look)
				if err := l.compare(ctx); err != nil {
					errs[len(faults)+i] = fmt.Errorf("deployment %s, in the middle of it: %w", l.name, err)
				}
			})
		}
	}
	happening.Wait()
	over := time.Since(began)
	err := errors.Join(errs...)
	if err == nil {
		err = w.settle(ctx)
	}
	var records int64
	for _, j := range w.deployments[0].judges() {
		for _, end := range j.upTo {
			records += end
		}
	}
	var text strings.Builder
	fmt.Fprintf(&text, "%s: faults %.1f s, all %.1f s, %d tickets, %d records", name, over.Seconds(), time.Since(began).Seconds(), len(w.writers.tickets()), records)
	for i, f := range faults {
		if i < len(w.deployments) {
			fmt.Fprintf(&text, "\n    %s (%.1f s): %s", w.deployments[i].name, w.deployments[i].took.Seconds(), f.what)
		} else {
			fmt.Fprintf(&text, "\n    %s", f.what)
		}
	}
	t.Log(text.String())
	for _, l := range w.deployments {
		if l.took > slowToSettle {
			for _, m := range l.members {
				t.Logf("why deployment %s took so long: the end of the log of %s:\n%s", l.name, m.name, m.service.LogTail())
			}
		}
	}
	return err
}

// settle takes the log's ends and the tickets of this moment and waits for every projection to hold them.
func (w *world) settle(ctx context.Context) error { return w.settled(ctx, w.deployments...) }

func (w *world) settled(ctx context.Context, deployments ...*deployment) error {
	if !w.door.Running() {
		return errors.New("command-service has ended by itself")
	}
	given := w.writers.tickets() // before the ends: what was given lies below them
	ends := map[string]story.Vector{}
	for _, topic := range []string{story.Topic, story.EndpointTopic} {
		if err := story.Eventually(ctx, "ask for the log's ends", func(context.Context) (err error) {
			ends[topic], err = w.Log.On(topic).Ends()
			return err
		}); err != nil {
			return err
		}
	}
	began := time.Now()
	var waiting sync.WaitGroup
	errs := make([]error, len(deployments))
	for i, l := range deployments {
		waiting.Go(func() {
			errs[i] = l.settle(ctx, ends, given)
			l.took = time.Since(began)
		})
	}
	waiting.Wait()
	return errors.Join(errs...)
}

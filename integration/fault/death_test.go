package fault_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/integration/story"
)

var deathsFlag = flag.Int("deaths", 50, "how many rebuilds somebody dies in, at the least")

// deathSteps are what a rebuild is doing when somebody dies. Each brings the rebuild there and keeps it there until it
// is let go.
var deathSteps = []struct {
	name string
	at   func(*rebuilt, context.Context) error
}{
	{"as it begins", (*rebuilt).begin},
	{"filling", (*rebuilt).filling},
	{"indexing", (*rebuilt).indexing},
	{"proving", (*rebuilt).proving},
	{"fencing", (*rebuilt).fencing},
	{"swapping", (*rebuilt).swapping},
	{"swapped", (*rebuilt).swapped},
	{"dropping", (*rebuilt).dropping},
	{"filling to a point", (*rebuilt).toAPoint},
	{"going back", (*rebuilt).goingBack},
}

// victim is who dies: of one projection, where lane is used, or of all.
type victim struct {
	name string
	kill func(context.Context, *rand.Rand, *world, *lane) error
}

// ownVictims die in one projection, each by itself, with how often.
var ownVictims = []struct {
	weight int
	victim
}{
	{4, victim{"one consumer", func(ctx context.Context, r *rand.Rand, _ *world, l *lane) error {
		return killed(ctx, l.pick(r).service, between(r, 0, time.Second))
	}}},
	{4, victim{"both consumers", func(ctx context.Context, r *rand.Rand, _ *world, l *lane) error {
		return errors.Join(l.members[0].service.Kill(), killed(ctx, l.members[1].service, between(r, 0, time.Second)), l.members[0].service.Start(ctx, nil))
	}}},
	{1, victim{"one consumer, stopped past its session,", func(ctx context.Context, r *rand.Rand, _ *world, l *lane) error {
		return frozen(ctx, l.pick(r).service, between(r, 6*time.Second, 7*time.Second))
	}}},
}

// commonVictims die under all projections at once. Of ten waves six have none.
var commonVictims = []*victim{
	nil, nil, nil, nil, nil, nil,
	{"Postgres", killPostgres}, {"Postgres", killPostgres},
	{"the broker", func(ctx context.Context, r *rand.Rand, w *world, _ *lane) error {
		if err := w.Kafka.Kill(); err != nil {
			return err
		}
		pause(ctx, between(r, 0, time.Second))
		return w.Kafka.Start(ctx)
	}},
	{"command-service and one consumer", func(ctx context.Context, r *rand.Rand, w *world, l *lane) error {
		return errors.Join(killed(ctx, w.door, 0), killed(ctx, l.pick(r).service, 0))
	}},
}

func killPostgres(ctx context.Context, _ *rand.Rand, w *world, _ *lane) error {
	if err := w.Postgres.Signal(os.Kill); err != nil {
		return err
	}
	<-w.Postgres.Done()
	return w.Postgres.Restart(ctx)
}

// deathLanes are large batches, small ones, and members with an instance id.
var deathLanes = []int{0, 1, 3}

// TestARebuildSurvivesEveryDeath rebuilds some projections of one log side by side, wave by wave, and kills a process
// at each step of a rebuild, while others write: at any moment the tables are what the log says up to the progress
// they name, so the old generation serves or the new one and never a mixture; and the next start goes on with the
// rebuild, or cleans up.
func TestARebuildSurvivesEveryDeath(t *testing.T) {
	s := onKafka(t)
	seed := *seedFlag
	if seed == 0 {
		seed = rand.Uint64N(1_000_000)
	}
	t.Logf("seed %d", seed)
	w := newWorld(t, s, seed, deathLanes...)
	r := rand.New(rand.NewPCG(seed, 0))
	_, err := w.writers.log.Write(anything(r, 4_000)...)
	require.NoError(t, err)
	require.NoError(t, w.settle(t.Context()))

	began, rounds := time.Now(), 0
	var steps, who []int
	for wave := 0; rounds < *deathsFlag; wave++ {
		for len(steps) < len(w.lanes) {
			steps = append(steps, r.Perm(len(deathSteps))...)
		}
		if len(who) == 0 {
			who = r.Perm(len(commonVictims))
		}
		if err := w.deathWave(t, seed, wave, steps[:len(w.lanes)], commonVictims[who[0]]); err != nil {
			t.Fatalf("seed %d, wave %d: %v\nrun it again: go test ./fault -run EveryDeath -seed %d -deaths %d", seed, wave, err, seed, rounds+len(w.lanes))
		}
		steps, who = steps[len(w.lanes):], who[1:]
		rounds += len(w.lanes)
	}
	t.Logf("%d rounds in %s", rounds, time.Since(began).Round(time.Second))
}

// deathWave brings each projection's rebuild to a step. Then each loses a process of its own; or, where the victim is
// common to all, it dies when one of them has come to its step, wherever the others are.
func (w *world) deathWave(t *testing.T, seed uint64, wave int, steps []int, common *victim) error {
	ctx, cancel := context.WithTimeout(t.Context(), 2*story.Patience)
	defer cancel()
	began := time.Now()
	r := rand.New(rand.NewPCG(seed, uint64(wave)+1))
	first := r.IntN(len(w.lanes))
	over, struck := context.WithCancel(ctx)
	defer struck()
	var dying atomic.Bool
	rounds := make([]*rebuilt, len(w.lanes))
	texts, errs := make([]string, len(w.lanes)), make([]error, len(w.lanes))
	var all sync.WaitGroup
	for i, l := range w.lanes {
		b := &rebuilt{world: w, lane: l, r: rand.New(rand.NewPCG(seed, r.Uint64()))}
		rounds[i] = b
		step, cancelled, soon := deathSteps[steps[i]], b.r.IntN(3) == 0, between(b.r, 0, 30*time.Millisecond)
		who := drawVictim(b.r)
		if common != nil {
			who = *common
		}
		die := func() error {
			if common != nil && i != first {
				err := step.at(b, over)
				<-over.Done()
				if dying.Load() {
					return nil // what the step stood on was gone
				}
				return err
			}
			err := step.at(b, ctx)
			pause(ctx, soon)
			dying.Store(true)
			defer struck()
			return errors.Join(err, who.kill(ctx, b.r, w, l))
		}
		all.Go(func() {
			errs[i] = b.round(ctx, die, cancelled)
			texts[i] = fmt.Sprintf("%s: %s killed %s in generation %d, cancelled: %t", l.name, who.name, step.name, b.number, cancelled)
			if errs[i] != nil {
				errs[i] = fmt.Errorf("%s: %w", texts[i], errs[i])
			}
		})
	}
	all.Wait()
	err := errors.Join(errs...)
	if err == nil {
		err = w.settle(ctx)
	}
	for _, b := range rounds {
		if err == nil {
			err = b.left(ctx)
		}
	}
	t.Logf("wave %d: %.1f s", wave, time.Since(began).Seconds())
	for _, text := range texts {
		t.Log("    " + text)
	}
	return err
}

func drawVictim(r *rand.Rand) victim {
	total := 0
	for _, v := range ownVictims {
		total += v.weight
	}
	draw := r.IntN(total)
	for _, v := range ownVictims {
		if draw -= v.weight; draw < 0 {
			return v.victim
		}
	}
	panic("unreachable")
}

// round lets somebody die in a rebuild and sees it to its end, while somebody else compares all the time.
func (b *rebuilt) round(ctx context.Context, die func() error, cancelled bool) error {
	comparing, stop := context.WithCancel(ctx)
	var busy sync.WaitGroup
	var mixed error
	busy.Go(func() {
		for comparing.Err() == nil {
			began := time.Now()
			if err := b.lane.compare(comparing); err != nil && comparing.Err() == nil {
				mixed = fmt.Errorf("a mixture: %w", err)
				return
			}
			pause(comparing, 5*time.Since(began)) // the rest of the machine is for those who are compared
		}
	})
	defer b.letGo()
	err := b.clean(ctx)
	if err == nil {
		err = die()
	}
	b.letGo()
	if err == nil {
		if cancelled {
			err = b.cancel(ctx)
		} else {
			err = b.finish(ctx)
		}
	}
	stop()
	busy.Wait()
	return errors.Join(err, mixed)
}

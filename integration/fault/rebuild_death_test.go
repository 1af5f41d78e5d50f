package fault_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/integration/story"
)

var deathsFlag = flag.Int("deaths", 21, "how many rebuilds somebody dies in, at the least")

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

// victim is who dies: of one projection, where deployment is used, or of all.
type victim struct {
	name string
	kill func(context.Context, *rand.Rand, *world, *deployment) error
}

// ownVictims die in one projection, each by itself, with how often.
var ownVictims = []weighted[victim]{
	{4, victim{"one consumer", func(ctx context.Context, r *rand.Rand, _ *world, l *deployment) error {
		return killed(ctx, l.pick(r).service, between(r, 0, time.Second))
	}}},
	{4, victim{"both consumers", func(ctx context.Context, r *rand.Rand, _ *world, l *deployment) error {
		return errors.Join(l.members[0].service.Kill(), killed(ctx, l.members[1].service, between(r, 0, time.Second)), l.members[0].service.Start(ctx, nil))
	}}},
	{1, victim{"one consumer, stopped past its session,", func(ctx context.Context, r *rand.Rand, _ *world, l *deployment) error {
		return frozen(ctx, l.pick(r).service, between(r, 6*time.Second, 7*time.Second))
	}}},
}

// commonVictims die under all projections at once.
var commonVictims = []victim{
	{"Postgres", func(ctx context.Context, _ *rand.Rand, w *world, _ *deployment) error {
		return killedPostgres(ctx, w.Postgres)
	}},
	{"the broker", func(ctx context.Context, r *rand.Rand, w *world, _ *deployment) error {
		if err := w.Kafka.Kill(); err != nil {
			return err
		}
		pause(ctx, between(r, 0, time.Second))
		return w.Kafka.Start(ctx)
	}},
	{"command-service and one consumer", func(ctx context.Context, r *rand.Rand, w *world, l *deployment) error {
		return errors.Join(killed(ctx, w.door, 0), killed(ctx, l.pick(r).service, 0))
	}},
}

// deathDeployments are large batches, small ones, and members with an instance id.
var deathDeployments = []int{0, 1, 3}

// TestARebuildSurvivesEveryDeath rebuilds some projections of one log side by side and kills a process at each step of
// a rebuild, while others write: at any moment the tables are what the log says up to the progress they name, so the old
// generation serves or the new one and never a mixture; and the next start goes on with the rebuild, or cleans up. At the
// end Postgres, the broker and the door die under all of them at once.
func TestARebuildSurvivesEveryDeath(t *testing.T) {
	s := onKafka(t)
	seed := drawSeed(t)
	w := newWorld(t, s, seed, deathDeployments...)
	_, err := w.writers.log.Write(anything(rand.New(rand.NewPCG(seed, 0)), 4_000)...)
	require.NoError(t, err)
	require.NoError(t, w.settle(t.Context()))

	began := time.Now()
	each := (*deathsFlag + len(w.deployments) - 1) / len(w.deployments)
	own := each - len(commonVictims)
	var deck []int // of steps, dealt to the deployments: so every step is somebody's, whoever has the others
	for r := rand.New(rand.NewPCG(seed, 1000)); len(deck) < each*len(w.deployments); {
		deck = append(deck, r.Perm(len(deathSteps))...)
	}
	var all sync.WaitGroup
	for i, l := range w.deployments {
		r := rand.New(rand.NewPCG(seed, uint64(i)+1))
		all.Go(func() {
			for n := range own {
				d := &death{rebuilt: &rebuilt{world: w, deployment: l, r: rand.New(rand.NewPCG(seed, r.Uint64()))}, step: deck[i*each+n]}
				d.victim = drawn(d.r, ownVictims)
				if !d.round(t, d.first) {
					return
				}
			}
		})
	}
	all.Wait()
	for n, v := range commonVictims {
		if t.Failed() {
			break
		}
		r := rand.New(rand.NewPCG(seed, uint64(100+n)))
		first := r.IntN(len(w.deployments))
		over, struck := context.WithCancel(t.Context())
		var dying atomic.Bool
		for i, l := range w.deployments {
			d := &death{rebuilt: &rebuilt{world: w, deployment: l, r: rand.New(rand.NewPCG(seed, r.Uint64()))}, step: deck[i*each+own+n], victim: v}
			all.Go(func() {
				d.round(t, func(ctx context.Context) error {
					if i == first {
						defer struck()
						dying.Store(true)
						return d.first(ctx)
					}
					err := deathSteps[d.step].at(d.rebuilt, over)
					<-over.Done()
					if dying.Load() {
						return nil // what the step stood on was gone
					}
					return err
				})
			})
		}
		all.Wait()
		struck()
	}
	if t.Failed() {
		t.Fatalf("run it again: go test ./fault -run EveryDeath -seed %d", seed)
	}
	t.Logf("%d rounds in %s", len(w.deployments)*each, time.Since(began).Round(time.Second))
}

// death is a rebuild that somebody dies in at a step.
type death struct {
	*rebuilt
	step   int
	victim victim
}

// first comes to the step and kills.
func (d *death) first(ctx context.Context) error {
	err := deathSteps[d.step].at(d.rebuilt, ctx)
	pause(ctx, between(d.r, 0, 30*time.Millisecond))
	return errors.Join(err, d.victim.kill(ctx, d.r, d.world, d.deployment))
}

// round lets somebody die and sees the rebuild to its end, or cancels it, while somebody else compares all the time; then
// everything is as it should be, and nothing is left behind.
func (d *death) round(t *testing.T, die func(context.Context) error) bool {
	ctx, cancel := context.WithTimeout(t.Context(), 2*story.Patience)
	defer cancel()
	cancelled := d.r.IntN(3) == 0
	comparing, stop := context.WithCancel(ctx)
	var busy sync.WaitGroup
	var mixed error
	busy.Go(func() {
		for comparing.Err() == nil {
			began := time.Now()
			if err := d.deployment.compare(comparing); err != nil && comparing.Err() == nil {
				mixed = fmt.Errorf("a mixture: %w", err)
				return
			}
			pause(comparing, 5*time.Since(began)) // the rest of the machine is for those who are compared
		}
	})
	defer d.letGo()
	began := time.Now()
	err := d.clean(ctx)
	if err == nil {
		err = die(ctx)
	}
	d.letGo()
	dead := time.Since(began)
	if err == nil {
		if cancelled {
			err = d.cancel(ctx)
		} else {
			err = d.finish(ctx)
		}
	}
	stop()
	busy.Wait()
	if err = errors.Join(err, mixed); err == nil {
		err = d.settled(ctx, d.deployment)
	}
	if err == nil {
		err = d.left(ctx)
	}
	text := fmt.Sprintf("%s: %s killed %s in generation %d, cancelled: %t; dead after %.1f s, all %.1f s",
		d.deployment.name, d.victim.name, deathSteps[d.step].name, d.number, cancelled, dead.Seconds(), time.Since(began).Seconds())
	if err != nil {
		t.Errorf("%s: %v", text, err)
		return false
	}
	t.Log(text)
	return true
}

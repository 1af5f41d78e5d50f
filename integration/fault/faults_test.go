package fault_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"syscall"
	"time"

	"github.com/tidemark/tidemark/integration/stack"
	"github.com/tidemark/tidemark/shared/loop"
)

// fault is something that happens and is over when do returns: everything runs and passes again. All that is random in it
// was drawn before.
type fault struct {
	what string
	do   func(context.Context) error
}

// between draws a duration in whole milliseconds.
func between(r *rand.Rand, least, most time.Duration) time.Duration {
	return least + time.Duration(r.Int64N(int64((most-least)/time.Millisecond)+1))*time.Millisecond
}

// pause is a loop.Sleep of those who look at ctx themselves.
func pause(ctx context.Context, d time.Duration) { _ = loop.Sleep(ctx, d) }

// weighted is one of several that may be drawn, with how often.
type weighted[T any] struct {
	weight int
	what   T
}

func drawn[T any](r *rand.Rand, from []weighted[T]) T {
	total := 0
	for _, w := range from {
		total += w.weight
	}
	n := r.IntN(total)
	for _, w := range from {
		if n -= w.weight; n < 0 {
			return w.what
		}
	}
	panic("unreachable")
}

// deploymentFaults are what may happen to a projection, with how often.
var deploymentFaults = []weighted[func(*rand.Rand, *deployment) fault]{
	{3, killOne}, {1, killBoth}, {1, killAgainAndAgain}, {2, freeze}, {1, freezePastSession},
	{3, cutKafka}, {2, hangKafka}, {2, loseAcknowledgements}, {1, slowKafka},
	{3, cutPostgres}, {2, hangPostgres}, {3, loseReplies}, {1, slowPostgres}, {2, endSessions},
	{2, leaveAndJoin}, {2, visit},
}

func killOne(r *rand.Rand, l *deployment) fault {
	m, at, down := l.pick(r), between(r, 0, 400*time.Millisecond), between(r, 0, time.Second)
	return fault{fmt.Sprintf("kill %s after %s, back after %s", m.name, at, down), func(ctx context.Context) error {
		pause(ctx, at)
		return killed(ctx, m.service, down)
	}}
}

func killBoth(r *rand.Rand, l *deployment) fault {
	at, down := between(r, 0, 400*time.Millisecond), between(r, 0, time.Second)
	return fault{fmt.Sprintf("kill both after %s, back after %s", at, down), func(ctx context.Context) error {
		pause(ctx, at)
		return errors.Join(l.members[0].service.Kill(), killed(ctx, l.members[1].service, down), l.members[0].service.Start(ctx, nil))
	}}
}

func killAgainAndAgain(r *rand.Rand, l *deployment) fault {
	m := l.pick(r)
	ups := make([]time.Duration, 3)
	for i := range ups {
		ups[i] = between(r, 0, 500*time.Millisecond)
	}
	return fault{fmt.Sprintf("kill %s again and again, after %v", m.name, ups), func(ctx context.Context) error {
		for _, up := range ups {
			pause(ctx, up)
			if err := killed(ctx, m.service, 0); err != nil {
				return err
			}
		}
		return nil
	}}
}

func killed(ctx context.Context, s *stack.Service, down time.Duration) error {
	if err := s.Kill(); err != nil {
		return err
	}
	pause(ctx, down)
	return s.Start(ctx, nil)
}

func freeze(r *rand.Rand, l *deployment) fault {
	m, at, d := l.pick(r), between(r, 0, 300*time.Millisecond), between(r, 50*time.Millisecond, 3*time.Second)
	return fault{fmt.Sprintf("stop %s after %s for %s", m.name, at, d), func(ctx context.Context) error {
		pause(ctx, at)
		return frozen(ctx, m.service, d)
	}}
}

func freezePastSession(r *rand.Rand, l *deployment) fault {
	m, at, d := l.pick(r), between(r, 0, 300*time.Millisecond), between(r, 6500*time.Millisecond, 7500*time.Millisecond)
	return fault{fmt.Sprintf("stop %s after %s for %s", m.name, at, d), func(ctx context.Context) error {
		pause(ctx, at)
		return frozen(ctx, m.service, d)
	}}
}

func frozen(ctx context.Context, s interface{ Signal(syscall.Signal) error }, d time.Duration) error {
	if err := s.Signal(syscall.SIGSTOP); err != nil {
		return err
	}
	pause(ctx, d)
	return s.Signal(syscall.SIGCONT)
}

func cutKafka(r *rand.Rand, l *deployment) fault {
	m := l.pick(r)
	return cut(r, m.name+" off Kafka", m.kafka)
}

func cutPostgres(r *rand.Rand, l *deployment) fault {
	m := l.pick(r)
	return cut(r, m.name+" off Postgres", m.db)
}

// cut resets connections a few times, and perhaps refuses new ones for a while.
func cut(r *rand.Rand, what string, p *stack.Proxy) fault {
	times, every, down := 1+r.IntN(4), between(r, 0, 300*time.Millisecond), between(r, -time.Second, time.Second)
	return fault{fmt.Sprintf("cut %s %d times every %s, then for %s", what, times, every, max(down, 0)), func(ctx context.Context) error {
		for range times {
			pause(ctx, every)
			p.Reset()
		}
		if down > 0 {
			p.Cut()
			pause(ctx, down)
			p.Pass()
		}
		return nil
	}}
}

func hangKafka(r *rand.Rand, l *deployment) fault {
	m := l.pick(r)
	return hang(r, m.name+" and Kafka", m.kafka)
}

func hangPostgres(r *rand.Rand, l *deployment) fault {
	m := l.pick(r)
	return hang(r, m.name+" and Postgres", m.db)
}

// hang holds everything back for a while; then it arrives late, or never.
func hang(r *rand.Rand, what string, p *stack.Proxy) fault {
	at, d, lost := between(r, 0, 300*time.Millisecond), between(r, 100*time.Millisecond, 3*time.Second), r.IntN(2) == 0
	return fault{fmt.Sprintf("hang %s after %s for %s, lost: %t", what, at, d, lost), func(ctx context.Context) error {
		pause(ctx, at)
		p.Hang()
		pause(ctx, d)
		if lost {
			p.Reset()
		}
		p.Pass()
		return nil
	}}
}

// unheard keeps replies back for a while, after which they are lost.
func unheard(ctx context.Context, p *stack.Proxy, at, d time.Duration) {
	pause(ctx, at)
	p.HangReplies()
	pause(ctx, d)
	p.Reset()
	p.Pass()
}

// loseReplies lets what is asked be done and nobody hear of it.
func loseReplies(r *rand.Rand, l *deployment) fault {
	m, at, d := l.pick(r), between(r, 0, 300*time.Millisecond), between(r, 50*time.Millisecond, time.Second)
	return fault{fmt.Sprintf("lose Postgres's replies to %s after %s for %s", m.name, at, d), func(ctx context.Context) error {
		unheard(ctx, m.db, at, d)
		return nil
	}}
}

// loseAcknowledgements lets what is published be written and nobody hear of it, for longer than it is repeated.
func loseAcknowledgements(r *rand.Rand, l *deployment) fault {
	m, at, d := l.pick(r), between(r, 0, 300*time.Millisecond), between(r, time.Second, 4*time.Second)
	return fault{fmt.Sprintf("lose Kafka's replies to %s after %s for %s", m.name, at, d), func(ctx context.Context) error {
		unheard(ctx, m.kafka, at, d)
		return nil
	}}
}

func slowKafka(r *rand.Rand, l *deployment) fault {
	m := l.pick(r)
	return slow(r, m.name+" and Kafka", m.kafka)
}

func slowPostgres(r *rand.Rand, l *deployment) fault {
	m := l.pick(r)
	return slow(r, m.name+" and Postgres", m.db)
}

func slow(r *rand.Rand, what string, p *stack.Proxy) fault {
	latency, rate, d := between(r, 5*time.Millisecond, 150*time.Millisecond), 20_000+r.IntN(200_000), between(r, time.Second, 2*time.Second)
	return fault{fmt.Sprintf("slow %s by %s, %d B/s, for %s", what, latency, rate, d), func(ctx context.Context) error {
		p.Slow(latency, rate)
		pause(ctx, d)
		p.Pass()
		return nil
	}}
}

// endSessions has Postgres throw the consumers out, as an operator would.
func endSessions(r *rand.Rand, l *deployment) fault {
	times, every := 1+r.IntN(5), between(r, 0, 300*time.Millisecond)
	return fault{fmt.Sprintf("end the database's sessions %d times every %s", times, every), func(ctx context.Context) error {
		for range times {
			pause(ctx, every)
			// A server that is being restarted has ended them, too.
			_, _ = l.db.ExecContext(ctx, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity
				WHERE datname = current_database() AND application_name LIKE 'consumer-service%'`)
		}
		return nil
	}}
}

func leaveAndJoin(r *rand.Rand, l *deployment) fault {
	m, times, away := l.pick(r), 1+r.IntN(2), between(r, 0, 500*time.Millisecond)
	return fault{fmt.Sprintf("%s leaves %d times for %s", m.name, times, away), func(ctx context.Context) error {
		for range times {
			if err := left(ctx, m.service); err != nil {
				return err
			}
			pause(ctx, away)
			if err := m.service.Start(ctx, nil); err != nil {
				return err
			}
		}
		return nil
	}}
}

// visit lets a third consumer join and leave.
func visit(r *rand.Rand, l *deployment) fault {
	stay, kill := between(r, 200*time.Millisecond, 2*time.Second), r.IntN(4) == 0
	return fault{fmt.Sprintf("a third consumer joins for %s, killed: %t", stay, kill), func(ctx context.Context) error {
		if err := l.visitor.Start(ctx, nil); err != nil {
			return err
		}
		pause(ctx, stay)
		if kill {
			return l.visitor.Kill()
		}
		return left(ctx, l.visitor)
	}}
}

// left stops a service in order.
func left(ctx context.Context, s *stack.Service) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	return s.Stop(ctx)
}

// brokerFault restarts the one broker twice, each time in order or from one moment to the next.
func brokerFault(r *rand.Rand, k *stack.Kafka) fault {
	type restart struct {
		After, Down time.Duration // in capitals, so that they are printed as durations
		Killed      bool
	}
	twice := []restart{
		{between(r, 0, 500*time.Millisecond), between(r, 0, time.Second), r.IntN(2) == 0},
		{between(r, 0, 3*time.Second), between(r, 0, time.Second), r.IntN(2) == 0},
	}
	return fault{fmt.Sprintf("restart the broker twice: %+v", twice), func(ctx context.Context) error {
		for _, one := range twice {
			pause(ctx, one.After)
			stop := k.Stop
			if one.Killed {
				stop = func(context.Context) error { return k.Kill() }
			}
			if err := stop(ctx); err != nil {
				return err
			}
			pause(ctx, one.Down)
			if err := k.Start(ctx); err != nil {
				return err
			}
		}
		return nil
	}}
}

// postgresFault restarts the one server, or stops it for a while.
func postgresFault(r *rand.Rand, p *stack.Postgres) fault {
	at := between(r, 0, 500*time.Millisecond)
	if r.IntN(2) == 0 {
		return fault{fmt.Sprintf("restart Postgres after %s", at), func(ctx context.Context) error {
			pause(ctx, at)
			return p.Restart(ctx)
		}}
	}
	return fault{fmt.Sprintf("kill Postgres after %s", at), func(ctx context.Context) error {
		pause(ctx, at)
		return killedPostgres(ctx, p)
	}}
}

func killedPostgres(ctx context.Context, p *stack.Postgres) error {
	if err := p.Signal(os.Kill); err != nil {
		return err
	}
	<-p.Done()
	return p.Restart(ctx)
}

// doorFault disturbs command-service.
func doorFault(r *rand.Rand, door *stack.Service, p *stack.Proxy) fault {
	at, d := between(r, 0, 300*time.Millisecond), between(r, 50*time.Millisecond, 2*time.Second)
	switch r.IntN(5) {
	case 0:
		return cut(r, "command-service off Kafka", p)
	case 1:
		return hang(r, "command-service and Kafka", p)
	case 2:
		return fault{fmt.Sprintf("lose Kafka's replies to command-service after %s for %s", at, d), func(ctx context.Context) error {
			unheard(ctx, p, at, d)
			return nil
		}}
	case 3:
		return fault{fmt.Sprintf("stop command-service after %s for %s", at, d), func(ctx context.Context) error {
			pause(ctx, at)
			return frozen(ctx, door, d)
		}}
	default:
		return fault{fmt.Sprintf("kill command-service after %s, back after %s", at, d/4), func(ctx context.Context) error {
			pause(ctx, at)
			return killed(ctx, door, d/4)
		}}
	}
}

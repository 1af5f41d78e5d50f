package projectiontest

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/consumer-service/internal/projection"
	"github.com/tidemark/tidemark/shared/await"
	"github.com/tidemark/tidemark/shared/event"
	"github.com/tidemark/tidemark/shared/schema"
)

// all are the partitions of the suite's topics.
func everyPartition() []int32 {
	out := make([]int32, partitions)
	for p := range out {
		out[p] = int32(p)
	}
	return out
}

// everywhere makes n valid records for each partition.
func (s *stage) everywhere(n int) []Record {
	left := map[int32]int{}
	var out []Record
	for len(out) < n*partitions {
		r := s.samples.Valid(s.random, time.Now())
		s.place(&r)
		if left[r.Partition] < n {
			left[r.Partition]++
			out = append(out, r)
		}
	}
	return out
}

// A process is stopped between reading a batch and sending its statement. Meanwhile another one, which also believes that
// the partitions are its own, writes the same records; and later one starts the projection over.
func aWriterThatSlept(t *testing.T, s *stage) {
	s.mustSend(t, s.everywhere(5)...)
	slept := s.start(t, settings{})
	s.caughtUp(t)
	slept.gate.hold(everyPartition()...)
	s.mustSend(t, append(s.mixed(60), s.everywhere(1)...)...)
	slept.gate.awaitHeld(t, everyPartition()...)

	// Kafka gives a partition to one member only; another group's name, put on record by hand, brings a second owner.
	rename := func(group string) {
		s.exec(t, `UPDATE public.projection_generations SET group_name = $2 WHERE projection = $1`, s.def.Name, group)
	}
	slept.unwatch()
	rename(s.group + "-zombie")
	other := s.start(t, settings{group: s.group + "-zombie"})
	s.caughtUp(t)
	other.stop()
	rename(s.group)
	before, receipts := s.dump(t), s.written(t)
	slept.gate.open()
	slept.watch()
	await.NoError(t, func() error {
		if n := metric(t, slept, "tidemark_projection_fenced_total"); n < partitions {
			return fmt.Errorf("%v writers were fenced", n)
		}
		return nil
	})
	require.Equal(t, before, s.dump(t))
	require.Equal(t, receipts, s.written(t))
	s.mustSend(t, s.everywhere(3)...) // it drops what is below the progress, and goes on
	s.caughtUp(t)
	s.holds(t)

	// The projection is started over while a writer sleeps: its epoch is over.
	slept.gate.hold(everyPartition()...)
	s.mustSend(t, s.everywhere(3)...)
	slept.gate.awaitHeld(t, everyPartition()...)
	over := s.start(t, settings{group: s.group + "-2"})
	s.caughtUp(t)
	before, receipts = s.dump(t), s.written(t)
	slept.gate.open()
	refusal := <-slept.refused
	require.True(t, refusal.Final)
	require.Contains(t, refusal.Reason, "stops for good")
	slept.stop()
	require.Equal(t, before, s.dump(t))
	require.Equal(t, receipts, s.written(t))
	s.holds(t)
	over.stop()
}

// written counts the receipts of offsets.
func (s *stage) written(t *testing.T) (n int) {
	t.Helper()
	s.get(t, &n, `SELECT count(*) FROM public.projection_receipt_outbox WHERE from_offset < next_offset`)
	return n
}

// A replay in other cuts, over rows that are there and over none, gives the same tables, byte for byte.
func aReplayInAnyCuts(t *testing.T, s *stage) {
	s.mustSend(t, s.mixed(150)...)
	first := ""
	for round, batch := range []int{0, 1, 50, 0} {
		s.anew(t, round, batch)
		if round == 0 {
			first = s.dump(t)
		}
		require.Equal(t, first, s.dump(t), "round %d", round)
		if round == 1 {
			s.exec(t, `TRUNCATE `+s.main())
		}
	}
}

// anew reads the log from its start under a group of the round, in batches up to so many records that a pace cuts further.
func (s *stage) anew(t *testing.T, round, batch int) {
	t.Helper()
	pace := &projection.Pace{}
	if round > 0 {
		pace.Limit = 600 + s.random.IntN(2000)
	}
	p := s.start(t, settings{group: fmt.Sprint(s.group, "-round-", round), batch: batch, pace: pace})
	s.inSession(t, p)
	s.caughtUp(t)
	p.stop()
	s.holds(t)
}

func deadLettersAndDecisions(t *testing.T, s *stage) {
	records := s.everywhere(4)
	for i := range 12 {
		r := s.samples.Undecodable(s.random)
		r.Partition = int32(i) % partitions
		records = append(records, r)
	}
	s.mustSend(t, append(records, s.everywhere(4)...)...)
	p := s.start(t, settings{rebuilds: true})
	s.caughtUp(t)
	s.holds(t)
	for _, r := range s.all() {
		if r.Rejected == "" {
			continue
		}
		var letter struct {
			Payload []byte
			Seen    time.Time
			Reason  string
		}
		s.get(t, &letter, `SELECT payload, first_seen_at AS seen, reason FROM `+s.table(schema.DeadLetters)+` WHERE topic = $1 AND partition = $2 AND "offset" = $3`, s.topic, r.Partition, r.offset)
		require.Equal(t, string(r.Value), string(letter.Payload), "it is kept as it came")
		require.True(t, letter.Seen.Equal(r.at), "first seen at its log time")
		require.NotEmpty(t, letter.Reason)
	}

	// Somebody decides on a record that still cannot be read, and on one that the code has learned to read since.
	var readable, unreadable sent
	for _, r := range s.all() {
		if r.Rejected == "" {
			readable = r
		} else {
			unreadable = r
		}
	}
	s.exec(t, `DELETE FROM `+s.main()+` WHERE partition = $1 AND "offset" = $2`, readable.Partition, readable.offset)
	for _, r := range []sent{readable, unreadable} {
		s.decided.add(r.Partition, r.offset, event.Discard)
		s.exec(t, `INSERT INTO public.dead_letter_decisions (topic, partition, "offset", decision, note, decided_by, decided_at, decision_partition, decision_offset)
			VALUES ($1, $2, $3, 'discard', '', '', now(), 0, 0)`, s.topic, r.Partition, r.offset)
	}
	p.stop()
	p = s.start(t, settings{group: s.group + "-2", rebuilds: true})
	s.inSession(t, p)
	s.caughtUp(t)
	s.holds(t)

	g := s.rebuilt(t, p, false)
	proof := s.proved(t, p, g)
	require.True(t, proof.OK, proof.Finding)
	s.swapIn(t, p, g)
	s.holds(t)
}

// Two records have one key of the main table: of a keyed projection in one partition, of a spread one in two.
func oneKeyInTwoRecords(t *testing.T, s *stage) {
	var first, again []Record
	for i := range 12 {
		r := s.samples.Valid(s.random, time.Now())
		if s.def.Kind == projection.Spread {
			r.Partition = int32(i % 2)
		}
		first = append(first, r)
		for n := range 1 + s.random.IntN(2) {
			a := s.samples.Repeat(s.random, r)
			require.Equal(t, r.Identity, a.Identity)
			if s.def.Kind == projection.Spread {
				a.Partition = int32((i + n + 1) % 2)
			}
			again = append(again, a)
		}
	}
	s.mustSend(t, first...)
	s.mustSend(t, again...)
	s.mustSend(t, s.everywhere(1)...)
	dumps := map[string]bool{}
	for round, held := range [][]int32{{0}, {1}, {}, {0}} {
		switch round {
		case 2:
			s.exec(t, `TRUNCATE `+s.main())
		case 1, 3: // as if the first one could not be read by a release before, and the second one were the row
			one, two := s.all()[0], s.all()[len(first)]
			require.Equal(t, one.Identity, two.Identity)
			s.exec(t, `UPDATE `+s.main()+` SET created_at = $1, partition = $2, "offset" = $3 WHERE partition = $4 AND "offset" = $5`, two.at, two.Partition, two.offset, one.Partition, one.offset)
		}
		p := s.startHeld(t, settings{group: fmt.Sprint(s.group, "-", round)}, held...)
		if len(held) > 0 {
			p.gate.awaitHeld(t, held...)
			await.NoError(t, func() error {
				var behind int
				s.get(t, &behind, `SELECT count(*) FROM `+s.table(schema.Progress)+` WHERE partition <> $1 AND caught_up_at IS NULL`, held[0])
				return errWhere(behind > 0, "%d partitions are not read yet", behind)
			})
			p.gate.open()
		}
		s.inSession(t, p)
		s.caughtUp(t)
		p.stop()
		s.holds(t)
		dumps[s.dump(t)] = true
	}
	require.Len(t, dumps, 1, "every order of reading gives the same bytes")
}

func metric(t *testing.T, p *process, name string) (sum float64) {
	t.Helper()
	families, err := p.registry.Gather()
	require.NoError(t, err)
	for _, f := range families {
		if f.GetName() == name {
			for _, m := range f.GetMetric() {
				sum += m.GetCounter().GetValue()
			}
		}
	}
	return sum
}

func errWhere(wrong bool, format string, args ...any) error {
	if wrong {
		return fmt.Errorf(format, args...)
	}
	return nil
}

// inSession waits until a process has begun a session, so that what it starts over is started over.
func (s *stage) inSession(t *testing.T, p *process) {
	t.Helper()
	await.NoError(t, func() error { return errWhere(!p.InSession(), "no session has begun") })
}

package projectiontest

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/consumer-service/internal/generation"
	"github.com/tidemark/tidemark/shared/await"
	"github.com/tidemark/tidemark/shared/postgres"
	"github.com/tidemark/tidemark/shared/schema"
)

// rebuilt starts a rebuild and waits until its generation is ready; with swap, until it serves.
func (s *stage) rebuilt(t *testing.T, p *process, swap bool) generation.Generation {
	t.Helper()
	s.runs(t, p)
	g, err := p.rebuilds.Start(t.Context(), generation.Request{Swap: swap, ReplaceStandby: true})
	require.NoError(t, err)
	want := generation.Ready
	if swap {
		want = generation.Serving
	}
	return s.becomes(t, p, g.Number, want)
}

// runs waits until the database knows that a process runs the projection.
func (s *stage) runs(t *testing.T, p *process) {
	t.Helper()
	await.NoError(t, func() error {
		running, err := p.rebuilds.Running(t.Context())
		if err == nil && !running {
			err = fmt.Errorf("nobody runs %s", s.def.Name)
		}
		return err
	})
}

func (s *stage) becomes(t *testing.T, p *process, number int, want generation.State) (g generation.Generation) {
	t.Helper()
	await.NoError(t, func() (err error) {
		if g, err = p.rebuilds.Get(t.Context(), number); err != nil {
			return err
		}
		return errWhere(g.State != want, "generation %d is %s (%s; proof %+v)", number, g.State, g.Progress.Note, g.Proof)
	})
	return g
}

// proved asks for a proof and waits for it.
func (s *stage) proved(t *testing.T, p *process, g generation.Generation) generation.Proof {
	t.Helper()
	_, err := p.rebuilds.Prove(t.Context(), g.Number)
	require.NoError(t, err)
	await.NoError(t, func() (err error) {
		if g, err = p.rebuilds.Get(t.Context(), g.Number); err != nil {
			return err
		}
		return errWhere(g.Proof == nil, "generation %d has no proof: %s", g.Number, g.Progress.Note)
	})
	return *g.Proof
}

func (s *stage) swapIn(t *testing.T, p *process, g generation.Generation) {
	t.Helper()
	_, err := p.rebuilds.Swap(t.Context(), g.Number)
	require.NoError(t, err)
	s.becomes(t, p, g.Number, generation.Serving)
}

// A rebuild, a rollback, and the swap back, one of them while a writer sleeps between reading and writing: whatever comes
// in meanwhile is in the tables once.
func rebuildSwapAndRollback(t *testing.T, s *stage) {
	s.mustSend(t, append(s.mixed(100), s.everywhere(2)...)...)
	p := s.start(t, settings{rebuilds: true})
	s.caughtUp(t)
	stop := s.keepSending(t, 20*time.Millisecond)
	g := s.rebuilt(t, p, true)
	require.True(t, g.Proof.OK)
	require.Len(t, g.Proof.Tables, len(s.def.Tables())+1, "every table was compared")
	before := s.becomes(t, p, 0, generation.Standby)
	s.views(t)

	p.gate.hold(everyPartition()...)
	s.mustSend(t, s.everywhere(2)...)
	p.gate.awaitHeld(t, everyPartition()...)
	s.swapIn(t, p, before)
	p.gate.open()
	s.becomes(t, p, g.Number, generation.Standby)
	s.views(t)
	s.swapIn(t, p, g)
	stop()
	s.caughtUp(t)
	s.holds(t)
	live := s.dump(t)
	p.stop()

	// What all that has left is what the log alone gives.
	s.exec(t, `TRUNCATE `+s.main())
	s.anew(t, 1, 0)
	require.Equal(t, live, s.dump(t))
}

// views requires that the definition's views show the tables that serve, and nothing else's.
func (s *stage) views(t *testing.T) {
	t.Helper()
	for _, v := range s.def.Views {
		var elsewhere []string
		require.NoError(t, s.db.SelectContext(t.Context(), &elsewhere, `
SELECT DISTINCT c.oid::regclass::text FROM pg_rewrite w JOIN pg_depend d ON d.classid = 'pg_rewrite'::regclass AND d.objid = w.oid AND d.refclassid = 'pg_class'::regclass
	JOIN pg_class c ON c.oid = d.refobjid WHERE w.ev_class = $1::regclass AND c.relnamespace <> to_regnamespace($2)`, s.table(v.Name), s.def.ServingSchema()))
		require.Empty(t, elsewhere, v.Name)
		s.count(t, s.table(v.Name))
	}
}

// A candidate is changed by hand, table by table; the proof does not hold, and names the key.
func aProofNamesWhatDiffers(t *testing.T, s *stage) {
	s.mustSend(t, append(s.mixed(60), s.everywhere(2)...)...)
	undecodable := s.samples.Undecodable(s.random)
	undecodable.Partition = 0
	s.mustSend(t, undecodable)
	p := s.start(t, settings{rebuilds: true})
	s.caughtUp(t)
	g := s.rebuilt(t, p, false)
	proof := s.proved(t, p, g)
	require.True(t, proof.OK, proof.Finding)

	type change struct {
		table, key string
		set        string // what a hand changes; empty deletes the row
	}
	changes := []change{{schema.DeadLetters, `topic || '/' || partition || '@' || "offset"`, `payload = 'x'`}}
	main := s.def.Main.Spec()
	for _, set := range []string{`created_at = created_at + interval '1 second'`, ``} {
		changes = append(changes, change{main.Name, keyText(main.Key), set})
	}
	for _, d := range s.def.Derived {
		changes = append(changes, change{d.Name, keyText(d.Key), `"offset" = "offset" - 1`}, change{d.Name, keyText(d.Key), ``})
	}
	for _, c := range changes {
		table := postgres.Qualified(g.Schema, c.table)
		s.exec(t, `DROP TABLE IF EXISTS kept; CREATE TABLE kept AS SELECT * FROM `+table)
		var key string
		s.get(t, &key, `SELECT `+c.key+` FROM `+table+` ORDER BY random() LIMIT 1`)
		if c.set == "" {
			s.exec(t, `DELETE FROM `+table+` WHERE `+c.key+` = $1`, key)
		} else {
			s.exec(t, `UPDATE `+table+` SET `+c.set+` WHERE `+c.key+` = $1`, key)
		}
		proof := s.proved(t, p, g)
		require.False(t, proof.OK, c)
		require.NotEmpty(t, proof.Differences, c)
		require.Equal(t, c.table, proof.Differences[0].Table)
		require.Equal(t, key, proof.Differences[0].Key)
		require.Contains(t, proof.Finding, key)
		s.exec(t, `TRUNCATE `+table+`; INSERT INTO `+table+` SELECT * FROM kept`)
	}
	proof = s.proved(t, p, g)
	require.True(t, proof.OK, proof.Finding)
}

func keyText(columns []string) string {
	text := ""
	for i, c := range columns {
		if i > 0 {
			text += ` || '/' || `
		}
		text += postgres.Quoted(c) + `::text`
	}
	return text
}

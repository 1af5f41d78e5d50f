package projectiontest

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/consumer-service/internal/generation"
	"github.com/tidemark/tidemark/consumer-service/internal/projection"
	"github.com/tidemark/tidemark/shared/await"
)

var _ projection.NewLog = (*process)(nil)

// Accepted implements projection.NewLog.
func (p *process) Accepted(_ context.Context, _, id string) (bool, error) {
	return id == p.accepts, nil
}

// Fill implements projection.NewLog.
func (p *process) Fill(ctx context.Context, id, cluster string) (int, error) {
	return p.rebuilds.FillNewLog(ctx, id, cluster)
}

// The topic is deleted and made again: nothing of the new one is written until it is accepted, and then it is read into a
// generation of its own, which serves unverified, while the old rows are held.
func aLogMadeAnew(t *testing.T, s *stage) {
	s.mustSend(t, append(s.mixed(60), s.everywhere(3)...)...)
	p := s.start(t, settings{rebuilds: true})
	s.caughtUp(t)
	live, rows := s.dump(t), s.count(t, s.main())

	s.makeAnew(t)
	refusal := <-p.refused
	require.False(t, refusal.Final)
	p.stop()
	s.mustSend(t, append(s.mixed(30), s.everywhere(2)...)...) // of the same partitions, under offsets that the old log had
	p = s.start(t, settings{rebuilds: true})
	refusal = <-p.refused
	id, err := s.asker.TopicID(t.Context(), s.topic)
	require.NoError(t, err)
	require.Contains(t, refusal.Reason, "ACCEPT_NEW_LOG="+s.topic+"@"+id)
	var noted string
	s.get(t, &noted, `SELECT refusal FROM public.projections WHERE projection = $1 AND refused_at IS NOT NULL`, s.def.Name)
	require.Equal(t, refusal.Reason, noted, "readers are told")
	require.Equal(t, live, s.dump(t), "no row was written")
	p.stop()

	p = s.start(t, settings{rebuilds: true, accepts: id})
	var g generation.Generation
	await.NoError(t, func() error {
		all, err := p.rebuilds.List(t.Context())
		if err == nil {
			g = all[0]
			err = errWhere(!g.NewLog, "generation %d serves still: %+v", g.Number, all)
		}
		return err
	})
	require.Equal(t, generation.Serving, g.State)
	require.Nil(t, g.Proof)
	old := s.becomes(t, p, 0, generation.Held)
	require.Equal(t, rows, s.count(t, old.Schema+"."+s.def.Main.Spec().Name), "old rows are kept")
	s.mustSend(t, s.mixed(20)...)
	s.caughtUp(t)
	s.inSession(t, p)
	s.holds(t)
	s.views(t)
	s.runs(t, p)
	_, err = p.rebuilds.Swap(t.Context(), 0)
	require.ErrorContains(t, err, "computed from another log")
	live = s.dump(t)
	p.stop()

	// The new rows are what the new log alone gives, and what was accepted means nothing by now.
	s.exec(t, `TRUNCATE `+s.main())
	s.anew(t, 1, 0)
	require.Equal(t, live, s.dump(t))
}

// makeAnew deletes the topic and makes another under its name.
func (s *stage) makeAnew(t *testing.T) {
	t.Helper()
	before, err := s.asker.TopicID(t.Context(), s.topic)
	require.NoError(t, err)
	s.deleteTopic(t)
	await.NoError(t, func() error { // for some moments brokers show a topic that is going, and then it does not have to be made
		id, err := s.asker.TopicID(t.Context(), s.topic)
		switch {
		case err != nil:
			return err
		case id == "":
			return errors.Join(fmt.Errorf("%s is not there yet", s.topic), s.reader.Ensure(t.Context(), s.def.Topic))
		case id == before:
			return fmt.Errorf("the topic's id is still %q", id)
		}
		return nil
	})
	s.mustEnd(t)
	s.beginAnew(t)
}

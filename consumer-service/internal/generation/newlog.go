package generation

import (
	"context"
	"fmt"
	"slices"

	"github.com/jmoiron/sqlx"

	"github.com/tidemark/tidemark/consumer-service/internal/projection"
	"github.com/tidemark/tidemark/shared/postgres"
)

// A topic that was deleted and made again is another log. Where the operator accepts it, a candidate is filled from it and
// swapped in as soon as it is ready. There is nothing to verify it against, so it is not, and its row says so (NewLog). The
// generation that served before is held, and so is a standby: nothing can feed them any more, and a rollback would show
// records of one log under offsets of the other.

// FillNewLog makes sure that a generation is filled from the accepted topic of this id and will serve, and returns its
// number. What is being rebuilt from the former topic is dropped. Several processes may call it, as often as they like.
func (s *Service) FillNewLog(ctx context.Context, topicID, clusterID string) (number int, err error) {
	starts, err := projection.LogStarts(ctx, s.Log, s.Definition.Topic, s.AcceptLogStart)
	if err != nil {
		return 0, err
	}
	begun := false
	err = postgres.Tx(ctx, s.DB, func(tx *sqlx.Tx) error {
		all, err := s.locked(ctx, tx)
		if err != nil {
			return err
		}
		for _, g := range all {
			if g.TopicID == topicID && (g.State.serves() || g.State.written()) {
				number = g.Number
				return nil
			}
		}
		if err := s.setAside(ctx, tx, all); err != nil {
			return err
		}
		if err := s.refuseBound(ctx, tx); err != nil {
			return err
		}
		if number, err = s.insert(ctx, tx, Filling, Request{Swap: true}, nil, nil); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, s.in(`
UPDATE public.projection_generations SET topic_id = $2, cluster_id = $3, new_log = true WHERE projection = {projection} AND generation = $1`), number, topicID, clusterID); err != nil {
			return fmt.Errorf("note the topic of generation %d: %w", number, err)
		}
		begun = true
		return s.makeTables(ctx, tx, number, starts)
	})
	if err != nil {
		return 0, err
	}
	if begun {
		s.Logger.Warn("an accepted new log is read into a new generation", "projection", s.name(), "generation", number, "topic", s.topic(), "topic_id", topicID)
		s.look()
	}
	return number, nil
}

// setAside drops what is being rebuilt from the former topic and holds its standby.
func (s *Service) setAside(ctx context.Context, tx *sqlx.Tx, all []Generation) error {
	for _, g := range all {
		to := Dropping
		switch g.State {
		case Swapping:
			return fmt.Errorf("%w: generations are just being swapped", errNotYet)
		case Queued, Filling, Indexing, Ready:
		case Standby:
			to = Held
		default:
			continue
		}
		if err := s.setState(ctx, tx, g.Number, to); err != nil {
			return err
		}
	}
	return nil
}

// replacesLog reports whether g replaces the log of the generation that serves now.
func (s *Service) replacesLog(ctx context.Context, g Generation) (bool, error) {
	if !g.NewLog {
		return false, nil
	}
	all, err := s.rows(ctx)
	return replacesLog(all, g), err
}

// replacesLog reports whether g, one of all, was filled from another topic than the generation that serves, and accepted: such
// a one is swapped in without a proof.
func replacesLog(all []Generation, g Generation) bool {
	return g.NewLog && g.State == Ready && slices.ContainsFunc(all, func(other Generation) bool { return other.State.serves() && otherTopic(other, g) })
}

// otherTopic reports whether two generations are known to be computed from different topics.
func otherTopic(a, b Generation) bool {
	return a.TopicID != "" && b.TopicID != "" && a.TopicID != b.TopicID
}

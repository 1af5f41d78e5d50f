package projection

import (
	"context"
	"fmt"
	"slices"

	"github.com/jmoiron/sqlx"

	"github.com/tidemark/tidemark/shared/kafka"
	"github.com/tidemark/tidemark/shared/position"
	"github.com/tidemark/tidemark/shared/postgres"
)

// Role is what a projector is to its generation: it writes the serving one, or one that does not serve.
type Role interface {
	// candidate is the number of the generation, nil for whichever serves.
	candidate() *int
	// enter decides, in one transaction, under which epoch a session begins and where its partitions stand.
	enter(ctx context.Context, s store, e entering) (entered, error)
	// startsOver reports whether a session of group will begin a new epoch with everything read anew.
	startsOver(g generation, group string) bool
	// check says why a projector of group must not go on with g; nil where it may. A *Refusal stops more than the session.
	check(g generation, group string) error
}

// Serving is the role of the projector of the generation that everyone reads. A group name other than the one on record
// starts it over, as does a reset by Kafka's own tool.
func Serving() Role { return serving{} }

// Candidate is the role of a projector of a generation that does not serve, standbys included. Its epoch and progress
// stand since it was made; whoever drives the rebuild decides when it ends.
func Candidate(generation int) Role { return candidate{generation} }

// entering is what a member brings to the start of a session.
type entering struct {
	group      string
	cluster    string
	topicID    string
	partitions int
	own        []int32
	committed  map[int32]kafka.Committed
	starts     map[int32]int64 // where each partition's log begins, for an epoch that begins now
}

// entered is what it is told.
type entered struct {
	generation
	progress  map[int32]progress // of its own partitions
	startOver string             // why a new epoch was begun with everything read anew, or ""
}

type serving struct{}

func (serving) candidate() *int { return nil }

func (serving) startsOver(g generation, group string) bool {
	return g.GroupName == nil || *g.GroupName != group
}

// check stops the process when another name has taken over.
func (serving) check(g generation, group string) error {
	if g.GroupName == nil || *g.GroupName == group {
		return nil
	}
	return refuseFinally("the consumer group %q was replaced by %q, which rebuilds this database: this process stops for good; start it under %q to join", group, *g.GroupName, *g.GroupName)
}

// enter decides under the generation row's lock, and gives every partition its progress row.
func (r serving) enter(ctx context.Context, s store, e entering) (out entered, err error) {
	err = postgres.Tx(ctx, s.db, func(tx *sqlx.Tx) error {
		if err := tx.GetContext(ctx, &out.generation, s.in(selectGeneration+` FOR UPDATE OF g`)); err != nil {
			return fmt.Errorf("lock the generation: %w", err)
		}
		g := &out.generation
		if g.State == "swapping" {
			return errSwapping
		}
		if err := stillOf(*g, e); err != nil {
			return err
		}
		var served bool
		if err := tx.GetContext(ctx, &served, s.in(`SELECT EXISTS (SELECT FROM public.projection_groups WHERE projection = {projection} AND group_name = $1)`), e.group); err != nil {
			return fmt.Errorf("look for the group's name: %w", err)
		}
		name, err := judgeName(*g, e.group, served)
		if err != nil {
			return err
		}
		if err := s.ensureProgress(ctx, tx, e, g.Epoch); err != nil {
			return err
		}
		if out.progress, err = s.progress(ctx, tx, e.own); err != nil {
			return err
		}
		if err := r.begin(ctx, tx, s, e, name, &out); err != nil {
			return err
		}
		if name != sameName {
			if err := s.rename(ctx, tx, e.group); err != nil {
				return err
			}
		}
		if err := s.noteLog(ctx, tx, e); err != nil {
			return err
		}
		if err := tx.GetContext(ctx, &out.generation, s.in(selectGeneration)); err != nil {
			return fmt.Errorf("read the generation: %w", err)
		}
		out.progress, err = s.progress(ctx, tx, e.own)
		return err
	})
	return out, err
}

// begin draws a new epoch where one is due: to start over, or only to fence what a database that went back has forgotten.
func (serving) begin(ctx context.Context, tx *sqlx.Tx, s store, e entering, name naming, out *entered) error {
	forgotten := false
	if name == newName {
		out.startOver = fmt.Sprintf("the consumer group is %q and was %q", e.group, *out.GroupName)
	} else {
		for _, p := range slices.Sorted(slices.Values(e.own)) {
			was, err := judgeCommitted(out.generation, position.Position{Topic: s.def.Topic.Name, Partition: p}, e.committed[p], out.progress[p].NextOffset)
			if err != nil {
				return err
			}
			forgotten = forgotten || was == committedAhead
			if was == committedReset && out.startOver == "" {
				out.startOver = fmt.Sprintf("the group's offset for %s/%d was reset to %d and the projection was at %d", s.def.Topic.Name, p, e.committed[p].Offset, out.progress[p].NextOffset)
			}
		}
	}
	switch {
	case out.startOver != "":
		return s.startOver(ctx, tx, e)
	case forgotten:
		return s.fenceAnew(ctx, tx)
	}
	return nil
}

type candidate struct{ generation int }

func (c candidate) candidate() *int { return &c.generation }

func (candidate) startsOver(generation, string) bool { return false }

func (candidate) check(g generation, _ string) error {
	if written(g.State) {
		return nil
	}
	return fmt.Errorf("%w: generation %d is %s", errNotWritten, g.Number, g.State)
}

func (candidate) enter(ctx context.Context, s store, e entering) (out entered, err error) {
	err = postgres.Tx(ctx, s.db, func(tx *sqlx.Tx) error {
		if out.generation, err = s.candidateGeneration(ctx, tx); err != nil {
			return err
		}
		if err := stillOf(out.generation, e); err != nil {
			return err
		}
		if err := s.noteLog(ctx, tx, e); err != nil {
			return err
		}
		for _, c := range e.committed { // two databases on one group would share its partitions
			if c.Offset >= 0 {
				if _, _, err := judgeMetadata(out.generation, c); err != nil {
					return err
				}
			}
		}
		out.progress, err = s.progress(ctx, tx, e.own)
		return err
	})
	return out, err
}

// stillOf judges the generation anew under its row's lock: a swap may have put another in its place since it was read.
func stillOf(g generation, e entering) error {
	if g.TopicID != nil && *g.TopicID != e.topicID {
		return fmt.Errorf("generation %d was computed from the topic %s by now, and %s was asked about", g.Number, *g.TopicID, e.topicID)
	}
	return judgeCluster(g, e.cluster)
}

// noteLog notes the cluster and the topic of a generation that knows none yet.
func (s store) noteLog(ctx context.Context, tx *sqlx.Tx, e entering) error {
	if _, err := tx.ExecContext(ctx, s.in(`
UPDATE public.projection_generations g SET cluster_id = coalesce(g.cluster_id, $1), topic_id = coalesce(g.topic_id, $2)
WHERE {row} AND (g.cluster_id IS NULL OR g.topic_id IS NULL)`), e.cluster, e.topicID); err != nil {
		return fmt.Errorf("note cluster and topic: %w", err)
	}
	return nil
}

func (s store) ensureProgress(ctx context.Context, tx *sqlx.Tx, e entering, epoch int64) error {
	partitions, starts := postgres.Int8s(e.partitions), postgres.Int8s(e.partitions)
	for p := range e.partitions {
		partitions.Int8(int64(p))
		starts.Int8(e.starts[int32(p)])
	}
	if _, err := tx.ExecContext(ctx, s.in(`
INSERT INTO {g}.projection_progress (topic, partition, epoch, first_offset, next_offset)
SELECT $1, n.partition, $2, n.start, n.start FROM unnest($3::bigint[], $4::bigint[]) AS n (partition, start)
ON CONFLICT (topic, partition) DO NOTHING`), s.def.Topic.Name, epoch, partitions.Bytes(), starts.Bytes()); err != nil {
		return fmt.Errorf("give each partition its progress: %w", err)
	}
	return nil
}

// startOver begins a new epoch: progress at the start of the log for all partitions, dead letters gone, derived tables
// empty, rows of the main table left to be recognised. Tables are locked before progress rows: a writer that is fenced
// holds its own progress row while it waits for a table.
func (s store) startOver(ctx context.Context, tx *sqlx.Tx, e entering) error {
	statements := []string{}
	if len(s.def.Derived) > 0 {
		var derived []string
		for _, t := range s.def.Derived {
			derived = append(derived, t.Name)
		}
		statements = append(statements, `TRUNCATE `+postgres.Qualified(s.schema, derived...))
	}
	statements = append(statements,
		s.in(`DELETE FROM {g}.projection_progress`),
		s.in(`DELETE FROM {g}.dead_letters`),
		s.in(`DELETE FROM {g}.projection_audits`),
	)
	for _, statement := range statements {
		if _, err := tx.ExecContext(ctx, statement); err != nil {
			return fmt.Errorf("start over: %w", err)
		}
	}
	var epoch int64
	if err := tx.GetContext(ctx, &epoch, s.in(`
UPDATE public.projection_generations g SET epoch = public.next_projection_epoch(), started_at = now() WHERE {row} RETURNING epoch`)); err != nil {
		return fmt.Errorf("begin a new epoch: %w", err)
	}
	return s.ensureProgress(ctx, tx, e, epoch)
}

// fenceAnew draws a new epoch and leaves everything else as it is.
func (s store) fenceAnew(ctx context.Context, tx *sqlx.Tx) error {
	for _, statement := range []string{
		s.in(`SELECT FROM {g}.projection_progress ORDER BY partition FOR UPDATE`),
		s.in(`UPDATE public.projection_generations g SET epoch = public.next_projection_epoch() WHERE {row}`),
		s.in(`UPDATE {g}.projection_progress SET epoch = (SELECT g.epoch FROM public.projection_generations g WHERE {row})`),
	} {
		if _, err := tx.ExecContext(ctx, statement); err != nil {
			return fmt.Errorf("draw a new epoch: %w", err)
		}
	}
	return nil
}

func (s store) rename(ctx context.Context, tx *sqlx.Tx, group string) error {
	for _, statement := range []string{
		`UPDATE public.projection_groups SET replaced_at = now() WHERE projection = {projection} AND replaced_at IS NULL AND group_name <> $1`,
		`INSERT INTO public.projection_groups (projection, group_name) VALUES ({projection}, $1)`,
		`UPDATE public.projection_generations g SET group_name = $1, started_at = coalesce(g.started_at, now()) WHERE {row}`,
	} {
		if _, err := tx.ExecContext(ctx, s.in(statement), group); err != nil {
			return fmt.Errorf("note the group's name: %w", err)
		}
	}
	return nil
}

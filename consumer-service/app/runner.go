package app

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/tidemark/tidemark/consumer-service/internal/generation"
	"github.com/tidemark/tidemark/consumer-service/internal/projection"
	"github.com/tidemark/tidemark/consumer-service/internal/receipt"
)

// runner is one projection that this process runs.
type runner struct {
	*wiring
	def      *projection.Definition
	rebuilds *generation.Service
	receipts *receipt.Publisher

	mu     sync.Mutex
	sorted string // the accepted topic from whose note on decisions count
}

func newRunner(w *wiring, def *projection.Definition, rebuilds *generation.Service) *runner {
	of := w.receipts
	r := &runner{wiring: w, def: def, rebuilds: rebuilds, receipts: receipt.New(receipt.Options{
		Projection: def.Name, Store: &receipt.Postgres{DB: w.db, Projection: def.Name}, Log: w.log, Topic: of.Name, Metrics: w.published, Logger: w.Log,
		Ensure: func(ctx context.Context) error { return w.reader.Ensure(ctx, of) },
	})}
	rebuilds.Written = r.receipts.Kick
	return r
}

// acceptedStart is where the operator accepts that the projection's log starts, by partition; never nil.
func (r *runner) acceptedStart() map[int32]int64 {
	if accepted := r.accepted[r.def.Topic.Name]; accepted != nil {
		return accepted
	}
	return map[int32]int64{}
}

// run projects until ctx ends, or until the projection refuses its log. Then the process leaves the projection's group and
// is unready with the reason, and its other projections go on.
func (r *runner) run(ctx context.Context) {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	guard, err := r.awaitTopic(ctx, r.def.Topic, projection.Part(r.def.Name, projection.PartLog), r.acceptedStart(), r.def.Name)
	if err != nil {
		r.fail(ctx, err)
		return
	}
	var refused *projection.Refusal
	projector := projection.New(projection.Options{
		DB: r.db, Log: r.reader, Decisions: r.book, Definition: r.def, Group: r.rebuilds.Group, Role: projection.Serving(),
		AcceptLogStart: r.accepted[r.def.Topic.Name], Identity: r.asker, NewLog: r, AuditInterval: r.Config.AuditInterval, Ready: r.Ready, Metrics: r.projected.Of(r.def.Name),
		Tracer: r.Tracer, Logger: r.Log, Written: r.receipts.Kick,
		Stop: func(refusal *projection.Refusal) {
			if refusal.Final {
				r.Fail(refusal)
			}
			refused = refusal
			stop()
		},
	})
	// Receipts go out until the last batch is written.
	last, written := context.WithCancel(context.WithoutCancel(ctx))
	var publishing, running sync.WaitGroup
	publishing.Go(func() { r.receipts.Run(last, projector.InSession) })
	for _, f := range []func(context.Context){guard.Keep, projector.Watch, projector.Audit, r.rebuilds.Work, r.rebuilds.Drive} {
		running.Go(func() { f(ctx) })
	}
	err = projector.Consume(ctx, projection.Membership{
		Kafka: r.Config.Kafka, ClientID: Name, InstanceID: r.Config.InstanceID, BatchSize: r.Config.BatchSize,
		Fenced: func(id string) {
			r.Fail(fmt.Errorf("another process has joined group %s as KAFKA_GROUP_INSTANCE_ID %q: give each its own", r.rebuilds.Group, id))
		},
	})
	if err != nil {
		r.fail(ctx, err)
		stop()
	}
	running.Wait()
	if refused != nil {
		r.faults.Note(r.def.Topic.Name, refused) // the guard has ended
	}
	written()
	publishing.Wait()
}

var _ projection.NewLog = (*runner)(nil)

// Accepted implements projection.NewLog. Decisions on dead letters of the former topic must not reject the records of the new one
// that have their offsets. They are told apart by the log time of command-service's note, which is waited for.
func (r *runner) Accepted(ctx context.Context, topic, id string) (bool, error) {
	if !r.acceptsNewLog(topic, id) {
		return false, nil
	}
	if err := r.notes.SameLog(ctx, topic); err != nil {
		return true, err
	}
	if note, _ := r.notes.Notes().Current(topic); note.ID.String() != id {
		return true, fmt.Errorf("command-service has not noted it yet: start that with ACCEPT_NEW_LOG=%s@%s too", topic, id)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.sorted != id {
		r.book.Reread()
		r.sorted = id
	}
	return true, nil
}

// Fill implements projection.NewLog.
func (r *runner) Fill(ctx context.Context, id, cluster string) (int, error) {
	return r.rebuilds.FillNewLog(ctx, id, cluster)
}

// fail ends the process for an error that waiting cannot mend; one that only says that it was told to stop is none.
func (r *runner) fail(ctx context.Context, err error) {
	if ctx.Err() == nil && !errors.Is(err, context.Canceled) {
		r.Fail(err)
	}
}

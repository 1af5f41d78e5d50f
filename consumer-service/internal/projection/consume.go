package projection

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/tidemark/tidemark/shared/config"
	"github.com/tidemark/tidemark/shared/kafka"
	"github.com/tidemark/tidemark/shared/loop"
)

// Membership is how a process takes part in a projector's consumer group. All are required but InstanceID and Fenced.
type Membership struct {
	Kafka      config.Kafka
	ClientID   string
	InstanceID string // makes the member static: no other process may have the same
	BatchSize  int    // most records in one transaction
	// Fenced is called when another process has taken over InstanceID.
	Fenced func(instanceID string)
}

// Consume joins the projector's consumer group and projects what it is assigned until ctx ends. It waits for a broker that
// is missing, unready. Before it returns, the batches in hand are written or given back and the group is left.
func (p *Projector) Consume(ctx context.Context, m Membership) error {
	subscriber, err := kafka.NewSubscriber(kafka.SubscriberOptions{
		Kafka: m.Kafka, ClientID: m.ClientID, Group: p.Group, InstanceID: m.InstanceID, BatchSize: m.BatchSize,
		Log: p.Logger, SetUp: p.SetUp, CleanUp: p.CleanUp, Fenced: m.Fenced,
	})
	if err != nil {
		return err
	}
	var batches <-chan *kafka.Batch
	err = loop.Retry(ctx, loop.Backoff{First: time.Second, Most: time.Second}, func(ctx context.Context) (final bool, err error) {
		// The subscription ends with Close, after the batches in hand; ctx ends the joining only.
		if batches, err = subscriber.Subscribe(ctx, p.topic()); err != nil && ctx.Err() == nil { // else whoever ended it says why
			p.Logger.Warn("cannot subscribe yet", "topic", p.topic(), "err", err)
			p.unready(PartAssignment, "waiting for Kafka: "+p.reason(err))
		}
		return false, err
	})
	var inHand sync.WaitGroup
	if err == nil {
		inHand.Go(func() {
			for b := range batches {
				inHand.Go(func() { p.Project(b) })
			}
		})
		<-ctx.Done()
	}
	err = subscriber.Close()
	inHand.Wait()
	if err != nil {
		return fmt.Errorf("leave the group %s: %w", p.Group, err)
	}
	return nil
}

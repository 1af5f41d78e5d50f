package logid

import (
	"context"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/shared/await"
	"github.com/tidemark/tidemark/shared/config"
	"github.com/tidemark/tidemark/shared/kafka"
	"github.com/tidemark/tidemark/shared/topic"
)

// setupBook returns options of a book that notes in a topic of its own.
func setupBook(t *testing.T, k config.Kafka) Options {
	t.Helper()
	o := Options{Reader: kafka.NewReader(k, "test"), Asker: NewAsker(k, "test"), Topic: topic.LogIdentity}
	o.Topic.Name, o.Topic.Partitions, o.Topic.ReplicationFactor = "logid-notes-"+uuid.NewString(), 1, 1
	publisher, err := kafka.NewPublisher(kafka.PublisherOptions{Kafka: k, ClientID: "test", Producer: "test", Log: slog.New(slog.DiscardHandler), RetryFor: time.Second})
	require.NoError(t, err)
	o.Publish = publisher.Publish
	admin, _ := setupAdmin(t, k)
	t.Cleanup(func() {
		_ = admin.DeleteTopic(o.Topic.Name) // a courtesy to the tests that follow
		require.NoError(t, publisher.Close())
		require.NoError(t, o.Asker.Close())
		require.NoError(t, o.Reader.Close())
	})
	return o
}

// A topic that nobody has known is told from one that is there, so that whoever makes it waits until it is noted.
func TestATopicIsNotKnownUntilItIsNoted(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, k config.Kafka) {
		admin, name := setupAdmin(t, k)
		b := NewBook(setupBook(t, k))
		require.ErrorIs(t, b.SameLog(t.Context(), name), kafka.ErrNotKnown)
		makeTopic(t, admin, name)
		await.NoError(t, func() error { return b.SameLog(t.Context(), name) })
		note, noted := b.Notes().Current(name)
		require.True(t, noted)
		require.Zero(t, note.Replaces)

		require.NoError(t, admin.DeleteTopic(name))
		var other *kafka.IdentityError
		await.Until(t, func() bool { return b.SameLog(t.Context(), name) != nil })
		require.ErrorAs(t, b.SameLog(t.Context(), name), &other)
		require.Empty(t, other.Found)
	})
}

// A broker that hangs while a note is written keeps nobody past his own time, and the note is written once.
func TestANoteThatHangsHoldsNobodyElse(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, k config.Kafka) {
		admin, hangs := setupAdmin(t, k)
		_, known := setupAdmin(t, k)
		_, other := setupAdmin(t, k)
		o := setupBook(t, k)
		publish, writes, goOn := o.Publish, atomic.Int32{}, make(chan struct{})
		o.Publish = func(topic string, msgs ...*message.Message) error {
			if msgs[0].UUID == hangs {
				writes.Add(1)
				<-goOn
			}
			return publish(topic, msgs...)
		}
		b := NewBook(o)
		for _, name := range []string{hangs, known, other} {
			makeTopic(t, admin, name)
		}
		await.NoError(t, func() error { return b.SameLog(t.Context(), known) })

		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		require.ErrorIs(t, b.SameLog(ctx, hangs), context.DeadlineExceeded)
		require.NoError(t, b.SameLog(t.Context(), known), "its note is in memory")
		await.NoError(t, func() error { return b.SameLog(t.Context(), other) }) // its note is read, and written
		close(goOn)
		await.NoError(t, func() error { return b.SameLog(t.Context(), hangs) })
		require.EqualValues(t, 1, writes.Load())
	})
}

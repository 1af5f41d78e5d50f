package logid

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/tidemark/tidemark/shared/event"
	"github.com/tidemark/tidemark/shared/kafka"
	"github.com/tidemark/tidemark/shared/topic"
)

// Options of a Book. Reader, Asker and Topic are required.
type Options struct {
	Reader   *kafka.Reader
	Asker    *Asker
	Topic    topic.Spec // the topic of notes, with its counts
	Accepted Acceptance // what ACCEPT_NEW_LOG says
	// Publish writes notes, and ends by itself while the broker hangs. Only command-service has it; a book without it reads what
	// is noted, and notes nothing.
	Publish func(topic string, msgs ...*message.Message) error
}

// Book compares topics with what is noted of them in log.identity.v1. What it has read it keeps in memory, and it reads
// again only when an id differs from the note or a topic has none. It is safe for concurrent use: what one caller waits for
// keeps no other from a topic whose note is in memory, and none past its own context.
type Book struct {
	o Options

	reading chan struct{} // holds whoever reads the topic of notes
	next    int64         // the offset to read on at; of whoever reads

	mu      sync.Mutex
	notes   Notes
	writing map[string]*writing // by topic
}

// writing is a note on its way to the log.
type writing struct {
	done chan struct{} // closed once err is set
	err  error
}

// NewBook returns a book that has read nothing yet. It closes neither the reader nor the asker.
func NewBook(o Options) *Book {
	return &Book{o: o, notes: Notes{}, reading: make(chan struct{}, 1), writing: map[string]*writing{}}
}

// Notes returns what has been read so far.
func (b *Book) Notes() Notes {
	b.mu.Lock()
	defer b.mu.Unlock()
	return maps.Clone(b.notes)
}

func (b *Book) current(name string) (note Note, noted bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.notes.Current(name)
}

// SameLog returns nil where the topic is the one that is noted, where another one is accepted, and where it is there and
// nothing is noted: a book with Publish notes what it finds then. A topic that is another one or is gone is a
// *kafka.IdentityError, one that is not there and that nobody has known a kafka.ErrNotKnown, another cluster than the wanted
// one a *kafka.ClusterError. Any other error means that it could not be found out.
func (b *Book) SameLog(ctx context.Context, name string) error {
	seen, err := b.o.Asker.Ask(ctx, name, b.o.Topic.Name)
	if err != nil {
		return err
	}
	found := seen.Topics[name]
	if note, _ := b.current(name); note.ID == found && found != (ID{}) {
		return nil
	}
	if err := b.read(ctx, seen.Topics[b.o.Topic.Name]); err != nil {
		return err
	}
	note, noted := b.current(name)
	switch {
	case noted && note.ID == found:
		return nil
	case !noted && found == (ID{}):
		return fmt.Errorf("%s: %w", name, kafka.ErrNotKnown)
	case !noted, b.o.Accepted.Accepts(name, found):
		return b.note(ctx, Note{Topic: name, ID: found, ClusterID: seen.ClusterID, Replaces: note.ID})
	}
	return &kafka.IdentityError{Topic: name, Noted: note.ID.String(), Found: found.String()}
}

// read reads the notes to their end. Those that are in memory already stay, so that a process which has seen them remembers
// them when the topic of notes itself is lost.
func (b *Book) read(ctx context.Context, notes ID) error {
	select {
	case b.reading <- struct{}{}:
		defer func() { <-b.reading }()
	case <-ctx.Done():
		return fmt.Errorf("read what is noted of topics: %w", context.Cause(ctx))
	}
	if notes == (ID{}) {
		b.next = 0
		return b.make(ctx)
	}
	bounds, err := b.o.Reader.Bounds(ctx, b.o.Topic.Name, []int32{0})
	if err != nil {
		return fmt.Errorf("read what is noted of topics: %w", err)
	}
	if b.next > bounds[0].Stable {
		b.next = 0 // it was made anew
	}
	for b.next = max(b.next, bounds[0].Start); b.next < bounds[0].Stable; {
		records, next, err := b.o.Reader.ReadFrom(ctx, b.o.Topic.Name, 0, b.next)
		switch {
		case err != nil:
			return fmt.Errorf("read what is noted of topics: %w", err)
		case next == b.next:
			return fmt.Errorf("read what is noted of topics: nothing came from %s/0@%d on, before its end", b.o.Topic.Name, next)
		}
		b.mu.Lock()
		for _, r := range records {
			b.notes.add(r)
		}
		b.mu.Unlock()
		b.next = next
	}
	return nil
}

// make makes the topic of notes, if notes are to be written.
func (b *Book) make(ctx context.Context) error {
	if b.o.Publish == nil {
		return nil
	}
	if err := b.o.Reader.Ensure(ctx, b.o.Topic); err != nil {
		return fmt.Errorf("make the topic in which ids of topics are noted: %w", err)
	}
	return nil
}

// note writes a note and reads it back, with the time that the log gave it.
func (b *Book) note(ctx context.Context, n Note) error {
	if b.o.Publish == nil {
		return nil
	}
	if err := b.write(ctx, n); err != nil {
		return fmt.Errorf("note the id of %s: %w", n.Topic, err)
	}
	seen, err := b.o.Asker.Ask(ctx, b.o.Topic.Name)
	if err != nil {
		return err
	}
	if err := b.read(ctx, seen.Topics[b.o.Topic.Name]); err != nil {
		return err
	}
	if note, _ := b.current(n.Topic); note.ID != n.ID {
		return errors.New("the id of " + n.Topic + " was noted and is not read back yet")
	}
	return nil
}

// write publishes a note. One that is on its way when ctx ends goes on, and whoever comes next waits for that one: a topic's
// id is not noted twice.
func (b *Book) write(ctx context.Context, n Note) error {
	b.mu.Lock()
	w := b.writing[n.Topic]
	if w == nil {
		w = &writing{done: make(chan struct{})}
		b.writing[n.Topic] = w
		go func() {
			value := event.AppendLogIdentity(nil, event.LogIdentity{Topic: n.Topic, TopicID: n.ID.String(), ClusterID: n.ClusterID, Replaces: n.Replaces.String()})
			w.err = b.o.Publish(b.o.Topic.Name, kafka.NewMessage(n.Topic, value, ""))
			b.mu.Lock()
			delete(b.writing, n.Topic)
			b.mu.Unlock()
			close(w.done)
		}()
	}
	b.mu.Unlock()
	select {
	case <-w.done:
		return w.err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

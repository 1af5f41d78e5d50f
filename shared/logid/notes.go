package logid

import (
	"time"

	"github.com/tidemark/tidemark/shared/event"
	"github.com/tidemark/tidemark/shared/kafka"
)

// Note says which topic stands under a name.
type Note struct {
	Topic     string
	ID        ID
	ClusterID string
	Replaces  ID        // the id that was noted before; zero on the first note of a topic
	NotedAt   time.Time // the log's own time of the note, from which on it holds
}

// Notes are the newest note of each topic, by its name. The topic of notes is compacted, so older ones may be gone.
type Notes map[string]Note

// Current returns the newest note of a topic; ok is false where there is none.
func (n Notes) Current(topic string) (note Note, ok bool) {
	note, ok = n[topic]
	return note, ok
}

// Since returns the log time since which the topic of this name stands there: what was said about offsets before is about
// another topic. It is zero where no other topic was noted before it.
func (n Notes) Since(topic string) time.Time {
	note := n[topic]
	if note.Replaces == (ID{}) {
		return time.Time{}
	}
	return note.NotedAt
}

// add takes one record of the topic of notes, the records in the order of the log. One that cannot be read is left out: nothing
// of Tidemark wrote it.
func (n Notes) add(r kafka.Record) {
	read, err := event.DecodeLogIdentity(r.Value)
	if err != nil {
		return
	}
	id, err := ParseID(read.TopicID)
	if err != nil {
		return
	}
	note := Note{Topic: read.Topic, ID: id, ClusterID: read.ClusterID, NotedAt: r.Timestamp}
	if note.Replaces, err = ParseID(read.Replaces); err != nil {
		note.Replaces = ID{}
	}
	n[read.Topic] = note
}

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

// InForce returns the id that stood under the name at that log time: a first note holds since ever, a later one from its own
// time on. It is zero where there is no note.
func (n Notes) InForce(topic string, at time.Time) ID {
	note := n[topic]
	if note.Replaces != (ID{}) && at.Before(note.NotedAt) {
		return note.Replaces
	}
	return note.ID
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

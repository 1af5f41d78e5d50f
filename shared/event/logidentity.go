package event

import (
	"encoding/json"
	"errors"
)

// LogIdentity notes which topic stands under a name: one that is deleted and made again has another id. Its topic is
// topic.LogIdentity, and the record's own log time says from when on it holds.
type LogIdentity struct {
	Topic     string `json:"topic"`
	TopicID   string `json:"topic_id"` // as Kafka prints it
	ClusterID string `json:"cluster_id"`
	Replaces  string `json:"replaces,omitempty"` // the id that was noted before; empty on the first note of a topic
}

// AppendLogIdentity appends the record value of n: {"topic":"…","topic_id":"…","cluster_id":"…","replaces":"…"}, without
// replaces on the first note of a topic.
func AppendLogIdentity(dst []byte, n LogIdentity) []byte {
	b, _ := json.Marshal(n) // four texts
	return append(dst, b...)
}

// DecodeLogIdentity reads a record value. Other members are ignored, so that a newer producer may add some.
func DecodeLogIdentity(value []byte) (LogIdentity, error) {
	var n LogIdentity
	if err := json.Unmarshal(value, &n); err != nil {
		return LogIdentity{}, wrongJSON(err, "a JSON object")
	}
	if n.Topic == "" || n.TopicID == "" {
		return LogIdentity{}, errors.New("a note needs a topic and its id")
	}
	return n, nil
}

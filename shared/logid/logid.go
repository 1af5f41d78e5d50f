// Package logid tells one log from another that stands under the same name. A topic that is deleted and made again has the
// old name and another id, and offsets in it mean other records: whoever goes on as if nothing had happened shows one
// command under the ticket of another.
//
// It asks the brokers for ids (Asker) and reads which other id an operator accepts (Acceptance). What is done about another
// id is left to the services.
package logid

import (
	"encoding/base64"
	"fmt"
	"strings"
)

// ID is Kafka's id of a topic: a UUID that Kafka prints as unpadded base64url, 22 characters. The zero ID means that the topic
// is not there.
type ID [16]byte

// String returns the id as Kafka prints it; empty for the zero ID.
func (id ID) String() string {
	if id == (ID{}) {
		return ""
	}
	return base64.RawURLEncoding.EncodeToString(id[:])
}

// ParseID reads what String writes of an id that is not zero.
func ParseID(s string) (ID, error) {
	read, err := base64.RawURLEncoding.Strict().DecodeString(s)
	if err != nil || len(read) != len(ID{}) || ID(read) == (ID{}) {
		return ID{}, fmt.Errorf("%.60q is no topic id: one has 22 characters, as kafka-topics --describe shows it", s)
	}
	return ID(read), nil
}

// Acceptance is what ACCEPT_NEW_LOG says: by topic, the ids that the operator accepts in place of the ones that are known. An
// id is never given twice, so an acceptance that is left set means nothing for any later topic.
type Acceptance map[string][]ID

// ParseAcceptance reads topic@id.
func ParseAcceptance(entries []string) (Acceptance, error) {
	out := Acceptance{}
	for _, entry := range entries {
		topic, text, ok := strings.Cut(entry, "@")
		if !ok || topic == "" {
			return nil, fmt.Errorf("ACCEPT_NEW_LOG: %.120q is not of the form topic@id", entry)
		}
		id, err := ParseID(text)
		if err != nil {
			return nil, fmt.Errorf("ACCEPT_NEW_LOG: %w", err)
		}
		out[topic] = append(out[topic], id)
	}
	return out, nil
}

// Accepts reports whether the operator accepts that the topic has this id.
func (a Acceptance) Accepts(topic string, id ID) bool {
	for _, accepted := range a[topic] {
		if accepted == id {
			return true
		}
	}
	return false
}

// Package topic lists the topics of the log, one value a topic: what its records are keyed by, which service writes them
// and how long the log keeps them. Whoever makes, guards or reads a topic takes it from here, so that a new topic is one
// value in this package and one golden file in shared/event.
//
// What a record's value looks like is said by shared/event; making and guarding topics is the work of shared/kafka.
package topic

import (
	"time"

	"github.com/tidemark/tidemark/shared/config"
)

// Kept is how the log keeps a topic's records.
type Kept int

// The kinds of retention. The strictest is the zero value, so that a Spec that names none loses nothing.
const (
	Forever   Kept = iota // every record stays: the topic is the truth
	Expiring              // a record may go once it is older than the topic's Retention
	Compacted             // the newest record of each key stays
)

// Service is the short name of a service that writes a topic: "command" stands for command-service.
type Service string

// The services.
const (
	Command  Service = "command"
	Consumer Service = "consumer"
)

// Spec says what a topic is. The values of this package have no counts but fixed ones; Sized fills in the others.
type Spec struct {
	Name      string        // with the version of its values' shape
	Key       string        // what the record's key is, in words
	Writer    Service       // the only service that writes it
	Kept      Kept          // how long records stay
	Retention time.Duration // the least age at which a record may go; of an Expiring topic only

	// Transactional topics are written in transactions, so their logs hold markers and aborted records, and a gap in the
	// offsets that a reader is given means nothing.
	Transactional bool
	// Claimed topics have KAFKA_CLAIMED_PARTITIONS partitions: processes claim the work of single partitions. Topics with
	// the same key as a claimed one are claimed too, so that the records of a key have one partition number in all of them.
	Claimed bool

	// Partitions is the count; any other is refused where the topic exists: it would move keys. Of the values of this package
	// only a topic with a fixed count has one, and Sized leaves it.
	Partitions        int
	ReplicationFactor int // of a topic that is made; one that exists keeps its own
}

// The topics.
var (
	// TimestampCommand holds the commands that stamp a time. It is the truth behind timestamp_records.
	TimestampCommand = Spec{Name: "timestamp.command.v1", Key: "command_id", Writer: Command, Kept: Forever}
	// DeadLetterCommand holds what was decided about dead letters.
	DeadLetterCommand = Spec{Name: "deadletter.command.v1", Key: "position of the dead letter", Writer: Command, Kept: Forever}
	// EndpointCommand holds puts and deletes of endpoints.
	EndpointCommand = Spec{Name: "endpoint.command.v1", Key: "endpoint_id", Writer: Command, Kept: Forever, Claimed: true}
	// LogIdentity notes the id of each topic that is kept forever, so that one that was made anew is told from the old one.
	LogIdentity = Spec{Name: "log.identity.v1", Key: "topic", Writer: Command, Kept: Compacted, Partitions: 1}
	// ProjectionReceipt says what became of every offset that consumer-service has read.
	ProjectionReceipt = Spec{Name: "projection.receipt.v1", Key: "topic/partition", Writer: Consumer, Kept: Expiring, Retention: 30 * 24 * time.Hour}
)

// All returns every topic there is.
func All() []Spec {
	return []Spec{TimestampCommand, DeadLetterCommand, EndpointCommand, LogIdentity, ProjectionReceipt}
}

// ByName returns the topic of that name, without counts; ok is false where there is none.
func ByName(name string) (s Spec, ok bool) {
	for _, s := range All() {
		if s.Name == name {
			return s, true
		}
	}
	return Spec{}, false
}

// Sized returns s with the counts that the configuration wants.
func (s Spec) Sized(k config.Kafka) Spec {
	s.ReplicationFactor = k.ReplicationFactor
	switch {
	case s.Partitions != 0: // a fixed count
	case s.Claimed:
		s.Partitions = k.ClaimedPartitions
	default:
		s.Partitions = k.Partitions
	}
	return s
}

// CountVariable names the setting that says how many partitions s has; empty for a fixed count.
func (s Spec) CountVariable() string {
	if fixed, ok := ByName(s.Name); ok && fixed.Partitions != 0 {
		return ""
	}
	if s.Claimed {
		return "KAFKA_CLAIMED_PARTITIONS"
	}
	return "KAFKA_PARTITIONS"
}

// Redrivable reports whether a dead letter of this topic can be redriven: command-service must be its writer, since a
// redrive is a new command, which only a topic that keeps all of them can hold. Letters of other topics can only be discarded.
func (s Spec) Redrivable() bool { return s.Writer == Command && s.Kept == Forever }

// Package projectiontest holds every projection to what the engine promises: one suite of contracts, run for a definition
// on a real Kafka and a real Postgres.
//
// Each contract has a topic and a database of its own, fills the topic with samples, lets processes read it that are wired
// as app wires them, and compares the tables with what the records alone say must be there. What a definition does not
// have, derived tables for example, has no contract in its run.
package projectiontest

import (
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/tidemark/tidemark/consumer-service/internal/projection"
	"github.com/tidemark/tidemark/shared/await"
	"github.com/tidemark/tidemark/shared/kafka"
	"github.com/tidemark/tidemark/shared/topic"
)

// Record is one record of a projection's topic, before it is sent.
type Record struct {
	Key, Value []byte
	Headers    []kafka.Header
	// Identity names the key of the main table: two records have the same where theirs is the same.
	Identity string
	// Rejected is the reason code of the dead letter that the record becomes; empty where it can be applied.
	Rejected string
	// Expired says that the record is older than the projection keeps.
	Expired bool
	// Partition is where the record is sent, 0 and up; negative is the partition of its key.
	Partition int32
	// Logged is the record's log time, for a topic that takes it from the writer; the broker's clock unless given.
	Logged time.Time
}

// Samples make records of a definition's topic. Valid, Undecodable and Repeat are required; each of the others has its
// contract where it is given.
type Samples struct {
	Topic topic.Spec // what the definition reads; the suite gives it a name and counts of its own
	// Tables is SQL that makes the definition's tables; empty where a migration of this release does.
	Tables string
	// Valid makes a record that can be applied, of a main key that no other record has. Of several, some concern the same
	// rows of the derived tables. At is about the time at which it is sent.
	Valid func(r *rand.Rand, at time.Time) Record
	// Undecodable makes a record that cannot be read.
	Undecodable func(r *rand.Rand) Record
	// Repeat makes a record with the main key of another one, and other content.
	Repeat func(r *rand.Rand, of Record) Record
	// TooLong makes a record that can be read, and whose row Postgres refuses because a text is too long for its index.
	TooLong func(r *rand.Rand, at time.Time) Record
	// Unfoldable makes a record whose fold Postgres refuses, whatever was folded before; Doubtful makes one whose fold is
	// refused or not, as what was folded before says.
	Unfoldable, Doubtful func(r *rand.Rand, at time.Time) Record
	// At makes a record whose main key has this time, of a main table that is partitioned by day.
	At func(r *rand.Rand, at time.Time) Record
	// Stray makes a record whose key is not the one that its value says, of a keyed projection.
	Stray func(r *rand.Rand, at time.Time) Record
}

// Main runs a package's tests, more of them at once than there are processors, since they wait for sessions and ticks most
// of the time, and checks that they leave no goroutine behind.
func Main(m *testing.M) {
	await.SideBySide()
	goleak.VerifyTestMain(m)
}

// Run holds a definition to the contracts that apply to it. def makes the definition for a topic.
func Run(t *testing.T, def func(topic.Spec) *projection.Definition, samples Samples) {
	t.Helper()
	probe := def(samples.Topic)
	derived, keyed := len(probe.Derived) > 0, probe.Kind == projection.Keyed
	for _, c := range []struct {
		name    string
		applies bool
		holds   func(*testing.T, *stage)
	}{
		{"a writer that slept between reading and sending writes nothing that is there", true, aWriterThatSlept},
		{"a replay in any cuts gives the same bytes", true, aReplayInAnyCuts},
		{"what cannot be read is a dead letter, and what was decided stays rejected", true, deadLettersAndDecisions},
		{"of two records with one key the rule decides, in whatever order they are read", true, oneKeyInTwoRecords},
		{"another group name starts over", true, anotherNameStartsOver},
		{"a reset by Kafka's own tool starts over", true, kafkasResetStartsOver},
		{"a rebuild is proved, swapped and rolled back while records come in", true, rebuildSwapAndRollback},
		{"a proof names the key that a hand changed", true, aProofNamesWhatDiffers},
		{"a topic that was made anew is refused, or accepted into a generation of its own", true, aLogMadeAnew},
		{"an audit sees what is lost and what is too many", true, anAuditSees},
		{"a misplaced record is a dead letter", keyed, misplacedRecords},
		{"what is folded does not depend on the cuts", derived, foldsInAnyCuts},
		{"a record whose fold Postgres refuses leaves its place to the next one with its key", samples.Unfoldable != nil, refusedFolds},
		{"a text that is too long for its index is a dead letter", samples.TooLong != nil, textsTooLong},
		{"a key time that lies far ahead is a dead letter", samples.At != nil, timesFarAhead},
		{"a day is dropped once no partition can be given a record of it", probe.Retention > 0, retentionByDay},
		{"markers and aborted records are booked without asking what they are", probe.Topic.Transactional, transactions},
	} {
		if !c.applies {
			continue
		}
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			c.holds(t, newStage(t, def, samples))
		})
	}
}

// brokers are those of the Kafka that the tests use.
func brokers(t testing.TB) []string {
	t.Helper()
	named := os.Getenv("TEST_KAFKA_BROKERS")
	require.NotEmpty(t, named, "TEST_KAFKA_BROKERS must name a real Kafka: make test starts one")
	return strings.Split(named, ",")
}

// AnyPartition is the partition of a record's key.
const AnyPartition = -1

// Reasons of dead letters, for Record.Rejected.
const (
	Decode    = projection.ReasonDecode
	Misplaced = projection.ReasonMisplaced
	Time      = projection.ReasonTime
	Refused   = projection.ReasonRefused
)

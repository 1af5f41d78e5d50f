package projection

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/tidemark/tidemark/shared/kafka"
	"github.com/tidemark/tidemark/shared/position"
	"github.com/tidemark/tidemark/shared/topic"
)

// Refusal says that going on would make the tables of one projection wrong: this process leaves its group, having written
// nothing. Its text says what was found and what to do.
type Refusal struct {
	Reason string
	// Final says that the process itself must end: another group name has taken over, or a setting is wrong. Any other
	// refusal is of this projection alone, and the others go on.
	Final bool
	// Cause is what package kafka calls it, where it is about the topic; nil where it is not.
	Cause error
}

func (r *Refusal) Error() string { return r.Reason }

func (r *Refusal) Unwrap() error { return r.Cause }

func refuse(format string, args ...any) error { return &Refusal{Reason: fmt.Sprintf(format, args...)} }

// refuseLog is a refusal of the topic itself.
func refuseLog(cause error, format string, args ...any) error {
	return &Refusal{Reason: fmt.Sprintf(format, args...), Cause: cause}
}

func refuseFinally(format string, args ...any) error {
	return &Refusal{Reason: fmt.Sprintf(format, args...), Final: true}
}

// generation is the set of tables that is written, and under which name.
type generation struct {
	Database  uuid.UUID `db:"database_id"`
	Number    int       `db:"generation"`
	State     string    `db:"state"`
	Epoch     int64     `db:"epoch"`
	GroupName *string   `db:"group_name"`
	ClusterID *string   `db:"cluster_id"`
	TopicID   *string   `db:"topic_id"` // of the topic that it was computed from; nil until it was first read
	Now       time.Time `db:"now"`      // the database's clock when this was read
}

// metadata stands on every offset that this epoch commits to Kafka, so that one that an operator's tool has set is told
// from one of ours.
func (g generation) metadata() string {
	return fmt.Sprintf("%s%s %d", metadataPrefix, g.Database, g.Epoch)
}

const metadataPrefix = "tidemark "

// progress is how far one partition is.
type progress struct {
	Partition     int32      `db:"partition"`
	Epoch         int64      `db:"epoch"`
	FirstOffset   int64      `db:"first_offset"`
	NextOffset    int64      `db:"next_offset"`
	LastOffset    *int64     `db:"last_offset"`
	LastCreatedAt *time.Time `db:"last_created_at"`
	LastHash      *int64     `db:"last_record_hash"`
	CaughtUp      bool       `db:"caught_up"` // it was caught up at least once in this epoch
}

// naming is what a configured group name means for a generation.
type naming int

const (
	sameName  naming = iota // go on
	firstName               // nobody served yet
	newName                 // start over under it
)

// judgeName compares the configured group name with the one on record. served says whether the
// configured name ever served this database.
func judgeName(g generation, configured string, served bool) (naming, error) {
	switch {
	case g.GroupName == nil:
		return firstName, nil
	case *g.GroupName == configured:
		return sameName, nil
	case served:
		return 0, refuseFinally("KAFKA_GROUP_ID %q served this database before and was replaced by %q: to rebuild, use a fresh name; to go on, use %q", configured, *g.GroupName, *g.GroupName)
	default:
		return newName, nil
	}
}

// committed is what a group's committed offset says of a partition.
type committed int

const (
	committedOurs  committed = iota // or none: progress decides
	committedReset                  // an operator's tool has set it back: start over
	committedAhead                  // this database went back since, as a restored backup does: progress decides, under a new epoch
)

// judgeCommitted compares what a group has committed for a partition with the progress. An offset without Tidemark's
// metadata was set by Kafka's own tool.
func judgeCommitted(g generation, at position.Position, c kafka.Committed, next int64) (committed, error) {
	if c.Offset < 0 {
		return committedOurs, nil
	}
	epoch, ours, err := judgeMetadata(g, c)
	switch {
	case err != nil:
		return 0, err
	case ours && (epoch > g.Epoch || epoch == g.Epoch && c.Offset > next):
		return committedAhead, nil
	case ours || c.Offset == next:
		return committedOurs, nil
	case c.Offset < next:
		return committedReset, nil
	}
	return 0, refuse("the group's committed offset for %s/%d is %d and the projection is at %d: going on there would skip %d records; reset the group to earliest to rebuild, or delete the group's offsets to go on", at.Topic, at.Partition, c.Offset, next, c.Offset-next)
}

// judgeMetadata reports whether a committed offset was committed by Tidemark for this database, and under which epoch;
// another database's is refused.
func judgeMetadata(g generation, c kafka.Committed) (epoch int64, ours bool, err error) {
	rest, ok := strings.CutPrefix(c.Metadata, metadataPrefix)
	if !ok {
		return 0, false, nil
	}
	database, drawn, _ := strings.Cut(rest, " ")
	if database != g.Database.String() {
		return 0, false, refuse("the group's committed offset %d was committed for another database (%s, this one is %s): two databases must not share a group; give this one a KAFKA_GROUP_ID of its own", c.Offset, database, g.Database)
	}
	epoch, err = strconv.ParseInt(drawn, 10, 64)
	if err != nil { // not as this release writes it: it says nothing
		epoch = 0
	}
	return epoch, true, nil
}

// judgeCluster compares the cluster that answers with the one on record.
func judgeCluster(g generation, cluster string) error {
	if g.ClusterID != nil && *g.ClusterID != cluster {
		return refuseLog(&kafka.ClusterError{Wanted: *g.ClusterID, Found: cluster}, "this database was projected from cluster %s and the brokers belong to cluster %s: point KAFKA_BROKERS at the right cluster, or use an empty database", *g.ClusterID, cluster)
	}
	return nil
}

// judgeBounds compares the bounds of a partition's log with its progress. accepted is the start of the
// log that the operator has accepted, 0 unless told. Who starts over does not mind that records went
// between the progress and that start. Only a log that is kept forever must begin where it always did.
func judgeBounds(of topic.Spec, p progress, b kafka.Bounds, accepted int64, startsOver bool) error {
	at := fmt.Sprintf("%s/%d", of.Name, p.Partition)
	forever := of.Kept == topic.Forever
	switch {
	case forever && b.Start < accepted:
		return refuseFinally("%s starts at offset %d and ACCEPT_LOG_START names %d: going on there would skip %d records that are in the log; take the setting away or name the right offset", at, b.Start, accepted, accepted-b.Start)
	case forever && b.Start > accepted:
		return refuseLog(&kafka.TrimmedError{Topic: of.Name, Starts: map[int32]int64{p.Partition: b.Start}, Acceptable: true}, "%s starts at offset %d, not at %d: records were deleted from a log that is kept forever; if that is known and their loss accepted, set ACCEPT_LOG_START=%s@%d and restart: rows that are there stay", at, b.Start, accepted, at, b.Start)
	case p.NextOffset > b.Stable:
		return refuseLog(replaced(of), "%s ends at offset %d and the projection has read up to %d: this is not the log that it was computed from (was the topic deleted and created anew?); bring the log back, or start with an empty database and a fresh KAFKA_GROUP_ID", at, b.Stable, p.NextOffset)
	case forever && p.NextOffset < b.Start && !startsOver:
		return refuseLog(&kafka.TrimmedError{Topic: of.Name, Starts: map[int32]int64{p.Partition: b.Start}, Acceptable: true}, "%s starts at offset %d and the projection has read up to %d only: the records between are gone; rebuild under a fresh KAFKA_GROUP_ID with ACCEPT_LOG_START=%s@%d", at, b.Start, p.NextOffset, at, b.Start)
	}
	return nil
}

// replaced is a topic whose former id nobody has noted: its records tell that it is another one.
func replaced(of topic.Spec) error { return &kafka.IdentityError{Topic: of.Name, Found: "unknown"} }

// judgeLast compares the last record that was projected with what the log holds at its offset.
func judgeLast(of topic.Spec, p progress, r kafka.Record, found bool) error {
	at := position.Position{Topic: of.Name, Partition: p.Partition, Offset: *p.LastOffset}
	const advice = "this is not the log that the projection was computed from (was the topic deleted and created anew?); bring the log back, or start with an empty database and a fresh KAFKA_GROUP_ID"
	switch {
	case !found && of.Kept == topic.Compacted:
		return nil
	case !found:
		return refuseLog(replaced(of), "the last projected record, %s of %s, is not in the log: %s", at, p.LastCreatedAt.Format(time.RFC3339Nano), advice)
	case !r.Timestamp.Equal(*p.LastCreatedAt) || recordHash(r) != *p.LastHash:
		return refuseLog(replaced(of), "the record at %s is another than the one that was projected (log time %s, was %s): %s", at, r.Timestamp.Format(time.RFC3339Nano), p.LastCreatedAt.Format(time.RFC3339Nano), advice)
	}
	return nil
}

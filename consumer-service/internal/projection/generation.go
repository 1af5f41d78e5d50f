package projection

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/tidemark/tidemark/shared/kafka"
	"github.com/tidemark/tidemark/shared/position"
)

// Refusal says that going on would make the tables wrong: this process stops for good, having written
// nothing. Its text says what was found and what to do.
type Refusal struct{ Reason string }

func (r *Refusal) Error() string { return r.Reason }

func refuse(format string, args ...any) error { return &Refusal{fmt.Sprintf(format, args...)} }

// generation is the set of tables that is written, and under which name.
type generation struct {
	Database  uuid.UUID `db:"database_id"`
	Number    int       `db:"generation"`
	State     string    `db:"state"`
	Epoch     int64     `db:"epoch"`
	GroupName *string   `db:"group_name"`
	ClusterID *string   `db:"cluster_id"`
}

// mark is the metadata of every offset that this epoch commits to Kafka.
func (g generation) mark() string { return fmt.Sprintf("%s%s %d", markPrefix, g.Database, g.Epoch) }

const markPrefix = "tidemark "

// progress is how far one partition is.
type progress struct {
	Partition     int32      `db:"partition"`
	Epoch         int64      `db:"epoch"`
	FirstOffset   int64      `db:"first_offset"`
	NextOffset    int64      `db:"next_offset"`
	LastOffset    *int64     `db:"last_offset"`
	LastCreatedAt *time.Time `db:"last_created_at"`
	LastHash      *int64     `db:"last_record_hash"`
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
		return 0, refuse("KAFKA_GROUP_ID %q served this database before and was replaced by %q: to rebuild, use a fresh name; to go on, use %q", configured, *g.GroupName, *g.GroupName)
	default:
		return newName, nil
	}
}

// judgeCommitted compares what a group has committed for a partition with the progress. It reports
// true where an operator has reset the offsets by Kafka's own tool: they bear no mark and lie behind.
func judgeCommitted(g generation, at position.Position, c kafka.Committed, next int64) (startOver bool, err error) {
	if c.Offset < 0 {
		return false, nil
	}
	if marked, err := judgeMark(g, c); marked || err != nil {
		return false, err // ours; behind or ahead of a restored backup, progress decides
	}
	switch {
	case c.Offset < next:
		return true, nil
	case c.Offset > next:
		return false, refuse("the group's committed offset for %s/%d is %s and the projection is at %d: going on there would skip %d records; reset the group to earliest to rebuild, or delete the group's offsets to go on", at.Topic, at.Partition, strconv.FormatInt(c.Offset, 10), next, c.Offset-next)
	}
	return false, nil
}

// judgeMark reports whether a committed offset carries Tidemark's mark; another database's is refused.
func judgeMark(g generation, c kafka.Committed) (bool, error) {
	rest, ok := strings.CutPrefix(c.Metadata, markPrefix)
	if !ok {
		return false, nil
	}
	if database, _, _ := strings.Cut(rest, " "); database != g.Database.String() {
		return false, refuse("the group's committed offset %d carries the mark of another database (%s, this one is %s): two databases must not share a group; give this one a KAFKA_GROUP_ID of its own", c.Offset, database, g.Database)
	}
	return true, nil
}

// judgeCluster compares the cluster that answers with the one on record.
func judgeCluster(g generation, cluster string) error {
	if g.ClusterID != nil && *g.ClusterID != cluster {
		return refuse("this database was projected from cluster %s and the brokers belong to cluster %s: point KAFKA_BROKERS at the right cluster, or use an empty database", *g.ClusterID, cluster)
	}
	return nil
}

// judgeBounds compares the bounds of a partition's log with its progress. accepted is the start of the
// log that the operator has accepted, 0 unless told. Who starts over does not mind that records went
// between the progress and that start.
func judgeBounds(topic string, p progress, b kafka.Bounds, accepted int64, startsOver bool) error {
	at := fmt.Sprintf("%s/%d", topic, p.Partition)
	switch {
	case b.Start < accepted:
		return refuse("%s starts at offset %d and ACCEPT_LOG_START names %d: going on there would skip %d records that are in the log; take the setting away or name the right offset", at, b.Start, accepted, accepted-b.Start)
	case b.Start > accepted:
		return refuse("%s starts at offset %d, not at %d: records were deleted from a log that is kept forever; if that is known and their loss accepted, set ACCEPT_LOG_START=%s@%d and rebuild under a fresh KAFKA_GROUP_ID", at, b.Start, accepted, at, b.Start)
	case p.NextOffset > b.Stable:
		return refuse("%s ends at offset %d and the projection has read up to %d: this is not the log that it was computed from (was the topic deleted and created anew?); bring the log back, or start with an empty database and a fresh KAFKA_GROUP_ID", at, b.Stable, p.NextOffset)
	case p.NextOffset < b.Start && !startsOver:
		return refuse("%s starts at offset %d and the projection has read up to %d only: the records between are gone; rebuild under a fresh KAFKA_GROUP_ID with ACCEPT_LOG_START=%s@%d", at, b.Start, p.NextOffset, at, b.Start)
	}
	return nil
}

// judgeLast compares the last record that was projected with what the log holds at its offset.
func judgeLast(topic string, p progress, r kafka.Record, found bool) error {
	at := position.Position{Topic: topic, Partition: p.Partition, Offset: *p.LastOffset}
	const advice = "this is not the log that the projection was computed from (was the topic deleted and created anew?); bring the log back, or start with an empty database and a fresh KAFKA_GROUP_ID"
	switch {
	case !found:
		return refuse("the last projected record, %s of %s, is not in the log: %s", at, p.LastCreatedAt.Format(time.RFC3339Nano), advice)
	case !r.Timestamp.Equal(*p.LastCreatedAt) || recordHash(r) != *p.LastHash:
		return refuse("the record at %s is another than the one that was projected (log time %s, was %s): %s", at, r.Timestamp.Format(time.RFC3339Nano), p.LastCreatedAt.Format(time.RFC3339Nano), advice)
	}
	return nil
}

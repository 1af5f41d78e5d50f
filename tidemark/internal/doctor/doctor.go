// Package doctor checks everything that a running Tidemark depends on, and says of each thing what was found and what to
// do about it. It changes nothing.
//
// The checks of each server have a deadline of their own, so that one server that hangs does not hide what is wrong with
// another. How findings are shown, and with which status the program ends, is left to the command line.
package doctor

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/tidemark/tidemark/shared/config"
	"github.com/tidemark/tidemark/shared/kafka"
	"github.com/tidemark/tidemark/shared/logid"
	"github.com/tidemark/tidemark/shared/postgres"
	"github.com/tidemark/tidemark/shared/schema"
	"github.com/tidemark/tidemark/shared/service"
	"github.com/tidemark/tidemark/shared/topic"
	"github.com/tidemark/tidemark/tidemark/internal/client"
)

// Status of a finding.
type Status string

// OK needs nothing, Warn should be looked at, Fail keeps Tidemark from its promises.
const (
	OK   Status = "ok"
	Warn Status = "warn"
	Fail Status = "fail"
)

// Finding is one thing that was looked at. Do is what to do, empty where nothing needs to be.
type Finding struct {
	Check  string `json:"check"`
	Status Status `json:"status"`
	Found  string `json:"found"`
	Do     string `json:"do,omitempty"`
}

const (
	timeout   = 10 * time.Second // of the checks of one server
	drift     = 2 * time.Second  // between two clocks, from which on a finding warns of it
	mostAhead = 5 * time.Minute  // from which on the door refuses tickets as too far ahead
)

// Installation is what is checked.
type Installation struct {
	Mistakes []error                    // the mistakes of the configuration
	Kafka    config.Kafka               // where the brokers are
	Starts   map[string]map[int32]int64 // by topic and partition, where ACCEPT_LOG_START accepts that a log starts
	Postgres config.Postgres            // where the database is
	Services *client.Client             // calls the services; nil where their addresses are mistaken, and then they are left out
}

// Examine checks everything, and calls got with each finding as soon as it is made.
func Examine(ctx context.Context, p Installation, got func(Finding)) {
	for _, m := range p.Mistakes {
		got(Finding{"configuration", Fail, m.Error(), "correct the environment; docs/configuration.md lists every variable"})
	}
	if len(p.Mistakes) == 0 {
		got(Finding{Check: "configuration", Status: OK, Found: "every variable is understood"})
	}
	if p.Services != nil {
		services(ctx, p.Services, got)
	}
	cluster := broker(ctx, p, got)
	database(ctx, p.Postgres, cluster, got)
}

func services(ctx context.Context, c *client.Client, got func(Finding)) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	for _, s := range c.Ready(ctx) {
		switch {
		case s.Ready:
			got(Finding{Check: s.Name, Status: OK, Found: "ready at " + s.URL})
		case s.Error != "":
			got(Finding{s.Name, Fail, s.Error, "start it, or name where it is: " + variable(s.Name) + " (tidemark up starts everything on this machine)"})
		default:
			got(Finding{s.Name, Fail, strings.Join(s.Reasons(), "; "), "mend what it names; it goes on by itself then"})
		}
	}
	for name, ahead := range c.Clocks(ctx) {
		clock("clock of "+name, ahead, 2*drift, got) // HTTP tells whole seconds
	}
}

// variable names the setting that says where a service is.
func variable(name string) string {
	s, _ := service.ByName(name) // the client knows those of the table only
	return s.URLVariable()
}

// clock judges how far another clock is ahead of this one.
func clock(check string, ahead, tolerated time.Duration, got func(Finding)) {
	off := ahead.Abs()
	words := fmt.Sprintf("%s behind this machine's", off.Round(time.Millisecond))
	if ahead > 0 {
		words = fmt.Sprintf("%s ahead of this machine's", off.Round(time.Millisecond))
	}
	const do = "have one time service (chrony, ntpd) keep the clocks of all machines: tickets, audits and waits depend on it"
	switch {
	case off > mostAhead:
		got(Finding{check, Fail, words + "; the door refuses tickets made so far ahead", do})
	case off > tolerated:
		got(Finding{check, Warn, words, do})
	default:
		got(Finding{Check: check, Status: OK, Found: "within " + tolerated.String() + " of this machine's"})
	}
}

// broker looks at the log and returns the cluster's id, "" where none answers.
func broker(ctx context.Context, p Installation, got func(Finding)) string {
	c := p.Kafka
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	r := kafka.NewReader(c, "tidemark-doctor")
	defer func() { _ = r.Close() }() // nothing was written
	where := strings.Join(c.Brokers, ",")
	cluster, err := r.ClusterID(ctx)
	if err != nil {
		cause, _ := kafka.CauseOf(err)
		got(Finding{"broker", Fail, fmt.Sprintf("no broker can be asked at %s: %s", where, cause.Found), cause.Do})
		return ""
	}
	if c.ClusterID != "" && cluster != c.ClusterID {
		got(Finding{"broker", Fail, (&kafka.ClusterError{Wanted: c.ClusterID, Found: cluster}).Error(), "mend the one of the two that is wrong: no service takes that cluster's log"})
		return cluster
	}
	got(Finding{Check: "broker", Status: OK, Found: fmt.Sprintf("cluster %s answers at %s", cluster, where)})
	asker := logid.NewAsker(c, "tidemark-doctor")
	defer func() { _ = asker.Close() }() // nothing was written
	known := logid.NewBook(logid.Options{Reader: r, Asker: asker, Topic: topic.LogIdentity.Sized(c)})
	for _, t := range topic.All() {
		if err := known.SameLog(ctx, t.Name); kafka.IsOtherLog(err) {
			got(Finding{"topic " + t.Name, Fail, err.Error(), "see docs/runbook.md, The log was replaced"})
			continue
		}
		examineTopic(ctx, r, t.Sized(c), p.Starts[t.Name], got)
	}
	return cluster
}

func examineTopic(ctx context.Context, r *kafka.Reader, t topic.Spec, accepted map[int32]int64, got func(Finding)) {
	check := "topic " + t.Name
	if _, err := r.Partitions(ctx, t.Name); errors.Is(err, kafka.ErrNoTopic) {
		got(Finding{check, Warn, "it is not there", fmt.Sprintf("start %s-service: it makes the topic with the settings it needs", t.Writer)})
		return
	}
	err := r.Check(ctx, t)
	var guard *kafka.GuardError
	switch {
	case errors.As(err, &guard):
		for _, f := range guard.Faults {
			do := fmt.Sprintf("kafka-configs.sh --alter --entity-type topics --entity-name %s --add-config %s=%s", t.Name, f.Setting, strings.TrimPrefix(f.Wanted, "at least "))
			if strings.Contains(f.Setting, " ") { // the number of partitions is no setting
				do = "a topic that has grown has moved its keys, and cannot be shrunk"
				if by := t.CountVariable(); by != "" {
					do = fmt.Sprintf("set %s=%s for every service if the topic is as it should be; ", by, f.Found) + do
				}
			}
			got(Finding{check, Fail, fmt.Sprintf("%s must be %s and is %s: %s", f.Setting, f.Wanted, f.Found, f.Why), do})
		}
	case err != nil:
		got(Finding{check, Fail, err.Error(), "let the client describe topics and their settings, and try again"})
		return
	default:
		got(Finding{Check: check, Status: OK, Found: fmt.Sprintf("%d partitions, %s, cannot lose what was acknowledged", t.Partitions, keeps(t))})
	}
	examineStart(ctx, r, t, accepted, got)
	n, err := r.Partitions(ctx, t.Name)
	if err != nil {
		return // said already, or gone this moment
	}
	partitions := make([]int32, n)
	for i := range partitions {
		partitions[i] = int32(i)
	}
	soon := time.Now().Add(drift)
	ahead, err := r.FirstStampedFrom(ctx, t.Name, partitions, soon)
	if err != nil {
		return
	}
	for p, offset := range ahead {
		if offset >= 0 {
			got(Finding{"clock of the broker", Warn, fmt.Sprintf("%s/%d@%d bears a time after %s, in the future: the broker's clock is ahead of this machine's, or was", t.Name, p, offset, soon.UTC().Format(time.RFC3339)), "have one time service (chrony, ntpd) keep the clocks of all machines"})
			return
		}
	}
	got(Finding{Check: "clock of the broker", Status: OK, Found: "no record of " + t.Name + " bears a time in the future"})
}

// examineStart judges where a log that is kept forever starts as consumer-service does when it starts.
func examineStart(ctx context.Context, r *kafka.Reader, t topic.Spec, accepted map[int32]int64, got func(Finding)) {
	if accepted == nil && t.Name != topic.DeadLetterCommand.Name { // of that one no loss can be accepted
		accepted = map[int32]int64{}
	}
	var trimmed *kafka.TrimmedError
	if err := r.CheckStart(ctx, t, accepted); errors.As(err, &trimmed) {
		got(Finding{"topic " + t.Name, Fail, trimmed.Error(), "find out who deleted the records before anything is restarted: see docs/runbook.md, The log was trimmed"})
	}
	bounds, err := r.Bounds(ctx, t.Name, slices.Sorted(maps.Keys(accepted)))
	if err != nil {
		return // said already, or gone this moment
	}
	for _, p := range slices.Sorted(maps.Keys(accepted)) {
		if start := bounds[p].Start; start < accepted[p] {
			got(Finding{"topic " + t.Name, Fail, fmt.Sprintf("%s/%d starts at offset %d and ACCEPT_LOG_START names %d: consumer-service ends at its start, since it would skip %d records that are in the log", t.Name, p, start, accepted[p], accepted[p]-start), "take the setting away or name the right offset"})
		}
	}
}

// keeps says in words how long the log keeps t.
func keeps(t topic.Spec) string {
	switch t.Kept {
	case topic.Expiring:
		return fmt.Sprintf("kept for %d days", int(t.Retention.Hours()/24))
	case topic.Compacted:
		return "the newest record of each key kept"
	default:
		return "kept forever"
	}
}

func database(ctx context.Context, c config.Postgres, cluster string, got func(Finding)) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	db, err := postgres.Open(c, "tidemark-doctor", postgres.ReaderLimits)
	if err != nil {
		got(Finding{"database", Fail, err.Error(), "correct DB_URL"})
		return
	}
	defer db.Close()
	where := config.MaskURL(c.URL)
	var now struct {
		Clock   time.Time `db:"clock"`
		Version string    `db:"version"`
		Fsync   string    `db:"fsync"`
	}
	asked := time.Now()
	if err := db.GetContext(ctx, &now, `SELECT clock_timestamp() AS clock, current_setting('server_version') AS version, current_setting('fsync') AS fsync`); err != nil {
		cause := postgres.CauseOf(err)
		got(Finding{"database", Fail, fmt.Sprintf("%s: %s (%v)", where, cause.Found, err), cause.Do})
		return
	}
	half := time.Since(asked) / 2
	got(Finding{Check: "database", Status: OK, Found: fmt.Sprintf("PostgreSQL %s answers at %s", now.Version, where)})
	clock("clock of the database", now.Clock.Sub(asked.Add(half)), drift, got)
	if now.Fsync != "on" {
		got(Finding{"database fsync", Warn, "it is off: a power cut may break the database", "set fsync = on, unless losing it is nothing (the log has everything: tidemark rebuild)"})
	}
	if err := postgres.CheckFit(ctx, db, true); err != nil {
		cause := postgres.CauseOf(err)
		got(Finding{"database", Fail, cause.Found, cause.Do})
		return
	}
	tables(ctx, db, cluster, got)
}

// tables looks at the schema, and whether it was filled from the cluster that answers.
func tables(ctx context.Context, db *sqlx.DB, cluster string, got func(Finding)) {
	version, err := schema.Version(ctx, db)
	switch {
	case err != nil:
		got(Finding{"schema", Fail, err.Error(), "let the user of DB_URL read goose_db_version"})
		return
	case version == 0:
		got(Finding{"schema", Warn, "the database is empty", "start consumer-service: it makes the tables and fills them from the log"})
		return
	case version < schema.Wanted:
		got(Finding{"schema", Warn, fmt.Sprintf("it is at version %d and this release wants %d", version, schema.Wanted), "start this release's consumer-service: it migrates the database"})
		return
	case version > schema.Wanted:
		got(Finding{"schema", Fail, fmt.Sprintf("it is at version %d and this release knows %d", version, schema.Wanted), "run the release that migrated it, or a newer one"})
		return
	}
	var on struct {
		Database string `db:"database_id"`
		Groups   string `db:"groups"`
		Known    int    `db:"known"`   // projections whose cluster is known
		Foreign  string `db:"foreign"` // those that another cluster was read for
	}
	err = db.GetContext(ctx, &on, `
SELECT i.database_id,
       coalesce(string_agg(g.projection || ' by group ' || g.group_name, ', ' ORDER BY g.projection) FILTER (WHERE g.group_name <> ''), 'nothing projected yet') AS groups,
       count(g.cluster_id) AS known,
       coalesce(string_agg(g.projection || ' from cluster ' || g.cluster_id, ', ' ORDER BY g.projection) FILTER (WHERE g.cluster_id <> $1), '') AS foreign
FROM public.database_identity i
LEFT JOIN public.projection_generations g ON g.state IN ('serving', 'swapping')
GROUP BY i.database_id`, cluster)
	if err != nil {
		got(Finding{"schema", Fail, err.Error(), "let the user of DB_URL read the tables in public"})
		return
	}
	got(Finding{Check: "schema", Status: OK, Found: fmt.Sprintf("version %d, database %s, %s", version, on.Database, on.Groups)})
	if cluster == "" || on.Known == 0 {
		return
	}
	if on.Foreign != "" {
		got(Finding{"same log", Fail, fmt.Sprintf("KAFKA_BROKERS names cluster %s, and these tables were made from another: %s", cluster, on.Foreign), "point KAFKA_BROKERS or DB_URL at its partner; to make the tables from this log, give consumer-service an empty database"})
		return
	}
	got(Finding{Check: "same log", Status: OK, Found: "the tables were made from the cluster that answers"})
}

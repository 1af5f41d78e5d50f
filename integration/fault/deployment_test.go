package fault_test

import (
	"context"
	"database/sql"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/integration/stack"
	"github.com/tidemark/tidemark/integration/story"
)

// deploymentKinds are the databases that the log is projected into at the same time. Small batches make many transactions, and so many moments between
// two of them.
var deploymentKinds = []struct {
	name   string
	batch  string
	static bool // members with an instance id: back under it within moments instead of after the session
}{{"a", "5000", false}, {"b", "40", false}, {"c", "7", false}, {"d", "200", true}, {"e", "3", true}}

func deploymentProxies() []string {
	var names []string
	for _, k := range deploymentKinds {
		names = append(names, k.name+"0", k.name+"1")
	}
	return names
}

// deployment is a database, a group name and two consumers that project both topics into it, each with a proxy to Kafka and one
// to Postgres. A third consumer visits now and then.
type deployment struct {
	name       string
	group      string
	static     bool
	story      *story.Story
	db         *sql.DB
	timestamps *judge
	endpoints  *judge
	members    [2]*member
	visitor    *stack.Service

	took time.Duration // by the last settle
}

// judge compares one projection of a deployment with its log.
type judge struct {
	story.Projection
	group string
	log   *story.Log
	db    *sql.DB

	mu      sync.Mutex // guards what has been compared so far
	oracle  *story.Oracle
	keys    map[string]string // by position, of the records read
	upTo    story.Vector
	tickets int
}

func newJudge(l *deployment, p story.Projection, group string) *judge {
	return &judge{
		Projection: p, group: group, log: l.story.Log.On(p.Topic), db: l.db,
		oracle: story.NewOracle(p, story.Rules{}), keys: map[string]string{}, upTo: story.Vector{},
	}
}

func (l *deployment) judges() []*judge { return []*judge{l.timestamps, l.endpoints} }

type member struct {
	name      string
	service   *stack.Service
	kafka, db *stack.Proxy
}

func newDeployment(t *testing.T, s *story.Story, i int) *deployment {
	kind := deploymentKinds[i]
	db, url := s.Database()
	db.SetMaxOpenConns(4)
	l := &deployment{name: kind.name, group: s.Group + "-" + kind.name, static: kind.static, story: s, db: db}
	l.timestamps, l.endpoints = newJudge(l, story.Timestamps, l.group), newJudge(l, story.Endpoints, l.group+".endpoints")
	env := map[string]string{
		"KAFKA_GROUP_ID": l.group, "BATCH_SIZE": kind.batch, "AUDIT_INTERVAL": "300ms",
	}
	for m := range l.members {
		name := fmt.Sprint(kind.name, m)
		proxy, err := stack.StartProxy(t.Context(), s.Postgres.Address())
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, proxy.Close()) })
		env["KAFKA_BROKERS"] = s.Kafka.Proxy(name).Address()
		env["DB_URL"], err = stack.Through(proxy, url)
		require.NoError(t, err)
		if kind.static {
			env["KAFKA_GROUP_INSTANCE_ID"] = name
		}
		l.members[m] = &member{name: name, service: s.Service("consumer-service", env), kafka: s.Kafka.Proxy(name), db: proxy}
	}
	env["KAFKA_BROKERS"], env["DB_URL"] = s.Kafka.Brokers()[0], url
	delete(env, "KAFKA_GROUP_INSTANCE_ID")
	l.visitor = s.Service("consumer-service", env)
	require.NoError(t, l.visitor.Kill()) // it comes later
	return l
}

func (l *deployment) pick(r *rand.Rand) *member { return l.members[r.IntN(len(l.members))] }

// running is an error where a consumer has ended: no fault is a reason to.
func (l *deployment) running() error {
	for _, m := range l.members {
		if !m.service.Running() {
			return fmt.Errorf("consumer %s has ended by itself", m.name)
		}
	}
	return nil
}

// settle waits until both projections have passed those ends of their logs, by topic, and compares everything: tables,
// tickets, audit.
func (l *deployment) settle(ctx context.Context, ends map[string]story.Vector, given []ticket) error {
	for _, j := range l.judges() {
		err := j.passed(ctx, l, ends[j.Topic])
		if err == nil {
			err = j.compare(ctx)
		}
		if err == nil {
			err = j.check(given)
		}
		if err == nil {
			err = j.CleanAudit(ctx, l.db)
		}
		if err != nil {
			return fmt.Errorf("deployment %s, %s: %w", l.name, j.Name, err)
		}
	}
	return nil
}

// passed waits until the timestamps have passed those ends of the log.
func (l *deployment) passed(ctx context.Context, ends story.Vector) error {
	return l.timestamps.passed(ctx, l, ends)
}

// compare compares both projections as they are at this moment.
func (l *deployment) compare(ctx context.Context) error {
	for _, j := range l.judges() {
		if err := j.compare(ctx); err != nil {
			return fmt.Errorf("%s: %w", j.Name, err)
		}
	}
	return nil
}

func (j *judge) passed(ctx context.Context, l *deployment, ends story.Vector) error {
	return story.Eventually(ctx, "wait for the projection", func(ctx context.Context) error {
		if err := l.running(); err != nil {
			return story.Final(err)
		}
		at, err := j.Progress(ctx, j.db)
		if err != nil {
			return err
		}
		for p, end := range ends {
			if at[p] < end {
				return fmt.Errorf("partition %d is at %d and the log ends at %d", p, at[p], end)
			}
		}
		return nil
	})
}

// compare requires that the tables are, in one snapshot, what the log says up to the progress that they name. That is
// true at any moment, in the middle of a fault too.
func (j *judge) compare(ctx context.Context) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	var dump story.Dump
	if err := story.Eventually(ctx, "dump the tables", func(ctx context.Context) (err error) {
		dump, err = j.ReadDump(ctx, j.db)
		return err
	}); err != nil {
		return err
	}
	upTo, err := dump.UpTo()
	if err != nil {
		return err
	}
	for p, was := range j.upTo {
		if upTo[p] < was {
			return fmt.Errorf("the progress of partition %d went back from %d to %d", p, was, upTo[p])
		}
	}
	var records []story.Record
	if err := story.Eventually(ctx, "read the log", func(ctx context.Context) (err error) {
		records, err = j.log.ReadFrom(ctx, j.upTo, upTo)
		return err
	}); err != nil {
		return err
	}
	j.oracle.Add(records...)
	for _, r := range records {
		j.keys[r.Position()] = string(r.Key)
	}
	j.upTo = upTo
	return j.oracle.Expected().Compare(upTo, dump)
}

// check requires that every ticket of this topic has its row, and its record at the position that was given with it. That
// the row is the only one, the table's key says; that it is right, compare does.
func (j *judge) check(given []ticket) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	var lost []string
	for _, t := range given[j.tickets:] {
		if !strings.HasPrefix(t.position, j.Topic+"/") {
			continue
		}
		if !j.oracle.Has(t.id) || j.keys[t.position] != t.key {
			lost = append(lost, fmt.Sprintf("%s at %s, where the key is %q", t.id, t.position, j.keys[t.position]))
		}
	}
	j.tickets = len(given)
	if len(lost) > 0 {
		return fmt.Errorf("%d tickets were given and have no row, or not their record:\n%s", len(lost), strings.Join(lost, "\n"))
	}
	return nil
}

// serving waits until both consumers own partitions.
func (l *deployment) serving(ctx context.Context) error {
	return story.Eventually(ctx, "wait for both consumers", func(ctx context.Context) error {
		groups, err := l.story.Log.Admin().DescribeConsumerGroups([]string{l.group})
		if err != nil {
			return err
		}
		owners := 0
		for _, m := range groups[0].Members {
			if a, err := m.GetMemberAssignment(); err == nil && a != nil && len(a.Topics[story.Topic]) > 0 {
				owners++
			}
		}
		if groups[0].State != "Stable" || owners != len(l.members) {
			return fmt.Errorf("the group is %s with %d owners", groups[0].State, owners)
		}
		for _, m := range l.members {
			if !m.service.IsReady(ctx) {
				return fmt.Errorf("consumer %s is not ready", m.name)
			}
		}
		return nil
	})
}

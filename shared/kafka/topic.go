package kafka

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/Shopify/sarama"

	"github.com/tidemark/tidemark/shared/topic"
)

// GuardError says that a topic could lose or move what it holds. Nothing but a change of the topic
// (or of the configuration) mends it, so a service that finds it at its start refuses to start.
type GuardError struct {
	Topic  string
	Faults []Fault
}

// Fault is one setting of a topic that is not as it must be.
type Fault struct{ Setting, Wanted, Found, Why string }

func (e *GuardError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "topic %s is not safe to rely on:", e.Topic)
	for i, f := range e.Faults {
		if i > 0 {
			b.WriteByte(';')
		}
		fmt.Fprintf(&b, " %s must be %s and is %s (%s)", f.Setting, f.Wanted, f.Found, f.Why)
	}
	return b.String()
}

const (
	cleanupPolicy   = "cleanup.policy"
	retentionTime   = "retention.ms"
	timestampType   = "message.timestamp.type"
	uncleanElection = "unclean.leader.election.enable"
	minInSync       = "min.insync.replicas"
	mostRecordBytes = "max.message.bytes"
)

// leastRecordBytes is what a topic must take: a body of 64 KiB with its headers, and room. Batches are cut to what it takes.
const leastRecordBytes = 128 << 10

// setting is one setting that a topic must have, and why.
type setting struct {
	name, value, why string
	atLeast          bool // a number above value, or -1 for no limit, is as good
}

func (s setting) wanted() string {
	if s.atLeast {
		return "at least " + s.value
	}
	return s.value
}

func (s setting) holds(found string) bool {
	if !s.atLeast {
		return found == s.value
	}
	least, _ := strconv.ParseInt(s.value, 10, 64) // written by this package
	n, err := strconv.ParseInt(found, 10, 64)
	return err == nil && (n == -1 || n >= least)
}

// guarded are the settings that decide whether the topic keeps what it promises. A topic that expires is nobody's truth:
// only its times, its elections and the least age of what it drops matter.
func guarded(t topic.Spec) []setting {
	all := []setting{
		{name: timestampType, value: "LogAppendTime", why: "a record's time must be the log's own, so that a rebuild gives the same"},
		{name: uncleanElection, value: "false", why: "a replica that lags could become leader and lose acknowledged records"},
		{name: mostRecordBytes, value: strconv.Itoa(leastRecordBytes), atLeast: true, why: "records of the sizes that are accepted would be refused"},
	}
	switch t.Kept {
	case topic.Compacted:
		return append(all, setting{name: cleanupPolicy, value: "compact", why: "the newest record of each key must stay, and records that it replaces must go"})
	case topic.Expiring:
		return append(all, setting{
			name: retentionTime, value: strconv.FormatInt(t.Retention.Milliseconds(), 10), atLeast: true,
			why: "records would expire before those who need them are done",
		})
	default:
		return append(all,
			setting{name: cleanupPolicy, value: "delete", why: "compaction drops all but the newest record of a key"},
			setting{name: retentionTime, value: "-1", why: "records would expire"},
			setting{name: "retention.bytes", value: "-1", why: "old records would be deleted as new ones come"})
	}
}

// Ensure makes sure that the topic is there: it is created with every setting that Check wants, and one that is there
// already, or that another service makes at the same moment, is left as it is. An error means that the broker did not
// answer or refused to create the topic.
func (r *Reader) Ensure(ctx context.Context, t topic.Spec) error {
	_, err := ask(ctx, r, func(c sarama.Client) (struct{}, error) { return struct{}{}, ensure(ctx, c, t) })
	return err
}

func ensure(ctx context.Context, c sarama.Client, t topic.Spec) error {
	settings := map[string]*string{}
	for _, s := range guarded(t) {
		if s.name != mostRecordBytes { // the brokers' own is larger, unless somebody made it smaller
			settings[s.name] = &s.value
		}
	}
	if policy := "delete"; t.Kept == topic.Expiring {
		settings[cleanupPolicy] = &policy
	}
	// The admin is not closed: closing it would close the client, which is the reader's.
	admin, err := sarama.NewClusterAdminFromClient(c)
	if err != nil {
		return fmt.Errorf("create topic %s: %w", t.Name, err)
	}
	if err := c.RefreshMetadata(t.Name); err == nil || ctx.Err() != nil {
		return ctx.Err()
	}
	if two := "2"; t.ReplicationFactor > 1 {
		settings[minInSync] = &two
	}
	detail := &sarama.TopicDetail{NumPartitions: int32(t.Partitions), ReplicationFactor: int16(t.ReplicationFactor), ConfigEntries: settings}
	err = admin.CreateTopic(t.Name, detail, false)
	if errors.Is(err, sarama.ErrInvalidConfig) {
		// A broker without elections (the embedded one) does not know this setting.
		delete(settings, uncleanElection)
		err = admin.CreateTopic(t.Name, detail, false)
	}
	if err != nil && !errors.Is(err, sarama.ErrTopicAlreadyExists) {
		return fmt.Errorf("create topic %s: %w", t.Name, err)
	}
	return nil
}

// Check is the guard: a *GuardError names every setting of the topic that could lose records, move keys or give a record
// another time than the log's. Any other error means that the broker did not answer, which says nothing about the topic.
func (r *Reader) Check(ctx context.Context, t topic.Spec) error {
	faults, err := ask(ctx, r, func(c sarama.Client) ([]Fault, error) { return check(c, t) })
	if err == nil && len(faults) > 0 {
		err = &GuardError{Topic: t.Name, Faults: faults}
	}
	return err
}

func check(c sarama.Client, t topic.Spec) ([]Fault, error) {
	b, err := anyBroker(c)
	if err != nil {
		return nil, err
	}
	partitions, replicas, err := describe(b, t.Name)
	if err != nil {
		return nil, err
	}
	res, err := b.DescribeConfigs(&sarama.DescribeConfigsRequest{Version: 2, Resources: []*sarama.ConfigResource{{Type: sarama.TopicResource, Name: t.Name}}})
	if err != nil {
		_ = b.Close()
		return nil, fmt.Errorf("ask for the settings of %s: %w", t.Name, err)
	}
	found := map[string]string{}
	for _, resource := range res.Resources {
		if code := sarama.KError(resource.ErrorCode); code != sarama.ErrNoError {
			return nil, fmt.Errorf("ask for the settings of %s: %w", t.Name, code)
		}
		for _, entry := range resource.Configs {
			found[entry.Name] = entry.Value
		}
	}
	return judge(t, partitions, replicas, found), nil
}

// describe returns the topic's count of partitions and the most replicas that one of them has.
func describe(b *sarama.Broker, name string) (partitions, replicas int, err error) {
	res, err := b.GetMetadata(&sarama.MetadataRequest{Version: 5, Topics: []string{name}})
	if err != nil {
		_ = b.Close()
		return 0, 0, fmt.Errorf("ask for the partitions of %s: %w", name, err)
	}
	for _, m := range res.Topics {
		if m.Name != name {
			continue
		}
		if m.Err != sarama.ErrNoError && m.Err != sarama.ErrLeaderNotAvailable {
			return 0, 0, fmt.Errorf("ask for the partitions of %s: %w", name, m.Err)
		}
		for _, p := range m.Partitions {
			replicas = max(replicas, len(p.Replicas))
		}
		return len(m.Partitions), replicas, nil
	}
	return 0, 0, fmt.Errorf("ask for the partitions of %s: %w", name, sarama.ErrIncompleteResponse)
}

func judge(t topic.Spec, partitions, replicas int, found map[string]string) []Fault {
	var faults []Fault
	if partitions != t.Partitions {
		why := "another count moves keys to other partitions"
		if by := t.CountVariable(); by != "" {
			why += "; " + by + " says what is wanted"
		}
		faults = append(faults, Fault{
			Setting: "the number of partitions", Wanted: strconv.Itoa(t.Partitions), Found: strconv.Itoa(partitions),
			Why: why,
		})
	}
	for _, s := range guarded(t) {
		value, known := found[s.name]
		if s.holds(value) || !known && (s.name == uncleanElection || s.name == mostRecordBytes) { // a broker without elections has none that are unclean
			continue
		}
		if !known {
			value = "not known to the broker"
		}
		faults = append(faults, Fault{Setting: s.name, Wanted: s.wanted(), Found: value, Why: s.why})
	}
	if replicas > 1 && t.Kept != topic.Expiring {
		if n, err := strconv.Atoi(found[minInSync]); err != nil || n < 2 {
			faults = append(faults, Fault{
				Setting: minInSync, Wanted: "at least 2", Found: found[minInSync],
				Why: "with " + strconv.Itoa(replicas) + " replicas an acknowledged record could stand on one broker only and be lost with it",
			})
		}
	}
	return faults
}

package kafka

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/Shopify/sarama"
)

// TopicSpec is a topic as a service wants it.
type TopicSpec struct {
	Name              string
	Partitions        int // any other count is refused: it would move keys
	ReplicationFactor int // of a topic that is created; one that is there keeps its own
}

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

// forever are the settings of a topic that is the truth, and why each is needed.
var forever = []Fault{
	{Setting: "cleanup.policy", Wanted: "delete", Why: "compaction drops all but the newest record of a key"},
	{Setting: "retention.ms", Wanted: "-1", Why: "records would expire"},
	{Setting: "retention.bytes", Wanted: "-1", Why: "old records would be deleted as new ones come"},
	{Setting: "message.timestamp.type", Wanted: "LogAppendTime", Why: "a record's time must be the log's own, so that a rebuild gives the same"},
	{Setting: uncleanElection, Wanted: "false", Why: "a replica that lags could become leader and lose acknowledged records"},
}

const (
	uncleanElection = "unclean.leader.election.enable"
	minInSync       = "min.insync.replicas"
)

// EnsureForever makes sure that the topic is there: it is created with every setting that CheckForever
// wants, and one that is there already, or that another service makes at the same moment, is left as
// it is. An error means that the broker did not answer or refused to create the topic.
func (r *Reader) EnsureForever(_ context.Context, t TopicSpec) error {
	settings := make(map[string]*string, len(forever)+1)
	for _, f := range forever {
		settings[f.Setting] = &f.Wanted
	}
	return r.ensure(t, settings)
}

// EnsureExpiring makes sure that a topic is there whose records may go after retention: nobody's truth,
// so nobody guards it. Like EnsureForever it leaves one that is there as it is.
func (r *Reader) EnsureExpiring(_ context.Context, t TopicSpec, retention time.Duration) error {
	policy, kept, stamp, unclean := "delete", strconv.FormatInt(retention.Milliseconds(), 10), "LogAppendTime", "false"
	return r.ensure(t, map[string]*string{
		"cleanup.policy": &policy, "retention.ms": &kept, "message.timestamp.type": &stamp, uncleanElection: &unclean,
	})
}

func (r *Reader) ensure(t TopicSpec, settings map[string]*string) error {
	c, err := r.connect()
	if err != nil {
		return err
	}
	// The admin is not closed: closing it would close the client, which is the reader's.
	admin, err := sarama.NewClusterAdminFromClient(c)
	if err != nil {
		return fmt.Errorf("create topic %s: %w", t.Name, err)
	}
	if err := c.RefreshMetadata(t.Name); err == nil {
		return nil
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

// CheckForever is the guard: a *GuardError names every setting of the topic that could lose records,
// move keys or give a record another time than the log's. Any other error means that the broker did
// not answer, which says nothing about the topic.
func (r *Reader) CheckForever(_ context.Context, t TopicSpec) error {
	c, err := r.connect()
	if err != nil {
		return err
	}
	b := c.LeastLoadedBroker()
	if b == nil {
		return sarama.ErrOutOfBrokers
	}
	if err := opened(b, c.Config()); err != nil {
		return err
	}
	partitions, replicas, err := describe(b, t.Name)
	if err != nil {
		return err
	}
	res, err := b.DescribeConfigs(&sarama.DescribeConfigsRequest{Version: 2, Resources: []*sarama.ConfigResource{{Type: sarama.TopicResource, Name: t.Name}}})
	if err != nil {
		_ = b.Close()
		return fmt.Errorf("ask for the settings of %s: %w", t.Name, err)
	}
	found := map[string]string{}
	for _, resource := range res.Resources {
		if code := sarama.KError(resource.ErrorCode); code != sarama.ErrNoError {
			return fmt.Errorf("ask for the settings of %s: %w", t.Name, code)
		}
		for _, entry := range resource.Configs {
			found[entry.Name] = entry.Value
		}
	}
	if faults := judge(t, partitions, replicas, found); len(faults) > 0 {
		return &GuardError{Topic: t.Name, Faults: faults}
	}
	return nil
}

// describe returns the topic's count of partitions and the most replicas that one of them has.
func describe(b *sarama.Broker, topic string) (partitions, replicas int, err error) {
	res, err := b.GetMetadata(&sarama.MetadataRequest{Version: 5, Topics: []string{topic}})
	if err != nil {
		_ = b.Close()
		return 0, 0, fmt.Errorf("ask for the partitions of %s: %w", topic, err)
	}
	for _, m := range res.Topics {
		if m.Name != topic {
			continue
		}
		if m.Err != sarama.ErrNoError && m.Err != sarama.ErrLeaderNotAvailable {
			return 0, 0, fmt.Errorf("ask for the partitions of %s: %w", topic, m.Err)
		}
		for _, p := range m.Partitions {
			replicas = max(replicas, len(p.Replicas))
		}
		return len(m.Partitions), replicas, nil
	}
	return 0, 0, fmt.Errorf("ask for the partitions of %s: %w", topic, sarama.ErrIncompleteResponse)
}

func judge(t TopicSpec, partitions, replicas int, found map[string]string) []Fault {
	var faults []Fault
	if partitions != t.Partitions {
		faults = append(faults, Fault{
			Setting: "the number of partitions", Wanted: strconv.Itoa(t.Partitions), Found: strconv.Itoa(partitions),
			Why: "another count moves keys to other partitions; KAFKA_PARTITIONS says what is wanted",
		})
	}
	for _, f := range forever {
		value, known := found[f.Setting]
		if !known && f.Setting == uncleanElection {
			continue // a broker that has no elections has none that are unclean
		}
		if value == f.Wanted {
			continue
		}
		if f.Found = value; !known {
			f.Found = "not known to the broker"
		}
		faults = append(faults, f)
	}
	if replicas > 1 {
		if n, err := strconv.Atoi(found[minInSync]); err != nil || n < 2 {
			faults = append(faults, Fault{
				Setting: minInSync, Wanted: "at least 2", Found: found[minInSync],
				Why: "with " + strconv.Itoa(replicas) + " replicas an acknowledged record could stand on one broker only and be lost with it",
			})
		}
	}
	return faults
}

package app

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/tidemark/tidemark/consumer-service/internal/projection"
	"github.com/tidemark/tidemark/shared/config"
	"github.com/tidemark/tidemark/shared/kafka"
	"github.com/tidemark/tidemark/shared/logid"
	"github.com/tidemark/tidemark/shared/position"
	"github.com/tidemark/tidemark/shared/service"
	"github.com/tidemark/tidemark/shared/topic"
)

// Config is everything that can be set.
type Config struct {
	config.HTTP
	config.Log
	config.Kafka
	config.Postgres
	config.Telemetry
	Projections   []string      `env:"PROJECTIONS" desc:"projections that this process runs, by commas; the others are run by other processes"`
	GroupID       string        `env:"KAFKA_GROUP_ID" desc:"consumer group of the timestamps, and the beginning of the other projections' groups; a fresh name rebuilds all of them from their logs' start"`
	InstanceID    string        `env:"KAFKA_GROUP_INSTANCE_ID" desc:"makes this a static member of its groups; no other process may have the same"`
	AcceptStart   []string      `env:"ACCEPT_LOG_START" desc:"topic/partition@offset, by commas: starts of a log that lost its beginning, accepted by the operator"`
	AcceptNewLog  []string      `env:"ACCEPT_NEW_LOG" desc:"topic@id, by commas: topics that were deleted and made anew, accepted by the operator; means nothing once their ids are known"`
	BatchSize     int           `env:"BATCH_SIZE" desc:"most records in one transaction"`
	AuditInterval time.Duration `env:"AUDIT_INTERVAL" desc:"time between two completeness audits"`
	QueryURL      string        `env:"QUERY_URL" desc:"base URL of query-service, where readers are sent"`
}

// DefaultConfig is a service on its usual port of this host that runs every projection.
func DefaultConfig() Config {
	kafka := config.DefaultKafka()
	return Config{
		HTTP: config.DefaultHTTP(service.Consumer.Port), Log: config.Log{Level: "info"}, Kafka: kafka, Postgres: config.DefaultPostgres(),
		Telemetry: config.DefaultTelemetry(), Projections: names(definitions(kafka)),
		GroupID: "timestamp-consumer-service-1", BatchSize: 5000, AuditInterval: 30 * time.Second, QueryURL: service.Query.DefaultURL(),
	}
}

// workingConns is how many connections of a pool are left at least when each projection holds the one of its lock: a proof
// and a step of another rebuild go on at the same time then.
const workingConns = 2

// Validate checks what is the consumer's own.
func (c Config) Validate() error { return c.validate(definitions(c.Kafka)) }

// validate is Validate for a release that has these definitions.
func (c Config) validate(all []*projection.Definition) error {
	var errs []error
	chosen, err := c.chosen(all)
	if err != nil {
		errs = append(errs, err)
	}
	if least := len(chosen) + workingConns; c.MaxOpenConns < least {
		errs = append(errs, fmt.Errorf("DB_MAX_OPEN_CONNS=%d is too few for %d projections: at least %d, one for each, which holds the lock of its rebuilds, and %d for the work", c.MaxOpenConns, len(chosen), least, workingConns))
	}
	if c.GroupID == "" || len(c.GroupID) > 200 {
		errs = append(errs, errors.New("KAFKA_GROUP_ID must have 1 to 200 characters"))
	}
	if c.BatchSize < 1 || c.BatchSize > 50_000 {
		errs = append(errs, fmt.Errorf("BATCH_SIZE=%d is outside 1 to 50000", c.BatchSize))
	}
	if c.AuditInterval < 100*time.Millisecond {
		errs = append(errs, fmt.Errorf("AUDIT_INTERVAL=%s is below 100ms", c.AuditInterval))
	}
	if _, err := c.acceptedStarts(all); err != nil {
		errs = append(errs, err)
	}
	if _, err := c.acceptedLogs(all); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(append(errs, config.ServiceURL("QUERY_URL", c.QueryURL))...)
}

// chosen are the names of the projections that this process runs.
func (c Config) chosen(all []*projection.Definition) ([]string, error) {
	there := names(all)
	var chosen []string
	for _, name := range c.Projections {
		switch {
		case name == "" || slices.Contains(chosen, name):
		case !slices.Contains(there, name):
			return nil, fmt.Errorf("PROJECTIONS: there is no projection %q: there are %s", name, strings.Join(there, ", "))
		default:
			chosen = append(chosen, name)
		}
	}
	if len(chosen) == 0 {
		return nil, fmt.Errorf("PROJECTIONS names no projection: name some of %s, or leave it out to run all of them", strings.Join(there, ", "))
	}
	return chosen, nil
}

func names(all []*projection.Definition) []string {
	out := make([]string, len(all))
	for i, d := range all {
		out[i] = d.Name
	}
	return out
}

// acceptedStarts returns, by topic and partition, the starts that the operator accepts.
func (c Config) acceptedStarts(all []*projection.Definition) (map[string]map[int32]int64, error) {
	accepted, err := kafka.ParseStarts(c.AcceptStart)
	if err != nil {
		return nil, err
	}
	for name, starts := range accepted {
		i := slices.IndexFunc(all, func(d *projection.Definition) bool { return d.Topic.Name == name })
		for partition, offset := range starts {
			entry := position.Position{Topic: name, Partition: partition, Offset: offset}
			if i < 0 {
				return nil, fmt.Errorf("ACCEPT_LOG_START: no projection reads the topic of %s", entry)
			}
			if of := all[i].Topic; int(partition) >= of.Partitions {
				return nil, fmt.Errorf("ACCEPT_LOG_START: %s is no partition of %s, which has %d", entry, of.Name, of.Partitions)
			}
		}
	}
	return accepted, nil
}

// acceptedLogs are the topics that the operator accepts in place of those that were projected.
func (c Config) acceptedLogs(all []*projection.Definition) (logid.Acceptance, error) {
	accepted, err := logid.ParseAcceptance(c.AcceptNewLog)
	if err != nil {
		return nil, err
	}
	for name := range accepted {
		if _, known := topic.ByName(name); !known && !slices.ContainsFunc(all, func(d *projection.Definition) bool { return d.Topic.Name == name }) {
			return nil, fmt.Errorf("ACCEPT_NEW_LOG: there is no topic %q", name)
		}
	}
	return accepted, nil
}

package app

import (
	"errors"
	"fmt"
	"time"

	"github.com/tidemark/tidemark/shared/config"
	"github.com/tidemark/tidemark/shared/position"
	"github.com/tidemark/tidemark/shared/topic"
)

// Config is everything that can be set.
type Config struct {
	config.HTTP
	config.Log
	config.Kafka
	config.Postgres
	config.Telemetry
	GroupID       string        `env:"KAFKA_GROUP_ID" desc:"consumer group; a fresh name rebuilds the projection from the log's start"`
	InstanceID    string        `env:"KAFKA_GROUP_INSTANCE_ID" desc:"makes this a static member of the group; no other process may have the same"`
	AcceptStart   []string      `env:"ACCEPT_LOG_START" desc:"topic/partition@offset, by commas: starts of a log that lost its beginning, accepted by the operator"`
	BatchSize     int           `env:"BATCH_SIZE" desc:"most records in one transaction"`
	AuditInterval time.Duration `env:"AUDIT_INTERVAL" desc:"time between two completeness audits"`
	QueryURL      string        `env:"QUERY_URL" desc:"base URL of query-service, where readers are sent"`
}

// DefaultConfig is a service on port 7081 of this host.
func DefaultConfig() Config {
	return Config{
		HTTP: config.DefaultHTTP(7081), Log: config.Log{Level: "info"}, Kafka: config.DefaultKafka(), Postgres: config.DefaultPostgres(),
		Telemetry: config.DefaultTelemetry(),
		GroupID:   "timestamp-consumer-service-1", BatchSize: 5000, AuditInterval: 30 * time.Second, QueryURL: "http://127.0.0.1:7082",
	}
}

// Validate checks what is the consumer's own.
func (c Config) Validate() error {
	var errs []error
	if c.GroupID == "" || len(c.GroupID) > 200 {
		errs = append(errs, errors.New("KAFKA_GROUP_ID must have 1 to 200 characters"))
	}
	if c.BatchSize < 1 || c.BatchSize > 50_000 {
		errs = append(errs, fmt.Errorf("BATCH_SIZE=%d is outside 1 to 50000", c.BatchSize))
	}
	if c.AuditInterval < 100*time.Millisecond {
		errs = append(errs, fmt.Errorf("AUDIT_INTERVAL=%s is below 100ms", c.AuditInterval))
	}
	if _, err := c.acceptedStarts(topic.TimestampCommand.Name); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(append(errs, config.ServiceURL("QUERY_URL", c.QueryURL))...)
}

// acceptedStarts returns, by partition, the starts that the operator accepts.
func (c Config) acceptedStarts(topic string) (map[int32]int64, error) {
	out := map[int32]int64{}
	for _, s := range c.AcceptStart {
		p, err := position.Parse(s)
		if err != nil {
			return nil, fmt.Errorf("ACCEPT_LOG_START: %w", err)
		}
		if p.Topic != topic || int(p.Partition) >= c.Partitions {
			return nil, fmt.Errorf("ACCEPT_LOG_START: %s is no partition of %s, which has %d", s, topic, c.Partitions)
		}
		out[p.Partition] = p.Offset
	}
	return out, nil
}

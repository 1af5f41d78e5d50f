package config

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Names are the variables of every service. They stand here, and not only in the services' structs,
// because one environment is often handed to all of them: a name that another service reads is no typo.
// A test in the tidemark module compares the list with the structs.
var Names = []string{
	"ACCEPT_LOG_START", "ACCEPT_NEW_LOG", "ALLOWED_HOSTS", "API_KEYS_FILE", "AUDIT_INTERVAL", "AUTH", "BATCH_SIZE", "BIND_ADDRESS", "COMMAND_URL", "CONSUMER_URL",
	"DB_CONN_MAX_LIFETIME", "DB_MAX_IDLE_CONNS", "DB_MAX_OPEN_CONNS", "DB_URL",
	"KAFKA_BROKERS", "KAFKA_CLAIMED_PARTITIONS", "KAFKA_CLUSTER_ID", "KAFKA_GROUP_ID", "KAFKA_GROUP_INSTANCE_ID", "KAFKA_PARTITIONS", "KAFKA_REPLICATION_FACTOR",
	"KAFKA_SASL_MECHANISM", "KAFKA_SASL_PASSWORD", "KAFKA_SASL_USERNAME",
	"KAFKA_TLS", "KAFKA_TLS_CA_FILE", "KAFKA_TLS_CERT_FILE", "KAFKA_TLS_KEY_FILE",
	"LOG_LEVEL",
	"OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_METRICS_EXPORTER",
	"OTEL_METRIC_EXPORT_INTERVAL", "OTEL_TRACES_EXPORTER", "OTEL_TRACES_SAMPLER", "OTEL_TRACES_SAMPLER_ARG",
	"PRODUCE_DEADLINE", "PROJECTIONS", "QUERY_URL", "RATE_LIMIT", "SERVER_PORT", "SERVICES_CA_FILE", "SHUTDOWN_TIMEOUT",
	"TIDEMARK_API_KEY", "TIDEMARK_CA_FILE", "TLS_CERT_FILE", "TLS_KEY_FILE", "TRUSTED_PROXIES",
}

// older names and what to set instead.
var older = map[string]string{
	"KAFKA_BROKER":            "KAFKA_BROKERS",
	"KAFKA_BOOTSTRAP_SERVERS": "KAFKA_BROKERS",
	"KAFKA_CONSUMER_GROUP":    "KAFKA_GROUP_ID",
	"DB_HOST":                 "DB_URL",
	"DB_PORT":                 "DB_URL",
	"DB_NAME":                 "DB_URL",
	"DB_USER":                 "DB_URL",
	"DB_USERNAME":             "DB_URL",
	"DB_PASSWORD":             "DB_URL or DB_URL_FILE",
	"DATABASE_URL":            "DB_URL",
}

// misnamed finds older names and near misses of known ones. A variable that Kubernetes sets for a
// service of that name (DB_PORT=tcp://…) is none of ours.
func misnamed(environ map[string]string) []error {
	var mistakes []error
	for _, name := range slices.Sorted(maps.Keys(environ)) {
		if strings.HasPrefix(environ[name], "tcp://") || known(name) {
			continue
		}
		if successor, ok := older[name]; ok {
			mistakes = append(mistakes, fmt.Errorf("%s is the name of an older set-up: set %s instead", name, successor))
			continue
		}
		if len(name) < 6 {
			continue // every short name is close to another
		}
		for _, n := range Names {
			if distance(name, n) <= 2 {
				mistakes = append(mistakes, fmt.Errorf("%s is no setting: %s is meant, or else rename it", name, n))
				break
			}
		}
	}
	return mistakes
}

func known(name string) bool {
	return slices.Contains(Names, name) || slices.Contains(Names, strings.TrimSuffix(name, "_FILE"))
}

// distance is Levenshtein's: insertions, deletions and substitutions between a and b.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		diagonal := row[0]
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := diagonal
			if a[i-1] != b[j-1] {
				cost++
			}
			diagonal = row[j]
			row[j] = min(cost, row[j]+1, row[j-1]+1)
		}
	}
	return row[len(b)]
}

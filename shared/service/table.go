package service

import (
	"net"
	"strconv"
	"strings"
)

// Spec is one row of the table of services: what others must know to run it, to find it and to speak to it. tidemark up,
// the client, doctor, the integration tests and the documents read the table, so that a new service is one value here and
// an app.
type Spec struct {
	Name  string // of its module, its program and its container; in logs, traces and metrics
	Port  int    // that it listens on unless SERVER_PORT says otherwise
	About string // what it does, in a few words

	Kafka    bool // it needs brokers: KAFKA_BROKERS
	Database bool // it needs a database: DB_URL
	// Migrates says that it brings the database to this release's schema. Other services that need a database are unready
	// until that is done.
	Migrates bool
}

// The services.
var (
	Command  = Spec{Name: "command-service", Port: 7080, About: "commands", Kafka: true}
	Consumer = Spec{Name: "consumer-service", Port: 7081, About: "projections and rebuilds", Kafka: true, Database: true, Migrates: true}
	Query    = Spec{Name: "query-service", Port: 7082, About: "reads and pages", Database: true}
)

// All returns every service there is, in the order in which a record passes them.
func All() []Spec { return []Spec{Command, Consumer, Query} }

// ByName returns the service of that name; ok is false where there is none.
func ByName(name string) (s Spec, ok bool) {
	for _, s := range All() {
		if s.Name == name {
			return s, true
		}
	}
	return Spec{}, false
}

// Short is the name as flags and variables bear it: "command" for command-service.
func (s Spec) Short() string { return strings.TrimSuffix(s.Name, "-service") }

// URLVariable is the variable that tells others the service's base URL, such as COMMAND_URL.
func (s Spec) URLVariable() string { return strings.ToUpper(s.Short()) + "_URL" }

// DefaultURL is the service's base URL where nothing is configured: on this host, at its port.
func (s Spec) DefaultURL() string {
	return "http://" + net.JoinHostPort("127.0.0.1", strconv.Itoa(s.Port))
}

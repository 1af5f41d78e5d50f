package app

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	command "github.com/tidemark/tidemark/command-service/app"
	consumer "github.com/tidemark/tidemark/consumer-service/app"
	query "github.com/tidemark/tidemark/query-service/app"
	"github.com/tidemark/tidemark/shared/config"
)

// instanceID makes the consumer a static member of its group: one that comes back after a kill has its partitions again
// at once. On a Kafka that others share, two runs with one id would throw each other out, so there it is left to
// KAFKA_GROUP_INSTANCE_ID.
const instanceID = "tidemark-up"

// claimedPartitions are few on the embedded broker: it syncs its log at each commit, and every claimed partition is
// committed to once a second. KAFKA_CLAIMED_PARTITIONS overrides it.
const claimedPartitions = 6

type configs struct {
	command  command.Config
	consumer consumer.Config
	query    query.Config
}

// configs are the services' configurations on these servers.
func (o Options) configs(on Running) (configs, error) {
	c := configs{command: command.DefaultConfig(), consumer: consumer.DefaultConfig(), query: query.DefaultConfig()}
	if o.ownKafka() {
		c.consumer.InstanceID = instanceID
		c.command.ClaimedPartitions, c.consumer.ClaimedPartitions = claimedPartitions, claimedPartitions
	}
	environ := maps.Clone(o.Environ)
	if environ == nil {
		environ = map[string]string{}
	}
	delete(environ, "SERVER_PORT")
	for _, name := range []string{"COMMAND_URL", "CONSUMER_URL", "QUERY_URL"} { // the client's, perhaps of another run
		delete(environ, name)
	}
	if o.ownKafka() {
		environ["KAFKA_BROKERS"] = on.KafkaBrokers
	}
	if o.ownPostgres() {
		environ["DB_URL"] = on.DBURL
	}
	errs := []error{config.Load(&c.command, environ), config.Load(&c.consumer, environ), config.Load(&c.query, environ)}
	c.command.ServerPort, c.consumer.ServerPort, c.query.ServerPort = o.Ports.Command, o.Ports.Consumer, o.Ports.Query
	c.command.QueryURL = baseURL(c.query.HTTP)
	c.consumer.QueryURL = baseURL(c.query.HTTP)
	c.query.CommandURL, c.query.ConsumerURL = baseURL(c.command.HTTP), baseURL(c.consumer.HTTP)
	if err := meetByTLS(&c.query); err != nil {
		errs = append(errs, err)
	}
	return c, errors.Join(distinct(errs)...)
}

// meetByTLS lets the services of one process reach each other by HTTPS: unless another authority is named, they trust the
// certificate that they show themselves. It must be for the address that they meet at.
func meetByTLS(c *query.Config) error {
	if c.TLSCertFile == "" {
		return nil
	}
	if c.CAFile == "" {
		c.CAFile = c.TLSCertFile
	}
	pair, err := c.Certificate().Load(time.Now())
	if err != nil {
		return nil // told already
	}
	u, err := url.Parse(baseURL(c.HTTP))
	if err != nil {
		return nil // an address that cannot be bound is told already
	}
	if err := pair.Leaf.VerifyHostname(u.Hostname()); err != nil {
		return fmt.Errorf("TLS_CERT_FILE: the certificate in %s is not for %s, where the services reach each other: have it issued for that address too", c.TLSCertFile, u.Hostname())
	}
	return nil
}

// distinct drops errors that say what another one said: most settings belong to more than one service.
func distinct(errs []error) []error {
	var kept []error
	for _, err := range errs {
		if err != nil && !slices.ContainsFunc(kept, func(k error) bool { return k.Error() == err.Error() }) {
			kept = append(kept, err)
		}
	}
	return kept
}

// Validate finds what is wrong before anything is started or written, and tells all of it.
func (o Options) Validate() error {
	var errs []error
	if o.DataDir == "" {
		errs = append(errs, errors.New("the data directory has no name"))
	}
	if port := o.Environ["SERVER_PORT"]; port != "" {
		errs = append(errs, fmt.Errorf("SERVER_PORT=%s is the port of one service, and here run three: unset it and use --command-port, --consumer-port and --query-port", port))
	}
	for _, p := range []struct {
		flag        string
		port, least int
	}{
		{"--command-port", o.Ports.Command, 1}, {"--consumer-port", o.Ports.Consumer, 1}, {"--query-port", o.Ports.Query, 1},
		{"--kafka-port", o.Ports.Kafka, 0}, {"--postgres-port", o.Ports.Postgres, 0},
	} {
		if p.port < p.least || p.port > 65535 {
			errs = append(errs, fmt.Errorf("%s %d is outside %d to 65535", p.flag, p.port, p.least))
		}
	}
	_, err := o.configs(anywhere)
	return errors.Join(append(errs, err)...)
}

// anywhere stands for servers that are not started yet.
var anywhere = Running{KafkaBrokers: "127.0.0.1:1", DBURL: "postgres://u:p@127.0.0.1:1/d?sslmode=disable"}

// portsFree finds every port that is taken, so that all can be mended at once.
func (o Options) portsFree(ctx context.Context) error {
	c, err := o.configs(anywhere)
	if err != nil {
		return err
	}
	type listener struct{ address, what, flag string }
	wanted := []listener{
		{c.command.Address(), command.Name, "--command-port"},
		{c.consumer.Address(), consumer.Name, "--consumer-port"},
		{c.query.Address(), query.Name, "--query-port"},
	}
	if o.ownKafka() {
		wanted = append(wanted, listener{loopback(o.Ports.Kafka), "the embedded broker", "--kafka-port"})
	}
	var taken []string
	for _, w := range wanted {
		l, err := new(net.ListenConfig).Listen(ctx, "tcp", w.address)
		if err != nil {
			taken = append(taken, fmt.Sprintf("%s cannot listen on %s: %v: end what holds it, or choose another port with %s", w.what, w.address, reason(err), w.flag))
			continue
		}
		_ = l.Close()
	}
	if len(taken) > 0 {
		return errors.New(strings.Join(taken, "\n"))
	}
	return nil
}

// reason is the innermost error of a failed listen: the outer ones repeat the address.
func reason(err error) error {
	for {
		inner := errors.Unwrap(err)
		if inner == nil {
			return err
		}
		err = inner
	}
}

func loopback(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }

package app

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/tidemark/tidemark/shared/config"
	"github.com/tidemark/tidemark/shared/service"
)

// instanceID makes the consumer a static member of its group: one that comes back after a kill has its partitions again
// at once. On a Kafka that others share, two runs with one id would put each other out of the group, so there it is left to
// KAFKA_GROUP_INSTANCE_ID.
const instanceID = "tidemark-up"

// claimedPartitions are few on the embedded broker: it syncs its log at each commit, and every claimed partition is
// committed to once a second. KAFKA_CLAIMED_PARTITIONS overrides it.
const claimedPartitions = 6

// common is what all services have alike, read from the one environment that all of them get.
type common struct {
	config.HTTP
	config.Kafka
	config.Postgres
	CAFile string `env:"SERVICES_CA_FILE"`
}

// environ is the environment of every service on these servers, but for the port, and what it says of all of them.
func (o Options) environ(on Running) (map[string]string, common) {
	environ := map[string]string{}
	for name, value := range o.Environ {
		if value != "" {
			environ[name] = value
		}
	}
	byDefault := func(name, value string) {
		if environ[name] == "" {
			environ[name] = value
		}
	}
	if o.ownKafka() {
		environ["KAFKA_BROKERS"] = on.KafkaBrokers
		byDefault("KAFKA_GROUP_INSTANCE_ID", instanceID)
		byDefault("KAFKA_CLAIMED_PARTITIONS", strconv.Itoa(claimedPartitions))
	}
	if o.ownPostgres() {
		environ["DB_URL"] = on.DBURL
	}
	if cert := environ["TLS_CERT_FILE"]; cert != "" {
		byDefault("SERVICES_CA_FILE", cert) // they trust the certificate that they show themselves
	}
	delete(environ, "SERVER_PORT")
	c := common{HTTP: config.DefaultHTTP(1), Kafka: config.DefaultKafka(), Postgres: config.DefaultPostgres()}
	_ = config.Load(&c, environ) // each service reports what is mistaken
	for _, s := range service.All() {
		environ[s.URLVariable()] = baseURL(c.HTTP, o.Ports.portOf(s)) // the one that was given is the client's, perhaps of another run
	}
	return environ, c
}

// configured returns every service with its configuration on these servers. The error names all mistakes of all of them.
func (o Options) configured(on Running) ([]Service, common, error) {
	environ, c := o.environ(on)
	services := Services()
	var errs []error
	for _, s := range services {
		if port := o.Ports.portOf(s.Spec); 1 <= port && port <= 65535 { // else Validate names the flag
			environ["SERVER_PORT"] = strconv.Itoa(port)
		}
		errs = append(errs, config.Load(s.Config, environ))
	}
	if err := c.meetByTLS(o.Ports.portOf(service.Query)); err != nil {
		errs = append(errs, err)
	}
	return services, c, errors.Join(distinct(errs)...)
}

// meetByTLS checks that the certificate is for the address at which the services of one process reach each other.
func (c common) meetByTLS(port int) error {
	if c.TLSCertFile == "" {
		return nil
	}
	pair, err := c.HTTP.Certificate().Load(time.Now())
	if err != nil {
		return nil // reported already
	}
	u, err := url.Parse(baseURL(c.HTTP, port))
	if err != nil {
		return nil // an address that cannot be bound is reported already
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

// Validate finds what is wrong before anything is started or written, and names all of it.
func (o Options) Validate() error {
	var errs []error
	if o.DataDir == "" {
		errs = append(errs, errNoDataDir)
	}
	wanted := []struct {
		flag        string
		port, least int
	}{{"--kafka-port", o.Ports.Kafka, 0}, {"--postgres-port", o.Ports.Postgres, 0}}
	var flags []string
	for _, s := range service.All() {
		flags = append(flags, portFlag(s))
		wanted = append(wanted, struct {
			flag        string
			port, least int
		}{portFlag(s), o.Ports.portOf(s), 1})
	}
	if port := o.Environ["SERVER_PORT"]; port != "" {
		errs = append(errs, fmt.Errorf("SERVER_PORT=%s is the port of one service, and here run %d: unset it and use %s", port, len(flags), strings.Join(flags, ", ")))
	}
	for _, w := range wanted {
		if w.port < w.least || w.port > 65535 {
			errs = append(errs, fmt.Errorf("%s %d is outside %d to 65535", w.flag, w.port, w.least))
		}
	}
	_, _, err := o.configured(anywhere)
	return errors.Join(append(errs, err)...)
}

// anywhere stands for servers that are not started yet.
var anywhere = Running{KafkaBrokers: "127.0.0.1:1", DBURL: "postgres://u:p@127.0.0.1:1/d?sslmode=disable"}

func portFlag(s service.Spec) string { return "--" + s.Short() + "-port" }

// portsFree finds every port that is taken, so that all can be mended at once.
func (o Options) portsFree(ctx context.Context) error {
	_, c, err := o.configured(anywhere)
	if err != nil {
		return err
	}
	type listener struct{ address, what, flag string }
	var wanted []listener
	for _, s := range service.All() {
		wanted = append(wanted, listener{net.JoinHostPort(c.BindAddress, strconv.Itoa(o.Ports.portOf(s))), s.Name, portFlag(s)})
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

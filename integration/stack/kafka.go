package stack

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/tidemark/tidemark/shared/freeport"
)

// KafkaOptions say how the broker is made.
type KafkaOptions struct {
	// Proxies names TCP proxies to put before the broker. Each has a listener of its own that advertises the proxy's
	// address, so that a client which comes through a proxy stays on it.
	Proxies []string
	// Dir keeps the data; a temporary one that Close removes when empty.
	Dir string
	// Settings are added to the broker's properties and win over those made here.
	Settings map[string]string
	// Secure adds the listeners of SecureBrokers and CertificateBrokers.
	Secure *Secured
	// FastStart keeps Java from optimising much: a start costs less, a long run more. For tests, not for measuring.
	FastStart bool
	// HeapMB is the JVM's heap; 512 unless given.
	HeapMB int

	node *node // of a cluster; nil is a broker alone
}

// Secured is how a broker proves who it is and who it lets in.
type Secured struct {
	Cert, Key string            // PEM files; the key in PKCS #8
	CA        string            // PEM file; signs the certificates of clients
	Users     map[string]string // by name; each with PLAIN, SCRAM-SHA-256 and SCRAM-SHA-512
}

// Kafka is a real Apache Kafka: one JVM that is broker and controller (KRaft). Its ports, data and cluster id stay over
// restarts; topics are never made by asking for them.
type Kafka struct {
	dir       string
	temporary bool
	clusterID string
	port      int
	node      node
	secure    [2]int // ports of the secured listeners
	proxies   map[string]*Proxy
	command   []string
	process   *process
}

// StartKafka formats and starts a broker and returns when it takes connections. The context bounds the start only.
func StartKafka(ctx context.Context, opts KafkaOptions) (*Kafka, error) {
	k, err := newKafka(ctx, opts)
	if err != nil {
		return nil, err
	}
	if err := k.Start(ctx); err != nil {
		return nil, errors.Join(err, k.Close(ctx))
	}
	return k, nil
}

// newClusterID makes an id as Kafka's own tool does.
func newClusterID() string {
	var id [16]byte
	_, _ = rand.Read(id[:]) // never fails since Go 1.24
	id[0] &= 0x7f           // an id that begins with a hyphen would be taken for an option by Kafka's tools
	return base64.RawURLEncoding.EncodeToString(id[:])
}

// newKafka makes everything that a broker needs to be started.
func newKafka(ctx context.Context, opts KafkaOptions) (_ *Kafka, err error) {
	k := &Kafka{dir: opts.Dir, clusterID: newClusterID(), proxies: map[string]*Proxy{}}
	if opts.node != nil {
		k.node, k.clusterID = *opts.node, opts.node.clusterID
	}
	if k.dir == "" {
		if k.dir, err = os.MkdirTemp("", "tidemark-kafka-"); err != nil {
			return nil, fmt.Errorf("start Kafka: %w", err)
		}
		k.temporary = true
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, k.Close(ctx))
		}
	}()
	if err := k.prepare(ctx, opts); err != nil {
		return nil, fmt.Errorf("start Kafka: %w", err)
	}
	return k, nil
}

// Brokers returns the direct addresses, past all proxies.
func (k *Kafka) Brokers() []string { return []string{freeport.Address(k.port)} }

// SecureBrokers returns the address that speaks TLS and wants SASL, by every mechanism.
func (k *Kafka) SecureBrokers() []string { return []string{freeport.Address(k.secure[0])} }

// CertificateBrokers returns the address that speaks TLS and wants a certificate.
func (k *Kafka) CertificateBrokers() []string { return []string{freeport.Address(k.secure[1])} }

// ClusterID returns the id that clients see.
func (k *Kafka) ClusterID() string { return k.clusterID }

// Proxy returns the proxy of that name, or nil.
func (k *Kafka) Proxy(name string) *Proxy { return k.proxies[name] }

// Start runs the broker again after Stop or Kill, on the same ports and data.
func (k *Kafka) Start(ctx context.Context) error {
	if k.process != nil && k.process.running() {
		return errors.New("start Kafka: it is running")
	}
	p, err := startProcess(ctx, "Kafka", k.log(), os.Environ(), k.command[0], k.command[1:]...)
	if err != nil {
		return err
	}
	k.process = p
	return p.wait(ctx, "listening", func(ctx context.Context) bool { return accepts(ctx, k.Brokers()[0]) })
}

// Stop ends the broker in order (SIGTERM), and kills it when the context ends first.
func (k *Kafka) Stop(ctx context.Context) error { return k.process.stop(ctx) }

// Kill ends the broker as a power cut ends it for its clients: at once, with nothing said.
func (k *Kafka) Kill() error { return k.process.kill() }

// Restart stops in order and starts again.
func (k *Kafka) Restart(ctx context.Context) error {
	if err := k.Stop(ctx); err != nil {
		return err
	}
	return k.Start(ctx)
}

// Signal sends SIGSTOP, SIGCONT or another signal to the broker.
func (k *Kafka) Signal(s syscall.Signal) error { return k.process.signal(s) }

// LogTail returns the end of what the broker wrote to its own log.
func (k *Kafka) LogTail() string { return tail(k.log(), 8000) }

// Close kills the broker, closes the proxies and removes temporary data. Stop first where an orderly end matters.
func (k *Kafka) Close(context.Context) error {
	var errs []error
	if k.process != nil {
		errs = append(errs, k.process.kill())
	}
	for _, p := range k.proxies {
		errs = append(errs, p.Close())
	}
	if k.temporary {
		errs = append(errs, os.RemoveAll(k.dir))
	}
	return errors.Join(errs...)
}

func (k *Kafka) log() string { return filepath.Join(k.dir, "kafka.log") }

// prepare chooses ports, starts the proxies, writes the broker's files and formats its storage.
func (k *Kafka) prepare(ctx context.Context, opts KafkaOptions) error {
	classpath, err := Classpath(ctx)
	if err != nil {
		return err
	}
	java, err := java()
	if err != nil {
		return err
	}
	if k.port, err = freeport.Find(ctx); err != nil {
		return err
	}
	if opts.node == nil {
		controller, err := freeport.Find(ctx)
		if err != nil {
			return err
		}
		k.node = node{id: 1, controller: controller, voters: "1@" + freeport.Address(controller)}
	}
	listeners := []string{"DIRECT://" + freeport.Address(k.port), "CONTROLLER://" + freeport.Address(k.node.controller)}
	advertised := []string{"DIRECT://" + freeport.Address(k.port)}
	protocols := []string{"DIRECT:PLAINTEXT", "CONTROLLER:PLAINTEXT"}
	for i, name := range opts.Proxies {
		port, err := freeport.Find(ctx)
		if err != nil {
			return err
		}
		proxy, err := StartProxy(ctx, freeport.Address(port))
		if err != nil {
			return err
		}
		k.proxies[name] = proxy
		listener := "PROXY" + strconv.Itoa(i)
		listeners = append(listeners, listener+"://"+freeport.Address(port))
		advertised = append(advertised, listener+"://"+proxy.Address())
		protocols = append(protocols, listener+":PLAINTEXT")
	}
	if opts.Secure != nil {
		for i, listener := range []string{"SASL", "CERTIFICATE"} {
			if k.secure[i], err = freeport.Find(ctx); err != nil {
				return err
			}
			listeners = append(listeners, listener+"://"+freeport.Address(k.secure[i]))
			advertised = append(advertised, listener+"://"+freeport.Address(k.secure[i]))
		}
		protocols = append(protocols, "SASL:SASL_SSL", "CERTIFICATE:SSL")
	}
	settings := map[string]string{
		"process.roles":                  "broker,controller",
		"node.id":                        strconv.Itoa(k.node.id),
		"controller.quorum.voters":       k.node.voters,
		"listeners":                      strings.Join(listeners, ","),
		"advertised.listeners":           strings.Join(advertised, ","),
		"listener.security.protocol.map": strings.Join(protocols, ","),
		"inter.broker.listener.name":     "DIRECT",
		"controller.listener.names":      "CONTROLLER",
		"log.dirs":                       filepath.Join(k.dir, "data"),

		"auto.create.topics.enable":        "false",
		"unclean.leader.election.enable":   "false",
		"group.initial.rebalance.delay.ms": "0",
		// One broker has no one to copy to.
		"offsets.topic.replication.factor":                 "1",
		"transaction.state.log.replication.factor":         "1",
		"transaction.state.log.min.isr":                    "1",
		"share.coordinator.state.topic.replication.factor": "1",
		"share.coordinator.state.topic.min.isr":            "1",
		// Their defaults are 50 partitions, and a cleaner's buffer of 128 MB.
		"offsets.topic.num.partitions":         "4",
		"transaction.state.log.num.partitions": "4",
		"log.cleaner.dedupe.buffer.size":       "8388608",
		// After a kill the new process is let in when the old one's session is over: 9 s by default.
		"broker.session.timeout.ms":    "3000",
		"broker.heartbeat.interval.ms": "300",
	}
	format := []string{"format", "--cluster-id", k.clusterID}
	if opts.Secure != nil {
		store, err := opts.Secure.secure(k.dir, settings)
		if err != nil {
			return err
		}
		format = append(format, store...)
	}
	for name, value := range opts.Settings {
		settings[name] = value
	}
	var properties strings.Builder
	for name, value := range settings {
		fmt.Fprintf(&properties, "%s=%s\n", name, value)
	}
	server, logging := filepath.Join(k.dir, "server.properties"), filepath.Join(k.dir, "log4j2.properties")
	if err := os.WriteFile(server, []byte(properties.String()), 0o600); err != nil {
		return err
	}
	if err := os.WriteFile(logging, []byte(kafkaLogging), 0o600); err != nil {
		return err
	}
	heap := strconv.Itoa(cmp.Or(opts.HeapMB, 512)) + "m"
	k.command = []string{java, "-Xms" + heap, "-Xmx" + heap, "-Dlog4j2.configurationFile=" + logging}
	if opts.FastStart {
		k.command = append(k.command, "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC")
	}
	k.command = append(k.command, "-cp", classpath, "kafka.Kafka", server)

	began := time.Now()
	output, err := Tool(ctx, "kafka.tools.StorageTool", append(format, "--config", server)...)
	if err != nil {
		return fmt.Errorf("format its storage after %s: %w\n%s", time.Since(began), err, output)
	}
	return nil
}

// secure adds the settings of the secured listeners and returns what the storage must be formatted with.
func (s *Secured) secure(dir string, settings map[string]string) (format []string, err error) {
	var keystore []byte
	for _, file := range []string{s.Key, s.Cert} {
		content, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		keystore = append(keystore, content...)
	}
	store := filepath.Join(dir, "keystore.pem")
	if err := os.WriteFile(store, keystore, 0o600); err != nil {
		return nil, err
	}
	const plain = "org.apache.kafka.common.security.plain.PlainLoginModule required"
	const scram = "org.apache.kafka.common.security.scram.ScramLoginModule required;"
	users := plain
	for name, password := range s.Users {
		users += fmt.Sprintf(" user_%s=%q", name, password)
		for _, mechanism := range []string{"SCRAM-SHA-256", "SCRAM-SHA-512"} {
			format = append(format, "--add-scram", fmt.Sprintf("%s=[name=%s,password=%s]", mechanism, name, password))
		}
	}
	for name, value := range map[string]string{
		"ssl.keystore.type": "PEM", "ssl.keystore.location": store, "ssl.truststore.type": "PEM", "ssl.truststore.location": s.CA,
		"listener.name.certificate.ssl.client.auth":         "required",
		"listener.name.sasl.sasl.enabled.mechanisms":        "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512",
		"listener.name.sasl.plain.sasl.jaas.config":         users + ";",
		"listener.name.sasl.scram-sha-256.sasl.jaas.config": scram,
		"listener.name.sasl.scram-sha-512.sasl.jaas.config": scram,
	} {
		settings[name] = value
	}
	return format, nil
}

const kafkaLogging = `appender.out.type = Console
appender.out.name = out
appender.out.layout.type = PatternLayout
appender.out.layout.pattern = %d{HH:mm:ss.SSS} %p %c{1}: %m%n
rootLogger.level = WARN
rootLogger.appenderRef.out.ref = out
`

// accepts tells whether somebody listens there.
func accepts(ctx context.Context, addr string) bool {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
	if err != nil {
		return false
	}
	_ = conn.Close() // nothing was sent
	return true
}

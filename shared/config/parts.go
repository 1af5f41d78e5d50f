package config

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"github.com/tidemark/tidemark/shared/auth"
	"github.com/tidemark/tidemark/shared/certs"
)

// HTTP is what every service needs to listen.
type HTTP struct {
	ServerPort      int           `env:"SERVER_PORT" desc:"port to listen on"`
	BindAddress     string        `env:"BIND_ADDRESS" desc:"address to listen on; anything but loopback needs API_KEYS_FILE or AUTH=off"`
	Auth            string        `env:"AUTH" desc:"off, to listen off loopback without authentication"`
	APIKeysFile     string        `env:"API_KEYS_FILE" desc:"file of hashed API keys (tidemark keys create); re-read when it changes"`
	TLSCertFile     string        `env:"TLS_CERT_FILE" desc:"certificate to serve HTTPS with, PEM, the chain included; re-read when it changes"`
	TLSKeyFile      string        `env:"TLS_KEY_FILE" desc:"private key of TLS_CERT_FILE, PEM"`
	AllowedHosts    []string      `env:"ALLOWED_HOSTS" desc:"names, by commas, that a request's Host may be besides loopback ones; looked at on loopback without keys, where every other Host is refused"`
	RateLimit       int           `env:"RATE_LIMIT" desc:"requests a second of one caller: an API key or, without one, an address off this host; 0 is no limit"`
	TrustedProxies  []string      `env:"TRUSTED_PROXIES" desc:"addresses or networks, by commas, whose X-Forwarded-For is believed"`
	ShutdownTimeout time.Duration `env:"SHUTDOWN_TIMEOUT" desc:"how long a clean stop may take"`
}

// DefaultHTTP listens on loopback at port.
func DefaultHTTP(port int) HTTP {
	return HTTP{ServerPort: port, BindAddress: "127.0.0.1", RateLimit: 1000, ShutdownTimeout: 20 * time.Second}
}

// Certificate is what to serve HTTPS with; unset, plain HTTP is served.
func (h HTTP) Certificate() certs.Files {
	return certs.Files{CertName: "TLS_CERT_FILE", Cert: h.TLSCertFile, KeyName: "TLS_KEY_FILE", Key: h.TLSKeyFile}
}

// Scheme is http or https.
func (h HTTP) Scheme() string {
	if h.TLSCertFile != "" {
		return "https"
	}
	return "http"
}

// Address is what to listen on.
func (h HTTP) Address() string { return net.JoinHostPort(h.BindAddress, fmt.Sprint(h.ServerPort)) }

// OnLoopback reports whether only this machine can reach what is listened on.
func (h HTTP) OnLoopback() bool {
	ip := net.ParseIP(h.BindAddress)
	return h.BindAddress == "localhost" || ip != nil && ip.IsLoopback()
}

// Validate refuses to listen off loopback without authentication, unless that is asked for.
func (h HTTP) Validate() error {
	var errs []error
	if h.ServerPort < 0 || h.ServerPort > 65535 {
		errs = append(errs, fmt.Errorf("SERVER_PORT=%d is no port: 1 to 65535, or 0 for any that is free", h.ServerPort))
	}
	if h.Auth != "" && h.Auth != "off" {
		errs = append(errs, fmt.Errorf("AUTH=%q is not known: leave it empty or set off", h.Auth))
	}
	if !h.OnLoopback() && h.Auth != "off" && h.APIKeysFile == "" {
		errs = append(errs, fmt.Errorf("BIND_ADDRESS=%q is off loopback and there is no authentication: set API_KEYS_FILE (tidemark keys create makes one), bind to 127.0.0.1, or set AUTH=off to let anyone in who can reach it", h.BindAddress))
	}
	if h.APIKeysFile != "" {
		if h.Auth == "off" {
			errs = append(errs, errors.New("AUTH=off and API_KEYS_FILE contradict each other: keep one"))
		}
		if err := auth.CheckFile(h.APIKeysFile); err != nil {
			errs = append(errs, fmt.Errorf("API_KEYS_FILE: %w", err))
		}
	}
	if files := h.Certificate(); files.Set() {
		if _, err := files.Load(time.Now()); err != nil {
			errs = append(errs, split(err)...)
		}
	}
	if h.RateLimit < 0 {
		errs = append(errs, fmt.Errorf("RATE_LIMIT=%d is negative: 0 is no limit", h.RateLimit))
	}
	for _, host := range h.AllowedHosts {
		if host == "" || net.ParseIP(host) == nil && strings.ContainsAny(host, "*/:@[] ") {
			errs = append(errs, fmt.Errorf("ALLOWED_HOSTS: %q is no host name: without scheme, port and wildcard, such as tidemark.test", host))
		}
	}
	for _, p := range h.TrustedProxies {
		if _, err := netip.ParsePrefix(p); err != nil && net.ParseIP(p) == nil {
			errs = append(errs, fmt.Errorf("TRUSTED_PROXIES: %q is neither an address nor a network such as 10.0.0.0/8", p))
		}
	}
	if h.ShutdownTimeout <= 0 {
		errs = append(errs, fmt.Errorf("SHUTDOWN_TIMEOUT=%s must be above 0", h.ShutdownTimeout))
	}
	return errors.Join(errs...)
}

// Log is how much is logged.
type Log struct {
	Level string `env:"LOG_LEVEL" desc:"debug, info, warn or error"`
}

// Validate knows the four levels.
func (l Log) Validate() error {
	switch strings.ToLower(l.Level) {
	case "debug", "info", "warn", "error":
		return nil
	}
	return fmt.Errorf("LOG_LEVEL=%q is none of debug, info, warn, error", l.Level)
}

// Kafka says where the log is and what its topics look like.
type Kafka struct {
	Brokers           []string `env:"KAFKA_BROKERS" desc:"host:port of some brokers, separated by commas"`
	ClusterID         string   `env:"KAFKA_CLUSTER_ID" desc:"the only cluster whose log is taken; any unless given"`
	Partitions        int      `env:"KAFKA_PARTITIONS" desc:"partitions of each topic that is not claimed; a topic that has another count is refused"`
	ClaimedPartitions int      `env:"KAFKA_CLAIMED_PARTITIONS" desc:"partitions of each topic whose work is claimed (endpoint.command.v1); a topic that has another count is refused"`
	ReplicationFactor int      `env:"KAFKA_REPLICATION_FACTOR" desc:"replicas of a topic that is created"`
	TLS               bool     `env:"KAFKA_TLS" desc:"speak TLS to the brokers; set too by naming any of its files"`
	CAFile            string   `env:"KAFKA_TLS_CA_FILE" desc:"authorities that sign the brokers' certificates, PEM; the system's unless given"`
	CertFile          string   `env:"KAFKA_TLS_CERT_FILE" desc:"certificate to show to the brokers, PEM"`
	KeyFile           string   `env:"KAFKA_TLS_KEY_FILE" desc:"private key of KAFKA_TLS_CERT_FILE, PEM"`
	SASLMechanism     string   `env:"KAFKA_SASL_MECHANISM" desc:"PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512; no SASL unless given"`
	SASLUsername      string   `env:"KAFKA_SASL_USERNAME" desc:"who to be towards the brokers"`
	SASLPassword      string   `env:"KAFKA_SASL_PASSWORD" desc:"password of KAFKA_SASL_USERNAME" secret:"true"`
}

// SpeaksTLS reports whether connections to the brokers are encrypted.
func (k Kafka) SpeaksTLS() bool {
	return k.TLS || k.CAFile != "" || k.CertFile != "" || k.KeyFile != ""
}

// Certificate is what clients show to the brokers, where it is set.
func (k Kafka) Certificate() certs.Files {
	return certs.Files{CertName: "KAFKA_TLS_CERT_FILE", Cert: k.CertFile, KeyName: "KAFKA_TLS_KEY_FILE", Key: k.KeyFile}
}

// DefaultKafka is one broker on this host.
func DefaultKafka() Kafka {
	return Kafka{Brokers: []string{"localhost:9092"}, Partitions: 12, ClaimedPartitions: 48, ReplicationFactor: 1}
}

// Validate checks addresses and counts.
func (k Kafka) Validate() error {
	var errs []error
	if len(k.Brokers) == 0 {
		errs = append(errs, errors.New("KAFKA_BROKERS names no broker"))
	}
	for _, b := range k.Brokers {
		if host, port, err := net.SplitHostPort(b); err != nil || host == "" || port == "" {
			errs = append(errs, fmt.Errorf("KAFKA_BROKERS: %q is not host:port", b))
		}
	}
	for _, count := range []struct {
		name string
		of   int
	}{{"KAFKA_PARTITIONS", k.Partitions}, {"KAFKA_CLAIMED_PARTITIONS", k.ClaimedPartitions}} {
		if count.of < 1 || count.of > 10_000 {
			errs = append(errs, fmt.Errorf("%s=%d is outside 1 to 10000", count.name, count.of))
		}
	}
	if k.ReplicationFactor < 1 || k.ReplicationFactor > 100 {
		errs = append(errs, fmt.Errorf("KAFKA_REPLICATION_FACTOR=%d is outside 1 to 100", k.ReplicationFactor))
	}
	return errors.Join(append(errs, k.security()...)...)
}

func (k Kafka) security() []error {
	var errs []error
	if k.CAFile != "" {
		if _, err := certs.Authorities("KAFKA_TLS_CA_FILE", k.CAFile); err != nil {
			errs = append(errs, err)
		}
	}
	if files := k.Certificate(); files.Set() {
		if _, err := files.Load(time.Now()); err != nil {
			errs = append(errs, split(err)...)
		}
	}
	switch k.SASLMechanism {
	case "":
		if k.SASLUsername != "" || k.SASLPassword != "" {
			errs = append(errs, errors.New("KAFKA_SASL_USERNAME or KAFKA_SASL_PASSWORD is set and KAFKA_SASL_MECHANISM is not: PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512"))
		}
	case "PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512":
		if k.SASLUsername == "" || k.SASLPassword == "" {
			errs = append(errs, fmt.Errorf("KAFKA_SASL_MECHANISM=%s needs KAFKA_SASL_USERNAME and KAFKA_SASL_PASSWORD (or KAFKA_SASL_PASSWORD_FILE)", k.SASLMechanism))
		}
	default:
		errs = append(errs, fmt.Errorf("KAFKA_SASL_MECHANISM=%q is none of PLAIN, SCRAM-SHA-256, SCRAM-SHA-512", k.SASLMechanism))
	}
	return errs
}

// Postgres says where the database is and how many connections to keep.
type Postgres struct {
	URL             string        `env:"DB_URL" desc:"postgres://user:password@host:port/database?sslmode=…, several servers as host:port,host:port" secret:"url"`
	MaxOpenConns    int           `env:"DB_MAX_OPEN_CONNS" desc:"most connections of a pool at once; consumer-service has two pools and needs two more than it runs projections"`
	MaxIdleConns    int           `env:"DB_MAX_IDLE_CONNS" desc:"connections kept while idle, at most DB_MAX_OPEN_CONNS"`
	ConnMaxLifetime time.Duration `env:"DB_CONN_MAX_LIFETIME" desc:"age at which a connection is replaced; 0 is never"`
}

// DefaultPostgres is a database on this host with a pool of 16.
func DefaultPostgres() Postgres {
	return Postgres{
		URL:          "postgres://tidemark@localhost:5432/tidemark?sslmode=disable",
		MaxOpenConns: 16, MaxIdleConns: 8, ConnMaxLifetime: 30 * time.Minute,
	}
}

// Validate checks the URL and the pool's bounds. It never repeats the URL, which holds a password.
func (p Postgres) Validate() error {
	var errs []error
	if _, err := p.Database(); err != nil {
		errs = append(errs, split(err)...)
	}
	if p.MaxOpenConns < 4 {
		errs = append(errs, fmt.Errorf("DB_MAX_OPEN_CONNS=%d is too few: at least 4", p.MaxOpenConns))
	}
	if p.MaxIdleConns < 0 {
		errs = append(errs, fmt.Errorf("DB_MAX_IDLE_CONNS=%d is negative", p.MaxIdleConns))
	}
	if p.ConnMaxLifetime < 0 {
		errs = append(errs, fmt.Errorf("DB_CONN_MAX_LIFETIME=%s is negative", p.ConnMaxLifetime))
	}
	return errors.Join(errs...)
}

// sslFiles checks the files that the URL names, so that a missing or expired one is reported at the start and not
// by a connection that fails.
func sslFiles(connection map[string]string) []error {
	var errs []error
	if root := connection["sslrootcert"]; root != "" && root != "system" {
		if _, err := certs.Authorities("sslrootcert of DB_URL", root); err != nil {
			errs = append(errs, err)
		}
	}
	pair := certs.Files{CertName: "sslcert of DB_URL", Cert: connection["sslcert"], KeyName: "sslkey of DB_URL", Key: connection["sslkey"]}
	if pair.Set() {
		if _, err := pair.Load(time.Now()); err != nil {
			errs = append(errs, split(err)...)
		}
	}
	return errs
}

// ServiceURL checks the base URL of another service.
func ServiceURL(name, value string) error {
	if u, err := url.Parse(value); err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" {
		return fmt.Errorf("%s=%q is no base URL such as http://127.0.0.1:7080", name, value)
	}
	return nil
}

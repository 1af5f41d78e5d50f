package config

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
	"time"
)

// HTTP is what every service needs to listen.
type HTTP struct {
	ServerPort      int           `env:"SERVER_PORT" desc:"port to listen on"`
	BindAddress     string        `env:"BIND_ADDRESS" desc:"address to listen on; anything but loopback needs AUTH=off"`
	Auth            string        `env:"AUTH" desc:"off, to listen off loopback without authentication"`
	ShutdownTimeout time.Duration `env:"SHUTDOWN_TIMEOUT" desc:"how long a clean stop may take"`
}

// DefaultHTTP listens on loopback at port.
func DefaultHTTP(port int) HTTP {
	return HTTP{ServerPort: port, BindAddress: "127.0.0.1", ShutdownTimeout: 20 * time.Second}
}

// Address is what to listen on.
func (h HTTP) Address() string { return net.JoinHostPort(h.BindAddress, fmt.Sprint(h.ServerPort)) }

// Validate refuses an open door that nobody asked for.
func (h HTTP) Validate() error {
	var errs []error
	if h.ServerPort < 0 || h.ServerPort > 65535 {
		errs = append(errs, fmt.Errorf("SERVER_PORT=%d is no port: 1 to 65535, or 0 for any that is free", h.ServerPort))
	}
	if h.Auth != "" && h.Auth != "off" {
		errs = append(errs, fmt.Errorf("AUTH=%q is not known: leave it empty or set off", h.Auth))
	}
	ip := net.ParseIP(h.BindAddress)
	if loopback := h.BindAddress == "localhost" || ip != nil && ip.IsLoopback(); !loopback && h.Auth != "off" {
		errs = append(errs, fmt.Errorf("BIND_ADDRESS=%q is off loopback and there is no authentication: bind to 127.0.0.1, or set AUTH=off to let anyone in who can reach it", h.BindAddress))
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
	Partitions        int      `env:"KAFKA_PARTITIONS" desc:"partitions of each topic; a topic that has another count is refused"`
	ReplicationFactor int      `env:"KAFKA_REPLICATION_FACTOR" desc:"replicas of a topic that is created"`
}

// DefaultKafka is one broker on this host.
func DefaultKafka() Kafka {
	return Kafka{Brokers: []string{"localhost:9092"}, Partitions: 12, ReplicationFactor: 1}
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
	if k.Partitions < 1 || k.Partitions > 10_000 {
		errs = append(errs, fmt.Errorf("KAFKA_PARTITIONS=%d is outside 1 to 10000", k.Partitions))
	}
	if k.ReplicationFactor < 1 || k.ReplicationFactor > 100 {
		errs = append(errs, fmt.Errorf("KAFKA_REPLICATION_FACTOR=%d is outside 1 to 100", k.ReplicationFactor))
	}
	return errors.Join(errs...)
}

// Postgres says where the database is and how many connections to keep.
type Postgres struct {
	URL             string        `env:"DB_URL" desc:"postgres://user:password@host:port/database?sslmode=…" secret:"url"`
	MaxOpenConns    int           `env:"DB_MAX_OPEN_CONNS" desc:"most connections at once"`
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

// Validate checks the URL's form and the pool's bounds. It never repeats the URL, which holds a password.
func (p Postgres) Validate() error {
	var errs []error
	if u, err := url.Parse(p.URL); err != nil || (u.Scheme != "postgres" && u.Scheme != "postgresql") || u.Host == "" || strings.Trim(u.Path, "/") == "" {
		errs = append(errs, errors.New("DB_URL is no URL of the form postgres://user:password@host:port/database?sslmode=disable"))
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

// ServiceURL checks the base URL of another service.
func ServiceURL(name, value string) error {
	if u, err := url.Parse(value); err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" {
		return fmt.Errorf("%s=%q is no base URL such as http://127.0.0.1:7080", name, value)
	}
	return nil
}

package config

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/shared/auth"
	"github.com/tidemark/tidemark/shared/certs/certstest"
)

type service struct {
	HTTP
	Log
	Kafka
	Postgres
	Token string `env:"TOKEN" desc:"a secret" secret:"true"`
}

func defaults() service {
	return service{HTTP: DefaultHTTP(7080), Log: Log{Level: "info"}, Kafka: DefaultKafka(), Postgres: DefaultPostgres()}
}

func TestLoadOverridesDefaults(t *testing.T) {
	t.Parallel()
	c := defaults()
	require.NoError(t, Load(&c, map[string]string{
		"SERVER_PORT": "8080", "KAFKA_BROKERS": "a:1,b:2", "SHUTDOWN_TIMEOUT": "3s", "LOG_LEVEL": "", "PATH": "/bin",
		"KAFKA_GROUP_ID": "another service's", "DB_PORT": "tcp://10.0.0.1:5432",
	}))
	require.Equal(t, 8080, c.ServerPort)
	require.Equal(t, []string{"a:1", "b:2"}, c.Brokers)
	require.Equal(t, 3*time.Second, c.ShutdownTimeout)
	require.Equal(t, "info", c.Level)
}

func TestLoadTellsAllMistakesAtOnce(t *testing.T) {
	t.Parallel()
	c := defaults()
	err := Load(&c, map[string]string{
		"SERVER_PORT": "http", "SHUTDOWN_TIMEOUT": "soon", "BIND_ADDRESS": "0.0.0.0", "LOG_LEVEL": "loud", "KAFKA_BROKERS": "nowhere",
		"KAFKA_PARTITION": "3", "DB_USERNAME": "me", "DB_URL": "mysql://secret@x/y", "TOKEN_FILE": filepath.Join(t.TempDir(), "none"),
	})
	for _, want := range []string{
		`SERVER_PORT="http" is not a whole number`, `SHUTDOWN_TIMEOUT="soon" is not a duration`, "is off loopback", `LOG_LEVEL="loud"`,
		`"nowhere" is not host:port`, "KAFKA_PARTITION is no setting: KAFKA_PARTITIONS is meant", "DB_USERNAME is the name of an older set-up: set DB_URL",
		"DB_URL is no URL of the form", "TOKEN_FILE: open", "9 configuration errors",
	} {
		require.ErrorContains(t, err, want)
	}
	require.NotContains(t, err.Error(), "secret@x")
}

func TestBlanksAroundValuesAreNoPartOfThem(t *testing.T) {
	t.Parallel()
	c := defaults()
	require.NoError(t, Load(&c, map[string]string{
		"SERVER_PORT": " 8080", "KAFKA_BROKERS": "a:1, b:2 ,c:3", "TRUSTED_PROXIES": "10.0.0.1, 10.1.0.0/16", "LOG_LEVEL": "debug\n", "TOKEN": " kept ",
	}))
	require.Equal(t, 8080, c.ServerPort)
	require.Equal(t, []string{"a:1", "b:2", "c:3"}, c.Brokers)
	require.Equal(t, []string{"10.0.0.1", "10.1.0.0/16"}, c.TrustedProxies)
	require.Equal(t, "debug", c.Level)
	require.Equal(t, " kept ", c.Token)
	c = defaults()
	require.NoError(t, Load(&c, map[string]string{"KAFKA_BROKERS": "a:1,,b:2,"}))
	require.Equal(t, []string{"a:1", "b:2"}, c.Brokers)
	c = defaults()
	require.ErrorContains(t, Load(&c, map[string]string{"KAFKA_BROKERS": " , "}), "is not host:port")
}

// An orchestrator sets NAME_PORT for a service NAME.
func TestWhatAnOrchestratorSetsIsNamed(t *testing.T) {
	t.Parallel()
	c := defaults()
	err := Load(&c, map[string]string{"SERVER_PORT": "tcp://10.43.0.7:80", "SHUTDOWN_TIMEOUT": "tcp://10.43.0.7:80", "KAFKA_PORT": "tcp://10.43.0.8:9092"})
	require.ErrorContains(t, err, `SERVER_PORT="tcp://10.43.0.7:80" is what Kubernetes sets for a service of that name: set enableServiceLinks: false in the pod, or set SERVER_PORT yourself`)
	require.ErrorContains(t, err, `SHUTDOWN_TIMEOUT="tcp://10.43.0.7:80" is what Kubernetes sets`)
	require.ErrorContains(t, err, "2 configuration errors")
}

func TestOffLoopbackNeedsAuthOff(t *testing.T) {
	t.Parallel()
	for _, address := range []string{"0.0.0.0", "::", "", "10.1.2.3", "example.org"} {
		h := DefaultHTTP(7080)
		h.BindAddress = address
		require.ErrorContains(t, h.Validate(), "AUTH=off", address)
		h.Auth = "off"
		require.NoError(t, h.Validate(), address)
	}
	h := DefaultHTTP(7080)
	h.BindAddress, h.APIKeysFile = "0.0.0.0", filepath.Join(t.TempDir(), "keys")
	require.ErrorContains(t, h.Validate(), "tidemark keys create", "a file that is not there is no authentication")
	_, _, err := auth.Create(h.APIKeysFile, "test", []string{"read"}, time.Time{}, time.Now())
	require.NoError(t, err)
	require.NoError(t, h.Validate())
	h.Auth = "off"
	require.ErrorContains(t, h.Validate(), "contradict")
	for _, address := range []string{"127.0.0.1", "127.9.9.9", "::1", "localhost"} {
		h := DefaultHTTP(7080)
		h.BindAddress = address
		require.NoError(t, h.Validate(), address)
	}
}

func TestSecretsComeFromFilesAndAreMasked(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "url")
	require.NoError(t, os.WriteFile(file, []byte("postgres://me:hunter2@db:5432/tm?sslmode=disable\n"), 0o600))
	c := defaults()
	require.NoError(t, Load(&c, map[string]string{"DB_URL_FILE": file, "TOKEN": "hunter2"}))
	require.Equal(t, "postgres://me:hunter2@db:5432/tm?sslmode=disable", c.URL)
	shown := map[string]string{}
	for _, s := range Settings(&c) {
		shown[s.Name] = s.Value
		require.NotContains(t, s.Value, "hunter2")
	}
	require.Equal(t, "postgres://me:***@db:5432/tm?sslmode=disable", shown["DB_URL"])
	require.Equal(t, "***", shown["TOKEN"])
	require.Equal(t, "localhost:9092", shown["KAFKA_BROKERS"])

	require.ErrorContains(t, Load(&c, map[string]string{"DB_URL_FILE": file, "DB_URL": "x"}), "both set")
}

// Files of certificates are judged before anything is started: each mistake names the variable and the file.
func TestSecurityThatCannotWorkIsToldAtOnce(t *testing.T) {
	t.Parallel()
	ca := certstest.New(t)
	pair := ca.Issue(t)
	old := ca.IssueFor(t, time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour), "localhost")
	c := defaults()
	require.NoError(t, Load(&c, map[string]string{
		"TLS_CERT_FILE": pair.Cert, "TLS_KEY_FILE": pair.Key, "KAFKA_TLS_CA_FILE": ca.File, "KAFKA_TLS_CERT_FILE": pair.Cert, "KAFKA_TLS_KEY_FILE": pair.Key,
		"KAFKA_SASL_MECHANISM": "SCRAM-SHA-512", "KAFKA_SASL_USERNAME": "me", "KAFKA_SASL_PASSWORD": "hunter2", "RATE_LIMIT": "0", "TRUSTED_PROXIES": "10.0.0.1,10.0.0.0/8,::1",
		"DB_URL": "postgres://me@db/tm?sslmode=verify-full&sslrootcert=" + ca.File + "&sslcert=" + pair.Cert + "&sslkey=" + pair.Key,
	}))
	require.True(t, c.SpeaksTLS())
	require.Equal(t, "https", c.Scheme())
	for _, s := range Settings(&c) {
		require.NotContains(t, s.Value, "hunter2", s.Name)
	}
	c = defaults()
	err := Load(&c, map[string]string{
		"TLS_CERT_FILE": old.Cert, "TLS_KEY_FILE": old.Key, "KAFKA_TLS_CA_FILE": "/none/ca.pem", "KAFKA_TLS_CERT_FILE": pair.Cert, "KAFKA_TLS_KEY_FILE": old.Key,
		"KAFKA_SASL_MECHANISM": "GSSAPI", "RATE_LIMIT": "-1", "TRUSTED_PROXIES": "everybody",
		"DB_URL": "postgres://me:hunter2@db/tm?sslmode=verify-full&sslrootcert=/none/root.pem&sslcert=" + pair.Cert,
	})
	for _, want := range []string{
		"TLS_CERT_FILE: the certificate in " + old.Cert + " has expired", "KAFKA_TLS_CA_FILE: there is no file /none/ca.pem",
		"KAFKA_TLS_KEY_FILE: " + old.Key + " is not the key of the certificate in " + pair.Cert, `KAFKA_SASL_MECHANISM="GSSAPI" is none of`, "RATE_LIMIT=-1",
		`TRUSTED_PROXIES: "everybody"`, "sslrootcert of DB_URL: there is no file /none/root.pem", "sslcert of DB_URL is set and sslkey of DB_URL is not", "8 configuration errors",
	} {
		require.ErrorContains(t, err, want)
	}
	require.NotContains(t, err.Error(), "hunter2")
	for _, environ := range []map[string]string{{"KAFKA_SASL_MECHANISM": "PLAIN"}, {"KAFKA_SASL_MECHANISM": "PLAIN", "KAFKA_SASL_USERNAME": "me"}} {
		require.ErrorContains(t, Load(new(defaults()), environ), "needs KAFKA_SASL_USERNAME and KAFKA_SASL_PASSWORD")
	}
	require.ErrorContains(t, Load(new(defaults()), map[string]string{"KAFKA_SASL_USERNAME": "me"}), "KAFKA_SASL_MECHANISM is not")
}

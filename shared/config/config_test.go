package config

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
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
		"DB_URL is no URL of the form", "TOKEN_FILE: open", "9 to mend",
	} {
		require.ErrorContains(t, err, want)
	}
	require.NotContains(t, err.Error(), "secret@x")
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

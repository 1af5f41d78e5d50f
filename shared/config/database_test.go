package config

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestDatabaseURLsAreTakenApart(t *testing.T) {
	t.Parallel()
	none := map[string]string{}
	for url, want := range map[string]Database{
		"postgres://me@h/db":                             {User: "me", Name: "db", Hosts: []DatabaseHost{{"h", 5432}}, Connection: none, Session: none},
		"postgresql://me:p%40ss@h:1/db":                  {User: "me", Password: "p@ss", Name: "db", Hosts: []DatabaseHost{{"h", 1}}, Connection: none, Session: none},
		"postgres://me:a@b@h:1/db":                       {User: "me", Password: "a@b", Name: "db", Hosts: []DatabaseHost{{"h", 1}}, Connection: none, Session: none},
		"postgres://me@h1:1,h2:2/db":                     {User: "me", Name: "db", Hosts: []DatabaseHost{{"h1", 1}, {"h2", 2}}, Connection: none, Session: none},
		"postgres://me@h1,[::1]:2,::1,10.0.0.1/db":       {User: "me", Name: "db", Hosts: []DatabaseHost{{"h1", 5432}, {"::1", 2}, {"::1", 5432}, {"10.0.0.1", 5432}}, Connection: none, Session: none},
		"postgres://me@/db?host=/run/postgresql":         {User: "me", Name: "db", Hosts: []DatabaseHost{{"/run/postgresql", 5432}}, Connection: none, Session: none},
		"postgres://me@/db?host=h1,h2&port=7":            {User: "me", Name: "db", Hosts: []DatabaseHost{{"h1", 7}, {"h2", 7}}, Connection: none, Session: none},
		"postgres://me@h/db?sslmode=disable&jit=off":     {User: "me", Name: "db", Hosts: []DatabaseHost{{"h", 5432}}, Connection: map[string]string{"sslmode": "disable"}, Session: map[string]string{"jit": "off"}},
		"postgres://me@h/db?target_session_attrs=any":    {User: "me", Name: "db", Hosts: []DatabaseHost{{"h", 5432}}, Connection: map[string]string{"target_session_attrs": "any"}, Session: none},
		"postgres://me@h/db?lock_timeout=3&plan.b=a%20b": {User: "me", Name: "db", Hosts: []DatabaseHost{{"h", 5432}}, Connection: none, Session: map[string]string{"lock_timeout": "3", "plan.b": "a b"}},
	} {
		got, err := Postgres{URL: url}.Database()
		require.NoError(t, err, url)
		require.Equal(t, want, got, url)
	}
}

// What --check lets pass works; so what cannot work is refused, in words that never repeat the password.
func TestDatabaseURLsThatCannotWorkAreRefused(t *testing.T) {
	t.Parallel()
	for url, want := range map[string]string{
		"":                                     databaseForm,
		"me:hunter2@h/db":                      databaseForm,
		"mysql://me:hunter2@h/db":              databaseForm,
		"host=h user=me password=hunter2":      databaseForm,
		"postgres://me:hunter2@h":              databaseForm,
		"postgres://me:hunter2@h/":             databaseForm,
		"postgres://me:hunter2@/db":            databaseForm,
		"postgres://h/db":                      "names no user",
		"postgres://me:hunter2@h1:1,/db":       `"" in DB_URL is not host:port`,
		"postgres://me:hunter2@h1:1, h2:2/db":  `" h2:2" in DB_URL is not host:port`,
		"postgres://me:hunter2@h:none/db":      `"h:none" in DB_URL is not host:port`,
		"postgres://me:hunter2@h:0/db":         "is not host:port",
		"postgres://me:hunter2@h:70000/db":     "is not host:port",
		"postgres://me@h/db?password=hunter2":  "password of DB_URL: put it before the host",
		"postgres://me:hunter2@h/db?host=x":    "the URL names hosts already",
		"postgres://me@h/db?sslmode=on":        "sslmode=on of DB_URL is not known: one of disable, allow",
		"postgres://me@h/db?sslmod=require":    "sslmod of DB_URL is no setting: sslmode is meant",
		"postgres://me@h/db?gssencmode=prefer": "gssencmode of DB_URL: the driver has no such setting",
		"postgres://me@h/db?search_path=me":    "search_path of DB_URL",
		"postgres://me@h/db?a=1&a=2":           "a of DB_URL is there more than once",
		"postgres://me@h/db?connect_timeout=x": "is no number of seconds",
		"postgres://me@h/db?a%3B=1":            `"a;" of DB_URL is no setting`,
		"postgres://me@h/db?a=1;b=2":           "name=value, joined by &",
	} {
		err := Postgres{URL: url, MaxOpenConns: 16}.Validate()
		require.ErrorContains(t, err, want, url)
		require.NotContains(t, err.Error(), "hunter2", url)
	}
}

func TestPasswordsInURLsOfSeveralHostsAreMasked(t *testing.T) {
	t.Parallel()
	for url, want := range map[string]string{
		"postgres://me:hunter2@h1:1,h2:2/db?sslmode=disable": "postgres://me:***@h1:1,h2:2/db?sslmode=disable",
		"postgres://me@h1,h2/db":                             "postgres://me@h1,h2/db",
		"postgres://me@h/db?password=hunter2":                "postgres://me@h/db?password=%2A%2A%2A",
		"postgres://me:hunter2@/db?host=h1,h2":               "postgres://me:***@/db?host=h1,h2",
		"host=h password=hunter2":                            "***",
		"postgres://me:hun%ter2@h/db":                        "***",
	} {
		require.Equal(t, want, MaskURL(url), url)
	}
}

// An environment is often handed to clients as it is to services. A client takes its own settings out of it.
func TestAClientIgnoresWhatItDoesNotRead(t *testing.T) {
	t.Parallel()
	var c struct {
		Key string `env:"TIDEMARK_API_KEY" secret:"true"`
	}
	environ := map[string]string{"DB_USER": "me", "KAFKA_BROKER": "b:9092", "SERVER_PORTS": "1", "TIDEMARK_API_KEY": "k"}
	require.NoError(t, LoadOwn(&c, environ))
	require.Equal(t, "k", c.Key)
	require.Error(t, Load(&c, environ))
}

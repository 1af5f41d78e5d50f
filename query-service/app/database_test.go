package app

import (
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/query-service/internal/testdb"
	"github.com/tidemark/tidemark/shared/await"
	"github.com/tidemark/tidemark/shared/postgres/postgrestest"
)

// A reader is served by a database that takes no writes, before and after its sessions are ended.
func TestAReadOnlyDatabaseIsRead(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	s := start(t, db.URL, nil)
	s.awaitReady(t)
	for _, on := range []bool{true, false} {
		postgrestest.SetReadOnly(t, db.URL, on)
		s.awaitReady(t)
		for range 20 {
			require.Equal(t, http.StatusOK, s.get(t, "/ready").status)
			require.Equal(t, http.StatusOK, s.get(t, "/api/v1/projections").status)
		}
	}
}

// /ready says what is wrong with the database in the words of shared/postgres, and gives nothing away of where it is.
func TestReadinessSaysWhyTheDatabaseCannotBeRead(t *testing.T) {
	t.Parallel()
	for want, change := range map[string]func(*url.URL){
		"refuses the user or the password": func(u *url.URL) { u.User = url.UserPassword(u.User.Username(), "hunter2") },
		"does not exist":                   func(u *url.URL) { u.Path = "/missing" },
		"does not speak TLS":               func(u *url.URL) { u.RawQuery = "sslmode=require" },
	} {
		t.Run(want, func(t *testing.T) {
			t.Parallel()
			u, err := url.Parse(postgrestest.New(t))
			require.NoError(t, err)
			change(u)
			s := start(t, u.String(), nil)
			for _, path := range []string{"/ready", "/api/v1/timestamp/01920b5c-7d4e-7cc3-98c4-dc0c0c07398f"} {
				var a answer
				await.Until(t, func() bool { a = s.get(t, path); return strings.Contains(a.body, want) })
				require.Equal(t, http.StatusServiceUnavailable, a.status)
				require.NotContains(t, a.body, u.Port())
				require.NotContains(t, a.body, "pq:")
			}
		})
	}
}

package postgres

import (
	"context"
	"net"
	"net/url"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/shared/freeport"
	"github.com/tidemark/tidemark/shared/postgres/postgrestest"
)

// peer answers each connection by serve, and returns its address.
func peer(t *testing.T, serve func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			serve(c)
		}
	}()
	return l.Addr().String()
}

// Each way in which a database cannot be used has one wording, which names the part that is at fault and gives nothing
// away to whoever asks /ready without a key.
func TestEachCauseIsSaidInOneWording(t *testing.T) {
	t.Parallel()
	port, err := freeport.Find(t.Context())
	require.NoError(t, err)
	nobody := freeport.Address(port)
	silent := peer(t, func(c net.Conn) { t.Cleanup(func() { _ = c.Close() }) })
	ends := peer(t, func(c net.Conn) { _ = c.Close() })
	stranger := peer(t, func(c net.Conn) { _, _ = c.Write([]byte("HTTP/1.1 400 Bad Request\r\n\r\n")); _ = c.Close() })
	setting := func(name, value string) func(*url.URL) {
		return func(u *url.URL) { q := u.Query(); q.Set(name, value); u.RawQuery = q.Encode() }
	}
	for name, tc := range map[string]struct {
		change func(*url.URL)
		want   string
	}{
		"password":         {func(u *url.URL) { u.User = url.UserPassword(u.User.Username(), "hunter2") }, "refuses the user or the password of DB_URL"},
		"user":             {func(u *url.URL) { u.User = url.UserPassword("nobody", "hunter2") }, "refuses the user or the password of DB_URL"},
		"host":             {func(u *url.URL) { u.Host = "nowhere.invalid:5432" }, "the host that DB_URL names"},
		"database":         {func(u *url.URL) { u.Path = "/missing" }, "the database that DB_URL names does not exist"},
		"TLS":              {setting("sslmode", "require"), "does not speak TLS"},
		"setting":          {setting("no_such_setting", "1"), "does not know a setting of DB_URL"},
		"value":            {setting("lock_timeout", "soon"), "does not know a setting of DB_URL, or the value"},
		"port":             {func(u *url.URL) { u.Host = nobody }, "nothing listens at the address that DB_URL names"},
		"silence":          {func(u *url.URL) { u.Host = silent; setting("connect_timeout", "1")(u) }, "does not answer in time"},
		"end":              {func(u *url.URL) { u.Host = ends }, "the connection to the database was lost"},
		"another protocol": {func(u *url.URL) { u.Host = stranger }, "or what answers there is no PostgreSQL"},
		"first of several": {func(u *url.URL) { u.Host = nobody + "," + u.Host; u.Path = "/missing" }, "the database that DB_URL names does not exist"},
		"no host is up":    {func(u *url.URL) { u.Host = nobody + "," + nobody }, "nothing listens at the address that DB_URL names"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := fresh(t)
			u, err := url.Parse(c.URL)
			require.NoError(t, err)
			setting("connect_timeout", "60")(u) // a busy machine is no silence
			tc.change(u)
			c.URL = u.String()
			db := open(t, c, WriterLimits)
			err = db.PingContext(t.Context())
			cause, ours := CauseIn(db, err)
			require.True(t, ours, err)
			require.Contains(t, cause.Found, tc.want, err)
			require.NotEmpty(t, cause.Do)
			for _, internal := range []string{"hunter2", u.User.Username(), u.Hostname(), u.Port(), "pq:", "dial"} {
				if internal != "" {
					require.NotContains(t, cause.Found, internal)
				}
			}
		})
	}
	require.Zero(t, CauseOf(nil))
}

// The server that the services of a stand-by site reach, one that was switched to read-only, and a pool that is used up
// answer like a server that is down unless they are told apart.
func TestAReadOnlyServerAndAFullPoolAreNotDown(t *testing.T) {
	t.Parallel()
	c := fresh(t)
	c.MaxOpenConns = 4
	db := open(t, c, WriterLimits)
	for range c.MaxOpenConns {
		conn, err := db.Conn(t.Context())
		require.NoError(t, err)
		defer func() { _ = conn.Close() }()
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	cause, ours := CauseIn(db, db.PingContext(ctx))
	require.True(t, ours)
	require.Contains(t, cause.Found, "DB_MAX_OPEN_CONNS")

	postgrestest.SetReadOnly(t, c.URL, true)
	fresh := open(t, c, WriterLimits)
	cause, ours = CauseIn(fresh, fresh.PingContext(t.Context()))
	require.True(t, ours)
	require.Contains(t, cause.Found, "the database is read-only")
	postgrestest.SetReadOnly(t, c.URL, false)
	require.NoError(t, fresh.PingContext(t.Context()))

	_, ours = CauseIn(fresh, context.DeadlineExceeded)
	require.False(t, ours, "of a broker, as far as one can see")
}
